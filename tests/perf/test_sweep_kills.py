"""A sweep whose driver is killed with -9 at random moments ends with the board of an undisturbed
one.

Run with `make perf`; the number of kills is BENCH_KILLS, and BENCH_SEED draws other moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.results.store import Store

pytestmark = pytest.mark.perf

#: 3 methods x 2 trials, of which 5 differ, and 3 x 3 final runs, with the stages that they are
#: built on: 23 jobs.
JOBS = 23
REQUESTED = [
    "full-finetune",
    "wise-ft",
    "linear-probe",
    "--trials",
    "2",
    "--seeds",
    "3",
    "--set",
    "epochs=6",
]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short temporary folder, as Ray's sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def _sweep(suite: Path, store: Path, runner: str) -> list[str]:
    where = ["--suite", str(suite), "--store", str(store), "--runner", runner]
    options = ["--max-concurrent", "2", "--checkpoint-every", "0", "--format", "json"]
    return [sys.executable, "-m", "bench.cli", "sweep", *REQUESTED, *where, *options]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_twenty_kills(tiny_suite: Path, tmp_path: Path, temporary: Path, runner: str) -> None:
    kills, moments = (
        int(os.environ.get("BENCH_KILLS", "20")),
        random.Random(os.environ.get("BENCH_SEED", "0")),
    )
    mark = uuid.uuid4().hex
    environment = {**os.environ, "BENCH_KILLS_MARK": mark, "TMPDIR": str(temporary)}
    began = time.time()
    whole = subprocess.run(
        _sweep(tiny_suite, tmp_path / "whole", runner),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    journal = _journal(tmp_path / "whole")
    first = next(event["time"] for event in journal if event["event"] == "started")
    starting, working = first - began, journal[-1]["time"] - first
    done = starts = 0
    settled: list[int] = []
    while done < kills:
        store = tmp_path / f"killed{starts}"
        starts += 1
        while True:  # one sweep, killed and continued until it ends
            log, began = tmp_path / "log", time.time()
            with log.open("w") as err:
                process = subprocess.Popen(
                    _sweep(tiny_suite, store, runner),
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                    env=environment,
                )
            # In the start of the command, of Ray, and in the preflight.
            if done < kills and moments.random() < 0.3:
                time.sleep(moments.uniform(0, starting))
            elif done < kills:  # while trials run, from the first to the last of them
                further = moments.randint(0, 8)
                while process.poll() is None and _settled(store, began) < further:
                    time.sleep(0.01)
                while process.poll() is None and not _works(store, began):
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, 2 * working / JOBS))
            if done < kills and process.poll() is None:
                process.kill()
                process.communicate()
                done += 1
                settled.append(_settled(store))
                continue
            out, _ = process.communicate()
            assert process.returncode == 0, log.read_text()
            break
        assert _untimed(out) == _untimed(whole.stdout)
        _each_run_once(store, tmp_path / "whole")
        assert sorted(path.name for path in store.iterdir()) == sorted(
            path.name for path in (tmp_path / "whole").iterdir()
        )
        assert _gone(mark) < 60
        assert not list(temporary.glob("bench-*"))
    print(
        f"\n{runner}: undisturbed {starting:.0f} s until the first trial and {working:.0f} s of"
        " trials;"
    )
    print(
        f"{done} kills in {starts} sweeps, when {settled} jobs had ended in them; every board equal"
        " to the undisturbed one,"
    )
    print("no process and no folder left")


def _works(store: Path, since: float) -> bool:
    """Whether a trial of this start is under way."""
    return any(event["event"] == "started" and event["time"] >= since for event in _journal(store))


def _settled(store: Path, since: float = 0) -> int:
    """How many jobs have ended since then."""
    return sum(event["event"] == "settled" and event["time"] >= since for event in _journal(store))


def _journal(store: Path) -> list[dict[str, Any]]:
    path = store / "sweep.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _gone(mark: str) -> float:
    """Seconds until no process is left that one of our commands has started; at most 60."""
    began = time.monotonic()
    while time.monotonic() - began < 60 and any(_has(one, mark) for one in psutil.process_iter()):
        time.sleep(0.2)
    return time.monotonic() - began


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("BENCH_KILLS_MARK") == mark
    except psutil.Error:
        return False


def _untimed(board: str) -> object:
    tables = json.loads(board)["tables"]
    for table in tables:
        for row in table["rows"]:
            for key in [
                key
                for key in row
                if key in ("cost", "search_seconds", "eval_seconds") or "memory" in key
            ]:
                del row[key]
    return tables


def _each_run_once(store: Path, whole: Path) -> None:
    """The same runs and fits as undisturbed, each complete once, to the same bits."""
    records = {path.parent.name: record for path, record in Store(store).records()}
    expected = {path.parent.name: record for path, record in Store(whole).records()}
    assert records.keys() == expected.keys()
    for key, record in records.items():
        assert (record.status, record.metrics) == ("done", expected[key].metrics)
    fits = Counter(path.parent.name for path in store.glob("fits/*/fit.json"))
    assert fits == Counter(path.parent.name for path in whole.glob("fits/*/fit.json"))
    assert not [path for path in store.rglob("*.safetensors") if path.parent.name == "checkpoint"]
