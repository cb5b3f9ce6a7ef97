"""What dispatching by Ray costs against processes of one's own: until the first epoch, and between
two trials.

Run with `make perf`. It asserts nothing about time; it prints seconds. The machine should have
nothing else to do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

pytestmark = pytest.mark.perf

SEEDS, ROUNDS = 10, 3


def _measure(suite: Path, store: Path, runner: str) -> tuple[float, float, float]:
    """Seconds from the command to the first trial's start and to its first epoch; between two
    trials of one slot (median).
    """
    options = [
        "--trials",
        "0",
        "--seeds",
        str(SEEDS),
        "--curve",
        "none",
        "--max-concurrent",
        "1",
        "--set",
        "epochs=1",
    ]
    command = [
        sys.executable,
        "-m",
        "bench.cli",
        "sweep",
        "linear-probe",
        "full-finetune",
        "--suite",
        str(suite),
        *options,
    ]
    began = time.time()
    subprocess.run(
        [*command, "--store", str(store), "--runner", runner], check=True, capture_output=True
    )
    events = [
        json.loads(line)
        for line in (store / "sweep.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    started = [event["time"] for event in events if event["event"] == "started"]
    epochs = [event["time"] for event in events if event["event"] == "epoch"]
    settled = [event for event in events if event["event"] == "settled"]
    gaps = [
        after["time"] - before["time"] - after["seconds"] for before, after in pairwise(settled)
    ]
    return started[0] - began, epochs[0] - began, median(gaps)


@pytest.mark.timeout(0)
def test_ray_against_local_processes(tiny_suite: Path, tmp_path: Path) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {"local": [], "ray": []}
    for number in range(ROUNDS):
        for runner, figures in found.items():
            figures.append(_measure(tiny_suite, tmp_path / f"{runner}{number}", runner))
    for runner, figures in found.items():
        start, epoch, gap = (median(column) for column in zip(*figures, strict=True))
        print(
            f"\n{runner}: first trial after {start:.1f} s, first epoch over after {epoch:.1f} s,"
            f" {gap:.2f} s between trials"
        )
