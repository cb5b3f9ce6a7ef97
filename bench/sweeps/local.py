"""Runs side by side on one machine, a process each; the store's leases keep shared stages from being trained twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import BenchError, Interrupted
from ..method import Method
from ..plugins import load_method
from ..spec import RunSpec

if TYPE_CHECKING:
    from ..runs.record import RunRecord
    from ..stopping import Reporter
    from ..training.engine import Engine


def side_by_side(
    spec: RunSpec,
    *,
    jobs: int,
    store: Path | None,
    engine: Engine,
    fresh: bool,
    reporter: Reporter,
    child_reporter: Callable[[], Reporter],
) -> list[RunRecord]:
    """The runs of a spec, `jobs` at a time, in the order of methods and seeds.

    Args:
        reporter: of this process; its `stop` is passed on to the children.
        child_reporter: makes the reporter of a child, which stays in use for all runs of that child.

    Raises:
        BenchError: the first error that is no failed run. Interrupted: a stop was asked for; every child has saved its state.
    """
    parts = _parts(spec)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=context, initializer=_start, initargs=(child_reporter,)) as pool:
        futures = [pool.submit(_run, part, store, engine, fresh) for part in parts]
        _wait(futures, pool, reporter)
        try:
            found = {(asked, record.seed): record for future in futures for asked, record in future.result()}
        except BrokenProcessPool as error:
            raise BenchError(
                "a process died (killed, or out of memory); what it had saved is kept",
                fix="run the same command again, perhaps with fewer --jobs",
            ) from error
    return [found[asked, seed] for seed in spec.seeds for asked in spec.methods]


def _parts(spec: RunSpec) -> list[RunSpec]:
    """One spec per process: a method and a seed, or a method with all seeds where they share a search. Wrappers come last."""

    def wraps(name: str) -> bool:
        fields = load_method(name).model_fields.values()
        return any(isinstance(field.default, Method) for field in fields)

    methods = sorted(spec.methods, key=wraps)
    seeds = [spec.seeds] if spec.trials else [(seed,) for seed in spec.seeds]
    return [spec.model_copy(update={"methods": (method,), "seeds": part}) for part in seeds for method in methods]


def _wait(futures: list[Future[list[tuple[str, RunRecord]]]], pool: ProcessPoolExecutor, reporter: Reporter) -> None:
    told, pending = 0, set(futures)
    while pending:
        _, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        if reporter.stop and not told:
            told = reporter.stop
            for future in pending:
                future.cancel()
            for process in list((pool._processes or {}).values()):
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM)
    if told:
        raise Interrupted("stopped; the state is saved", fix="run the same command again: it continues", signal=told)


class _Child:
    """State of a child process: its reporter, and whether a run is going on that has something to save."""

    reporter: Reporter
    busy = False


def _start(child_reporter: Callable[[], Reporter]) -> None:
    _Child.reporter = child_reporter()
    # Ctrl-C reaches the whole process group; the parent alone decides and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    saves = signal.getsignal(signal.SIGTERM)

    def on_term(number: int, frame: FrameType | None) -> None:
        if not _Child.busy:
            os._exit(128 + number)
        if callable(saves):
            saves(number, frame)

    signal.signal(signal.SIGTERM, on_term)


def _run(spec: RunSpec, store: Path | None, engine: Engine, fresh: bool) -> list[tuple[str, RunRecord]]:
    from ..api import plan, run_planned, searched

    _Child.busy = True
    try:
        planned = searched(plan(spec, store=store, engine=engine, reporter=_Child.reporter), spec)
        return [(one.asked, run_planned(one, spec, fresh=fresh)) for one in planned]
    finally:
        _Child.busy = False
        if _Child.reporter.stop:
            # The parent is stopping, or gone: nobody waits for an answer, and the state is saved.
            os._exit(128 + _Child.reporter.stop)
