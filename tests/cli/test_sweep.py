"""`bench sweep` in a shell: what it prints, how it ends, how it is stopped and continued."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cli import main
from bench.results.store import Store


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def bench(*arguments: str) -> Done:
    """The command in this process, where torch is imported already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


@pytest.mark.slow
def test_plan_then_board(tiny_suite: Path, tmp_path: Path) -> None:
    requested = [
        "sweep",
        "full-finetune",
        "wise-ft",
        "--trials",
        "2",
        "--seeds",
        "1",
        "--runner",
        "inline",
    ]
    where = ["--suite", str(tiny_suite), "--store", str(tmp_path / "store"), "--format", "json"]
    before = bench(*requested, *where, "--dry-run")
    assert before.returncode == 0, before.stderr
    assert not (tmp_path / "store").exists(), "a dry run writes nothing"
    rows = json.loads(before.stdout)["tables"][0]["rows"]
    assert [row["state"] for row in rows if row["phase"] == "search"] == [
        "to do",
        "waits",
        "to do",
        "waits",
    ]
    assert [row["why"] for row in rows if row["phase"] == "final"] == ["for its search"] * 2
    assert [row["method"] for row in rows if row["trial"] == 1] == [
        "full-finetune (lr=0.000448)",
        "wise-ft (of.lr=0.000448)",
    ]

    done = bench(*requested, *where)
    assert done.returncode == 0, done.stderr
    board = {
        row["method"]: row["trials"]
        for table in json.loads(done.stdout)["tables"]
        for row in table["rows"]
    }
    assert sorted(board.values()) == [2, 2]
    assert "[11 of 11]" in done.stderr, "one line per change of state, counted"

    after = bench(*requested, *where, "--dry-run")
    (table,) = json.loads(after.stdout)["tables"]
    assert {row["state"] for row in table["rows"]} == {"done"}
    assert table["notes"] == ["everything is done already"]
    forgotten = bench(*requested, *where, "--seed", "9", "--dry-run")
    assert forgotten.returncode == 2, "--seeds and --seed contradict each other"


def test_estimates_come_from_earlier_records(tiny_suite: Path, tmp_path: Path) -> None:
    where = [
        "--suite",
        str(tiny_suite),
        "--store",
        str(tmp_path),
        "--trials",
        "0",
        "--runner",
        "inline",
        "--format",
        "json",
    ]
    assert bench("sweep", "linear-probe", "--seeds", "1", *where).returncode == 0
    (table,) = json.loads(
        bench("sweep", "linear-probe", "full-finetune", "--seeds", "2", "--dry-run", *where).stdout
    )["tables"]
    seconds = {(row["method"], row["seed"]): row["seconds"] for row in table["rows"]}
    assert seconds["linear-probe", 1] > 0
    assert seconds["full-finetune", 0] is None
    assert any("part of 2 jobs" in note and note.startswith("At least") for note in table["notes"])


def test_a_failure_is_exit_1_and_named(tiny_suite: Path, tmp_path: Path) -> None:
    done = bench(
        *(
            "sweep",
            "full-finetune",
            "linear-probe",
            "--trials",
            "0",
            "--seeds",
            "1",
            "--runner",
            "inline",
        ),
        *("--set", "full-finetune.lr=1e30"),
        *("--suite", str(tiny_suite), "--store", str(tmp_path)),
    )
    assert done.returncode == 2, "a parameter that no method has"
    done = bench(
        *(
            "sweep",
            "full-finetune:lr=1e30,clip=0",
            "linear-probe",
            "--trials",
            "0",
            "--seeds",
            "1",
            "--runner",
            "inline",
        ),
        *("--suite", str(tiny_suite), "--store", str(tmp_path)),
    )
    assert done.returncode == 1
    assert "error: run full-finetune" in done.stderr
    assert "linear-probe" in done.stdout, "the board of what is there"


