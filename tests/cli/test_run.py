"""`bench run`, `evaluate` and `check` as a user meets them: exit codes, messages, what goes to
stdout.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cli import main

BENCH = [sys.executable, "-m", "bench.cli"]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def bench(*arguments: str, cwd: Path | None = None) -> Done:
    """The command in this process, where torch is imported already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
    ):
        try:
            main(list(arguments))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_help_loads_nothing_heavy() -> None:
    heavy = "torch", "ray", "pandas", "sklearn", "scipy"
    code = (
        "import sys, bench.cli\ntry: bench.cli.main(['--help'])\n"
        f"except SystemExit: print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout[-200:]
    assert "run" in done.stdout


def test_answer_on_stdout_story_on_stderr(tiny_suite: Path, tmp_path: Path) -> None:
    done = bench(
        "run",
        "linear-probe",
        "--suite",
        str(tiny_suite),
        "--store",
        str(tmp_path),
        "--format",
        "json",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["runs"]
    assert record["status"] == "done"
    assert "done: linear-probe, seed 0" in done.stderr
    plan = bench(
        "run",
        "linear-probe",
        "--suite",
        str(tiny_suite),
        "--store",
        str(tmp_path),
        "--dry-run",
        "--format",
        "csv",
    )
    (planned,) = csv.DictReader(io.StringIO(plan.stdout))
    assert (planned["method"], planned["state"], planned["fits"]) == ("linear-probe", "done", "")
    assert planned["fit_id"] == record["fit_id"]
    board = bench("leaderboard", "--store", str(tmp_path), "--format", "json")
    (row,) = [row for table in json.loads(board.stdout)["tables"] for row in table["rows"]]
    assert row["id"] == record["metrics"]["id-test"]["score"]


@pytest.mark.slow
def test_a_dry_run_says_what_its_estimate_leaves_out(tiny_suite: Path, tmp_path: Path) -> None:
    where = ("--suite", str(tiny_suite), "--store", str(tmp_path), "--format", "json")

    def shown(*requested: str) -> tuple[dict[tuple[str, int], float | None], str]:
        (table,) = json.loads(bench("run", *requested, *where, "--dry-run").stdout)["tables"]
        time = [note for note in table["notes"] if "earlier record" in note]
        return {
            (row["method"], row["seed"]): row["estimate"]
            for row in table["rows"]
            if row["phase"] == "final"
        }, *time

    assert "no earlier record" in shown("full-finetune")[1]
    assert bench("run", "full-finetune", *where).returncode == 0
    (fit,) = [json.loads(file.read_text()) for file in tmp_path.glob("fits/*/fit.json")]
    (run,) = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/*/*/*/record.json")]
    rows, note = shown("full-finetune", "linear-probe", "--seed", "0", "--seed", "1")
    assert rows["full-finetune", 0] is None, "it is done"
    assert rows["full-finetune", 1] == pytest.approx(fit["seconds"] + run["eval_seconds"])
    assert rows["linear-probe", 1] is None
    assert note.startswith("At least ")
    assert "part of 2 jobs" in note
    rows, note = shown("full-finetune", "--set", "epochs=4")
    whole = 2 * fit["seconds"] + run["eval_seconds"]
    assert rows["full-finetune (epochs=4)", 0] == pytest.approx(whole), (
        "twice the epochs take twice as long"
    )
    assert note.startswith("About ")


def test_dry_run_leaves_no_store(tiny_suite: Path, tmp_path: Path) -> None:
    done = bench("run", "full-finetune", "--suite", str(tiny_suite), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "to train" in done.stdout
    assert not (tmp_path / "bench-store").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "stated"),
    [
        (["run", "full-finetun"], 2, "did you mean `full-finetune`?"),
        (["run", "full-finetune", "--set", "lr"], 2, "key=value"),
        (["run", "full-finetune", "--set", "lr=-1"], 2, "greater than 0"),
        (["run", "full-finetune", "--of", "lp-ft"], 2, "wraps no other method"),
        (["run", "full-finetune", "--seeds", "2", "--seed", "3"], 2, "not both"),
        (["run", "zero-shot"], 2, "neither a text tower nor a native head"),
        (["run", "full-finetune", "--backbone", "tim:resnet18"], 2, "did you mean `timm`?"),
        (["run", "full-finetune", "--device", "cuda:77"], 2, "cannot be used here"),
        (["run", "./missing.py"], 2, "bench methods new"),
    ],
)
def test_mistakes_are_reported_in_three_lines(
    arguments: list[str], code: int, stated: str, tiny_suite: Path, tmp_path: Path
) -> None:
    done = bench(*arguments, "--suite", str(tiny_suite), "--store", str(tmp_path))
    assert done.returncode == code, done.stderr
    assert stated in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_missing_data_is_exit_3_with_the_repair() -> None:
    done = bench("run", "full-finetune", "--suite", "pacs", "--backbone", "timm:test_vit@random")
    assert done.returncode == 3
    assert "BENCH_DATA" in done.stderr


def test_config_file_below_options(tiny_suite: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'methods = ["linear-probe"]\nsuite = "{tiny_suite}"\nseeds = [4]\nset = {{ grid = 3 }}\n'
    )
    done = bench(
        "run",
        "--config",
        str(config),
        "--seed",
        "5",
        "--store",
        str(tmp_path / "s"),
        "--format",
        "json",
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["runs"]
    assert (record["seed"], record["method"]["parameters"]["grid"]) == (5, 3)


@pytest.mark.waits
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_saves_and_stops(
    number: signal.Signals, code: int, tiny_suite: Path, tmp_path: Path
) -> None:
    command = [
        *BENCH,
        "run",
        "full-finetune",
        "--suite",
        str(tiny_suite),
        "--store",
        str(tmp_path),
        "--set",
        "epochs=100000",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/" in line:
            process.send_signal(number)
            break
    _, story = process.communicate()
    assert process.returncode == code
    assert "the same command" in story
    assert list(tmp_path.glob("fits/*/checkpoint/*.safetensors"))


@pytest.mark.slow
def test_evaluate_marks_the_row_as_external(tiny_suite: Path, tmp_path: Path) -> None:
    assert (
        bench(
            "run", "linear-probe", "--suite", str(tiny_suite), "--store", str(tmp_path)
        ).returncode
        == 0
    )
    (weights,) = tmp_path.glob("fits/*/weights-*.safetensors")
    done = bench(
        "evaluate",
        str(weights),
        "--suite",
        str(tiny_suite),
        "--store",
        str(tmp_path),
        "--name",
        "theirs",
        "--format",
        "json",
    )
    assert done.returncode == 0, done.stderr
    (external,) = json.loads(done.stdout)["runs"]
    (own,) = [
        json.loads(p.read_text()) for p in tmp_path.glob("runs/*/*/linear-probe/*/record.json")
    ]
    assert external["metrics"] == own["metrics"]
    assert "unverified" in bench("leaderboard", "--store", str(tmp_path)).stdout


def test_evaluate_refuses_what_does_not_fit_or_is_unsafe(tiny_suite: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "small.pt")
    done = bench(
        "evaluate", str(tmp_path / "small.pt"), "--suite", str(tiny_suite), "--store", str(tmp_path)
    )
    assert done.returncode == 1
    assert "head.weight has shape" in done.stderr

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    torch.save(Evil(), tmp_path / "evil.pt")
    done = bench(
        "evaluate", str(tmp_path / "evil.pt"), "--suite", str(tiny_suite), "--store", str(tmp_path)
    )
    assert done.returncode == 1
    assert "nothing of it was run" in done.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_a_method_of_ones_own(tiny_suite: Path, tmp_path: Path) -> None:
    assert bench("methods", "new", "mine.py", cwd=tmp_path).returncode == 0
    assert len((tmp_path / "mine.py").read_text().splitlines()) <= 25
    first = bench("run", "./mine.py", "--suite", str(tiny_suite), "--format", "json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# edited\n")
    second = bench("run", "./mine.py", "--suite", str(tiny_suite), "--format", "json", cwd=tmp_path)
    ids = [json.loads(done.stdout)["runs"][0]["fit_id"] for done in (first, second)]
    assert ids[0] != ids[1], "an edited file is another method"
    checked = bench("check", "./mine.py", "--suite", str(tiny_suite), cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"[1-9]\d* passed, 0 failed", checked.stdout)


@pytest.mark.slow
def test_show_draws_the_masks(tiny_suite: Path, tmp_path: Path) -> None:
    from PIL import Image

    where = ("--suite", str(tiny_suite), "--store", str(tmp_path))
    assert bench("run", "masked-counterfactual", *where).returncode == 0
    done = bench(
        "show", "masked-counterfactual", *where, "--masks", "-o", str(tmp_path / "masks.png")
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "masks.png") as photo:
        assert photo.width == 4 * 128, (
            "image, map, mask and counterfactual, 32 pixels enlarged four times"
        )
    assert bench("run", "full-finetune", *where).returncode == 0
    assert bench("show", "full-finetune", *where, "--masks").returncode == 2


@pytest.mark.slow
def test_side_by_side_equals_one_after_another(tiny_suite: Path, tmp_path: Path) -> None:
    arguments = [
        "run",
        "wise-ft",
        "full-finetune",
        "linear-probe",
        "--seeds",
        "2",
        "--suite",
        str(tiny_suite),
        "--format",
        "json",
    ]
    one = bench(*arguments, "--store", str(tmp_path / "one"))
    two = bench(*arguments, "--store", str(tmp_path / "two"), "--jobs", "2")
    assert two.returncode == 0, two.stderr

    def essence(done: Done) -> list[object]:
        return [
            [run["method"], run["seed"], run["fit_id"], run["metrics"]]
            for run in json.loads(done.stdout)["runs"]
        ]

    assert essence(one) == essence(two)
