"""Sort the jobs that are ready to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..run_spec import SEARCH_SEED
from .job import Job

#: From a job to its expected seconds; None if unknown.
Cost = Callable[[Job], float | None]


def in_order(
    ready: Iterable[Job],
    todo: Sequence[Job],
    built_on: Mapping[str, Sequence[Job]],
    slots: int,
    seeds: Sequence[int],
    cost: Cost,
) -> list[Job]:
    """Sort ready jobs: searches first, then seed by seed, the longest chain of work first.

    A chain is a job and the longest chain of those that wait for its fit.

    Args:
        ready: the jobs that can start.
        todo: all jobs that are left, including `ready`.
        built_on: the jobs that wait for a fit, by fit_id.
        slots: number of trials that run at the same time.
        seeds: seeds of the final runs in their order.
        cost: expected seconds of a job; None counts as infinite.
    """
    # Longest first is the usual heuristic for a short makespan: a sweep then does not end with one
    # long job alone. Seeds come before it, so that an interrupted sweep has complete seeds of all
    # methods. The exception are chains that take longer than all work that is left, spread over all
    # slots: the end of the sweep waits for them, so they start before the turn of their seed. A job
    # of unknown length counts as the longest, since it is better known early, but never as such an
    # exception. tests/sweeps/test_order.py compares the result with other orders.
    chains: dict[str, float] = {}

    def seconds(job: Job) -> float:
        known = cost(job)
        return math.inf if known is None else known

    def waiting(job: Job) -> Sequence[Job]:
        return () if job.phase == "rung" else built_on.get(job.fit_id, ())

    def chain(job: Job) -> float:
        if job.id not in chains:
            chains[job.id] = seconds(job) + max(map(chain, waiting(job)), default=0.0)
        return chains[job.id]

    turn = {SEARCH_SEED: -1, **{seed: number for number, seed in enumerate(seeds)}}
    spread = sum(map(seconds, todo)) / slots
    late = {job.id for job in ready if spread <= chain(job) < math.inf}
    # Of equally long chains one that others wait for comes first; `sorted` keeps the plan's order
    # otherwise.
    return sorted(
        ready, key=lambda job: (job.id not in late, turn[job.seed], -chain(job), not waiting(job))
    )
