"""Search: the same number of trials for every method, judged on id-val only, with a seed of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import MissingPrerequisite
from ...identity import numpy_stream, seed_for
from ...method import Method, Space
from ...results.record import RunRecord
from ...results.store import Store


@dataclass(frozen=True)
class Found:
    """What a search has chosen, and what that has cost.

    Attributes:
        method: with the chosen parameters.
        trials: every trial's record, in order.
        seconds: of training (`training_seconds`).
        rule: how trials were drawn, as a run's record says it.
        cut_short: whether trials were, by ASHA.
    """

    method: Method
    trials: list[RunRecord]
    seconds: float
    rule: str
    cut_short: bool = False

    @property
    def budget(self) -> int:
        """Number of trials that differ (a method without a search space has but one)."""
        return len({trial.fit_id for trial in self.trials})

    @property
    def told(self) -> dict[str, Any]:
        """How the parameters were chosen, in the words of a run's record."""
        return {
            "search_trials": self.budget,
            "search_seconds": self.seconds,
            "search_rule": self.rule,
            "search_cut_short": self.cut_short,
        }


def training_seconds(store: Store, trained: Iterable[tuple[str, float]]) -> float:
    """Training time of fits and of what they are built on, each fit once, whenever it was made.

    Args:
        trained: of every trial, what was trained for it (a fit_id) and what that has taken, should
            the store not have it.
    """
    fits: dict[str, float] = {}
    waiting = list(dict(trained).items())
    while waiting:
        fit_id, whole = waiting.pop()
        if fit_id not in fits:
            record = store.fit(fit_id)
            # Of a fit that is not there (cut short, or freed) it is known what it took with what it
            # is built on.
            fits[fit_id] = whole if record is None else record.seconds
            waiting += [] if record is None else [(nested, 0.0) for nested in record.nested]
    return sum(fits.values())


#: From a stage's name, its fields to draw and the trial's number to where in its space each field
#: lies, in [0, 1).
Draws = Callable[[str, Mapping[str, Space], int], Mapping[str, float]]


