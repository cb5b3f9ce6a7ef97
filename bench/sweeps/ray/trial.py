"""Run one job in a Ray worker, and exchange events and the stop signal with the driver."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray

from ...stopping import Reporter
from ..job import LOG, Job, JobResult, Resources, progress_of
from ..worker import Work

#: Kinds of events that come many times a second, and the seconds between two that are sent.
_OFTEN, _EVERY = ("step", "data", "evaluate"), 0.5
#: Seconds between two checks for a stop, which a training loop asks for at every step.
_LOOK = 0.2


# An actor, since workers cannot call the driver. Without a CPU of its own, so that it takes no room
# from a trial. Its methods are async, so that a call that waits for a stop blocks no other one.
@ray.remote(num_cpus=0)
class EventQueue:
    """A Ray actor next to the driver that collects events and distributes the stop signal."""

    def __init__(self) -> None:
        self._posted: list[tuple[str, str, dict[str, Any]]] = []
        self._stop, self._event = 0, asyncio.Event()

    async def post(self, attempt: str, kind: str, fields: dict[str, Any]) -> None:
        """Add an event of an attempt."""
        self._posted.append((attempt, kind, fields))

    async def read(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return all events since the last call."""
        posted, self._posted = self._posted, []
        return posted

    async def request_stop(self, number: int) -> None:
        """Request every trial to stop, present and future ones, with the number of a signal."""
        self._stop = number
        self._event.set()

    async def requested(self) -> int:
        """Return the number of the signal that requested a stop, or 0."""
        return self._stop

    async def wait_for_stop(self) -> int:
        """Wait for a request to stop, and return the number of the signal."""
        await self._event.wait()
        return self._stop


class EventReporter(Reporter):
    """The reporter of a trial, which posts events to the driver's queue.

    Args:
        events: handle of the `EventQueue`.
        attempt: the driver's id of this attempt.
    """

    def __init__(self, events: Any, attempt: str) -> None:
        self._events, self._attempt = events, attempt
        # One call stays open for the whole trial, so that a check for a stop is local and needs no
        # round trip to the driver's machine.
        self._answer = events.wait_for_stop.remote()
        self._looked = 0.0
        self._posted: dict[str, float] = {}
        self._stop: int = ray.get(events.requested.remote())

    @property
    def stop(self) -> int:  # type: ignore[override]
        """The number of the signal that requested a stop, or 0; cheap enough for every step."""
        now = time.monotonic()
        if not self._stop and now - self._looked > _LOOK:
            self._looked = now
            if ray.wait([self._answer], timeout=0)[0]:
                try:
                    self._stop = ray.get(self._answer)
                # The driver is gone, and with it the queue: nobody waits for a result.
                except ray.exceptions.RayError:
                    self._stop = signal.SIGTERM
        return self._stop

    def event(self, kind: str, **fields: Any) -> None:
        """Post an event without waiting; frequent kinds are thinned out."""
        progress = progress_of(kind, fields)
        now = time.monotonic()
        too_soon = kind in _OFTEN and now - self._posted.get(kind, 0.0) < _EVERY
        if progress is not None and not too_soon:
            self._posted[kind] = now
            self._events.post.remote(self._attempt, kind, progress)


def do(
    job: Job,
    attempt: str,
    work: Work,
    resources: Resources,
    environment: dict[str, str],
    events: Any,
) -> dict[str, Any]:
    """Execute a job in this process, and return its outcome as a dictionary.

    Args:
        job: the job.
        attempt: the driver's id of this attempt.
        work: settings that all trials share; reused for the next job of this process.
        resources: resources of a trial.
        environment: variables of the driver, which a process on another machine lacks.
        events: handle of the `EventQueue`.
    """
    os.environ.update(environment)
    # Read when torch is imported: waiting threads must not burn the cores of other trials.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A cluster that others started may lack the setting by which Ray hides GPUs from such trials.
    if not resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    reporter = EventReporter(events, attempt)
    # A stop may have been requested while this process was starting.
    if reporter.stop:
        return asdict(JobResult("cancelled"))
    events.post.remote(attempt, "started", {"where": _where(resources)})
    with _ended_if_it_hangs(work):
        outcome = asdict(work.do(job, reporter))
    # Calls of one process are executed in their order, so after this one all events have arrived.
    # It fails if the driver is gone, when nobody reads them anyway.
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(events.requested.remote())
    return outcome


def _where(resources: Resources) -> str:
    here = f"{socket.gethostname()}, process {os.getpid()}"
    return f"{here}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '?')}" if resources.gpus else here


@contextlib.contextmanager
def _ended_if_it_hangs(work: Work) -> Iterator[None]:
    """Kill this process if the job does not end in time, and log where it hung."""
    # For a dead device or file server, which no signal and no Python code interrupts. Then only the
    # death of the process frees its slot.
    if work.patience is None:
        yield
        return
    with (work.store / LOG).open("a") as log:
        # By a thread in C, which works even if the main thread holds the GIL.
        faulthandler.dump_traceback_later(work.patience, exit=True, file=log)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
