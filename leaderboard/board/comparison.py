"""Compare two rows: the trained models over test images, and the methods over seeds.

The two questions have different answers. Thousands of images tell two trained models apart sharply,
which says nothing about another training run; a few seeds say what they can about the method.
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
#: `Difference.about` of the mean over shifts.
MEAN = "OOD"


@dataclass(frozen=True)
class Difference:
    """A minus B on one dataset, or on the mean over shifts (`about` is then `OOD`).

    Attributes:
        about: name of the split, or `OOD`.
        a: score of A in [0, 1], the mean over the seeds used.
        b: score of B.
        interval: 95 % interval of the difference, on this dataset alone.
        p: two-sided p-value.
        p_holm: p corrected over all datasets; that of the mean is a question of its own and not
            corrected.
        verdict: of A, by `p_holm` at 5 %. `tie` means "not shown to differ"; `unknown`, that
            nothing could be computed.
        units: number of images or seeds that were resampled or averaged.
        missing: why something is missing.
        deterministic: no seed changes either row, so that there is no spread to give an interval
            of.
    """

    about: str
    a: float | None = None
    b: float | None = None
    interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Verdict = "unknown"
    units: int = 0
    missing: str = ""
    deterministic: bool = False

    @property
    def value(self) -> float | None:
        """Return A minus B, or None if either is missing."""
        return None if self.a is None or self.b is None else self.a - self.b


@dataclass(frozen=True)
class McNemar:
    """An exact McNemar test (1947) of the two models of one seed on one dataset.

    Attributes:
        about: name of the split.
        seed: seed of both models.
        only_a: number of images that only A gets right.
        only_b: number of images that only B gets right.
        p: two-sided binomial p-value on these images.
        p_holm: p corrected over the datasets of that seed.
    """

    about: str
    seed: int
    only_a: int
    only_b: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Agreement:
    """How alike two rows err on one dataset: shares of its images, means over the shared seeds.

    Attributes:
        about: name of the split.
        same: same prediction.
        both_right: adds up to 1 with the next three.
        only_a: only A is right.
        only_b: only B is right.
        both_wrong: neither is right.
        overlap: images that both get wrong among those that at least one does.
        kappa: error consistency (Geirhos et al., 2020). 0 is what two independent models of these
            accuracies show, 1 is erring on the same images; None where it is not defined.
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
    """All differences between two rows.

    Attributes:
        a: name of the first row.
        b: name of the second row.
        models: about the trained models: ID, every shift that both have, then the mean over shifts.
        method: the same about the methods, over seeds.
        tests: exact McNemar tests, per seed.
        alike: agreement per dataset.
        seeds: the seeds that both rows have.
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
        """Return both answers in words: about the trained models, and about the methods."""
        return _words(self.models, "for these models"), _words(
            self.method, f"over {len(self.seeds)} seeds"
        )


def compare(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    predictions: Predictions | None,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare two rows of one board.

    Args:
        a: runs of the first row, one per seed.
        b: runs of the second row, one per seed.
        predictions: None leaves out everything that needs the outcomes of single images.
        names: names of the rows.
    """
    both = [*a, *b]
    # Averages over different shifts are different quantities, which have no difference.
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
    """Return (about, splits) of every difference: each shared split, then their average."""
    return [
        *((split, [split]) for split in shared),
        # Where no shift is averaged by both rows, there is no question about the mean.
        *([(MEAN, list(averaged))] if averaged else []),
    ]


def _score(runs: Sequence[RunRecord], splits: Sequence[str]) -> Floats:
    """Return the mean score over the splits, (runs,)."""
    return np.array([np.mean([r.metrics[split].score for split in splits]) for r in runs])


def _models(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    about: str,
    splits: list[str],
    predictions: Predictions | None,
) -> Difference:
    """Compare the trained models: the images vary, and all seeds of both rows are used."""
    made = Difference(about, float(_score(a, splits).mean()), float(_score(b, splits).mean()))
    try:
        if predictions is None:
            raise NotPaired("no predictions are available")
        found = differences_over_images(a, b, splits, predictions)
    except NotPaired as why:
        return replace(made, missing=str(why))
    return replace(made, interval=found.interval, p=found.p, units=found.images)