def at_random(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
    """Independent uniform draws, each with a stream of its own."""
    return {key: float(numpy_stream("search", stage, key, number).random()) for key in spaces}


def on_a_grid(trials: int) -> Draws:
    """Points of a regular grid, in an order that is shuffled once.

    The grid has just as many levels per interval as `trials` trials need (choices have their own
    number), so that every method gets the same number of trials, whatever the number of its
    parameters. The number is even: the middle of a space is often the recipe, which is trial 0
    already.
    """

    def draw(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
        chosen = [len(space.choices) for space in spaces.values() if space.choices]
        intervals = len(spaces) - len(chosen)
        needed = max(1, math.ceil((trials - 1) / math.prod(chosen)))
        levels = (
            next(n for n in range(2, trials + 3, 2) if n**intervals >= needed) if intervals else 1
        )
        sizes = [len(space.choices) or levels for space in spaces.values()]
        order = numpy_stream("grid", stage, trials).permutation(math.prod(sizes))
        point = int(order[(number - 1) % len(order)])
        found = {}
        for key, size in zip(spaces, sizes, strict=True):
            point, level = divmod(point, size)
            found[key] = (level + 0.5) / size
        return found

    return draw


def drawn_fields(method: Method, fixed: Collection[str]) -> dict[str, Space]:
    """The fields of this stage that a search draws: all that have a space, but for what the user
    set.
    """
    spaces = type(method).search_space()
    return {
        key: space
        for key, space in spaces.items()
        if key not in fixed and space.together not in fixed
    }


def fixed_below(fixed: Collection[str], key: str) -> set[str]:
    """The parameters that the user set of the method nested in `key`, by their names there."""
    return {name.partition(".")[2] for name in fixed if name.startswith(f"{key}.")}


def all_drawn(method: Method, fixed: Collection[str]) -> list[str]:
    """The drawn fields of a method and of those nested in it, as `stage/field`."""
    found = [f"{method.name}/{key}" for key in drawn_fields(method, fixed)]
    for key in type(method).model_fields:
        inner = getattr(method, key)
        if isinstance(inner, Method):
            found += all_drawn(inner, fixed_below(fixed, key))
    return found


def with_values(method: Method, update: Mapping[str, Any]) -> Method:
    """A copy with some fields replaced, validated."""
    return type(method).model_validate(
        {**{key: getattr(method, key) for key in type(method).model_fields}, **update}
    )


def value_at(method: Method, key: str, space: Space, uniform: float) -> Any:
    """The value of a field at a quantile of its space."""
    value = space.draw(uniform)
    if space.relative:
        value *= getattr(method, key)
    # Three digits are more than a search resolves, and can be read in a table.
    return float(f"{value:.3g}") if isinstance(value, float) else value


def trial_of(
    method: Method, number: int, fixed: Collection[str] = (), draws: Draws = at_random
) -> Method:
    """The method with the parameters of one trial.

    Trial 0 is the recipe as it stands. Later trials draw every field that has a search space, by
    the name of the stage that it belongs to, the field and the trial's number: a stage that two
    methods share gets the same values in both, so that it is trained once.

    Args:
        fixed: parameters that the user set, which are not drawn; `of.lr` names a nested one.
    """
    if number == 0:
        return method
    spaces = drawn_fields(method, fixed)
    update = {
        key: value_at(method, key, spaces[key], at)
        for key, at in draws(method.name, spaces, number).items()
    }
    for key in type(method).model_fields:
        inner = getattr(method, key)
        if isinstance(inner, Method):
            update[key] = trial_of(inner, number, fixed_below(fixed, key), draws)
    return with_values(method, update)


def best_of(records: Collection[RunRecord]) -> int | None:
    """Which trial did best on id-val: highest score, then lowest NLL, then first; None if none is
    done.
    """
    scores = {
        number: record.metrics["id-val"]
        for number, record in enumerate(records)
        if record.status == "done"
    }
    return min(
        scores, key=lambda number: (-scores[number].score, scores[number].nll, number), default=None
    )


class Sampler(Protocol):
    """Proposes the parameters of a trial."""

    @property
    def looks_back(self) -> bool:
        """Whether a proposal depends on how earlier trials did, so that they have to be done
        first.
        """
        ...

    def trial(
        self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]
    ) -> Method:
        """The method of trial `number`; 0 is the recipe as it stands. `history`: of all trials
        before it, if it looks back.
        """
        ...


@dataclass(frozen=True)
class Beforehand:
    """Draws that are fixed before the first trial runs, and shared by the stages that methods
    share.
    """

    draws: Draws
    looks_back: bool = False

    def trial(
        self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]
    ) -> Method:
        """As `trial_of`."""
        return trial_of(method, number, fixed, self.draws)


def sampler(name: str, trials: int) -> Sampler:
    """The sampler of one method's search: `random`, `grid` or `tpe`.

    Raises:
        MissingPrerequisite: TPE is Optuna's, which is not installed.
    """
    if name == "tpe":
        return TPE()
    return Beforehand(on_a_grid(trials) if name == "grid" else at_random)


class TPE:
    """Proposes where earlier trials of the same method did well on id-val; one instance per search.

    A trial depends on the results before it, so the trials of one method run one after another, and
    what two methods share is no longer drawn alike: stages are rarely reused. The space is the unit
    cube of the drawn fields' quantiles.

    Raises:
        MissingPrerequisite: Optuna is not installed.
    """

    looks_back = True

    def __init__(self) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingPrerequisite(
                "a search by TPE needs Optuna", fix="pip install 'shiftbench[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._points: list[dict[str, float]] = []

    def trial(
        self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]
    ) -> Method:
        """The method of trial `number`, given the records of all trials before it."""
        import optuna

        cube: dict[str, optuna.distributions.BaseDistribution] = {
            key: optuna.distributions.FloatDistribution(0.0, 1.0 - 1e-9)
            for key in all_drawn(method, fixed)
        }
        point: dict[str, float] = {}
        if number and cube:
            sampler = optuna.samplers.TPESampler(
                seed=seed_for("tpe", method.name, number) % 2**32, n_startup_trials=4
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for at, record in zip(self._points, history, strict=True):
                if at and record.status == "done":
                    score = record.metrics["id-val"].score
                    study.add_trial(
                        optuna.trial.create_trial(params=at, distributions=cube, value=score)
                    )
            point = study.ask(cube).params
        self._points.append(point)

        def draws(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
            return {key: point[f"{stage}/{key}"] for key in spaces}

        return trial_of(method, number, fixed, draws)
