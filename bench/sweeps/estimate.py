"""What a planned sweep will take: seconds by what earlier fits and runs took, and bytes by what it
will keep.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..data.batches import TrainBatches
from ..engine import Engine
from ..method import FineTuner, Method
from ..results.record import RunRecord
from ..results.store import Store
from ..runs.experiment import Experiment
from ..runs.measure import ALPHAS
from ..runs.standing import stages
from ..training.devices import Ranks
from ..training.step import Learner
from .plan import Planned, stage_task

if TYPE_CHECKING:
    from .queue import Queue


@dataclass
class Ahead:
    """The time of what is to do and does not run yet.

    Attributes:
        seconds: by job; None where no fit of its kind tells.
        later: of what depends on results that are not there yet.
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
        seconds: by job; None where nothing tells.
        total: of trial time, final runs that a search has yet to choose included.
        unknown: number of jobs of which it leaves out something or everything.
        bytes: weights and predictions that will be kept, and the checkpoints of trials that run at
            once.
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
    """The final runs that a search has yet to choose, with its recipe, and the fits that they will
    be built on, each once.
    """
    searches = [search for search in queue.searches if not search.over]
    plan, found = queue.plan, dict[str, Planned]()
    waiting = [
        plan.final(one.entrant, one.entrant.method, seed, None)
        for one in searches
        for seed in plan.spec.seeds
    ]
    made = {entry.job.fit_id for entry in queue} | {planned.job.fit_id for planned in waiting}
    while waiting:
        planned = waiting.pop(0)
        found[planned.job.id] = planned
        for stage in stages(planned.experiment, planned.method):
            task = stage_task(planned, stage)
            if (
                task.job.fit_id not in made
                and planned.experiment.store.fit(task.job.fit_id) is None
            ):
                made.add(task.job.fit_id)
                waiting.append(task)
    return list(found.values())


def estimate(queue: Queue, costs: Costs) -> Estimate:
    """What is left of a sweep takes this."""
    spec, time, todo, to_come = queue.plan.spec, ahead(queue, costs), _todo(queue), _to_come(queue)
    everything = [*todo, *to_come]
    size = {one.experiment.setup.backbone.name: 0 for one in everything}
    for one in everything:
        size[one.experiment.setup.backbone.name] = size[
            one.experiment.setup.backbone.name
        ] or _tower_bytes(one.experiment)
    to_train = [one for one in everything if one.experiment.store.fit(one.job.fit_id) is None]
    kept = sum(
        size[one.experiment.setup.backbone.name] for one in to_train if one.job.phase != "rung"
    ) + sum(map(_predictions, everything))
    at_once = min(len(to_train), spec.max_concurrent or os.cpu_count() or 1)
    # Weights, the best so far and Adam's two moments, beside the checkpoint that they replace; at a
    # rung a trial leaves them.
    left = sum(
        4 * size[one.experiment.setup.backbone.name] for one in to_train if one.job.phase == "rung"
    )
    checkpoints = at_once * 8 * max(size.values(), default=0) + left
    return Estimate(time.seconds, time.total, time.unknown, kept + checkpoints)


def _tower_bytes(experiment: Experiment) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in experiment.setup.backbone.image_tower().state_dict().values()
    )


def _predictions(planned: Planned) -> int:
    """Bytes of a run's predictions: half-precision logits and some 80 bytes for every image."""
    if not planned.job.is_run:
        return 0
    suite = planned.experiment.setup.suite
    splits = (
        ["id-val"]
        if planned.job.phase == "search"
        else ["id-val", "id-test", *(s.name for s in suite.card.shifts)]
    )
    images = sum(
        len(planned.experiment.setup.split(name)) for name in splits if name not in suite.holes
    )
    return images * (2 * len(suite.card.classes) + 80)


#: Steps that are taken; the first, which warms up, is not counted.
STEPS = 4


def seconds_by_probe(planned: Planned, engine: Engine) -> float | None:
    """Seconds of all steps of a fit on one device, alone on the machine, without scoring; None for
    what is not trained in steps.

    Raises:
        BenchError: a step does not fit into memory.
    """
    method, experiment = planned.method, planned.experiment
    if not isinstance(method, FineTuner):
        return None
    engine.apply()
    batches = TrainBatches(
        experiment.setup.split("train"),
        batch_size=method.batch_size,
        seed=planned.job.seed,
        augment=method.augment,
        size=experiment.setup.backbone.pixels.size,
        workers=0,
    )
    # A step takes as long from one head as from another, and with one value of a constant as with
    # another.
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


#: In place of a fit_id: a fit that is not finished.
_RUNNING = "running"


