"""Bootstrap over images: what A minus B would be on other images of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.results.record import RunRecord

from .intervals import Interval
from .predictions import Outcomes, Predictions
from .strata import NotPaired, contributions, every_outcome, sampled_together

Floats = NDArray[np.float64]
#: How often each image of a set was sampled, (resamples, images). Single precision is exact for
#: counts, takes half the memory and multiplies twice as fast.
Times = NDArray[np.float32]

#: Numbers of resamples: where the score is a mean over images, and where it is not, so that every
#: resample has to be scored from its images.
RESAMPLES, SCORED_RESAMPLES = 10_000, 2_000


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of A minus B.

    Attributes:
        differences: (resamples,) A minus B.
        images: number of images that were resampled.
    """

    differences: Floats
    images: int

    @property
    def interval(self) -> Interval:
        """Return the 95 % percentile interval."""
        # A difference of mean accuracies has no bias that the basic interval of `board.above_curve`
        # would have to subtract.
        low, high = np.quantile(self.differences, [0.025, 0.975])
        return Interval(
            float(low),
            float(high),
            "images",
            f"paired bootstrap, {len(self.differences)} resamples",
        )

    @property
    def p(self) -> float:
        """Return the two-sided p-value: twice the smaller tail beyond zero."""
        # A resample of exactly zero is in both tails, up to rounding. Adding one to both counts
        # keeps p above zero, as the observed data are one more resample.
        below, above = (self.differences < 1e-12).sum(), (self.differences > -1e-12).sum()
        return min(1.0, 2 * (1 + float(min(below, above))) / (len(self.differences) + 1))


def differences_over_images(
    a: Sequence[RunRecord],
    b: Sequence[RunRecord],
    splits: Sequence[str],
    predictions: Predictions,
    seed: int = 0,
) -> Resamples:
    """Bootstrap the difference of the mean scores of two rows over images (Efron, 1979).

    Args:
        a: runs of the first row, one per seed.
        b: runs of the second row, one per seed.
        splits: the sets, whose scores are averaged.
        predictions: where outcomes are read from.
        seed: seed of the resampling; the same runs give the same interval.

    Raises:
        NotPaired: see `contributions`.
    """
    # An image is one cluster: the outcomes of all seeds of both rows stay together when it is
    # resampled. Sampling them apart would lose the pairing of A and B; taking every seed for more
    # images would pretend to know more than the images show (its intervals cover 83 to 86 % instead
    # of 95 %, simulated in tests/perf/test_statistics.py). Sets are resampled apart, each at its
    # own size, except for images that are in several sets: those are sampled once for all, since a
    # hard image is hard in each of them. SciPy's bootstrap knows no clusters, and takes 4.4 s where
    # this takes 6.6 ms.
    rng = np.random.default_rng(seed)
    metrics = {run.metrics[split].metric for run in (*a, *b) for split in splits}
    if metrics == {"accuracy"}:
        # Means of accuracies are sums over images, so that a resample is a sum of the images'
        # differences.
        strata = [x[:, 0] - x[:, 1] for x in contributions([a, b], splits, predictions)]
        return Resamples(
            np.sum([resampled_sums(x, RESAMPLES, rng) for x in strata], axis=0),
            sum(map(len, strata)),
        )
    models: list[dict[str, Outcomes]] = [{} for _ in (*a, *b)]
    for split in splits:
        for model, found in zip(
            models,
            (*every_outcome(a, split, predictions), *every_outcome(b, split, predictions)),
            strict=True,
        ):
            model[split] = found
    scores = resampled_scores(
        models, {split: a[0].metrics[split].metric for split in splits}, SCORED_RESAMPLES, rng
    )
    means = np.mean([scores[split] for split in splits], axis=0)
    return Resamples(
        means[:, : len(a)].mean(axis=1) - means[:, len(a) :].mean(axis=1),
        sum(len(models[0][s].keys) for s in splits),
    )


