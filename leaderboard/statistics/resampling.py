"""The paired bootstrap over images: what A minus B would be on other images of the same kind.

SciPy's bootstrap draws every image anew for every statistic (4.4 s where this takes 6.6 ms), and
has no clusters of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.results.record import RunRecord

from .intervals import Interval
from .predictions import Outcomes, Predictions
from .strata import NotPaired, contributions, drawn_together, every_outcome

Floats = NDArray[np.float64]
#: How often every image of a set was drawn, (draws, images).
Times = NDArray[np.float32]

#: Draws where a score is a mean over images, and where it is not and every draw is scored anew.
DRAWS, SCORED_DRAWS = 10_000, 2_000


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of A minus B, and how many images there were."""

    draws: Floats
    images: int

    @property
    def interval(self) -> Interval:
        """The 95 % percentile interval."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return Interval(
            float(low), float(high), "images", f"paired bootstrap, {len(self.draws)} draws"
        )

    @property
    def p(self) -> float:
        """Two-sided: twice the smaller tail beyond zero. A draw of exactly zero counts on both
        sides.
        """
        below, above = (self.draws < 1e-12).sum(), (self.draws > -1e-12).sum()
        return min(1.0, 2 * (1 + float(min(below, above))) / (len(self.draws) + 1))


def differences_over_images(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    splits: Sequence[str],
    predictions: Predictions,
    seed: int = 0,
) -> Draws:
    """Draws of the difference of the mean score over `splits`, images drawn with replacement
    (Efron, 1979).

    An image is one cluster: what all models of both rows say about it is drawn together, so that
    the seeds of a row do not pass for more images. Sets are drawn apart, each at its own size; an
    image that is in several sets is drawn once for all.

    Args:
        seed: of the draws; the same runs give the same interval.

    Raises:
        NotPaired: see `contributions`.
    """
    rng = np.random.default_rng(seed)
    metrics = {run.metrics[split].metric for run in (*a, *b) for split in splits}
    if metrics == {"accuracy"}:
        strata = [x[:, 0] - x[:, 1] for x in contributions([a, b], splits, predictions)]
        return Draws(
            np.sum([drawn_sums(x, DRAWS, rng) for x in strata], axis=0), sum(map(len, strata))
        )
    models: list[dict[str, Outcomes]] = [{} for _ in (*a, *b)]
    for split in splits:
        for model, found in zip(
            models,
            (*every_outcome(a, split, predictions), *every_outcome(b, split, predictions)),
            strict=True,
        ):
            model[split] = found
    drawn = redrawn_scores(
        models, {split: a[0].metrics[split].metric for split in splits}, SCORED_DRAWS, rng
    )
    means = np.mean([drawn[split] for split in splits], axis=0)
    return Draws(
        means[:, : len(a)].mean(axis=1) - means[:, len(a) :].mean(axis=1),
        sum(len(models[0][s].keys) for s in splits),
    )


def redrawn_scores(
    models: Sequence[Mapping[str, Outcomes]],
    metrics: Mapping[str, str],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Scores of several models on several sets, all of them on the same draws of the images: set ->
    (draws, models).

    Args:
        models: set -> what the model said.
        metrics: set -> how it is scored.

    Raises:
        NotPaired: the models saw different images of a set.
    """
    for split in metrics:
        if not all(model[split].same_images(models[0][split]) for model in models):
            raise NotPaired(f"{split}: the rows saw different images")
    right = {
        s: np.stack([model[s].correct for model in models], axis=1).astype(np.float32)
        for s in metrics
    }
    found: dict[str, list[Floats]] = {split: [] for split in metrics}
    for times in redrawn({split: models[0][split].keys for split in metrics}, draws, rng):
        for split, metric in metrics.items():
            if metric == "accuracy":  # of all models at once
                found[split].append((times[split] @ right[split]).astype(float) / len(right[split]))
            else:
                each = [score_of_draws(model[split], times[split], metric) for model in models]
                found[split].append(np.stack(each, axis=1))
    return {split: np.concatenate(parts) for split, parts in found.items()}


def redrawn(
    keys: Mapping[str, NDArray[np.str_]], draws: int, rng: np.random.Generator
) -> Iterator[dict[str, Times]]:
    """Draws of the images of several sets with replacement, a block of draws after the other.

    An image that is in several sets is drawn once for all of them, and every set keeps its size
    (see `drawn_together`).
    """
    places, kind = drawn_together(list(keys.values()))
    kinds = [np.flatnonzero(kind == number) for number in range(kind.max() + 1)]
    block = max(1, 2_000_000 // len(kind))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        times = np.empty((size, len(kind)), dtype=np.float32)
        for members in kinds:
            count = len(members)
            drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
            times[:, members] = np.bincount(drawn.ravel(), minlength=size * count).reshape(
                size, count
            )
        yield {name: times[:, place] for name, place in zip(keys, places, strict=True)}


def drawn_sums(x: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(draws,) sums of len(x) values drawn from `x` with replacement.

    Few values occur (a difference of shares of seeds), so that drawing how often each occurs is the
    same and much faster.
    """
    _, first, counts = np.unique(np.round(x, 12), return_index=True, return_counts=True)
    return np.asarray(rng.multinomial(len(x), counts / len(x), size=draws) @ x[first])


def score_of_draws(of: Outcomes, times: Times, metric: str) -> Floats:
    """(draws,) scores where image i counts `times[draw, i]` times; classes and groups that were not
    drawn are left out.

    Args:
        metric: `macro_f1` or `worst_group`, as in a record.
    """
    correct = of.correct.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "macro_f1":
            classes = np.unique(of.labels)
            truth = (of.labels[:, None] == classes).astype(np.float32)
            said = (of.predicted[:, None] == classes).astype(np.float32)
            actual = times @ truth
            f1 = 2 * (times @ (truth * correct[:, None])) / (actual + times @ said)
            return np.asarray(np.nanmean(np.where(actual > 0, f1, np.nan), axis=1), dtype=float)
        if metric == "worst_group":
            member = (of.groups[:, None] == np.unique(of.groups[of.groups >= 0])).astype(np.float32)
            return np.asarray(
                np.nanmin((times @ (member * correct[:, None])) / (times @ member), axis=1),
                dtype=float,
            )
    raise NotPaired(f"there is no paired test of {metric} yet")
