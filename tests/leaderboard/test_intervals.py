"""Intervals are those of scipy and statsmodels, and wider where there is less to know."""

from __future__ import annotations

import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from bench.leaderboard.statistics.intervals import mean_and_sd, over_images, over_seeds, wilson


@pytest.mark.parametrize(("right", "images"), [(0, 10), (3, 10), (1400, 1500), (1500, 1500)])
def test_wilson_is_statsmodels(right: int, images: int) -> None:
    assert wilson(right / images, images) == pytest.approx(
        proportion_confint(right, images, method="wilson"), abs=1e-12
    )


def test_the_interval_over_seeds_is_scipys() -> None:
    values = [0.61, 0.63, 0.6, 0.66]
    interval = over_seeds(values)
    assert interval
    assert (interval.low, interval.high) == pytest.approx(
        stats.ttest_1samp(values, 0).confidence_interval()
    )
    assert (interval.over, interval.method) == ("seeds", "t")
    assert mean_and_sd(values) == pytest.approx((0.625, stats.tstd(values)))


def test_one_seed_has_no_interval() -> None:
    assert over_seeds([0.6]) is None
    assert mean_and_sd([0.6]) == (0.6, None)


def test_a_mean_over_sets_is_narrower_than_its_sets_and_one_set_is_wilson() -> None:
    single, mean = over_images([(0.6, 500)]), over_images([(0.6, 500)] * 4)
    assert single
    assert mean
    assert (single.low, single.high) == pytest.approx(wilson(0.6, 500))
    assert (mean.high - mean.low) == pytest.approx((single.high - single.low) / 2)
    assert over_images([]) is None
