"""Test all pairs of rows at once, for ties with the best row and for intervals of ranks.

The family is every pair of the rows shown. A test of each row against the best one would be too
lenient, since the best was chosen from the same data. With a family-wise error of 5 % over all
pairs, the rows that no other row is shown to exceed contain *every* truly best row with 95 %
confidence. This is a subset for the best as in Hsu (1984), at the level of all pairs: Hsu's own
procedure contains *a* best row and may drop another one that is equally good, which a reader of a
board would take for a difference. Counting the rows that are shown to be better or worse also
bounds every rank at the same time (Al Mohamad, van Zwet, Solari and Goeman, 2022).
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
    """The result of all pairs of K rows.

    Attributes:
        worse: (K, K), whether row i is shown to be worse than row j.
        estimates: (K,) accuracies.
    """

    worse: NDArray[np.bool_]
    estimates: Floats

    @property
    def tied_with_best(self) -> NDArray[np.bool_]:
        """Return the rows that no row is shown to exceed, (K,); the best estimate is one."""
        return np.asarray(~self.worse.any(axis=1))

    @property
    def ranks(self) -> list[tuple[int, int]]:
        """Return the simultaneous interval of every rank, 1 for the best."""
        # A row ranks below every row that is shown to be better, and above every row shown to be
        # worse. All of these statements hold at once, and so do all intervals.
        better, worse = self.worse.sum(axis=1), self.worse.sum(axis=0)
        return [(1 + int(b), len(self.worse) - int(w)) for b, w in zip(better, worse, strict=True)]


def these_models(
    strata: Sequence[Floats], level: float = 0.95, samples: int = 20_000, seed: int = 0
) -> Pairs:
    """Test all pairs of trained models; the images are what varies.

    Args:
        strata: for each set of images that is sampled on its own, an (images, K) array. An image's
            entries are its share of the rows' estimates: summing over all images and strata gives
            the estimates (`contributions`).
        level: 1 minus the family-wise error.
        samples: number of simulated vectors behind the critical value.
        seed: seed of the simulation; the same inputs give the same marks.
    """
    # Single-step max-t (Westfall and Young, 1993), with the critical value from a Gaussian
    # approximation of the bootstrap (Chernozhukov, Chetverikov and Kato, 2013). Estimates are sums
    # over hundreds of images or more, hence jointly normal, and the covariance of the images is all
    # that is needed of their distribution. The covariance also carries the pairing: rows that err
    # on the same images have differences of small variance, which fewer images tell apart.
    # Bonferroni or Holm over McNemar tests would ignore that the K (K - 1) / 2 differences depend
    # on each other, and be far stricter for boards of similar rows. Resampling images for every
    # pair would give the same answer at many times the cost.
    estimates = np.sum([x.sum(axis=0) for x in strata], axis=0)
    covariance = np.sum([covariance_of_sum(x) for x in strata], axis=0)
    spread = _spread(covariance)
    differences = estimates[None, :] - estimates[:, None]
    # A standard error of zero: rows that differ by the same amount on every image differ for
    # certain (infinite t), and rows that agree on every image do not differ (t of 0, not 0 / 0).
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(
            np.where(np.abs(differences) < 1e-12, 0.0, differences / spread),
            posinf=np.inf,
            neginf=-np.inf,
        )
    return Pairs(t > _critical(covariance, spread, level, samples, seed), estimates)


def covariance_of_sum(x: Floats) -> Floats:
    """Return the (K, K) covariance of column sums, if as many images were sampled again."""
    centred = x - x.mean(axis=0)
    return np.asarray(centred.T @ centred * (len(x) / max(len(x) - 1, 1)))


def _spread(covariance: Floats) -> Floats:
    """Return the (K, K) standard errors of the differences."""
    own = np.diag(covariance)
    variance = own[:, None] + own[None, :] - 2 * covariance
    # Rows with equal outcomes have a variance of rounding errors, maybe negative, which would make
    # any difference significant or NaN. Relative to the largest variance it is exactly zero.
    return np.asarray(np.sqrt(np.where(variance > 1e-10 * own.max(), variance, 0.0)))


def _critical(covariance: Floats, spread: Floats, level: float, samples: int, seed: int) -> float:
    """Return the quantile of the largest |difference| / spread over all pairs.

    The vector behind the differences is normal with the given covariance.
    """
    first, second = np.triu_indices(len(covariance), 1)
    varying = spread[first, second] > 0
    first, second = first[varying], second[varying]
    # No pair varies, so that there is nothing to simulate.
    if not len(first):
        return np.inf
    # A Cholesky factor would need full rank, which two rows with equal outcomes do not have.
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    rng, scale = np.random.default_rng(seed), spread[first, second]
    largest = []
    # Bounds each temporary array, (block, pairs) doubles, at 32 MB.
    block = max(1, 4_000_000 // len(first))
    for start in range(0, samples, block):
        z = rng.standard_normal((min(block, samples - start), len(root))) @ root.T
        largest.append((np.abs(z[:, first] - z[:, second]) / scale).max(axis=1))
    # The simulated quantile has an error of its own. Taking it three standard errors above the
    # level makes the error of the simulation, and that of the estimated spreads, cost power and not
    # coverage.
    guarded = level + 3 * np.sqrt(level * (1 - level) / samples)
    return float(np.quantile(np.concatenate(largest), min(guarded, 1.0)))


def the_method(by_seed: Floats, fixed: Sequence[bool], level: float = 0.95) -> Pairs:
    """Test all pairs of methods; the seed is what varies.

    Args:
        by_seed: (seeds, K) accuracies; NaN where a row has not run with a seed. A pair is compared
            over the seeds that both rows have; with fewer than two of them it ties.
        fixed: (K,) whether no seed changes the row in any measured number (`groups.deterministic`).
            Equal accuracies alone can be a coincidence.
        level: 1 minus the family-wise error.
    """
    # t-tests on per-seed differences with Holm's correction (1979), and not the max-t above: a few
    # seeds give no covariance to simulate from. No variance is pooled over rows, since methods
    # differ in how much they vary with the seed (zero-shot does not at all), and a pooled one would
    # declare the variable methods different by chance. With three seeds a difference has to be many
    # times its standard error, so that most rows tie. That is what three seeds can tell.
    estimates, rows = np.nanmean(by_seed, axis=0), by_seed.shape[1]
    first, second = np.triu_indices(rows, 1)
    differences = by_seed[:, first] - by_seed[:, second]
    shared = np.isfinite(differences)
    count = shared.sum(axis=0)
    mean = np.where(shared, differences, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(shared, differences - mean, 0) ** 2
    error = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1) / np.maximum(count, 1))
    # Differences that are equal at all seeds have a standard error of zero. They are certain where
    # no seed changes either row; otherwise they are a coincidence, which is no evidence.
    certain = np.asarray(fixed)[first] & np.asarray(fixed)[second] & (mean != 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 1e-12, mean / error, np.where(certain, np.inf * np.sign(mean), 0.0))
    p = np.where(count > 1, 2 * stats.t.sf(np.abs(t), np.maximum(count - 1, 1)), 1.0)
    rejected = holm(p) <= 1 - level
    worse = np.zeros((rows, rows), dtype=bool)
    worse[first, second] = rejected & (t < 0)
    worse[second, first] = rejected & (t > 0)
    return Pairs(worse, estimates)


def holm(p: Sequence[float] | Floats) -> Floats:
    """Return p-values corrected by Holm's step-down procedure (1979).

    Rejecting those of at most 5 % makes any false rejection in at most 5 % of cases.
    """
    # The same as statsmodels' `multipletests` (tested), which runs Python's garbage collector at
    # every call: a second with large stores.
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    # The smallest p-value is multiplied by the number of tests, the next by one less, and so on.
    # The running maximum keeps a larger p-value from being rejected after a smaller one was not.
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected
