"""A plug-in that ends the process, or says that Ctrl-C was pressed, has failed like any other; a
Ctrl-C of the user's has not.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.cli import main
from bench.engine import Engine
from bench.errors import BenchError, EndedByPlugin
from bench.plugins import entries
from bench.results.store import Store
from bench.run_spec import Settings
from bench.stopping import Reporter
from bench.sweeps.job import JobResult
from bench.sweeps.sweep import Sweep
from bench.sweeps.sweep_spec import sweep_spec

from support.messages import states

#: Ends in one of several places.
QUITS = """
import os, signal, sys
from torch.nn.functional import cross_entropy
from bench import FineTuner
class Cancelled(BaseException):
    pass
def leave(here):
    if here == "PLACE":
        HOW
leave("import")
class Quits(FineTuner):
    name = "quits"
    def model_post_init(self, context):
        leave("parameters")
    def bind(self, traits):
        leave("planning")
        return super().bind(traits)
    def fit(self, task):
        leave("fit")
        return super().fit(task)
    def loss(self, batch, student, teacher, constants):
        if batch.step == 3:
            leave("loss")
            if 0 not in batch.rows:
                leave("second device")
        return cross_entropy(student(batch.images), batch.labels)
"""
WAYS = {
    "sys.exit(0)": "sys.exit(0)",
    "sys.exit()": "sys.exit(None)",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise Cancelled('of mine')": "Cancelled of mine",
}


@pytest.fixture(autouse=True)
def _ctrl_c_as_usual() -> Iterator[None]:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def quits(folder: Path, place: str, how: str = "sys.exit(0)") -> str:
    """The file of a method that ends there."""
    file = folder / "quits.py"
    file.write_text(QUITS.replace("PLACE", place).replace("HOW", how))
    return str(file)


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("place", ["fit", "loss"])
@pytest.mark.parametrize(("how", "shown"), WAYS.items())
def test_a_run_is_a_failed_row_and_the_next_one_runs(
    place: str, how: str, shown: str, tiny_suite: Path, tmp_path: Path
) -> None:
    method = quits(tmp_path, place, how)
    where = ("--suite", str(tiny_suite), "--store", str(tmp_path / "s"), "--format", "json")
    code, out, err = command("run", method, "linear-probe", *where)
    assert code == 1
    failed, done = json.loads(out)["runs"]
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert f"a plug-in tried to end the process: {shown}" in failed["error"]
    assert "in leave" in failed["traceback"]
    assert "error: quits, seed 0: EndedByPlugin" in err


@pytest.mark.parametrize(
    ("place", "code", "shown"),
    [
        (
            "import",
            2,
            (
                "the method's file cannot be imported: a plug-in tried to end the process:"
                " sys.exit(0)"
            ),
        ),
        ("parameters", 1, "a plug-in tried to end the process: sys.exit(0)"),
        ("planning", 1, "a plug-in tried to end the process: sys.exit(0)"),
    ],
)
def test_before_there_is_a_row_it_is_an_error(
    place: str, code: int, shown: str, tiny_suite: Path, tmp_path: Path
) -> None:
    method = quits(tmp_path, place)
    for verb in (("run",), ("sweep", "--trials", "0", "--runner", "inline")):
        found, out, err = command(
            *verb, method, "--suite", str(tiny_suite), "--store", str(tmp_path / "s")
        )
        assert (found, out) == (code, "")
        assert shown in err
    with pytest.raises(BenchError, match="tried to end"):
        bench.run(method, suite=str(tiny_suite), store=tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sys.exit(0)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize(
    "verb", [["run", "--jobs", "2"], ["sweep", "--trials", "0", "--runner", "inline"]]
)
def test_trials_are_counted_as_failed(
    verb: list[str], how: str, tiny_suite: Path, tmp_path: Path
) -> None:
    method, store = quits(tmp_path, "loss", how), tmp_path / "s"
    code, _, err = command(
        *verb,
        method,
        "linear-probe",
        "--seeds",
        "1",
        "--suite",
        str(tiny_suite),
        "--store",
        str(store),
    )
    assert code == 1
    assert {r.method["name"]: r.status for _, r in Store(store).records()} == {
        "quits": "failed",
        "linear-probe": "done",
    }
    assert "FAILED: run quits, seed 0" in err
    assert "[2 of 2]" in err


@pytest.mark.parametrize("how", ["sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_trial_in_a_thread_of_ray_fails(how: str, tiny_suite: Path, tmp_path: Path) -> None:
    spec = sweep_spec(
        {
            "methods": (quits(tmp_path, "loss", how),),
            "suites": (str(tiny_suite),),
            "trials": 0,
            "seeds": (0,),
        }
    )
    sweep = Sweep(spec, store=tmp_path / "s", settings=Settings(), reporter=Reporter())
    (job,) = sweep.queue.jobs
    outcomes: list[JobResult] = []
    thread = threading.Thread(target=lambda: outcomes.append(sweep.work.do(job, Reporter())))
    thread.start()
    thread.join()
    assert [outcome.status for outcome in outcomes] == ["failed"]
    assert "tried to end the process" in outcomes[0].error


@pytest.mark.slow
def test_a_process_of_a_further_device_tells_it(tiny_suite: Path, tmp_path: Path) -> None:
    method = quits(tmp_path, "second device")
    (record,) = bench.run(
        method, suite=str(tiny_suite), store=tmp_path / "s", engine=Engine(threads=1, devices=2)
    )
    assert record.status == "failed"
    assert "sys.exit(0)" in record.error
    assert "device 2 of 2" in record.error


#: Ends its process past all that Python could do about it.
DIES = "os._exit(0)"


@pytest.mark.slow
def test_a_trial_s_process_that_is_ended_by_the_system_is_reported_too(
    tiny_suite: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"trials": 0, "seeds": [0], "runner": "local", "max_failures": 0}
    (record,) = bench.sweep(
        quits(tmp_path, "loss", DIES), suites=[str(tiny_suite)], store=tmp_path / "s", **fields
    )
    assert record.status == "failed"
    assert "its process ended with exit code 0" in record.error


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_check_fails(how: str, tiny_suite: Path, tmp_path: Path) -> None:
    code, _, err = command("check", quits(tmp_path, "loss", how), "--suite", str(tiny_suite))
    assert code == 1
    assert states(err, "fail", "fits", "EndedByPlugin")


def test_a_package_that_cannot_be_imported_hides_no_other(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quitting.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for group in ("bench.methods", "bench.backbones", "bench.commands"):
        for name in ("quitting", "broken"):
            monkeypatch.setitem(entries(group), name, EntryPoint(name, f"{name}:thing", group))
    code, out, err = command("methods", "--format", "csv")
    assert code == 0
    assert states(out, "`quitting`", "sys.exit(0)")
    assert states(out, "`broken`", "RuntimeError: half installed")
    assert "full-finetune" in out
    assert "note: the command `quitting` is unavailable" in err
    code, out, _ = command("backbones")
    assert code == 0
    assert "mini-clip" in out
    for arguments in (
        ["run", "quitting"],
        ["methods", "show", "broken"],
        ["run", "linear-probe", "--backbone", "quitting"],
    ):
        code, _, err = command(*arguments)
        assert code == 1, err
        assert "cannot be loaded" in err
    code, out, _ = command("doctor", "--format", "csv", "--store", str(tmp_path / "s"))
    assert code == 1
    assert out.count("cannot be loaded") == 6


@pytest.mark.slow
def test_all_methods_are_swept_but_the_broken_one_which_is_reported_with_its_package(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "half_done-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: half-done\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[bench.methods]\nbroken = half_done:Method\n")
    (tmp_path / "half_done.py").write_text("import that_is_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries.cache_clear()
    try:
        shown = (
            "the plug-in `broken` of half-done 1.2 cannot be loaded: ModuleNotFoundError: No module"
            " named 'that_is_not_installed'"
        )
        code, out, err = command(
            "sweep", "all", "--suite", str(tiny_suite), "--dry-run", "--store", str(tmp_path / "s")
        )
        assert code == 0, err
        assert "full-finetune" in out
        assert f"broken is skipped: {shown}" in " ".join(err.split())
        code, out, _ = command("methods", "--format", "csv")
        assert code == 0
        assert shown in out
        code, _, err = command(
            "sweep",
            "broken",
            "--suite",
            str(tiny_suite),
            "--dry-run",
            "--store",
            str(tmp_path / "s"),
        )
        assert code == 1
        assert shown in " ".join(err.split())
    finally:
        entries.cache_clear()


@pytest.mark.parametrize("way", ["run", "sweep"])
def test_a_real_ctrl_c_in_python_keeps_its_meaning(
    way: str, tiny_suite: Path, tmp_path: Path
) -> None:
    method, store = quits(tmp_path, "loss", "os.kill(os.getpid(), signal.SIGINT)"), tmp_path / "s"
    fields: dict[str, Any] = {"suite": str(tiny_suite), "store": store}
    if way == "sweep":
        fields = {
            "suites": [str(tiny_suite)],
            "store": store,
            "trials": 0,
            "seeds": [0],
            "runner": "inline",
        }
    with pytest.raises(KeyboardInterrupt):
        getattr(bench, way)(method, "linear-probe", **fields)
    assert [record.status for _, record in Store(store).records()] == ["cancelled"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # It is over, and excuses no plug-in later in the same process.
    method = quits(tmp_path, "loss", "raise KeyboardInterrupt")
    code, _, err = command(
        "run", method, "--suite", str(tiny_suite), "--store", str(tmp_path / "later")
    )
    assert code == 1
    assert "EndedByPlugin" in err


def test_an_error_says_what_was_called() -> None:
    assert EndedByPlugin(SystemExit(3)).what.endswith("sys.exit(3)")
