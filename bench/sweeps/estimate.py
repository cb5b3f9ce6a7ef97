"""Estimate the time and disk space that the rest of a sweep takes, from earlier fits and runs."""

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
from ..runs.status import dependencies
from ..training.devices import Ranks
from ..training.step import TrainState
from .plan import Planned, stage_task

if TYPE_CHECKING:
    from .queue import Queue


@dataclass
class Ahead:
    """The estimated time of work that is to do and has not started.

    Attributes:
        seconds: seconds of each planned job by its id; None if no fit of its kind is known.
        later: seconds of work that is not planned yet, since it depends on results; None as above.
        partly: number of jobs, of both, for which only the time of the evaluation is unknown.
    """

    seconds: dict[str, float | None]
    later: list[float | None]
    partly: int

    @property
    def total(self) -> float:
        """The sum of all known seconds."""
        return sum(value for value in (*self.seconds.values(), *self.later) if value is not None)

    @property
    def unknown(self) -> int:
        """The number of jobs whose time is unknown in part or as a whole."""
        return [*self.seconds.values(), *self.later].count(None) + self.partly


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of the rest of a sweep.

    Attributes:
        seconds: seconds of each planned job by its id; None if unknown.
        total: seconds of all trials one after another, including final runs whose parameters a
            search has yet to choose.
        unknown: number of jobs that `total` leaves out in part or as a whole.
        bytes: disk space of the weights and predictions that stay, and of the checkpoints of
            trials that run at the same time.
    """

    seconds: dict[str, float | None]
    total: float
    unknown: int
    bytes: int


def ahead(queue: Queue, costs: Costs) -> Ahead:
    """Estimate the time of all jobs that have not started."""
    todo, to_come, limit = _todo(queue), _to_come(queue), queue.plan.spec.limit
    seconds = {planned.job.id: costs.of(planned, limit) for planned in todo}
    later = [costs.of(planned, limit) for planned in to_come]
    partly = [planned for planned in (*todo, *to_come) if costs.evaluation(planned, limit) is None]
    # Jobs whose fit is unknown too count once, as None among the seconds.
    partly_unknown = sum(costs.of(planned, limit) is not None for planned in partly)
    for search in (search for search in queue.searches if not search.over):
        # The parameters of a trial that is not sampled yet are unknown, so it counts as much as the
        # recipe.
        if search.trials_to_come:
            fit, evaluation = costs.whole(search.first), costs.evaluation(search.first, limit)
            later += [None if fit is None else fit + (evaluation or 0.0)] * search.trials_to_come
            partly_unknown += search.trials_to_come * (fit is not None and evaluation is None)
        # A search by hours spends its budget, whatever its trials cost.
        later.append(search.seconds_to_come)
        if (rest := search.rest()) is not None:
            tuning, schedules = rest
            whole = costs.whole(tuning)
            later.append(None if whole is None else schedules * whole)
    return Ahead(seconds, later, partly_unknown)


def _todo(queue: Queue) -> list[Planned]:
    return [entry.planned for entry in queue if entry.mine and entry.state == "to do"]


def _to_come(queue: Queue) -> list[Planned]:
    """Return the final runs that wait for a search, and the fits that they depend on, each once."""
    searches = [search for search in queue.searches if not search.over]
    plan, found = queue.plan, dict[str, Planned]()
    # With the parameters of the recipe, which stand for those that the search will choose.
    waiting = [
        plan.final(one.entrant, one.entrant.method, seed, None)
        for one in searches
        for seed in plan.spec.seeds
    ]
    made = {entry.job.fit_id for entry in queue} | {planned.job.fit_id for planned in waiting}
    while waiting:
        planned = waiting.pop(0)
        found[planned.job.id] = planned
        for stage in dependencies(planned.experiment, planned.method):
            task = stage_task(planned, stage)
            if (
                task.job.fit_id not in made
                and planned.experiment.store.fit(task.job.fit_id) is None
            ):
                made.add(task.job.fit_id)
                waiting.append(task)
    return list(found.values())


def estimate(queue: Queue, costs: Costs) -> Estimate:
    """Estimate the time and disk space that the rest of a sweep takes."""
    spec, work, todo, to_come = queue.plan.spec, ahead(queue, costs), _todo(queue), _to_come(queue)
    everything = [*todo, *to_come]
    size = {one.experiment.setup.backbone.name: 0 for one in everything}
    # Once per backbone and not per job, since `image_tower` copies the weights.
    for one in everything:
        size[one.experiment.setup.backbone.name] = size[
            one.experiment.setup.backbone.name
        ] or _tower_bytes(one.experiment)
    to_train = [one for one in everything if one.experiment.store.fit(one.job.fit_id) is None]
    saved = sum(
        size[one.experiment.setup.backbone.name] for one in to_train if one.job.phase != "rung"
    ) + sum(map(_predictions, everything))
    at_once = min(len(to_train), spec.max_concurrent or os.cpu_count() or 1)
    # A checkpoint is four times the weights: the weights, the best ones so far and Adam's two
    # moments. While it is written, the one that it replaces is still there, hence eight times. A
    # trial that is paused at a rung leaves one checkpoint.
    paused = sum(
        4 * size[one.experiment.setup.backbone.name] for one in to_train if one.job.phase == "rung"
    )
    checkpoints = at_once * 8 * max(size.values(), default=0) + paused
    return Estimate(work.seconds, work.total, work.unknown, saved + checkpoints)


def _tower_bytes(experiment: Experiment) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in experiment.setup.backbone.image_tower().state_dict().values()
    )


def _predictions(planned: Planned) -> int:
    """Estimate the bytes of a run's predictions on disk."""
    if not planned.job.is_run:
        return 0
    suite = planned.experiment.setup.suite
    splits = (
        ["id-val"]
        if planned.job.phase == "search"
        else ["id-val", "id-test", *(s.name for s in suite.card.shifts)]
    )
    images = sum(
        len(planned.experiment.setup.split(name)) for name in splits if name not in suite.missing
    )
    # Per image: half-precision logits, and some 80 bytes for its key, labels and overhead.
    return images * (2 * len(suite.card.classes) + 80)


