"""Trials side by side on one machine, a process each; and one after another in this process, for a
debugger.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType
from typing import Any

from rich.filesize import decimal as size

from ..errors import UsageError
from ..stopping import PassedOn, Reporter
from .job import Job, Outcome, Resources, progress_of, short_of_cores
from .queue import Queue
from .room import fitting, peak_of_a_trial
from .work import Work

#: What a child says when it has a job: the time that it took to start is not the trial's.
_BEGUN = ("begun", dict[str, Any]())


class LocalRunner:
    """Runs trials in processes of this machine. A process does one job after another, since
    importing torch takes seconds.

    Args:
        resources: `gpus` share the machine's GPUs out, each process seeing only its own.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """See `Runner.run`."""
        free = self._slots(queue, reporter)
        context = multiprocessing.get_context("spawn")
        idle: list[_Process] = []
        busy: list[_Process] = []
        told = False
        try:
            while True:
                if reporter.now:
                    break
                if reporter.stop and not told:
                    told = True
                    for process in busy:
                        process.interrupt()
                while not told and (idle or free):
                    job = queue.take()
                    if job is None:
                        break
                    process = idle.pop() if idle else _Process(context, free.pop(0), work)
                    process.start(job)
                    busy.append(process)
                    reporter.event("started", job=job, where=process.name)
                if not busy and (told or queue.over):
                    break
                _wait(busy)
                for process in list(busy):
                    outcome = process.listen(reporter)
                    if outcome is not None and process.job is not None:
                        busy.remove(process)
                        queue.settle(process.job.id, outcome)
                        reporter.event("settled", job=process.job, outcome=outcome)
                        if process.alive:
                            idle.append(process)
                        else:
                            free.append(process.slot)
        finally:
            for process in [*idle, *busy]:
                process.end()
        for process in busy:
            if process.job is not None:
                queue.settle(process.job.id, Outcome("cancelled"))

    def _slots(self, queue: Queue, reporter: Reporter) -> list[_Slot]:
        """One environment per trial that may run at once."""
        gpus = self._gpus()
        per_trial = self._resources.gpus if self._resources.gpus is not None else float(bool(gpus))
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        if not per_trial:
            by_cores = max(1, int(cores / self._resources.cpus))
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if gpus else {}
            wanted, peak = self._resources.most or by_cores, peak_of_a_trial(queue)
            count = fitting(peak, wanted)
            if count < wanted:
                reporter.event(
                    "warning",
                    text=(
                        f"a trial takes up to {size(peak)} of memory: {count} at once instead of"
                        f" {wanted}"
                    ),
                )
            return [_Slot(f"process {n + 1}", hidden) for n in range(count)]
        if per_trial > len(gpus):
            raise UsageError(
                f"a trial is to have {per_trial:g} GPU(s), and this machine has {len(gpus)}",
                where="--gpus-per-trial",
                fix="leave it out, with --device cpu" if not gpus else "give fewer",
            )
        if per_trial >= 1:
            each = int(per_trial)
            groups = [gpus[first : first + each] for first in range(0, len(gpus) - each + 1, each)]
        else:
            groups = [[gpu] for _ in range(int(1 / per_trial)) for gpu in gpus]
        if text := short_of_cores(replace(self._resources, gpus=per_trial), cores, len(gpus)):
            reporter.event("warning", text=text)
        slots = [
            _Slot(f"GPU {','.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)})
            for group in groups
        ]
        return slots[: self._resources.most]

    def _gpus(self) -> list[str]:
        """What CUDA_VISIBLE_DEVICES may name: those that torch sees, in this process's order."""
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return (
            [str(index) for index in range(count)]
            if visible is None
            else visible.split(",")[:count]
        )


class InlineRunner:
    """Runs trials in this very process, one after another."""

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """See `Runner.run`."""
        while not reporter.stop and (job := queue.take()) is not None:
            reporter.event("started", job=job, where="this process")
            outcome = work.do(job, _Direct(reporter, job))
            queue.settle(job.id, outcome)
            reporter.event("settled", job=job, outcome=outcome)


class _Direct(PassedOn):
    """A trial's reporter in the driver's own process."""

    def __init__(self, to: Reporter, job: Job) -> None:
        super().__init__(to)
        self._job = job

    def event(self, kind: str, **fields: Any) -> None:
        super().event(kind, job=self._job, **fields)


@dataclass(frozen=True)
class _Slot:
    """Room for one trial: its name, and the environment of its process."""

    name: str
    environment: dict[str, str]


class _Process:
    """A child process and the driver's end of its pipe."""

    def __init__(self, context: SpawnContext, slot: _Slot, work: Work) -> None:
        self.slot, self.name = slot, slot.name
        self.job: Job | None = None
        self._started: float | None = None
        self._work = work
        self._pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs, work))
        before = {key: os.environ.get(key) for key in slot.environment}
        os.environ |= slot.environment
        try:
            self._process.start()
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def waitables(self) -> list[Any]:
        return [self._pipe, self._process.sentinel]

    def start(self, job: Job) -> None:
        self.job, self._started = job, None
        with contextlib.suppress(OSError):  # it died while idle: `listen` finds that out
            self._pipe.send(job)

    def listen(self, reporter: Reporter) -> Outcome | None:
        """Pass on what the child has said; its outcome once there is one."""
        assert self.job is not None, "only a busy process is listened to"
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                if isinstance(message, Outcome):
                    return message
                if message == _BEGUN:
                    self._started = time.monotonic()
                    continue
                kind, fields = message
                reporter.event(kind, job=self.job, **fields)
        except (EOFError, OSError):
            pass
        else:
            seconds = 0.0 if self._started is None else time.monotonic() - self._started
            if self._work.patience is not None and seconds > self._work.patience:
                self._process.kill()
                self._process.join()
                return Outcome("failed", self._work.hung, seconds)
            if self.alive:
                return None
        self._process.join(timeout=5)
        return Outcome("lost", _death(self._process.exitcode))

    def interrupt(self) -> None:
        """Ask a busy child to save its state and come to an end."""
        if self._process.pid is not None and self.alive:
            os.kill(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Idle or not, it ends now; what it had saved is kept."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _wait(busy: list[_Process]) -> None:
    waitables = [waitable for process in busy for waitable in process.waitables]
    if waitables:
        wait(waitables, timeout=0.2)
    else:
        time.sleep(0.2)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its process was killed by {name}" + (
            " (out of memory, perhaps)" if name == "SIGKILL" else ""
        )
    return f"its process ended with exit code {code}"


