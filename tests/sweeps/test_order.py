"""Which ready job starts first: searches, then seed by seed, and in a seed what begins the longest
chain of work.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import pytest

from bench.run_spec import SEARCH_SEED
from bench.sweeps.job import Job
from bench.sweeps.order import in_order

#: Seconds of the embedded default's recipes on one thread, and what each is built on.
SECONDS = {
    "masked": 98.0,
    "distillation": 57.0,
    "lp-ft": 47.0,
    "full": 49.0,
    "probe": 10.0,
    "wise": 5.0,
    "zero-shot": 6.0,
}
NEEDS = {"lp-ft": "probe", "wise": "full"}
#: As the methods would be named on a command line.
NAMED = ("zero-shot", "probe", "full", "lp-ft", "wise", "distillation", "masked")


def job(name: str, seed: int) -> Job:
    needs = (f"{NEEDS[name]}-{seed}",) if name in NEEDS else ()
    return Job(
        f"{name}-{seed}", "final", {}, name, "suite", "backbone", seed, f"{name}-{seed}", needs
    )


def seconds(one: Job) -> float:
    return SECONDS[one.label]


#: From what is ready, what is left, what waits for a fit and the number of slots to an order.
Order = Callable[[Sequence[Job], Sequence[Job], dict[str, list[Job]], int], list[Job]]


def simulate(order: Order, seeds: Sequence[int], slots: int) -> tuple[float, list[Job]]:
    """When the last job ends, and the jobs in the order of their starts; the one that `order` puts
    first starts next.
    """
    todo = [job(name, seed) for seed in seeds for name in NAMED]
    done: set[str] = set()
    busy: list[tuple[float, str]] = []
    now, started = 0.0, []
    while todo or busy:
        built_on: dict[str, list[Job]] = {}
        for one in todo:
            for fit_id in set(one.needs) - done:
                built_on.setdefault(fit_id, []).append(one)
        ready = [one for one in todo if set(one.needs) <= done]
        if ready and len(busy) < slots:
            first = order(ready, todo, built_on, len(busy) + 1)[0]
            todo.remove(first)
            started.append(first)
            heapq.heappush(busy, (now + seconds(first), first.fit_id))
        else:
            now, fit_id = heapq.heappop(busy)
            done.add(fit_id)
    return now, started


def as_named(
    ready: Sequence[Job], todo: Sequence[Job], built_on: dict[str, list[Job]], slots: int
) -> list[Job]:
    """First what others wait for, else in the order of the plan."""
    return sorted(ready, key=lambda one: one.fit_id not in built_on)


def ours(
    ready: Sequence[Job], todo: Sequence[Job], built_on: dict[str, list[Job]], slots: int
) -> list[Job]:
    return in_order(ready, todo, built_on, slots, (0, 1, 2), seconds)


def regardless_of_seed(
    ready: Sequence[Job], todo: Sequence[Job], built_on: dict[str, list[Job]], slots: int
) -> list[Job]:
    """The longest chain of any seed."""
    return sorted(
        ready,
        key=lambda one: -seconds(one) - max(map(seconds, built_on.get(one.fit_id, ())), default=0),
    )


ENDS = {2: [431, 417, 410], 4: [250, 212, 205], 8: [155, 114, 111]}


@pytest.mark.parametrize(("slots", "least"), [(2, 408), (4, 204), (8, 102)])
def test_a_sweep_ends_earlier(slots: int, least: float) -> None:
    assert [
        simulate(order, (0, 1, 2), slots)[0] for order in (as_named, ours, regardless_of_seed)
    ] == ENDS[slots]
    assert least == 3 * sum(SECONDS.values()) / slots, "no order ends before"


@pytest.mark.parametrize("slots", [1, 2])
def test_seeds_stay_whole(slots: int) -> None:
    _, started = simulate(ours, (0, 1, 2), slots)
    assert [one.seed for one in started] == sorted(one.seed for one in started)


def test_searches_come_first_and_the_unknown_counts_as_the_longest() -> None:
    jobs = [job("wise", 1), job("masked", 0), job("full", SEARCH_SEED), job("zero-shot", 0)]
    found = in_order(
        jobs, jobs, {}, 2, (0, 1), lambda one: None if one.label == "zero-shot" else seconds(one)
    )
    assert [one.label for one in found] == ["full", "zero-shot", "masked", "wise"]
