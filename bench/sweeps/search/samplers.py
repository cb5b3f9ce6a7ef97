"""Sample hyper-parameters for search trials (random, grid, TPE), and select the best trial."""

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
class Winner:
    """The result of a search, and its cost.

    Attributes:
        method: the method with the chosen parameters.
        trials: the records of all trials, in order.
        seconds: seconds of training; see `training_seconds`.
        rule: how parameters were sampled: `random`, `grid` or `tpe`.
        cut_short: whether ASHA stopped trials early.
    """

    method: Method
    trials: list[RunRecord]
    seconds: float
    rule: str
    cut_short: bool = False

    @property
    def budget(self) -> int:
        """The number of different trials; a method without a search space has only one."""
        return len({trial.fit_id for trial in self.trials})

    @property
    def record_fields(self) -> dict[str, Any]:
        """How the parameters were chosen, as fields of a run's record."""
        return {
            "search_trials": self.budget,
            "search_seconds": self.seconds,
            "search_rule": self.rule,
            "search_cut_short": self.cut_short,
        }


def training_seconds(store: Store, trained: Iterable[tuple[str, float]]) -> float:
    """Return the training time of fits and their dependencies in seconds, each fit counted once.

    Args:
        store: the store with the fits.
        trained: (fit_id, seconds) of each trial; the seconds count if the store has no such fit.
    """
    # A fit that an earlier sweep made counts too: the budget of a search states what it takes to
    # repeat it, whatever was in the store.
    fits: dict[str, float] = {}
    waiting = list(dict(trained).items())
    while waiting:
        fit_id, whole = waiting.pop()
        if fit_id not in fits:
            record = store.fit(fit_id)
            # A fit that is not in the store was stopped early, or removed since. The seconds that
            # are known of it include its dependencies, so these are not added.
            fits[fit_id] = whole if record is None else record.seconds
            waiting += [] if record is None else [(nested, 0.0) for nested in record.nested]
    return sum(fits.values())


#: From the name of a method, its search space by field and the number of a trial to the quantile of
#: each field in its space, in [0, 1).
Quantiles = Callable[[str, Mapping[str, Space], int], Mapping[str, float]]