def _method(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    about: str,
    splits: list[str],
    seeds: Sequence[int],
) -> Difference:
    """Compare the methods: the seeds vary, and only those that both rows have are used."""
    # An external checkpoint is one model; its seed says nothing about a recipe.
    if any(r.phase == "external" for r in (*a, *b)):
        return Difference(
            about, missing="external weights have no recipe that could run with other seeds"
        )
    if len(seeds) < 2:
        return Difference(
            about,
            missing=f"{len(seeds)} shared seed(s); at least two are needed, and five say much more",
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
    # Another seed would show the same difference, so that it is known and not estimated.
    if all(map(deterministic, pairs)):
        return replace(
            # A p-value of 0 or 1 takes certain differences through Holm's correction without a
            # special case.
            made,
            interval=None,
            deterministic=True,
            p=1.0 if abs(differences[0]) < 1e-12 else 0.0,
        )
    # Rows that do vary can have equal differences at a few seeds by coincidence. A t-test would
    # divide by a standard error of zero and call that certain.
    if np.ptp(differences) < 1e-12:
        return replace(
            made,
            interval=None,
            missing="the differences of all seeds happen to be equal, which leaves no t-test",
        )
    return replace(made, p=float(stats.ttest_1samp(differences, 0).pvalue))


def _corrected(found: list[Difference]) -> list[Difference]:
    """Add Holm's correction over the datasets, and the verdicts that follow from it."""
    # The mean over shifts is one question that was fixed beforehand, and not one of many datasets
    # of which a reader picks the clearest.
    sets = [d.p for d in found if d.about != MEAN and d.p is not None]
    p_values = iter(holm(sets).tolist())
    corrected = []
    for difference in found:
        if difference.p is None:
            corrected.append(difference)
            continue
        p = difference.p if difference.about == MEAN else next(p_values)
        value = difference.value or 0.0
        verdict: Verdict = "tie" if p > 0.05 or value == 0 else "better" if value > 0 else "worse"
        corrected.append(replace(difference, p_holm=p, verdict=verdict))
    return corrected


def _image_by_image(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    splits: Sequence[str],
    seeds: Sequence[int],
    predictions: Predictions | None,
) -> tuple[list[McNemar], list[Agreement]]:
    """Return McNemar tests per seed, and agreement per dataset, of the shared seeds."""
    tests: dict[int, list[McNemar]] = {seed: [] for seed in seeds}
    alike: list[Agreement] = []
    for split in splits:
        found: list[Agreement] = []
        for seed in seeds:
            one, other = next(r for r in a if r.seed == seed), next(r for r in b if r.seed == seed)
            left = predictions.outcomes(one, split) if predictions else None
            right = predictions.outcomes(other, split) if predictions else None
            # `_models` reads the same predictions and reports why they cannot be paired.
            if left is None or right is None or not left.same_images(right):
                continue
            x, y = left.correct, right.correct
            only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
            # Without an image that only one model gets right there is nothing to test.
            p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
            tests[seed].append(McNemar(split, seed, only_a, only_b, p, p))
            found.append(_agreement(split, x, y, float((left.predicted == right.predicted).mean())))
        if found:
            alike.append(_mean(found))
    corrected = [
        # Each seed is a pair of models of its own, so that the family of a test is the datasets of
        # its seed.
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
    # Agreement of two models of these accuracies that err independently.
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
    """Average over seeds; a number that is not defined for one seed is None."""
    numbers = [name for name in asdict(found[0]) if name != "about"]
    columns = {name: [getattr(one, name) for one in found] for name in numbers}
    # A number that one seed lacks would be a mean over seeds selected by their outcome.
    means: dict[str, Any] = {
        name: None if None in own else fmean(own) for name, own in columns.items()
    }
    return Agreement(found[0].about, **means)


def _words(found: Sequence[Difference], ending: str) -> str:
    """Return a verdict in words.

    Such as `better on 3 of 5 shifts, tie on 2; ID: tie; mean difference +1.2 [+0.4, +2.0] for these
    models`.
    """
    shifts = [d for d in found if d.about not in (ID, MEAN)]
    reasons = [d.missing for d in found if d.verdict == "unknown"]
    # One reason for everything is reported; otherwise unknown datasets are counted among the
    # others.
    if all(d.verdict == "unknown" for d in found):
        return f"unknown: {reasons[0]}" if reasons else "unknown: nothing is shared"
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
    """Return the text behind a difference in points: its interval, or `deterministic`."""
    if d.interval is None:
        return ", deterministic" if d.deterministic else ""
    return f" [{100 * d.interval.low:+.1f}, {100 * d.interval.high:+.1f}]"


def _counted(shifts: Iterable[Difference]) -> str:
    verdicts = [d.verdict for d in shifts]
    counts = [
        (verdict, verdicts.count(verdict))
        for verdict in ("better", "worse", "tie", "unknown")
        if verdict in verdicts
    ]
    first, *rest = counts
    noun = "shift" if len(verdicts) == 1 else "shifts"
    return ", ".join(
        [
            f"{first[0]} on {first[1]} of {len(verdicts)} {noun}",
            *(f"{verdict} on {n}" for verdict, n in rest),
        ]
    )
