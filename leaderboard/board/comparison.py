"""Two rows against each other: one answer about these trained models, another one about the method
over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.results.record import RunRecord

from ..statistics.intervals import Interval, over_seeds
from ..statistics.pairs import holm
from ..statistics.predictions import Predictions
from ..statistics.resampling import differences_over_images
from ..statistics.strata import NotPaired
from ..statistics.tradeoff import ID
from .groups import deterministic
from .measures import shifts_of

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "tie", "unknown"]
MEAN = "OOD"


@dataclass(frozen=True)
class Difference:
    """A minus B on one data set, or on the mean over shifts (`about` is then `OOD`).

    Attributes:
        a, b: scores in [0, 1], means over the seeds used.
        interval: of the difference, 95 %, this data set alone.
        p: two-sided.
        p_holm: corrected over all data sets (the mean is one question of its own, not corrected).
        verdict: of A, by `p_holm` at 5 %; `tie` is "not shown to differ"; `unknown` where nothing
            could be computed.
        units: how many images or seeds were resampled or averaged.
        hole: why something is missing.
        deterministic: no seed changes
        either row, so that there is nothing to have an interval of.
    """

    about: str
    a: float | None = None
    b: float | None = None
    interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Verdict = "unknown"
    units: int = 0
    hole: str = ""
    deterministic: bool = False

    @property
    def value(self) -> float | None:
        """A minus B."""
        return None if self.a is None or self.b is None else self.a - self.b


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of the two models of one seed on one data set: the images that exactly one
    gets right.

    Attributes:
        p: two-sided binomial on the discordant images (McNemar, 1947).
        p_holm: corrected over the data sets of that seed.
    """

    about: str
    seed: int
    only_a: int
    only_b: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Agreement:
    """How alike two rows err on one data set, means over the shared seeds; shares of its images.

    Attributes:
        same: same prediction.
        both_right, only_a, only_b, both_wrong: add up to 1.
        overlap: images that both get wrong among
        those that at least one does. kappa: error consistency (Geirhos et al., 2020): 0 is what two
            independent models of
        these accuracies show, 1 is erring on the same images; None where it is not defined.
    """

    about: str
    same: float
    both_right: float
    only_a: float
    only_b: float
    both_wrong: float
    overlap: float | None
    kappa: float | None


@dataclass(frozen=True)
class Comparison:
    """Everything that two rows' runs say about each other.

    Attributes:
        models, method: ID, every shift that both have, then the mean over shifts.
        tests: exact McNemar per seed.
        alike: per
        data set. seeds: those that both have.
    """

    a: str
    b: str
    models: list[Difference]
    method: list[Difference]
    tests: list[McNemar]
    alike: list[Agreement]
    seeds: list[int]

    @property
    def verdict(self) -> tuple[str, str]:
        """In words: about these trained models, and about the method over seeds."""
        return _words(self.models, "for these models"), _words(
            self.method, f"over {len(self.seeds)} seeds"
        )


