"""What a sweep survives: a trial that dies, a trial that takes too long, a driver that is
killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.results.store import Store
from bench.stopping import Reporter
from bench.sweeps import worker
from bench.sweeps.job import Resources, short_of_cores
from bench.sweeps.local import LocalRunner
from bench.training import loop
from bench.training.step import TrainState

from support.pretend_runner import Line, Pretend, Reports, impatient_after, job
from support.tiny_sweeps import METHODS, Listener, plan

#: Kills its own process with -9 in mid-training, the first time or every time.
DIES = """
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
import torch
from bench import FineTuner
from bench.training import loop
now = [0]
# In the trial's process a step takes a second, and a save no time.
if multiprocessing.parent_process() is not None:
    loop.time = SimpleNamespace(monotonic=lambda: now[0])
class Dies(FineTuner):
    name = "dies"
    marker: str = ""
    def loss(self, batch, student, teacher, constants):
        now[0] += 1
        if batch.step == 5 and not (self.marker and Path(self.marker).exists()):
            Path(self.marker).touch() if self.marker else None
            os.kill(os.getpid(), 9)
        return torch.nn.functional.cross_entropy(student(batch.images), batch.labels)
"""


@pytest.mark.waits
def test_a_dead_trial_is_started_again_and_one_that_always_dies_is_a_row(
    tiny_suite: Path, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    file, marker = tmp_path / "dies.py", tmp_path / "marker"
    methods = (f"{file}:marker={marker}", f"{file}:marker=")
    fields = {"trials": 0, "seeds": (0,), "runner": "local", "max_concurrent": 1, "max_failures": 1}
    planned, listener = plan(tiny_suite, tmp_path / "s", *methods, every=0.0, **fields), Listener()
    planned.run(listener)
    once, always = planned.records()
    assert (once.status, always.status) == ("done", "failed")
    assert "killed by SIGKILL" in always.error
    assert "2 attempts" in always.error
    assert [outcome.status for _, outcome in listener.ends].count("lost") == 3
    resumed = [fields["step"] for _, kind, fields in listener.events if kind == "resumed"]
    assert resumed == [5, 5], "from the checkpoint of the step before"


@pytest.mark.slow
def test_a_trial_that_takes_too_long_has_failed_and_is_continued_later(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, take = [0.0], TrainState.step

    def step(self: TrainState, *args: Any) -> Any:
        now[0] += 1
        return take(self, *args)

    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(TrainState, "step", step)
    fields = {"trials": 0, "seeds": (0,)}
    planned, listener = (
        plan(tiny_suite, tmp_path, "full-finetune", "linear-probe", timeout=4.5, **fields),
        Listener(),
    )
    planned.run(listener)
    late, probe = planned.records()
    assert (late.status, probe.status) == ("failed", "done")
    assert "not done within 4.5 s" in late.error
    planned, listener = (
        plan(tiny_suite, tmp_path, "full-finetune", "linear-probe", **fields),
        Listener(),
    )
    planned.run(listener)
    assert [record.status for record in planned.records()] == ["done", "done"]
    assert [fields["step"] for _, kind, fields in listener.events if kind == "resumed"] == [5]


#: Kills its own process, the first time, if that is one for a further device.
FOLLOWER_DIES = """
import os
from pathlib import Path
import torch
from bench import FineTuner
class FollowerDies(FineTuner):
    name = "follower-dies"
    marker: str = ""
    def loss(self, batch, student, teacher, constants):
        if batch.step == 5 and 0 not in batch.rows and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), 9)
        return torch.nn.functional.cross_entropy(student(batch.images), batch.labels)
