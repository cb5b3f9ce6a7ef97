"""Search: the same number of trials for every method, judged on id-val only, with a seed of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import BenchError
from ..identity import numpy_stream
from ..method import Method
from ..runs.execute import execute
from ..runs.experiment import Experiment
from ..runs.record import RunRecord


@dataclass(frozen=True)
class Found:
    """The method with the chosen parameters, and every trial's record in the order of the trials."""

    method: Method
    trials: list[RunRecord]
    chosen: int

    @property
    def budget(self) -> int:
        """Number of trials that differ (a method without a search space has but one)."""
        return len({trial.fit_id for trial in self.trials})

    @property
    def seconds(self) -> float:
        """Training time of the trials that differ, whenever they were made."""
        return sum({trial.fit_id: trial.fit_seconds or 0.0 for trial in self.trials}.values())


def trial_of(method: Method, number: int, fixed: Collection[str] = ()) -> Method:
    """The method with the parameters of one trial.

    Trial 0 is the recipe as it stands. Later trials draw every field that has a search space, by the name of the stage
    that it belongs to, the field and the trial's number: a stage that two methods share gets the same values in both, so
    that it is trained once.

    Args:
        fixed: parameters that the user set, which are not drawn; `of.lr` names a nested one.
    """
    if number == 0:
        return method
    update: dict[str, Any] = {}
    for key, space in type(method).search_space().items():
        if key not in fixed and space.together not in fixed:
            draw = space.draw(float(numpy_stream("search", method.name, key, number).random()))
            if space.relative:
                draw *= getattr(method, key)
            # Three digits are more than a search resolves, and can be read in a table.
            update[key] = float(f"{draw:.3g}") if isinstance(draw, float) else draw
    for key in type(method).model_fields:
        inner = getattr(method, key)
        if isinstance(inner, Method):
            below = {name.partition(".")[2] for name in fixed if name.startswith(f"{key}.")}
            update[key] = trial_of(inner, number, below)
    return type(method).model_validate({**{k: getattr(method, k) for k in type(method).model_fields}, **update})


def search(
    experiment: Experiment, method: Method, trials: int, fixed: Collection[str] = (), *, limit: int | None = None
) -> Found:
    """Fit each trial on `experiment` (which should have SEARCH_SEED) and choose by id-val: score, then NLL, then first.

    Raises:
        BenchError: every trial failed. Interrupted: a stop was asked for; finished trials are kept.
    """
    candidates = [trial_of(method, number, fixed) for number in range(trials)]
    records: list[RunRecord] = []
    for number, candidate in enumerate(candidates):
        experiment.reporter.event("trial", method=method.name, number=number + 1, of=trials)
        records.append(execute(experiment, candidate, limit=limit, search=True))
    done = [number for number, record in enumerate(records) if record.status == "done"]
    if not done:
        raise BenchError(f"all {trials} trials of {method.name} failed: {records[0].error}", fix="`bench run` it once to see why")
    best = min(done, key=lambda n: (-records[n].metrics["id-val"].score, records[n].metrics["id-val"].nll, n))
    return Found(candidates[best], records, best)
