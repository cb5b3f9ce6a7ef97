"""A sweep whose driver is killed with -9 at random moments ends with the board of an undisturbed one.

Run with `make perf`; the number of kills is BENCH_KILLS.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.runs.store import Store

pytestmark = pytest.mark.perf

#: 4 methods x 2 trials, of which 7 differ, and 4 x 2 final runs, with the stages that they are built on: 22 jobs.
ASKED = ["full-finetune", "wise-ft", "lp-ft", "linear-probe", "--trials", "2", "--seeds", "2", "--set", "epochs=12"]


def _sweep(suite: Path, store: Path, runner: str) -> list[str]:
    where = [
        "--suite",
        str(suite),
        "--store",
        str(store),
        "--runner",
        runner,
        "--max-concurrent",
        "2",
        "--checkpoint-every",
        "0",
    ]
    return [sys.executable, "-m", "bench.cli", "sweep", *ASKED, *where, "--format", "json"]


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_twenty_kills(tiny_suite: Path, tmp_path: Path, runner: str) -> None:
    kills, moments = int(os.environ.get("BENCH_KILLS", "20")), random.Random(0)
    whole = subprocess.run(_sweep(tiny_suite, tmp_path / "whole", runner), capture_output=True, text=True, check=True)
    seconds = _busy_seconds(tmp_path / "whole")
    done = starts = 0
    while done < kills:
        store = tmp_path / f"killed{starts}"
        starts += 1
        while True:  # one sweep, killed and continued until it ends
            process = subprocess.Popen(
                _sweep(tiny_suite, store, runner), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            began = time.monotonic()
            while process.poll() is None and not _works(store, began):
                time.sleep(0.005)
            time.sleep(moments.uniform(0, seconds / 4))
            if done < kills and process.poll() is None:
                process.kill()
                process.wait()
                done += 1
                continue
            out, _ = process.communicate()
            assert process.returncode == 0
            break
        assert _untimed(out) == _untimed(whole.stdout)
        _each_run_once(store, tmp_path / "whole")
    print(f"\n{runner}: {done} kills in {starts} sweeps; every board equal to the undisturbed one")


def _works(store: Path, since: float) -> bool:
    """Whether a trial of this start is under way."""
    try:
        lines = (store / "sweep.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return False
    begun = time.time() - (time.monotonic() - since)
    return any(event["event"] == "started" and event["time"] >= begun for event in map(json.loads, lines))


def _busy_seconds(store: Path) -> float:
    times = [json.loads(line)["time"] for line in (store / "sweep.jsonl").read_text().splitlines()]
    return float(times[-1] - times[0])


def _untimed(board: str) -> object:
    tables = json.loads(board)["tables"]
    for table in tables:
        for row in table["rows"]:
            for key in [key for key in row if key in ("cost", "search_seconds", "eval_seconds") or "memory" in key]:
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
