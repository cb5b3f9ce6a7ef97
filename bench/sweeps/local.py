"""Run trials on this machine, in parallel processes or one after another in this process."""

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
from .job import Job, JobResult, Resources, progress_of, short_of_cores
from .memory_budget import fitting, peak_of_a_trial
from .queue import Queue
from .worker import Work

#: The message by which a child confirms that it has received a job. The clock of `--timeout` starts
#: with it, since starting a process and importing torch is not the trial's own time.
_BEGUN = ("begun", dict[str, Any]())


class LocalRunner:
    """A runner that executes trials in parallel processes on this machine.

    Args:
        resources: resources of a trial; each process sees only its own GPUs.
    """

    # A process does one job after another, since importing torch takes seconds. Processes are
    # spawned, since CUDA and the threads of torch do not survive a fork. A process pool of the
    # standard library breaks as a whole when one of its processes is killed, which here has to cost
    # one attempt at one job.

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """Execute jobs until the queue is over or a requested stop is complete."""
        free = self._slots(queue, reporter)
        context = multiprocessing.get_context("spawn")
        idle: list[_Process] = []
        busy: list[_Process] = []
        stopping = False
        try:
            while True:
                # A second signal does not wait for anything to be saved.
                if reporter.now:
                    break
                if reporter.stop and not stopping:
                    stopping = True
                    for process in busy:
                        process.interrupt()
                while not stopping and (idle or free):
                    job = queue.take()
                    if job is None:
                        break
                    process = idle.pop() if idle else _Process(context, free.pop(0), work)
                    process.start(job)
                    busy.append(process)
                    reporter.event("started", job=job, where=process.name)
                if not busy and (stopping or queue.over):
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
        # Busy ones are left only after a second signal.
        for process in busy:
            if process.job is not None:
                queue.settle(process.job.id, JobResult("cancelled"))

    def _slots(self, queue: Queue, reporter: Reporter) -> list[_Slot]:
        """Return one slot per trial that may run at the same time."""
        gpus = self._gpus()
        per_trial = self._resources.gpus if self._resources.gpus is not None else float(bool(gpus))
        # The affinity mask counts where there is one: in a container or a Slurm job it allows fewer
        # cores than the machine has. macOS has none.
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        if not per_trial:
            by_cores = max(1, int(cores / self._resources.cpus))
            # Hidden, since a trial without `--device` computes on the best device that it sees.
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if gpus else {}
            wanted, peak = self._resources.most or by_cores, peak_of_a_trial(queue)
            count = fitting(peak, wanted)
            if count < wanted:
                reporter.event(
                    "warning",
                    text=(
                        f"a trial takes up to {size(peak)} of memory: running {count} at once"
                        f" instead of {wanted}"
                    ),
                )
            return [_Slot(f"process {n + 1}", hidden) for n in range(count)]
        if per_trial > len(gpus):
            raise UsageError(
                f"a trial needs {per_trial:g} GPU(s), but this machine has {len(gpus)}",
                where="--gpus-per-trial",
                fix=(
                    "remove the option and pass --device cpu"
                    if not gpus
                    else "request fewer GPUs per trial"
                ),
            )
        if per_trial >= 1:
            each = int(per_trial)
            groups = [gpus[first : first + each] for first in range(0, len(gpus) - each + 1, each)]
        else:
            # One slot on each GPU before a second one on any, so that fewer trials than slots are
            # spread over all GPUs.
            groups = [[gpu] for _ in range(int(1 / per_trial)) for gpu in gpus]
        if text := short_of_cores(replace(self._resources, gpus=per_trial), cores, len(gpus)):
            reporter.event("warning", text=text)
        slots = [
            _Slot(f"GPU {','.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)})
            for group in groups
        ]
        return slots[: self._resources.most]

    def _gpus(self) -> list[str]:
        """Return the GPUs that torch sees, as values for CUDA_VISIBLE_DEVICES."""
        # With CUDA_VISIBLE_DEVICES=4,5 torch counts 0 and 1, but a child has to get 4 or 5 (or a
        # UUID): its value replaces the one of this process.
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return (
            [str(index) for index in range(count)]
            if visible is None
            else visible.split(",")[:count]
        )


class InlineRunner:
    """A runner that executes trials one after another in this process, for a debugger."""

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """Execute jobs until the queue is over or a stop is requested."""
        # With nothing running, `take` returns None only if the queue is over: a job's dependencies
        # are jobs too, and one whose fit another process trains waits for that when it runs.
        while not reporter.stop and (job := queue.take()) is not None:
            reporter.event("started", job=job, where="this process")
            outcome = work.do(job, _Direct(reporter, job))
            queue.settle(job.id, outcome)
            reporter.event("settled", job=job, outcome=outcome)


class _Direct(PassedOn):
    """The reporter of a trial in the driver's own process, which adds the job to events."""

    def __init__(self, to: Reporter, job: Job) -> None:
        super().__init__(to)
        self._job = job

    def event(self, kind: str, **fields: Any) -> None:
        super().event(kind, job=self._job, **fields)


@dataclass(frozen=True)
class _Slot:
    """A place for one trial: its name, and the environment variables of its process."""

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
        # A spawned process inherits the environment of its parent. To set the variables in the
        # child would be too late if anything that it imports first touches CUDA.
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
        # Else the pipe would stay open here when the child dies, and report no end of file.
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def waitables(self) -> list[Any]:
        return [self._pipe, self._process.sentinel]

    def start(self, job: Job) -> None:
        self.job, self._started = job, None
        # If the process died while idle, `listen` notices and reports it.
        with contextlib.suppress(OSError):
            self._pipe.send(job)

    def listen(self, reporter: Reporter) -> JobResult | None:
        """Pass on the child's events; return its outcome once there is one."""
        assert self.job is not None, "only a busy process is listened to"
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                if isinstance(message, JobResult):
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
            # The child stops by itself at its timeout; one that hangs in a driver or a file server
            # cannot, and is killed after a grace period.
            if self._work.patience is not None and seconds > self._work.patience:
                self._process.kill()
                self._process.join()
                return JobResult("failed", self._work.hung, seconds)
            if self.alive:
                return None
        # The pipe may close shortly before the exit code is known.
        self._process.join(timeout=5)
        return JobResult("lost", _death(self._process.exitcode))

    def interrupt(self) -> None:
        """Request a busy child to save its state and exit."""
        if self._process.pid is not None and self.alive:
            os.kill(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Kill the child, idle or not; what it has saved stays."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _wait(busy: list[_Process]) -> None:
    waitables = [waitable for process in busy for waitable in process.waitables]
    # The timeout bounds how late a signal or a hanging child is noticed.
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
    """Do jobs in the child process until the driver closes the pipe."""
    # Stdout is reserved for the driver's result; what a method prints goes to stderr.
    os.dup2(2, 1)
    # Ctrl-C reaches the whole process group. The driver decides what it means, and sends SIGTERM.
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
        # Before the outcome, after which the driver may kill this process.
        sys.stdout.flush()
        sys.stderr.flush()
        reporter.send(outcome)


def _watch_the_driver(reporter: _Piped, grace: float) -> None:
    """Stop this process when the driver dies."""
    # A driver killed with -9 cannot stop its children. A trial that went on alone would hold its
    # lease and its GPU, and the next start of the sweep would have to wait for it. It saves its
    # state first; after the grace period it is ended whatever it does.
    driver = multiprocessing.parent_process()
    assert driver is not None, "this runs in a child"

    def watch() -> None:
        wait([driver.sentinel])
        reporter.on_signal(signal.SIGTERM, None)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="driver", daemon=True).start()


class _Piped(Reporter):
    """The reporter of a trial in a child process, which sends events to the driver."""

    def __init__(self, pipe: Connection) -> None:
        self.busy = False
        self._pipe = pipe
        self._last = 0.0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = number
        # An idle child blocks in `recv`, and has nothing to save.
        if not self.busy:
            os._exit(0)

    def send(self, message: JobResult | tuple[str, dict[str, Any]]) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            # The driver is gone.
            self.stop = self.stop or signal.SIGTERM

    def event(self, kind: str, **fields: Any) -> None:
        progress = progress_of(kind, fields)
        if progress is None:
            return
        # These come many times a second, and only the latest one is shown.
        if kind in ("step", "evaluate", "data"):
            now = time.monotonic()
            if now - self._last < 0.2:
                return
            self._last = now
        self.send((kind, progress))