class Costs:
    """Means over the records of a store.

    Args:
        probe: measures what no record tells, once per kind of fit; None leaves it unknown.
    """

    def __init__(
        self, store: Store, probe: Callable[[Planned], float | None] | None = None
    ) -> None:
        self._store, self._probe = store, probe
        self._fits: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        self._keys: dict[str, tuple[tuple[str, ...], float]] = {}
        self._runs: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        #: Epochs that a fit has behind it; None: it is finished.
        self._behind: dict[str, int | None] = {}
        for path in sorted(store.fits_dir.glob("*/fit.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                self._add_fit(path.parent.name, record["identity"], float(record["seconds"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # an estimate does without a record that cannot be read
        for _, run in store.records():
            self._add_run(run)

    def look_again(self, fit_id: str) -> None:
        """Something has been, or is being, done to a fit: what is behind it is read anew."""
        self._behind.pop(fit_id, None)

    def learn(self, planned: Planned) -> None:
        """Take in a job that was just done."""
        fit = self._store.fit(planned.job.fit_id)
        if fit is not None:
            self._add_fit(fit.fit_id, fit.identity, fit.seconds)
        if planned.job.is_run and planned.path is not None:
            self._add_run(self._store.read_run(planned.path))

    def observe(self, planned: Planned, seconds: float) -> bool:
        """Take in what a fit that is running will take as a whole, at the rate of its steps;
        whether that is news of its kind.

        It stands in until a fit of the kind is finished.
        """
        key, epochs = self._key(planned)
        if self._fits[key].keys() - {_RUNNING}:
            return False
        news = _RUNNING not in self._fits[key]
        self._fits[key][_RUNNING] = seconds / epochs
        return news

    def _add_fit(self, fit_id: str, identity: dict[str, Any], seconds: float) -> None:
        key, epochs = _fit_key(identity)
        self._fits[key].pop(_RUNNING, None)
        self._fits[key][fit_id] = seconds / epochs

    def _add_run(self, run: RunRecord) -> None:
        if run.eval_seconds is not None:
            self._runs[run.suite, run.backbone, str(run.phase == "search"), str(run.limit)][
                run.eval_id
            ] = run.eval_seconds

    def of(self, planned: Planned, limit: int | None) -> float | None:
        """Seconds that a job will take, the fits that it needs excluded; None if unknown. What its
        evaluation will take may be unknown, and is then left out (`evaluation`).
        """
        job = planned.job
        seconds: float | None = 0.0
        behind = self._epochs_behind(job.fit_id)
        if behind is not None:
            _, epochs = self._key(planned)
            whole = self.whole(planned)
            seconds = (
                None if whole is None else whole * max(0.0, (job.epoch or epochs) - behind) / epochs
            )
        if not job.is_run or seconds is None:
            return seconds
        return seconds + (self.evaluation(planned, limit) or 0.0)

    def evaluation(self, planned: Planned, limit: int | None) -> float | None:
        """Seconds of a job's evaluation, 0 if it has none; None if unknown."""
        experiment, job = planned.experiment, planned.job
        if not job.is_run:
            return 0.0
        place = (
            experiment.setup.suite.card.name,
            experiment.setup.backbone.name,
            str(job.phase == "search"),
        )
        known = _mean(self._runs[(*place, str(limit if experiment.setup.suite.cut else None))])
        return None if known is None else known * (1 + len(ALPHAS) * job.curve)

    def training(self, experiment: Experiment, method: Method) -> float | None:
        """Seconds of a whole fit, those that it is built on excluded; None if unknown."""
        key, epochs = _fit_key(experiment.identity(method))
        per_epoch = _mean(self._fits[key])
        return None if per_epoch is None else per_epoch * epochs

    def whole(self, planned: Planned) -> float | None:
        """Seconds of a job's whole fit, from its first epoch to its last; None if unknown."""
        key, epochs = self._key(planned)
        per_epoch = _mean(self._fits[key])
        if per_epoch is None and self._probe is not None:
            measured = self._probe(planned)
            if measured is not None:
                self._fits[key]["probe"] = per_epoch = measured / epochs
        return None if per_epoch is None else per_epoch * epochs

    def _epochs_behind(self, fit_id: str) -> int | None:
        if fit_id not in self._behind:
            finished = self._store.fit(fit_id) is not None
            self._behind[fit_id] = (
                None
                if finished
                else max((one["epoch"] for one in self._store.epochs(fit_id)), default=0)
            )
        return self._behind[fit_id]

    def _key(self, planned: Planned) -> tuple[tuple[str, ...], float]:
        fit_id = planned.job.fit_id
        if fit_id not in self._keys:
            self._keys[fit_id] = _fit_key(planned.experiment.identity(planned.method))
        return self._keys[fit_id]


def _mean(known: dict[str, float]) -> float | None:
    return sum(known.values()) / len(known) if known else None


def _fit_key(identity: dict[str, Any]) -> tuple[tuple[str, ...], float]:
    """What fits must have in common to take equally long per epoch, and the epochs."""
    parameters = identity["method"]["parameters"]
    key = (
        identity["method"]["name"],
        identity["backbone"],
        identity["train"],
        str(parameters.get("batch_size")),
    )
    return key, float(parameters.get("epochs") or 1)
