"""What a planned sweep will take: seconds by what earlier fits and runs took, and bytes by what it will keep."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..runs.experiment import Experiment
from ..runs.measure import ALPHAS
from ..runs.store import Store
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


class Costs:
    """How long fits and evaluations took, from the records of a store.

    Args:
        probe: measures what no record tells, once per kind of fit; None leaves it unknown.
    """

    def __init__(self, store: Store, probe: Callable[[Planned], float | None] | None = None) -> None:
        self._probe = probe
        self._fits: dict[tuple[str, ...], list[float]] = defaultdict(list)
        self._runs: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for path in sorted(store.fits_dir.glob("*/fit.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                key, size = _fit_key(record["identity"])
                self._fits[key].append(float(record["seconds"]) / size)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # an estimate does without a record that cannot be read
        for _, run in store.records():
            if run.eval_seconds is not None:
                self._runs[run.suite, run.backbone, str(run.phase == "search"), str(run.limit)].append(run.eval_seconds)

    def of(self, planned: Planned, limit: int | None) -> float | None:
        """Seconds that a job will take, the fits that it needs excluded; None if unknown."""
        experiment, job = planned.experiment, planned.job
        seconds: float | None = 0.0
        if experiment.store.fit(job.fit_id) is None:
            key, size = _fit_key(experiment.identity(planned.method))
            if key not in self._fits and self._probe is not None:
                measured = self._probe(planned)
                self._fits[key] = [] if measured is None else [measured / size]
            known = self._fits.get(key)
            seconds = size * sum(known) / len(known) if known else None
        if job.phase == "stage" or seconds is None:
            return seconds
        place = (experiment.suite.card.name, experiment.backbone.name, str(job.phase == "search"))
        known = self._runs.get((*place, str(limit if experiment.suite.cut else None)))
        evaluation = sum(known) / len(known) if known else 0.0
        return seconds + evaluation * (1 + len(ALPHAS) * job.curve)


def _fit_key(identity: dict[str, Any]) -> tuple[tuple[str, ...], float]:
    """What fits must have in common to take equally long per epoch, and the epochs."""
    parameters = identity["method"]["parameters"]
    key = (identity["method"]["name"], identity["backbone"], identity["train"], str(parameters.get("batch_size")))
    return key, float(parameters.get("epochs") or 1)


def estimate(queue: Queue, costs: Costs) -> Estimate:
    """What is left of a sweep takes this."""
    spec = queue.plan.spec
    todo = [entry.planned for entry in queue if entry.mine and entry.state == "to do"]
    seconds = {planned.job.id: costs.of(planned, spec.limit) for planned in todo}
    # A final run that is not chosen yet costs about what the recipe costs.
    open_searches = [search.entrant for search in queue.searches if not search.over]
    to_come = [queue.plan.final(entrant, entrant.method, seed, None) for entrant in open_searches for seed in spec.seeds]
    later = [costs.of(planned, spec.limit) for planned in to_come]
    known = [value for value in [*seconds.values(), *later] if value is not None]
    everything = [*todo, *to_come]
    size = {one.experiment.backbone.name: 0 for one in everything}
    for one in everything:
        size[one.experiment.backbone.name] = size[one.experiment.backbone.name] or _tower_bytes(one.experiment)
    to_train = [one for one in everything if one.experiment.store.fit(one.job.fit_id) is None]
    kept = sum(size[one.experiment.backbone.name] for one in to_train) + sum(map(_predictions, everything))
    at_once = min(len(to_train), spec.max_concurrent or os.cpu_count() or 1)
    # Weights, the best so far and Adam's two moments, beside the checkpoint that they replace.
    checkpoints = at_once * 8 * max(size.values(), default=0)
    return Estimate(seconds, sum(known), len(everything) - len(known), kept + checkpoints)


def _tower_bytes(experiment: Experiment) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in experiment.backbone.image_tower().state_dict().values())


def _predictions(planned: Planned) -> int:
    """Bytes of a run's predictions: half-precision logits and some 80 bytes for every image."""
    if planned.job.phase == "stage":
        return 0
    suite = planned.experiment.suite
    splits = ["id-val"] if planned.job.phase == "search" else ["id-val", "id-test", *(s.name for s in suite.card.shifts)]
    images = sum(len(planned.experiment.split(name)) for name in splits if name not in suite.holes)
    return images * (2 * len(suite.card.classes) + 80)