"""


@pytest.mark.waits
def test_a_trial_that_loses_one_of_its_devices_goes_on_from_there(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is saved but for the loss.
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 0.0))
    (tmp_path / "dies.py").write_text(FOLLOWER_DIES)
    method = f"{tmp_path / 'dies.py'}:marker={tmp_path / 'marker'}"
    planned, listener = (
        plan(tiny_suite, tmp_path / "s", method, trials=0, seeds=(0,), gpus_per_trial=2),
        Listener(),
    )
    planned.run(listener)
    assert [outcome.status for _, outcome in listener.ends] == ["lost", "done"]
    assert "device 2 of 2, exit code -9" in listener.ends[0][1].error
    assert [fields["step"] for _, kind, fields in listener.events if kind == "resumed"] == [5]
    assert planned.records()[0].status == "done"


@pytest.mark.waits
def test_a_trial_that_hangs_is_ended_and_a_second_stop_waits_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other processes import `pretend`.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    # These jobs train nothing.
    monkeypatch.setattr("bench.sweeps.local.peak_of_a_trial", lambda queue: 0)
    runner, queue = (
        LocalRunner(Resources(gpus=0.0, most=1)),
        Line([job("ok"), job("hangs", hang=True)]),
    )
    runner.run(
        queue, Pretend(tmp_path, timeout=0.5, grace=0.5), Reports(impatient_after("ok", tmp_path))
    )
    assert queue.state == {"hangs": "failed", "ok": "done"}

    def when(shown: Reports) -> None:
        shown.stop, shown.now = signal.SIGINT, True

    queue = Line([job("again", hang=True)])
    runner.run(queue, Pretend(tmp_path, grace=1e6), Reports(when))
    assert queue.state == {"again": "cancelled"}


#: Kills itself when six fits are done.
DRIVER = """
import os
import sys
from pathlib import Path
import bench
from bench.sweeps.queue import Queue
from bench.run_spec import Settings
settle = Queue.settle
def killed(*args):
    settle(*args)
    if len(list(Path(sys.argv[2]).glob("fits/*/fit.json"))) >= 6:
        os.kill(os.getpid(), 9)
Queue.settle = killed
if __name__ == "__main__":
    bench.sweep(*sys.argv[4:], suites=[sys.argv[1]], seeds=[0, 1], trials=2, runner="local",
                max_concurrent=2, store=Path(sys.argv[2]),
                settings=Settings(checkpoint_seconds=float(sys.argv[3])))
"""


@pytest.mark.waits
def test_a_killed_driver_is_continued_by_the_same_sweep(
    tiny_suite: Path, tmp_path: Path, finished: Path
) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    store = tmp_path / "s"
    command = [
        sys.executable,
        str(tmp_path / "driver.py"),
        str(tiny_suite),
        str(store),
        "0",
        *METHODS,
    ]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    planned = plan(tiny_suite, store, *METHODS, trials=2)
    assert not planned.queue.over
    planned.run(Listener())
    assert scores(store) == scores(finished)


def scores(store: Path) -> dict[str, tuple[str, int, dict[str, float]]]:
    """What every run of a store says, by eval_id."""
    return {
        record.eval_id: (
            record.status,
            record.search_trials,
            {name: metrics.nll for name, metrics in record.metrics.items()},
        )
        for _, record in Store(store).records()
    }


def test_a_trial_whose_gpu_would_wait_for_one_core_s_images_is_reported() -> None:
    shown = short_of_cores(Resources(gpus=1.0, cpus=1.0), cores=192, gpus=8)
    assert shown.startswith("a trial gets 1 of the 24 cores")
    assert shown.endswith("--cpus-per-trial 24")
    assert short_of_cores(Resources(gpus=0.25, cpus=1.0), cores=192, gpus=8).endswith(
        "--cpus-per-trial 6"
    )
    assert short_of_cores(Resources(gpus=1.0, cpus=16.0), cores=192, gpus=8) == ""
    assert (
        short_of_cores(Resources(gpus=0.0), cores=192, gpus=8)
        == short_of_cores(Resources(gpus=0.0), cores=2, gpus=0)
        == ""
    )


@pytest.mark.slow
def test_a_process_between_two_jobs_holds_no_memory_of_a_gpu(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[str] = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back.append("all"))
    outcome = plan(tiny_suite, tmp_path, "linear-probe", trials=0).work.do(
        job("no such method"), Reporter()
    )
    assert outcome.status == "failed"
    assert given_back == ["all"]