def compare(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    predictions: Predictions | None,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare two rows of one board: the runs of `a` with those of `b`, one per seed each.

    Args:
        predictions: None leaves everything out that needs single images.
    """
    both = [*a, *b]
    averaged = shifts_of(both).shared
    shared = [
        split for split in (ID, *shifts_of(both).all) if all(split in r.metrics for r in both)
    ]
    seeds = sorted({r.seed for r in a} & {r.seed for r in b})
    tests, alike = _image_by_image(a, b, shared, seeds, predictions)
    return Comparison(
        *names,
        _corrected(
            [
                _models(a, b, about, splits, predictions)
                for about, splits in _questions(shared, averaged)
            ]
        ),
        _corrected(
            [_method(a, b, about, splits, seeds) for about, splits in _questions(shared, averaged)]
        ),
        tests,
        alike,
        seeds,
    )


def _questions(shared: Sequence[str], averaged: Sequence[str]) -> list[tuple[str, list[str]]]:
    return [
        *((split, [split]) for split in shared),
        *([(MEAN, list(averaged))] if averaged else []),
    ]


def _score(runs: Sequence[RunRecord], splits: Sequence[str]) -> Floats:
    """(runs,) mean score over the splits."""
    return np.array([np.mean([r.metrics[split].score for split in splits]) for r in runs])


def _models(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    about: str,
    splits: list[str],
    predictions: Predictions | None,
) -> Difference:
    made = Difference(about, float(_score(a, splits).mean()), float(_score(b, splits).mean()))
    try:
        if predictions is None:
            raise NotPaired("no predictions are at hand")
        found = differences_over_images(a, b, splits, predictions)
    except NotPaired as why:
        return replace(made, hole=str(why))
    return replace(made, interval=found.interval, p=found.p, units=found.images)


def _method(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    about: str,
    splits: list[str],
    seeds: Sequence[int],
) -> Difference:
    if any(r.phase == "external" for r in (*a, *b)):
        return Difference(about, hole="weights from elsewhere are not a recipe with seeds")
    if len(seeds) < 2:
        return Difference(
            about,
            hole=f"{len(seeds)} shared seed(s); at least two are needed, and five say much more",
        )
    pairs = [[r for seed in seeds for r in row if r.seed == seed] for row in (a, b)]
    left, right = (_score(runs, splits) for runs in pairs)
    differences = left - right
    made = Difference(
        about,
        float(left.mean()),
        float(right.mean()),
        over_seeds(list(differences)),
        units=len(seeds),
    )
    if all(map(deterministic, pairs)):  # what was measured is the difference
        return replace(
            made, interval=None, deterministic=True, p=1.0 if abs(differences[0]) < 1e-12 else 0.0
        )
    if np.ptp(differences) < 1e-12:
        return replace(
            made,
            interval=None,
            hole="the differences of all seeds happen to be equal, and there is no t-test then",
        )
    return replace(made, p=float(stats.ttest_1samp(differences, 0).pvalue))


def _corrected(found: list[Difference]) -> list[Difference]:
    """With Holm's correction over the data sets, and the verdicts that follow."""
    sets = [d.p for d in found if d.about != MEAN and d.p is not None]
    corrected = iter(holm(sets).tolist())
    made = []
    for one in found:
        if one.p is None:
            made.append(one)
            continue
        p = one.p if one.about == MEAN else next(corrected)
        value = one.value or 0.0
        verdict: Verdict = "tie" if p > 0.05 or value == 0 else "better" if value > 0 else "worse"
        made.append(replace(one, p_holm=p, verdict=verdict))
    return made


def _image_by_image(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    splits: Sequence[str],
    seeds: Sequence[int],
    predictions: Predictions | None,
) -> tuple[list[McNemar], list[Agreement]]:
    tests: dict[int, list[McNemar]] = {seed: [] for seed in seeds}
    alike: list[Agreement] = []
    for split in splits:
        found: list[Agreement] = []
        for seed in seeds:
            one, other = next(r for r in a if r.seed == seed), next(r for r in b if r.seed == seed)
            left = predictions.outcomes(one, split) if predictions else None
            right = predictions.outcomes(other, split) if predictions else None
            if left is None or right is None or not left.same_images(right):
                continue
            x, y = left.correct, right.correct
            only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
            p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
            tests[seed].append(McNemar(split, seed, only_a, only_b, p, p))
            found.append(_agreement(split, x, y, float((left.predicted == right.predicted).mean())))
        if found:
            alike.append(_mean(found))
    corrected = [
        replace(test, p_holm=p)
        for found in tests.values()
        for test, p in zip(found, holm([test.p for test in found]).tolist(), strict=True)
    ]
    return corrected, alike


def _agreement(about: str, x: NDArray[np.bool_], y: NDArray[np.bool_], same: float) -> Agreement:
    both_right, only_a, only_b, both_wrong = (
        float(part.mean()) for part in (x & y, x & ~y, ~x & y, ~x & ~y)
    )
    right_a, right_b = both_right + only_a, both_right + only_b
    chance = right_a * right_b + (1 - right_a) * (1 - right_b)
    wrong = only_a + only_b + both_wrong
    return Agreement(
        about,
        same,
        both_right,
        only_a,
        only_b,
        both_wrong,
        both_wrong / wrong if wrong else None,
        (both_right + both_wrong - chance) / (1 - chance) if chance < 1 else None,
    )


def _mean(found: Sequence[Agreement]) -> Agreement:
    """Over seeds; None where a number is not defined for one of them."""
    numbers = [name for name in asdict(found[0]) if name != "about"]
    columns = {name: [getattr(one, name) for one in found] for name in numbers}
    means: dict[str, Any] = {
        name: None if None in own else fmean(own) for name, own in columns.items()
    }
    return Agreement(found[0].about, **means)


def _words(found: Sequence[Difference], ending: str) -> str:
    """Such as `better on 3 of 5 shifts, tie on 2; ID tie; mean difference +1.2 [+0.4, +2.0] for
    these models`.
    """
    shifts = [d for d in found if d.about not in (ID, MEAN)]
    holes = [d.hole for d in found if d.verdict == "unknown"]
    if all(d.verdict == "unknown" for d in found):
        return f"unknown: {holes[0]}" if holes else "unknown: nothing is shared"
    parts = []
    if shifts:
        parts.append(_counted(shifts))
    parts += [f"ID: {d.verdict}" for d in found if d.about == ID and d.verdict != "unknown"]
    for d in found:
        if d.about == MEAN and d.value is not None and (d.interval is not None or d.deterministic):
            text = f"mean difference {100 * d.value:+.1f}{spread_of(d)} {ending}"
            parts.append(text + (": undecided" if d.verdict == "tie" else f": {d.verdict}"))
    return "; ".join(parts)


def spread_of(d: Difference) -> str:
    """Behind a difference in points: its interval, or that there is nothing to have one of."""
    if d.interval is None:
        return ", deterministic" if d.deterministic else ""
    return f" [{100 * d.interval.low:+.1f}, {100 * d.interval.high:+.1f}]"


def _counted(shifts: Iterable[Difference]) -> str:
    every = [d.verdict for d in shifts]
    counts = [
        (verdict, every.count(verdict))
        for verdict in ("better", "worse", "tie", "unknown")
        if verdict in every
    ]
    first, *rest = counts
    noun = "shift" if len(every) == 1 else "shifts"
    return ", ".join(
        [
            f"{first[0]} on {first[1]} of {len(every)} {noun}",
            *(f"{verdict} on {n}" for verdict, n in rest),
        ]
    )
