"""30 kills at random moments of one short training: it must end with the very weights of an
undisturbed one.

Run with `make perf`; the number of kills is BENCH_KILLS.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench
from bench.engine import Engine
from bench.results.store import Store

pytestmark = pytest.mark.perf

TRAIN = """
import sys
from pathlib import Path
import bench
from bench.engine import Engine
bench.run("masked-counterfactual", suite=sys.argv[1], store=Path(sys.argv[2]), set={"epochs": 30},
          engine=Engine(threads=1, checkpoint_seconds=0.02, workers=int(sys.argv[3])))
"""


def test_thirty_kills(tiny_suite: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("BENCH_KILLS", "30"))
    (whole,) = bench.run(
        "masked-counterfactual",
        suite=str(tiny_suite),
        store=tmp_path / "whole",
        engine=Engine(threads=1),
        set={"epochs": 30},
    )
    store, done, moments = tmp_path / "killed", 0, random.Random(0)
    steps: list[int] = []
    while done < kills:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tiny_suite), str(store), str(done % 3)],
            env=os.environ,
        )
        started = time.time()
        # Until this process has saved something of its own; then a random moment, between two steps
        # or in the middle of a write.
        while process.poll() is None and not any(
            f.stat().st_mtime > started for f in _checkpoints(store) if f.exists()
        ):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.8))
        if process.poll() is None:
            process.kill()
            done += 1
        process.wait()
        finished = list(store.glob("fits/*/fit.json"))
        steps.append(len(finished))
        if len(finished) == 2:  # probe and method: start over, to have something to kill
            _compare(tmp_path / "whole", whole.fit_id, store)
            shutil.rmtree(store)
    bench.run(
        "masked-counterfactual",
        suite=str(tiny_suite),
        store=store,
        engine=Engine(threads=1),
        set={"epochs": 30},
    )
    _compare(tmp_path / "whole", whole.fit_id, store)
    print(
        f"\n{done} kills; finished trainings compared: {sum(n == 2 for n in steps) + 1}, all"
        " identical"
    )


def _checkpoints(store: Path) -> list[Path]:
    try:
        return [path for path in store.glob("fits/*/checkpoint/*.safetensors") if path.exists()]
    except OSError:
        return []


def _compare(whole: Path, fit_id: str, store: Path) -> None:
    one, other = Store(whole).fit(fit_id), Store(store).fit(fit_id)
    assert one is not None
    assert other is not None
    assert one.weights_sha256 == other.weights_sha256
