"""Compute confidence intervals over seeds and over test images.

The two answer different questions, so that each interval says which of them would vary if the
experiment were repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from scipy import special

#: Coverage of every interval on a board.
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower end, in the unit of the number.
        high: upper end.
        over: what varies: `seeds` (another training run of the same recipe) or `images` (another
            test set of the same kind, with the trained models as they are).
        method: how it was computed.
        level: coverage, such as 0.95.
    """

    low: float
    high: float
    over: Literal["seeds", "images"]
    method: str
    level: float = LEVEL


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample SD (ddof = 1); the SD of a single value is None."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return Student's t-interval of the mean over seeds, or None for fewer than two.

    Example:
        `over_seeds([0.61, 0.63, 0.62])` is 0.62 plus or minus 4.30 x 0.01 / sqrt(3).
    """
    mean, sd = mean_and_sd(values) if values else (0.0, None)
    # One seed says nothing about the spread over seeds.
    if sd is None:
        return None
    half = _t(len(values) - 1, level) * sd / math.sqrt(len(values))
    return Interval(mean - half, mean + half, "seeds", "t", level)


def over_images(shares: Sequence[tuple[float, int]], level: float = LEVEL) -> Interval | None:
    """Return the interval over images of an accuracy, or of the mean of accuracies on several sets.

    One set has Wilson's score interval (Wilson, 1927). For several, MOVER (Zou and Donner, 2008)
    combines the distances of their limits from the accuracies, which assumes that the sets are
    independent. An accuracy that is a mean over seeds counts every image once, however many seeds
    saw it. Seeds are not images, so that the interval is too wide rather than too narrow.

    Args:
        shares: (accuracy in [0, 1], number of images) of every set.
        level: coverage.

    Returns:
        None without images.
    """
    if not shares or any(images < 1 for _, images in shares):
        return None
    limits = [wilson(share, images, level) for share, images in shares]
    mean = math.fsum(share for share, _ in shares) / len(shares)
    # The sides are combined apart: Wilson's limits are not symmetric about the accuracy.
    below = math.hypot(
        *(share - low for (share, _), (low, _) in zip(shares, limits, strict=True))
    ) / len(shares)
    above = math.hypot(
        *(high - share for (share, _), (_, high) in zip(shares, limits, strict=True))
    ) / len(shares)
    return Interval(
        mean - below,
        mean + above,
        "images",
        "Wilson" if len(shares) == 1 else "Wilson, MOVER",
        level,
    )


# scipy and statsmodels have both quantiles and Wilson's limits. A board of thousands of rows needs
# a hundred thousand intervals, and one call of theirs costs milliseconds. Tests hold the functions
# below against them.


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's limits of a share of `count` trials.

    The share may be a mean over seeds, so that it need not be a whole number of trials.
    """
    z = _z(level)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


@lru_cache
def _t(freedom: int, level: float) -> float:
    return float(special.stdtrit(freedom, (1 + level) / 2))


@lru_cache
def _z(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))