#: Training steps of a probe. The first one warms up and is not counted.
STEPS = 4


def seconds_by_probe(planned: Planned, engine: Engine) -> float | None:
    """Measure a few training steps, and extrapolate to the seconds of a whole fit.

    The time is for one device and an otherwise idle machine, without scoring on id-val.

    Args:
        planned: the job whose fit is measured.
        engine: settings of the process.

    Returns:
        Seconds, or None for a method that is not trained in steps.

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
    # The time of a step depends neither on the initial head nor on the values of constants, so both
    # are arbitrary here, which spares the fits that the real ones come from.
    train_state = TrainState(
        experiment.start("random"),
        method,
        total=STEPS,
        seed=planned.job.seed,
        constants=defaultdict(lambda: 1.0),
        engine=engine,
        ranks=Ranks(),
    )
    starts = []
    for number, (images, labels) in enumerate(islice(batches.steps(0), STEPS)):
        starts.append(time.monotonic())
        # `float` waits for the GPU, which computes asynchronously.
        float(train_state.step(images, labels, number))
    counted = starts[1:]
    per_step = (time.monotonic() - counted[0]) / len(counted)
    return per_step * batches.steps_per_epoch * method.epochs


#: Stands in place of a fit_id for a fit that is still running.
_RUNNING = "running"


class Costs:
    """Mean times of fits and evaluations by their kind, from the records in a store.

    Args:
        store: the store with the records.
        probe: measures the seconds of a fit of which no record has the kind, called once per kind;
            None leaves such fits unknown.
    """

    def __init__(
        self, store: Store, probe: Callable[[Planned], float | None] | None = None
    ) -> None:
        self._store, self._probe = store, probe
        #: Kind of fit -> fit_id -> seconds per epoch. By id, so that learning a fit twice does not
        #: count it twice.
        self._fits: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        #: fit_id -> kind and epochs: a queue asks for them each time that it orders its jobs.
        self._keys: dict[str, tuple[tuple[str, ...], float]] = {}
        #: Kind of evaluation -> eval_id -> seconds.
        self._runs: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        #: fit_id -> number of finished epochs; None: the whole fit is finished.
        self._behind: dict[str, int | None] = {}
        for path in sorted(store.fits_dir.glob("*/fit.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                self._add_fit(path.parent.name, record["identity"], float(record["seconds"]))
            except (OSError, ValueError, KeyError, TypeError):
                # A damaged record makes an estimate worse, but is no reason to refuse a sweep.
                continue
        for _, run in store.records():
            self._add_run(run)

    def refresh(self, fit_id: str) -> None:
        """Forget how far a fit has come, so that it is read from the store again."""
        self._behind.pop(fit_id, None)

    def add_finished(self, planned: Planned) -> None:
        """Add the times of a job that has just finished."""
        fit = self._store.fit(planned.job.fit_id)
        if fit is not None:
            self._add_fit(fit.fit_id, fit.identity, fit.seconds)
        if planned.job.is_run and planned.path is not None:
            self._add_run(self._store.read_run(planned.path))

    def observe(self, planned: Planned, seconds: float) -> bool:
        """Use the rate of a running fit for its kind until a fit of that kind has finished.

        Args:
            planned: the running job.
            seconds: expected seconds of its whole fit at the present rate.

        Returns:
            Whether the time of this kind was unknown before.
        """
        key, epochs = self._key(planned)
        # The time of a finished fit was measured, and needs no extrapolation.
        if self._fits[key].keys() - {_RUNNING}:
            return False
        is_new = _RUNNING not in self._fits[key]
        self._fits[key][_RUNNING] = seconds / epochs
        return is_new

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
        """Return the seconds that a job will take, without the fits that it depends on.

        An evaluation of unknown time counts as 0; see `evaluation`.

        Args:
            planned: the job.
            limit: largest number of images per split, or None for all.

        Returns:
            Seconds, or None if the time of the fit is unknown.
        """
        job = planned.job
        seconds: float | None = 0.0
        behind = self._epochs_behind(job.fit_id)
        if behind is not None:
            _, epochs = self._key(planned)
            whole = self.whole(planned)
            # A rung trains as far as its epoch only, and a resumed fit has some epochs behind it.
            seconds = (
                None if whole is None else whole * max(0.0, (job.epoch or epochs) - behind) / epochs
            )
        if not job.is_run or seconds is None:
            return seconds
        return seconds + (self.evaluation(planned, limit) or 0.0)

    def evaluation(self, planned: Planned, limit: int | None) -> float | None:
        """Return the seconds of a job's evaluation, 0 if it has none; None if unknown.

        Args:
            planned: the job.
            limit: largest number of images per split, or None for all.
        """
        experiment, job = planned.experiment, planned.job
        if not job.is_run:
            return 0.0
        place = (
            experiment.setup.suite.card.name,
            experiment.setup.backbone.name,
            str(job.phase == "search"),
        )
        # A limit above the size of every split cuts nothing, and such runs are recorded without it.
        known = _mean(self._runs[(*place, str(limit if experiment.setup.suite.cut else None))])
        # A curve evaluates one more model per alpha.
        return None if known is None else known * (1 + len(ALPHAS) * job.curve)

    def training(self, experiment: Experiment, method: Method) -> float | None:
        """Return the seconds of a whole fit, without those that it depends on; None if unknown."""
        key, epochs = _fit_key(experiment.identity(method))
        per_epoch = _mean(self._fits[key])
        return None if per_epoch is None else per_epoch * epochs

    def whole(self, planned: Planned) -> float | None:
        """Return the seconds of a job's whole fit, first epoch to last; None if unknown."""
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
    """Return the kind of a fit, and its number of epochs."""
    parameters = identity["method"]["parameters"]
    # Fits that agree in these take about equally long per epoch. A method that is not trained in
    # epochs counts as one.
    key = (
        identity["method"]["name"],
        identity["backbone"],
        identity["train"],
        str(parameters.get("batch_size")),
    )
    return key, float(parameters.get("epochs") or 1)
