"""The paired bootstrap over images: what A minus B would be on other images of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.runs.record import RunRecord

from .intervals import Interval
from .predictions import Outcomes, Predictions
from .strata import NotPaired, contributions, every_outcome

Floats = NDArray[np.float64]

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
        return Interval(float(low), float(high), "images", f"paired bootstrap, {len(self.draws)} draws")

    @property
    def p(self) -> float:
        """Two-sided: twice the smaller tail beyond zero. A draw of exactly zero counts on both sides."""
        below, above = (self.draws < 1e-12).sum(), (self.draws > -1e-12).sum()
        return min(1.0, 2 * (1 + float(min(below, above))) / (len(self.draws) + 1))


def differences_over_images(
    a: Sequence[RunRecord], b: Sequence[RunRecord], splits: Sequence[str], predictions: Predictions, seed: int = 0
) -> Draws:
    """Draws of the difference of the mean score over `splits`, images drawn with replacement (Efron, 1979).

    An image is one cluster: what all models of both rows say about it is drawn together, so that the seeds of a row do not
    pass for more images. Sets are drawn apart, each at its own size; an image that is in several sets is drawn once for all.

    Args:
        seed: of the draws; the same runs give the same interval.

    Raises:
        NotPaired: see `contributions`.
    """
    rng = np.random.default_rng(seed)
    metrics = {run.metrics[split].metric for run in (*a, *b) for split in splits}
    if metrics == {"accuracy"}:
        strata = [x[:, 0] - x[:, 1] for x in contributions([a, b], splits, predictions)]
        return Draws(np.sum([drawn_sums(x, DRAWS, rng) for x in strata], axis=0), sum(map(len, strata)))
    total, images = np.zeros(SCORED_DRAWS), 0
    seen: set[str] = set()
    for split in splits:
        left, right = every_outcome(a, split, predictions), every_outcome(b, split, predictions)
        if not left[0].same_images(right[0]):
            raise NotPaired(f"{split}: the rows saw different images")
        if not seen.isdisjoint(left[0].keys.tolist()):
            raise NotPaired("sets that share images are compared by accuracy only")
        seen.update(left[0].keys.tolist())
        total += _scored(left, right, a[0].metrics[split].metric, rng) / len(splits)
        images += len(left[0].keys)
    return Draws(total, images)


def drawn_sums(x: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(draws,) sums of len(x) values drawn from `x` with replacement.

    Few values occur (a difference of shares of seeds), so that drawing how often each occurs is the same and much faster.
    """
    _, first, counts = np.unique(np.round(x, 12), return_index=True, return_counts=True)
    return np.asarray(rng.multinomial(len(x), counts / len(x), size=draws) @ x[first])


def _scored(a: Sequence[Outcomes], b: Sequence[Outcomes], metric: str, rng: np.random.Generator) -> Floats:
    """(SCORED_DRAWS,) differences of a score that is no mean over images: every draw is scored."""
    images, block = len(a[0].keys), 100
    found = []
    for start in range(0, SCORED_DRAWS, block):
        size = min(block, SCORED_DRAWS - start)
        times = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float32)
        left = np.mean([score_of_draws(one, times, metric) for one in a], axis=0)
        right = np.mean([score_of_draws(one, times, metric) for one in b], axis=0)
        found.append(left - right)
    return np.concatenate(found)


def score_of_draws(of: Outcomes, times: NDArray[np.float32], metric: str) -> Floats:
    """(draws,) scores where image i counts `times[draw, i]` times; classes and groups that were not drawn are left out.

    Args:
        metric: `accuracy`, `macro_f1` or `worst_group`, as in a record.
    """
    correct = of.correct.astype(np.float32)
    if metric == "accuracy":
        return np.asarray(times @ correct / times.sum(axis=1), dtype=float)
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
            return np.asarray(np.nanmin((times @ (member * correct[:, None])) / (times @ member), axis=1), dtype=float)
    raise NotPaired(f"there is no paired test of {metric} yet")