def _serve(pipe: Connection, work: Work) -> None:
    """The child: do jobs until the driver closes the pipe. Ctrl-C reaches the whole group; the
    driver alone decides.
    """
    os.dup2(
        2, 1
    )  # stdout is the driver's, for the answer; what a method prints is part of the story
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reporter = _Piped(pipe)
    signal.signal(signal.SIGTERM, reporter.on_signal)
    _watch_the_driver(reporter, work.grace)
    while not reporter.stop:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        reporter.busy = True
        reporter.send(_BEGUN)
        outcome = work.do(job, reporter)
        reporter.busy = False
        sys.stdout.flush()
        sys.stderr.flush()
        reporter.send(outcome)


def _watch_the_driver(reporter: _Piped, grace: float) -> None:
    """When the driver dies, a trial saves its state and ends, so that the next start of the sweep
    can take it over at once.
    """
    driver = multiprocessing.parent_process()
    assert driver is not None, "this runs in a child"

    def watch() -> None:
        wait([driver.sentinel])
        reporter.on_signal(signal.SIGTERM, None)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="driver", daemon=True).start()


class _Piped(Reporter):
    """A trial's reporter in a child process; steps are told a few times a second, the rest at
    once.
    """

    def __init__(self, pipe: Connection) -> None:
        self.busy = False
        self._pipe = pipe
        self._last = 0.0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = number
        if not self.busy:
            os._exit(0)

    def send(self, message: Outcome | tuple[str, dict[str, Any]]) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self.stop = self.stop or signal.SIGTERM  # the driver is gone

    def event(self, kind: str, **fields: Any) -> None:
        told = progress_of(kind, fields)
        if told is None:
            return
        if kind in ("step", "evaluate", "data"):
            now = time.monotonic()
            if now - self._last < 0.2:
                return
            self._last = now
        self.send((kind, told))
