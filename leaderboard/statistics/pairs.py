"""All pairs of rows at once: which differ, which cannot be told from the best, and between which
ranks each lies.

The family is every pair of rows shown, since the best was chosen from the data. With a family-wise
error of 5 % over all pairs, the rows that no other row is shown to exceed contain every truly best
row with 95 % confidence (a subset for the best as in Hsu, 1984, here at the all-pairs level, so
that also the *ties* among the best are kept), and counting the rows shown to be better or worse
bounds every rank simultaneously (Al Mohamad, van Zwet, Solari and Goeman, 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Result for K rows.

    Attributes:
        worse: (K, K) whether row i is shown to be worse than row j.
        estimates: (K,).
    """

    worse: NDArray[np.bool_]
    estimates: Floats

    @property
    def tied_with_best(self) -> NDArray[np.bool_]:
        """(K,) rows that no row is shown to exceed; the best estimate is among them."""
        return np.asarray(~self.worse.any(axis=1))

    @property
    def ranks(self) -> list[tuple[int, int]]:
        """Simultaneous interval of every rank, 1 for the best."""
        better, worse = self.worse.sum(axis=1), self.worse.sum(axis=0)
        return [(1 + int(b), len(self.worse) - int(w)) for b, w in zip(better, worse, strict=True)]


def these_models(
    strata: Sequence[Floats], level: float = 0.95, draws: int = 20_000, seed: int = 0
) -> Pairs:
    """Pairs of trained models, the images being what varies: max-t over paired differences.

    The estimates are sums over images, so that they are jointly normal for hundreds of images, with
    the covariance that the images show. The critical value is the quantile of the largest
    studentised difference under that covariance (single-step max-t; Westfall and Young, 1993; a
    Gaussian multiplier bootstrap, Chernozhukov, Chetverikov and Kato, 2013), so that models that
    err on the same images are told apart by fewer of them.

    Args:
        strata: per set of images that is drawn on its own an (images, K) array; an image's entries
            are its share of the rows' estimates, so that summing over all images and strata gives
            the estimates (see `contributions`).
        draws, seed: of the quantile's simulation; the same inputs give the same marks.
    """
    estimates = np.sum([x.sum(axis=0) for x in strata], axis=0)
    covariance = np.sum([covariance_of_sum(x) for x in strata], axis=0)
    spread = _spread(covariance)
    differences = estimates[None, :] - estimates[:, None]
    # Two rows that differ by the same amount on every image differ for certain; two that agree on
    # every image do not.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(
            np.where(np.abs(differences) < 1e-12, 0.0, differences / spread),
            posinf=np.inf,
            neginf=-np.inf,
        )
    return Pairs(t > _critical(covariance, spread, level, draws, seed), estimates)


def covariance_of_sum(x: Floats) -> Floats:
    """(K, K) covariance of the column sums of (images, K), were as many images drawn again."""
    centred = x - x.mean(axis=0)
    return np.asarray(centred.T @ centred * (len(x) / max(len(x) - 1, 1)))


def _spread(covariance: Floats) -> Floats:
    """(K, K) standard errors of the differences; exactly zero where rounding is all there is."""
    own = np.diag(covariance)
    variance = own[:, None] + own[None, :] - 2 * covariance
    return np.asarray(np.sqrt(np.where(variance > 1e-10 * own.max(), variance, 0.0)))


def _critical(covariance: Floats, spread: Floats, level: float, draws: int, seed: int) -> float:
    """Quantile of the largest |difference| / spread over all pairs of a normal vector with that
    covariance.
    """
    first, second = np.triu_indices(len(covariance), 1)
    told = spread[first, second] > 0
    first, second = first[told], second[told]
    if not len(first):
        return np.inf
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    rng, scale = np.random.default_rng(seed), spread[first, second]
    largest = []
    block = max(1, 4_000_000 // len(first))
    for start in range(0, draws, block):
        z = rng.standard_normal((min(block, draws - start), len(root))) @ root.T
        largest.append((np.abs(z[:, first] - z[:, second]) / scale).max(axis=1))
    # Three standard errors of the simulated share above the level, so that neither they nor those
    # of the spreads cost coverage.
    guarded = level + 3 * np.sqrt(level * (1 - level) / draws)
    return float(np.quantile(np.concatenate(largest), min(guarded, 1.0)))


def the_method(by_seed: Floats, fixed: Sequence[bool], level: float = 0.95) -> Pairs:
    """Pairs of recipes, the seed being what varies: t-tests on per-seed differences, Holm (1979)
    over all pairs.

    Nothing is pooled, since methods differ in how much they vary with the seed (zero-shot does not
    at all). With three seeds a difference must be many times its standard error, and most rows are
    ties: that is what three seeds can tell.

    Args:
        by_seed: (seeds, K); NaN where a row has not run with a seed. A pair is compared over the
            seeds that both have, and is not told apart with fewer than two.
        fixed: (K,) rows that no seed changes, in anything (`groups.deterministic`): equal
            accuracies alone can be a coincidence.
    """
    estimates, rows = np.nanmean(by_seed, axis=0), by_seed.shape[1]
    first, second = np.triu_indices(rows, 1)
    differences = by_seed[:, first] - by_seed[:, second]
    shared = np.isfinite(differences)
    count = shared.sum(axis=0)
    mean = np.where(shared, differences, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(shared, differences - mean, 0) ** 2
    error = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1) / np.maximum(count, 1))
    # Equal differences are certain where no seed changes either row, and else a coincidence that
    # tells nothing.
    certain = np.asarray(fixed)[first] & np.asarray(fixed)[second] & (mean != 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 1e-12, mean / error, np.where(certain, np.inf * np.sign(mean), 0.0))
    p = np.where(count > 1, 2 * stats.t.sf(np.abs(t), np.maximum(count - 1, 1)), 1.0)
    told = holm(p) <= 1 - level
    worse = np.zeros((rows, rows), dtype=bool)
    worse[first, second] = told & (t < 0)
    worse[second, first] = told & (t > 0)
    return Pairs(worse, estimates)


def holm(p: Sequence[float] | Floats) -> Floats:
    """p-values corrected by Holm's step-down procedure (1979): rejecting those up to 5 % errs
    anywhere in at most 5 %.
    """
    # As statsmodels' multipletests (tested), which collects all of Python's garbage at every call:
    # a second with large stores.
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected
