"""What a planned sweep will take: seconds by what earlier fits and runs took, and bytes by what it will keep."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ..data.batches import TrainBatches
from ..engine import Engine
from ..method import FineTuner
from ..runs.experiment import Experiment
from ..runs.standing import stages
from ..training.devices import Ranks
from ..training.step import Learner
from .costs import Costs
from .plan import Planned, stage_task

if TYPE_CHECKING:
    from .queue import Queue


@dataclass
class Ahead:
    """The time of what is to do and does not run yet.

    Attributes:
        seconds: by job; None where no fit of its kind tells. later: of what depends on results that are not there yet.
        partly: jobs, of both, whose evaluation nothing tells of.
    """

    seconds: dict[str, float | None]
    later: list[float | None]
    partly: int

    @property
    def total(self) -> float:
        """Seconds that are known."""
        return sum(value for value in (*self.seconds.values(), *self.later) if value is not None)

    @property
    def unknown(self) -> int:
        """Number of jobs of which that leaves something out."""
        return [*self.seconds.values(), *self.later].count(None) + self.partly


@dataclass(frozen=True)
class Estimate:
    """Of what is still to do.

    Attributes:
        seconds: by job; None where nothing tells. total: of trial time, final runs that a search has yet to choose included.
        unknown: number of jobs of which it leaves out something or everything.
        bytes: weights and predictions that will be kept, and the checkpoints of trials that run at once.
    """

    seconds: dict[str, float | None]
    total: float
    unknown: int
    bytes: int


def ahead(queue: Queue, costs: Costs) -> Ahead:
    """The time of what has not begun, by records and by what runs."""
    todo, to_come, limit = _todo(queue), _to_come(queue), queue.plan.spec.limit
    seconds = {planned.job.id: costs.of(planned, limit) for planned in todo}
    later = [costs.of(planned, limit) for planned in to_come]
    partly = [planned for planned in (*todo, *to_come) if costs.evaluation(planned, limit) is None]
    untold = sum(costs.of(planned, limit) is not None for planned in partly)
    for search in (search for search in queue.searches if not search.over):
        # A trial that is not drawn yet, or goes on from a rung, costs about what the recipe costs.
        if search.trials_to_come:
            fit, evaluation = costs.whole(search.first), costs.evaluation(search.first, limit)
            later += [None if fit is None else fit + (evaluation or 0.0)] * search.trials_to_come
            untold += search.trials_to_come * (fit is not None and evaluation is None)
        later.append(search.seconds_to_come)
        if (rest := search.rest()) is not None:
            tuning, schedules = rest
            whole = costs.whole(tuning)
            later.append(None if whole is None else schedules * whole)
    return Ahead(seconds, later, untold)


def _todo(queue: Queue) -> list[Planned]:
    return [entry.planned for entry in queue if entry.mine and entry.state == "to do"]


def _to_come(queue: Queue) -> list[Planned]:
    """The final runs that a search has yet to choose, with its recipe, and the fits that they will be built on, each once."""
    searches = [search for search in queue.searches if not search.over]
    plan, found = queue.plan, dict[str, Planned]()
    waiting = [plan.final(one.entrant, one.entrant.method, seed, None) for one in searches for seed in plan.spec.seeds]
    made = {entry.job.fit_id for entry in queue} | {planned.job.fit_id for planned in waiting}
    while waiting:
        planned = waiting.pop(0)
        found[planned.job.id] = planned
        for stage in stages(planned.experiment, planned.method):
            task = stage_task(planned, stage)
            if task.job.fit_id not in made and planned.experiment.store.fit(task.job.fit_id) is None:
                made.add(task.job.fit_id)
                waiting.append(task)
    return list(found.values())


def estimate(queue: Queue, costs: Costs) -> Estimate:
    """What is left of a sweep takes this."""
    spec, time, todo, to_come = queue.plan.spec, ahead(queue, costs), _todo(queue), _to_come(queue)
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
    return Estimate(time.seconds, time.total, time.unknown, kept + checkpoints)


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


#: Steps that are taken; the first, which warms up, is not counted.
STEPS = 4


def seconds_by_probe(planned: Planned, engine: Engine) -> float | None:
    """Seconds of all steps of a fit on one device, alone on the machine, without scoring; None for what is not trained in steps.

    Raises:
        BenchError: a step does not fit into memory.
    """
    method, experiment = planned.method, planned.experiment
    if not isinstance(method, FineTuner):
        return None
    engine.apply()
    batches = TrainBatches(
        experiment.split("train"),
        batch_size=method.batch_size,
        seed=planned.job.seed,
        augment=method.augment,
        size=experiment.backbone.pixels.size,
        workers=0,
    )
    # A step takes as long from one head as from another, and with one value of a constant as with another.
    learner = Learner(
        experiment.start("random"),
        method,
        total=STEPS,
        seed=planned.job.seed,
        constants=defaultdict(lambda: 1.0),
        engine=engine,
        ranks=Ranks(),
    )
    begun = []
    for number, (images, labels) in enumerate(islice(batches.steps(0), STEPS)):
        begun.append(time.monotonic())
        float(learner.step(images, labels, number))  # a GPU is waited for
    counted = begun[1:]
    per_step = (time.monotonic() - counted[0]) / len(counted)
    return per_step * batches.steps_per_epoch * method.epochs
