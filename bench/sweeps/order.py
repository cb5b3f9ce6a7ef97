"""Which of the jobs that are ready starts first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..spec import SEARCH_SEED
from .job import Job

Cost = Callable[[Job], float | None]


def in_order(
    ready: Iterable[Job], todo: Sequence[Job], built_on: Mapping[str, Sequence[Job]], slots: int, seeds: Sequence[int], cost: Cost
) -> list[Job]:
    """Searches before final runs, seed by seed, and among these first what begins the longest chain of work.

    Seed by seed, so that an interrupted sweep has whole seeds of all methods rather than all seeds of some. The longest chain (a
    job and the longest of those that wait for its fit) first, so that a sweep does not end with one long job alone. A chain that
    takes longer than all that is left takes on so many slots comes before its seed's turn: the end of the sweep waits for it.

    Args:
        todo: all that is left, `ready` included. built_on: the jobs that wait for a fit. slots: trials that run at once.
        cost: seconds that a job will take; None, unknown, counts as the longest, since it is better learnt early.
    """
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
    together = sum(map(seconds, todo)) / slots
    late = {job.id for job in ready if together <= chain(job) < math.inf}
    return sorted(ready, key=lambda job: (job.id not in late, turn[job.seed], -chain(job), not waiting(job)))
