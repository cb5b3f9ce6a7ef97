"""The distance above the curve, by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bench.leaderboard.statistics.tradeoff import area_under_curve, on_front
from bench.leaderboard.statistics.tradeoff import offered as envelopes
from bench.results.record import CurvePoint, RunRecord

CURVE = [(0.60, 0.58), (0.70, 0.60), (0.80, 0.56), (0.90, 0.50), (0.88, 0.48)]


@pytest.mark.parametrize(
    ("at", "offered"),
    [
        (0.60, 0.60),  # the start itself is dominated by the point at .70
        (0.65, 0.60),  # flat, not the line through the dominated start
        (0.70, 0.60),
        (0.75, 0.58),  # half way between .60 and .56
        (0.85, 0.53),
        (0.89, 0.506),  # the dominated point at .88 is no offer
        (0.90, 0.50),
        (0.59, None),  # never extrapolated
        (0.91, None),
    ],
)
def test_envelope_by_hand(at: float, offered: float | None) -> None:
    ids, oods = np.array(CURVE).T[:, None]
    found = envelopes(ids, oods, np.array([at]))
    assert found == pytest.approx([np.nan if offered is None else offered], nan_ok=True)


def test_of_points_of_one_id_the_higher_is_the_offer() -> None:
    assert envelopes(
        np.array([[0.5, 0.7, 0.5]]), np.array([[0.2, 0.1, 0.4]]), np.array([0.5])
    ) == pytest.approx([0.4])


@pytest.mark.filterwarnings("error")
def test_a_curve_that_stands_upright_offers_nothing_next_to_it_and_warns_of_nothing() -> None:
    ids, oods = np.array([[0.5, 0.5, 0.5]]), np.array([[0.2, 0.1, 0.4]])
    for at, offered in ((0.5, 0.4), (0.4, np.nan), (0.6, np.nan)):
        assert envelopes(ids, oods, np.array([at])) == pytest.approx([offered], nan_ok=True)


def test_the_area_is_the_mean_height_of_the_envelope(make: Callable[..., RunRecord]) -> None:
    points = [
        CurvePoint(alpha=i / 4, scores={"id-test": x, "sketch": y}, ood=y)
        for i, (x, y) in enumerate(CURVE)
    ]
    # Flat at .60 up to .70, then three straight pieces.
    by_hand = (0.60 * 0.1 + 0.58 * 0.1 + 0.53 * 0.1) / 0.3
    assert area_under_curve(make(curve=points), ["sketch"]) == pytest.approx(by_hand)
    assert area_under_curve(make(), ["sketch"]) is None


def test_the_front_is_what_nothing_dominates() -> None:
    points = [(0.9, 0.5), (0.8, 0.6), (0.8, 0.5), (0.7, 0.6), (0.9, None), (0.9, 0.5)]
    assert on_front(points) == [True, True, False, False, None, True]