def resampled_scores(
    models: Sequence[Mapping[str, Outcomes]],
    metrics: Mapping[str, str],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Score several models on the same resamples of the images of several sets.

    Args:
        models: for each model, set -> outcomes.
        metrics: set -> its metric.
        resamples: number of resamples.
        rng: source of randomness.

    Returns:
        Set -> scores, (resamples, models).

    Raises:
        NotPaired: the models were evaluated on different images of a set.
    """
    for split in metrics:
        if not all(model[split].same_images(models[0][split]) for model in models):
            raise NotPaired(f"{split}: the rows were evaluated on different images")
    right = {
        s: np.stack([model[s].correct for model in models], axis=1).astype(np.float32)
        for s in metrics
    }
    found: dict[str, list[Floats]] = {split: [] for split in metrics}
    for times in resample_counts(
        {split: models[0][split].keys for split in metrics}, resamples, rng
    ):
        for split, metric in metrics.items():
            if metric == "accuracy":
                # One matrix product scores all models on all resamples of the block.
                found[split].append((times[split] @ right[split]).astype(float) / len(right[split]))
            else:
                each = [score_of_resamples(model[split], times[split], metric) for model in models]
                found[split].append(np.stack(each, axis=1))
    return {split: np.concatenate(parts) for split, parts in found.items()}


def resample_counts(
    keys: Mapping[str, NDArray[np.str_]], resamples: int, rng: np.random.Generator
) -> Iterator[dict[str, Times]]:
    """Yield how often each image was sampled with replacement, a block of resamples at a time.

    An image that is in several sets is sampled once for all of them, and every set keeps its size
    (see `sampled_together`).
    """
    places, kind = sampled_together(list(keys.values()))
    kinds = [np.flatnonzero(kind == number) for number in range(kind.max() + 1)]
    # Bounds the counts of a block at 8 MB, and the sampled indices at 16 MB.
    block = max(1, 2_000_000 // len(kind))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        times = np.empty((size, len(kind)), dtype=np.float32)
        for members in kinds:
            count = len(members)
            # An offset per resample lets one `bincount` count all resamples of the block.
            sampled = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
            times[:, members] = np.bincount(sampled.ravel(), minlength=size * count).reshape(
                size, count
            )
        yield {name: times[:, place] for name, place in zip(keys, places, strict=True)}


def resampled_sums(x: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return sums of len(x) values that were sampled from `x` with replacement, (resamples,)."""
    # Few different values occur, since `x` is a difference of shares of seeds. How often each is
    # sampled is multinomial: the same distribution, much faster. Rounding joins values that differ
    # by rounding errors.
    _, first, counts = np.unique(np.round(x, 12), return_index=True, return_counts=True)
    return np.asarray(rng.multinomial(len(x), counts / len(x), size=resamples) @ x[first])


def score_of_resamples(of: Outcomes, times: Times, metric: str) -> Floats:
    """Score resamples in which image i occurs `times[resample, i]` times, (resamples,).

    Classes and groups that were not sampled are left out.

    Args:
        of: outcomes on the images.
        times: (resamples, images) counts.
        metric: `macro_f1` or `worst_group`, as in a record.

    Raises:
        NotPaired: another metric.
    """
    correct = of.correct.astype(np.float32)
    # A class or group that a resample lacks divides by zero, and is left out as NaN below.
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "macro_f1":
            classes = np.unique(of.labels)
            truth = (of.labels[:, None] == classes).astype(np.float32)
            predicted = (of.predicted[:, None] == classes).astype(np.float32)
            actual = times @ truth
            f1 = 2 * (times @ (truth * correct[:, None])) / (actual + times @ predicted)
            return np.asarray(np.nanmean(np.where(actual > 0, f1, np.nan), axis=1), dtype=float)
        if metric == "worst_group":
            member = (of.groups[:, None] == np.unique(of.groups[of.groups >= 0])).astype(np.float32)
            return np.asarray(
                np.nanmin((times @ (member * correct[:, None])) / (times @ member), axis=1),
                dtype=float,
            )
    raise NotPaired(f"there is no paired test of {metric}")
