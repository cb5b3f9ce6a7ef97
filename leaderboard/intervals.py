"""Confidence intervals, each labelled with what would vary if the experiment were repeated: the seeds, or the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends, in the unit of the number. over: what varies, `seeds` (another training run of the same recipe)
        or `images` (another test set of the same kind, the models as they are). method: how it was computed.
    """

    low: float
    high: float
    over: Literal["seeds", "images", "images and curve"]
    method: str
    level: float = LEVEL


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t-interval of the mean over seeds (sample SD, ddof = 1); None for fewer than two seeds.

    Example:
        `over_seeds([0.61, 0.63, 0.62])` is 0.62 plus or minus 4.30 x 0.01 / sqrt(3): with three seeds, intervals are wide.
    """
    if len(values) < 2:
        return None
    mean, half = float(np.mean(values)), float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean - half, mean + half, "seeds", "t", level)


def over_images(shares: Sequence[tuple[float, int]], level: float = LEVEL) -> Interval | None:
    """Interval of an accuracy, or of the mean of accuracies on several sets, over the images.

    One set: Wilson's score interval (Wilson, 1927). Several: the limits of the mean are put together from theirs as by Zou and
    Donner (2008; MOVER), which takes the sets as independent. An accuracy that is a mean over seeds counts every image once,
    however many seeds saw it: seeds are not images, so that the interval errs to the wide side.

    Args:
        shares: (accuracy in [0, 1], number of images) of every set.

    Returns:
        None without images.
    """
    if not shares or any(images < 1 for _, images in shares):
        return None
    means, counts = np.array([s for s, _ in shares]), np.array([n for _, n in shares])
    low, high = wilson(means, counts, level)
    mean, sets = float(means.mean()), len(shares)
    below = float(np.sqrt(((means - low) ** 2).sum()) / sets)
    above = float(np.sqrt(((high - means) ** 2).sum()) / sets)
    return Interval(mean - below, mean + above, "images", "Wilson" if sets == 1 else "Wilson, MOVER", level)


def wilson(
    shares: NDArray[np.float64], counts: NDArray[np.int64], level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's limits for shares of `counts` trials; shares need not be whole numbers of trials (means over seeds)."""
    # Equal to statsmodels' proportion_confint (tested); written out, since importing statsmodels takes longer than a board.
    z = stats.norm.ppf((1 + level) / 2)
    middle = (shares + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(shares * (1 - shares) / counts + z**2 / (4 * counts**2))
    return middle - half, middle + half