def at_random(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
    """Sample independent uniform quantiles.

    Args:
        stage: name of the method.
        spaces: search space by field.
        number: number of the trial.
    """
    # Each field has a random stream of its own, so that a new field of a method changes none of the
    # others, and the order of trials does not matter.
    return {key: float(numpy_stream("search", stage, key, number).random()) for key in spaces}


def on_a_grid(trials: int) -> Quantiles:
    """Return a sampler of the points of a regular grid, in shuffled order.

    Args:
        trials: number of trials of the search, including the recipe.
    """
    # A grid has as many levels per interval as the budget needs; a choice has as many as it has
    # values. So every method gets the same number of trials, however many parameters it has. The
    # order is shuffled, since the budget rarely covers the whole grid, and the first points in
    # regular order would share their last coordinates.

    def points(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
        chosen = [len(space.choices) for space in spaces.values() if space.choices]
        intervals = len(spaces) - len(chosen)
        needed = max(1, math.ceil((trials - 1) / math.prod(chosen)))
        # An even number, whose levels leave out the middle: that is often the value of the recipe,
        # which is trial 0 already.
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

    return points


def searched_fields(method: Method, fixed: Collection[str]) -> dict[str, Space]:
    """Return the search space of a method by field, without nested methods.

    Args:
        method: the method.
        fixed: names of the parameters that the user set, which are left out.
    """
    # `together`: a field whose meaning depends on one that the user set is left out too.
    spaces = type(method).search_space()
    return {
        key: space
        for key, space in spaces.items()
        if key not in fixed and space.together not in fixed
    }


def fixed_below(fixed: Collection[str], key: str) -> set[str]:
    """Return the parameters that the user set of the method in field `key`, without the prefix."""
    return {name.partition(".")[2] for name in fixed if name.startswith(f"{key}.")}


def all_sampled(method: Method, fixed: Collection[str]) -> list[str]:
    """Return the searched fields of a method and its nested methods, as `method/field`."""
    found = [f"{method.name}/{key}" for key in searched_fields(method, fixed)]
    for key in type(method).model_fields:
        inner = getattr(method, key)
        if isinstance(inner, Method):
            found += all_sampled(inner, fixed_below(fixed, key))
    return found


def with_values(method: Method, update: Mapping[str, Any]) -> Method:
    """Return a validated copy of a method with some fields replaced."""
    # Not `model_copy`, which does not validate.
    return type(method).model_validate(
        {**{key: getattr(method, key) for key in type(method).model_fields}, **update}
    )


def value_at(method: Method, key: str, space: Space, uniform: float) -> Any:
    """Return the value of a field at a quantile of its search space.

    Args:
        method: the method with the parameters of the recipe.
        key: name of the field.
        space: search space of the field.
        uniform: quantile in [0, 1).
    """
    value = space.sample(uniform)
    if space.relative:
        value *= getattr(method, key)
    # Three significant digits are more than a search resolves, and are readable in a table.
    return float(f"{value:.3g}") if isinstance(value, float) else value


def trial_of(
    method: Method, number: int, fixed: Collection[str] = (), quantiles: Quantiles = at_random
) -> Method:
    """Return a method with the parameters of one trial.

    Args:
        method: the method with the parameters of the recipe.
        number: number of the trial; 0 is the recipe as it stands.
        fixed: names of the parameters that the user set, which are not sampled; `of.lr` is that of
            a nested method.
        quantiles: samples the quantiles of a method's fields.
    """
    # The recipe is always among the trials, so that no search ends below it on id-val.
    if number == 0:
        return method
    # A nested method is sampled by its own name, not by that of the method around it. Two methods
    # that wrap the same one get the same values for it, and it is trained once.
    spaces = searched_fields(method, fixed)
    update = {
        key: value_at(method, key, spaces[key], at)
        for key, at in quantiles(method.name, spaces, number).items()
    }
    for key in type(method).model_fields:
        inner = getattr(method, key)
        if isinstance(inner, Method):
            update[key] = trial_of(inner, number, fixed_below(fixed, key), quantiles)
    return with_values(method, update)


def best_of(records: Collection[RunRecord]) -> int | None:
    """Return the index of the trial with the highest score on id-val; None if none is done.

    Ties go to the lower NLL, then to the earlier trial.
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
    """A rule that proposes the parameters of trials."""

    @property
    def looks_back(self) -> bool:
        """Whether a proposal depends on the results of earlier trials, which then run first."""
        ...

    def trial(
        self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]
    ) -> Method:
        """Return the method with the parameters of a trial.

        Args:
            method: the method with the parameters of the recipe.
            number: number of the trial; 0 is the recipe as it stands.
            fixed: names of the parameters that the user set, which are not sampled.
            history: records of all earlier trials, if the sampler looks back; else empty.
        """
        ...


@dataclass(frozen=True)
class Beforehand:
    """A sampler whose trials are fixed before the first one runs.

    Attributes:
        quantiles: samples the quantiles of a method's fields.
        looks_back: False.
    """

    quantiles: Quantiles
    looks_back: bool = False

    def trial(
        self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]
    ) -> Method:
        """Return the method with the parameters of a trial; see `trial_of`."""
        return trial_of(method, number, fixed, self.quantiles)


def sampler(name: str, trials: int) -> Sampler:
    """Return the sampler for one method's search.

    Args:
        name: `random`, `grid` or `tpe`.
        trials: number of trials, which decides the levels of a grid.

    Raises:
        MissingPrerequisite: Optuna, which implements TPE, is not installed.
    """
    if name == "tpe":
        return TPE()
    return Beforehand(on_a_grid(trials) if name == "grid" else at_random)


class TPE:
    """A sampler that proposes parameters near the best earlier trials of a method (Optuna's TPE).

    Use one instance per search.

    Raises:
        MissingPrerequisite: Optuna is not installed.
    """

    # The price of looking back: the trials of a method run one after another, and methods that wrap
    # the same one no longer get the same values for it, so that fits are rarely shared.
    looks_back = True

    def __init__(self) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingPrerequisite(
                "a search by TPE needs Optuna", fix="pip install 'shiftbench[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        #: The point of each earlier trial, empty for the recipe, whose quantiles are unknown.
        self._points: list[dict[str, float]] = []

    def trial(
        self, method: Method, number: int, fixed: Collection[str], history: Sequence[RunRecord]
    ) -> Method:
        """Return the method with the parameters of a trial, given all earlier records."""
        import optuna

        # Optuna sees the quantiles of all fields, not their values: logarithmic and relative spaces
        # are handled in one place, and a quantile has to be below 1.
        cube: dict[str, optuna.distributions.BaseDistribution] = {
            key: optuna.distributions.FloatDistribution(0.0, 1.0 - 1e-9)
            for key in all_sampled(method, fixed)
        }
        point: dict[str, float] = {}
        if number and cube:
            # A new study with a seed of its own for every trial: a proposal then depends only on
            # the results before it, and a sweep that is resumed makes the same ones. Optuna's
            # default of 10 random trials at the start would be more than the default budget of 8.
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

        def quantiles(stage: str, spaces: Mapping[str, Space], number: int) -> dict[str, float]:
            return {key: point[f"{stage}/{key}"] for key in spaces}

        return trial_of(method, number, fixed, quantiles)
