"""Search by Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), its history fed again from the store each time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...errors import MissingPrerequisite
from ...identity import seed_for
from ...method import Method, Space
from ...results.record import RunRecord
from .samplers import all_drawn, trial_of


class TPE:
    """Proposes where earlier trials of the same method did well on id-val; one instance per search.

    A trial depends on the results before it, so the trials of one method run one after another, and what two methods share is no
    longer drawn alike: stages are rarely reused. The space is the unit cube of the drawn fields' quantiles.

    Raises:
        MissingPrerequisite: Optuna is not installed.
    """

    looks_back = True

    def __init__(self) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingPrerequisite("a search by TPE needs Optuna", fix="pip install 'shiftbench[optuna]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._points: list[dict[str, float]] = []

    def trial(self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]) -> Method:
        """The method of trial `number`, given the records of all trials before it."""
        import optuna

        cube: dict[str, optuna.distributions.BaseDistribution] = {
            key: optuna.distributions.FloatDistribution(0.0, 1.0 - 1e-9) for key in all_drawn(method, fixed)
        }
        point: dict[str, float] = {}
        if number and cube:
            sampler = optuna.samplers.TPESampler(seed=seed_for("tpe", method.name, number) % 2**32, n_startup_trials=4)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for at, record in zip(self._points, history, strict=True):
                if at and record.status == "done":
                    score = record.metrics["id-val"].score
                    study.add_trial(optuna.trial.create_trial(params=at, distributions=cube, value=score))
            point = study.ask(cube).params
        self._points.append(point)

        def draws(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
            return {key: point[f"{stage}/{key}"] for key in spaces}

        return trial_of(method, number, fixed, draws)
