"""`bench sweep` with the Ray that it starts itself: stopped by Ctrl-C, continued by the same
command, and gone afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import bench
from bench.engine import Engine
from bench.results.store import Store

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.waits]


#: Takes a second per step while there is a file: a stop comes in mid-training however slow the
#: machine.
SLOW = """
import time
from pathlib import Path
import torch
from bench import FineTuner
class Slow(FineTuner):
    name = "slow"
    marker: str = ""
    def loss(self, batch, student, teacher, constants):
        if Path(self.marker).exists():
            time.sleep(1)
        return torch.nn.functional.cross_entropy(student(batch.images), batch.labels)
"""


def command(method: str, suite: Path, store: Path, *more: str) -> list[str]:
    options = [
        "--suite",
        str(suite),
        "--store",
        str(store),
        "--trials",
        "0",
        "--seeds",
        "1",
        "--set",
        "epochs=60",
    ]
    return [sys.executable, "-m", "bench.cli", "sweep", method, *options, "--curve", "none", *more]


def bare(home: Path) -> dict[str, str]:
    """An environment with nothing in it that a machine need not have."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "BENCH_CACHE": os.environ["BENCH_CACHE"]}


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    patience = time.monotonic() + 900
    while text not in log.read_text(encoding="utf-8"):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < patience, log.read_text(encoding="utf-8")
        time.sleep(0.02)


def listeners(process: psutil.Process) -> set[str]:
    """The addresses on which a process and its descendants accept connections."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found |= {
                c.laddr.ip.removeprefix("::ffff:")
                for c in one.net_connections("tcp")
                if c.status == psutil.CONN_LISTEN
            }
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


@pytest.mark.waits
def test_ctrl_c_and_the_same_command_again(tiny_suite: Path, tmp_path: Path) -> None:
    store, log, marker = tmp_path / "store", tmp_path / "stderr", tmp_path / "marker"
    (tmp_path / "slow.py").write_text(SLOW)
    marker.touch()
    method = f"{tmp_path / 'slow.py'}:marker={marker}"
    with log.open("wb") as err:
        process = subprocess.Popen(
            command(method, tiny_suite, store, "--checkpoint-every", "0.05"),
            env=bare(tmp_path),
            stdout=subprocess.PIPE,
            stderr=err,
            start_new_session=True,
        )
        try:
            wait_for("started: ", log, process)
            family = psutil.Process(process.pid).children(recursive=True)
            addresses = listeners(psutil.Process(process.pid))
            # As a terminal does: to every process of the group.
            os.killpg(process.pid, signal.SIGINT)
            out, _ = process.communicate()
        finally:
            process.kill()  # Ray's processes die with it
    shown = log.read_text(encoding="utf-8")
    assert process.returncode == 130, shown
    assert addresses == {"127.0.0.1"}
    assert "stopped: run slow" in shown
    assert "continues" in shown
    assert out == b""
    assert not psutil.wait_procs(family, timeout=240)[1]

    marker.unlink()
    again = subprocess.run(
        command(method, tiny_suite, store, "--format", "json"),
        env=bare(tmp_path),
        capture_output=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr.decode()
    assert again.stdout.startswith(b"{")
    assert b"Ray" not in again.stdout
    assert not (store / "ray").exists()
    assert "worker" in (store / "ray.log").read_text(encoding="utf-8")

    (alone,) = bench.run(
        str(tmp_path / "slow.py"),
        suite=str(tiny_suite),
        store=tmp_path / "alone",
        set={"epochs": 60, "marker": str(marker)},
        engine=Engine(threads=1),
    )
    one, other = Store(tmp_path / "alone").fit(alone.fit_id), Store(store).fit(alone.fit_id)
    assert one is not None
    assert other is not None
    assert one.weights_sha256 == other.weights_sha256