@pytest.mark.parametrize(
    ("arguments", "stated"),
    [
        (["full-finetun"], "did you mean `full-finetune`?"),
        ([], "methods"),
        (["full-finetune", "--shard", "3/2"], "I/N"),
        (["full-finetune", "--set", "lrr=1"], "did you mean `lr`?"),
        (["zero-shot", "--trials", "0"], "neither a text tower nor a native head"),
        (["full-finetune", "--resource", "tpu=some", "--seeds", "1"], "resources.tpu"),
        (
            ["full-finetune", "--runner", "local", "--gpus-per-trial", "64", "--trials", "0"],
            "--gpus-per-trial",
        ),
    ],
)
def test_mistakes_are_reported_in_three_lines(
    arguments: list[str], stated: str, tiny_suite: Path, tmp_path: Path
) -> None:
    done = bench("sweep", *arguments, "--suite", str(tiny_suite), "--store", str(tmp_path / "s"))
    assert done.returncode == 2, done.stderr
    assert stated in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_name_is_reported_without_importing_torch() -> None:
    code = (
        "import sys, bench.cli\ntry: bench.cli.main(['sweep', 'full-finetun'])\n"
        "except SystemExit: print([m for m in ('torch', 'ray', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_printed_commands_do_the_sweep(tiny_suite: Path, tmp_path: Path) -> None:
    requested = [
        "sweep",
        "full-finetune",
        "wise-ft",
        "--trials",
        "1",
        "--seeds",
        "1",
        "--suite",
        str(tiny_suite),
    ]
    where = ["--store", str(tmp_path), "--threads", "1"]
    for _ in ("search", "final"):
        printed = bench(*requested, *where, "--print-commands")
        assert printed.returncode == 0, printed.stderr
        for line in printed.stdout.splitlines():
            words = shlex.split(line, comments=True)
            for _ in range(2 if words else 0):  # a scheduler may start a line twice
                done = bench(*words[1:])
                assert done.returncode == 0, done.stderr
            if words:
                assert "already done" in done.stderr
    assert bench(*requested, *where, "--print-commands").stdout == ""
    assert sorted(r.method["name"] for _, r in Store(tmp_path).records() if r.phase == "final") == [
        "full-finetune",
        "wise-ft",
    ]
    assert bench(*requested, *where, "--job", "run-0").returncode == 5


@pytest.mark.slow
@pytest.mark.parametrize("cut", [[], ["--asha", "--set", "epochs=2"]])
def test_printed_commands_run_in_any_folder_and_one_failed_trial_stops_no_final_run(
    cut: list[str],
    tiny_suite: Path,
    sometimes_raises: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    sometimes_raises.rename(tmp_path / "here" / "raises.py")
    requested = [
        "sweep",
        "./raises.py",
        "--trials",
        "2",
        "--seeds",
        "1",
        "--store",
        str(tmp_path / "a store"),
        *cut,
    ]
    codes: list[int] = []
    while True:
        monkeypatch.chdir(tmp_path / "here")
        printed = bench(*requested, "--suite", os.path.relpath(tiny_suite), "--print-commands")
        lines = [
            words
            for line in printed.stdout.splitlines()
            if (words := shlex.split(line, comments=True))
        ]
        if not lines:
            break
        monkeypatch.chdir(tmp_path)
        codes += [bench(*words[1:]).returncode for words in lines]
        assert len(codes) < 9
    rows = [record for _, record in Store(tmp_path / "a store").records()]
    failed = [record for record in rows if record.status == "failed"]
    assert failed
    assert {record.error for record in failed} == {"RuntimeError: a bug of the plug-in"}
    assert codes.count(1) == len(failed), "each was tried once"
    assert [
        (record.status, record.search_trials) for record in rows if record.phase == "final"
    ] == [("done", 2)]
    assert printed.stderr.count("failed and is left out") == len(failed)
    job = printed.stderr.partition("`--job ")[2].partition("`")[0]
    assert bench(*requested, "--suite", str(tiny_suite), "--job", job).returncode == 1, "once more"


@pytest.mark.waits
def test_ctrl_c_saves_stops_and_tells_how_to_go_on(tiny_suite: Path, tmp_path: Path) -> None:
    command = [
        "sweep",
        "full-finetune",
        "--trials",
        "0",
        "--seeds",
        "2",
        "--runner",
        "local",
        "--max-concurrent",
        "2",
    ]
    command += ["--suite", str(tiny_suite), "--store", str(tmp_path), "--set", "epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.cli", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stderr is not None
    shown = ""
    journal = tmp_path / "sweep.jsonl"
    for line in process.stderr:
        shown += line
        if line.count("started:") and shown.count("started:") == 2:
            break
    # Both are in the middle of their training, with an epoch behind them.
    while (
        len(
            {
                line["job"]
                for line in map(json.loads, journal.read_text().splitlines())
                if line["event"] == "epoch"
            }
        )
        < 2
    ):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    assert process.returncode == 130
    assert f"`bench {shlex.join(command)}` continues" in rest
    assert rest.count("stopped: run full-finetune") == 2
    assert len(list(tmp_path.glob("fits/*/checkpoint/*.safetensors"))) == 2
