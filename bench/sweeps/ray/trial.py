"""What runs on the cluster: one job per trial, and the board on which trials and the driver leave
each other word.
"""

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
from ..job import LOG, Job, Outcome, Resources, progress_of
from ..work import Work

#: Kinds of events that come many times a second, of which one every so many seconds travels.
_OFTEN, _EVERY = ("step", "data", "evaluate"), 0.5
#: Seconds between two looks at the board.
_LOOK = 0.2


@ray.remote(num_cpus=0)
class Board:
    """Lives beside the driver: trials post events without waiting, and learn at once of a stop."""

    def __init__(self) -> None:
        self._posted: list[tuple[str, str, dict[str, Any]]] = []
        self._stop, self._event = 0, asyncio.Event()

    async def post(self, attempt: str, kind: str, fields: dict[str, Any]) -> None:
        """Something happened in an attempt."""
        self._posted.append((attempt, kind, fields))

    async def read(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Every event since the last call."""
        posted, self._posted = self._posted, []
        return posted

    async def ask_to_stop(self, number: int) -> None:
        """From now on every trial is asked to stop by this signal."""
        self._stop = number
        self._event.set()

    async def asked(self) -> int:
        """Number of the signal that has asked to stop, or 0."""
        return self._stop

    async def wait_for_stop(self) -> int:
        """Answered only when a stop is asked for: the number of the signal."""
        await self._event.wait()
        return self._stop


class BoardReporter(Reporter):
    """The reporter of a trial.

    Args:
        attempt: names this attempt to the driver.
    """

    def __init__(self, board: Any, attempt: str) -> None:
        self._board, self._attempt = board, attempt
        self._answer = board.wait_for_stop.remote()
        self._looked = 0.0
        self._posted: dict[str, float] = {}
        self._stop: int = ray.get(board.asked.remote())

    @property
    def stop(self) -> int:  # type: ignore[override]
        """Number of the signal that asked to stop, or 0; cheap enough for every step."""
        now = time.monotonic()
        if not self._stop and now - self._looked > _LOOK:
            self._looked = now
            if ray.wait([self._answer], timeout=0)[0]:
                try:
                    self._stop = ray.get(self._answer)
                except ray.exceptions.RayError:  # the driver is gone, and nobody waits for a result
                    self._stop = signal.SIGTERM
        return self._stop

    def event(self, kind: str, **fields: Any) -> None:
        """Post what travels, without waiting."""
        told = progress_of(kind, fields)
        now = time.monotonic()
        if told is not None and not (kind in _OFTEN and now - self._posted.get(kind, 0.0) < _EVERY):
            self._posted[kind] = now
            self._board.post.remote(self._attempt, kind, told)


def do(
    job: Job,
    attempt: str,
    work: Work,
    resources: Resources,
    environment: dict[str, str],
    board: Any,
) -> dict[str, Any]:
    """Do a job in this process, and return its outcome as a dictionary.

    Args:
        work: of this process, which does one job after another with it.
        environment: variables of the driver that a process on another machine lacks.
    """
    os.environ.update(environment)
    # Read when torch is imported: waiting threads must not burn the cores of other trials.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray would show all of them
    reporter = BoardReporter(board, attempt)
    if reporter.stop:
        return asdict(Outcome("cancelled"))
    board.post.remote(attempt, "started", {"where": _where(resources)})
    with _ended_if_it_hangs(work):
        outcome = asdict(work.do(job, reporter))
    with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and nobody reads
        ray.get(
            board.asked.remote()
        )  # calls of one process keep their order: what it posted has arrived
    return outcome


def _where(resources: Resources) -> str:
    here = f"{socket.gethostname()}, process {os.getpid()}"
    return f"{here}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '?')}" if resources.gpus else here


@contextlib.contextmanager
def _ended_if_it_hangs(work: Work) -> Iterator[None]:
    """The last resort for a dead device or file server; the log says where it hung."""
    if work.patience is None:
        yield
        return
    with (work.store / LOG).open("a") as log:
        # By a thread of C's, which works even if Python's lock is held.
        faulthandler.dump_traceback_later(work.patience, exit=True, file=log)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
