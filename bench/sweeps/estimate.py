"""What a planned sweep will take: seconds by what earlier fits and runs took, and bytes by what it will keep."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..runs.experiment import Experiment
from .costs import Costs
from .plan import Planned
from .queue import Queue


@dataclass(frozen=True)
class Estimate:
    """Of what is still to do.

    Attributes:
        seconds: by job; None where no earlier fit of the method on these data tells. total: of trial time, final runs that a
            search has yet to choose included. unknown: number of jobs that it leaves out.
        bytes: weights and predictions that will be kept, and the checkpoints of trials that run at once.
    """

    seconds: dict[str, float | None]
    total: float
    unknown: int
    bytes: int


def estimate(queue: Queue, costs: Costs) -> Estimate:
    """What is left of a sweep takes this."""
    spec = queue.plan.spec
    todo = [entry.planned for entry in queue if entry.mine and entry.state == "to do"]
    seconds = {planned.job.id: costs.of(planned, spec.limit) for planned in todo}
    # What is not chosen yet, a final run or a trial that goes on from a rung, costs about what the recipe costs.
    searches = [search for search in queue.searches if not search.over]
    to_come = [queue.plan.final(search.entrant, search.entrant.method, seed, None) for search in searches for seed in spec.seeds]
    later = [costs.of(planned, spec.limit) for planned in to_come]
    for search in searches:
        if search.trials_to_come:
            later += [costs.of(search.first, spec.limit)] * search.trials_to_come
        later.append(search.seconds_to_come)
    for tuning, schedules in (rest for search in searches if (rest := search.rest()) is not None):
        whole = costs.whole(tuning)
        later.append(None if whole is None else schedules * whole)
    known = [value for value in [*seconds.values(), *later] if value is not None]
    everything = [*todo, *to_come]
    size = {one.experiment.backbone.name: 0 for one in everything}
    for one in everything:
        size[one.experiment.backbone.name] = size[one.experiment.backbone.name] or _tower_bytes(one.experiment)
    to_train = [one for one in everything if one.experiment.store.fit(one.job.fit_id) is None]
    kept = sum(size[one.experiment.backbone.name] for one in to_train if one.job.phase != "rung") + sum(
        map(_predictions, everything)
    )
    at_once = min(len(to_train), spec.max_concurrent or os.cpu_count() or 1)
    # Weights, the best so far and Adam's two moments, beside the checkpoint that they replace; at a rung a trial leaves them.
    left = sum(4 * size[one.experiment.backbone.name] for one in to_train if one.job.phase == "rung")
    checkpoints = at_once * 8 * max(size.values(), default=0) + left
    return Estimate(seconds, sum(known), len(seconds) + len(later) - len(known), kept + checkpoints)


def _tower_bytes(experiment: Experiment) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in experiment.backbone.image_tower().state_dict().values())


def _predictions(planned: Planned) -> int:
    """Bytes of a run's predictions: half-precision logits and some 80 bytes for every image."""
    if not planned.job.is_run:
        return 0
    suite = planned.experiment.suite
    splits = ["id-val"] if planned.job.phase == "search" else ["id-val", "id-test", *(s.name for s in suite.card.shifts)]
    images = sum(len(planned.experiment.split(name)) for name in splits if name not in suite.holes)
    return images * (2 * len(suite.card.classes) + 80)
