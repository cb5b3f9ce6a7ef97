"""How long fits and evaluations take, by what earlier ones took."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ..method import Method
from ..results.record import RunRecord
from ..results.store import Store
from ..runs.experiment import Experiment
from ..runs.measure import ALPHAS
from .plan import Planned

#: In place of a fit_id: a fit that is not finished.
_RUNNING = "running"


class Costs:
    """Means over the records of a store.

    Args:
        probe: measures what no record tells, once per kind of fit; None leaves it unknown.
    """

    def __init__(self, store: Store, probe: Callable[[Planned], float | None] | None = None) -> None:
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
        """Take in what a fit that is running will take as a whole, at the rate of its steps; whether that is news of its kind.

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
            self._runs[run.suite, run.backbone, str(run.phase == "search"), str(run.limit)][run.eval_id] = run.eval_seconds

    def of(self, planned: Planned, limit: int | None) -> float | None:
        """Seconds that a job will take, the fits that it needs excluded; None if unknown. What its evaluation will take may be
        unknown, and is then left out (`evaluation`)."""
        job = planned.job
        seconds: float | None = 0.0
        behind = self._epochs_behind(job.fit_id)
        if behind is not None:
            _, epochs = self._key(planned)
            whole = self.whole(planned)
            seconds = None if whole is None else whole * max(0.0, (job.epoch or epochs) - behind) / epochs
        if not job.is_run or seconds is None:
            return seconds
        return seconds + (self.evaluation(planned, limit) or 0.0)

    def evaluation(self, planned: Planned, limit: int | None) -> float | None:
        """Seconds of a job's evaluation, 0 if it has none; None if unknown."""
        experiment, job = planned.experiment, planned.job
        if not job.is_run:
            return 0.0
        place = (experiment.suite.card.name, experiment.backbone.name, str(job.phase == "search"))
        known = _mean(self._runs[(*place, str(limit if experiment.suite.cut else None))])
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
            self._behind[fit_id] = None if finished else max((one["epoch"] for one in self._store.epochs(fit_id)), default=0)
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
    key = (identity["method"]["name"], identity["backbone"], identity["train"], str(parameters.get("batch_size")))
    return key, float(parameters.get("epochs") or 1)
