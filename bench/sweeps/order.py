"""Which of the jobs that are ready starts first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..spec import SEARCH_SEED
from .job import Job


def in_order(
    ready: Iterable[Job], built_on: Mapping[str, Sequence[Job]], seeds: Sequence[int], seconds: Callable[[Job], float | None]
) -> list[Job]:
    """Searches before final runs, seed by seed, and among these first what begins the longest chain of work.

    Seed by seed, so that an interrupted sweep has whole seeds of all methods rather than all seeds of some. The longest chain (a
    job and the longest of those that wait for its fit) first, so that the last seed does not end with one long job alone.

    Args:
        built_on: the jobs that wait for a fit. seconds: what a job will take; None, unknown, counts as the longest: it is better
            learnt early.
    """
    chains: dict[str, float] = {}

    def waiting(job: Job) -> Sequence[Job]:
        return () if job.phase == "rung" else built_on.get(job.fit_id, ())

    def chain(job: Job) -> float:
        if job.id not in chains:
            own = seconds(job)
            chains[job.id] = (math.inf if own is None else own) + max(map(chain, waiting(job)), default=0.0)
        return chains[job.id]

    turn = {SEARCH_SEED: -1, **{seed: number for number, seed in enumerate(seeds)}}
    return sorted(ready, key=lambda job: (turn[job.seed], -chain(job), not waiting(job)))
