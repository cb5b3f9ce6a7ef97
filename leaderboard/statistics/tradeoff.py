"""How far a method lies above the curve on which most methods merely move: start -> fine-tuned,
interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bench.identity import canonical_json
from bench.results.record import RunRecord
from bench.spec import REFERENCE

Floats = NDArray[np.float64]
ID = "id-test"


def offered(ids: Floats, oods: Floats, at: Floats) -> Floats:
    """OOD that curves offer at an ID accuracy of `at` or more: their upper Pareto envelopes, linear
    between points.

    A point with less ID and less OOD than another is no offer, so that left of the best OOD an
    envelope is flat.

    Args:
        ids, oods: (curves, points) of interpolation curves, in any order.
        at: (curves,) one ID accuracy for each.

    Returns:
        (curves,); NaN outside a curve's range of ID: nothing is extrapolated.
    """
    order = np.lexsort((oods, ids))
    x, y = np.take_along_axis(ids, order, axis=1), np.take_along_axis(oods, order, axis=1)
    best_from_here = np.maximum.accumulate(y[:, ::-1], axis=1)[:, ::-1]
    front = np.ones(x.shape, dtype=bool)
    front[:, :-1] = y[:, :-1] > best_from_here[:, 1:]
    beyond = front & (
        x >= at[:, None]
    )  # the last point is on the front, so that there is one wherever `at` is in range
    right = np.where(beyond, x, np.inf).argmin(axis=1)
    left = np.where(front & ~beyond, x, -np.inf).argmax(axis=1)
    rows = np.arange(len(x))
    left = np.where((front & ~beyond).any(axis=1), left, right)
    width = x[rows, right] - x[rows, left]
    width = np.where(width > 0, width, 1.0)  # one point alone, or `at` is out of range
    found = y[rows, left] + (y[rows, right] - y[rows, left]) * (at - x[rows, left]) / width
    found = np.where(left == right, y[rows, right], found)
    return np.where((x[:, 0] <= at) & (at <= x[:, -1]), found, np.nan)


def average(scores: Mapping[str, float], shifts: Sequence[str]) -> float | None:
    """Mean over the shifts, which are the board's and need not be those that a record averaged;
    None if one is missing.
    """
    return (
        fmean([scores[shift] for shift in shifts])
        if shifts and all(shift in scores for shift in shifts)
        else None
    )


def points(record: RunRecord, shifts: Sequence[str]) -> list[tuple[float, float]]:
    """(ID, mean over the shifts) of the points of a run's curve; of none that was not measured on
    all of them.
    """
    places = [(point.scores.get(ID), average(point.scores, shifts)) for point in record.curve]
    return [(x, y) for x, y in places if x is not None and y is not None]


def offer_at(record: RunRecord, yardstick: RunRecord, shifts: Sequence[str]) -> float | None:
    """Mean over the shifts that the yardstick's curve offers at the run's ID accuracy; None outside
    the curve's range.
    """
    curve = points(yardstick, shifts)
    if not curve or ID not in record.metrics:
        return None
    ids, oods = np.array(curve).T
    found = float(offered(ids[None], oods[None], np.array([record.metrics[ID].score]))[0])
    return None if np.isnan(found) else found


def above_curve(record: RunRecord, yardstick: RunRecord, shifts: Sequence[str]) -> float | None:
    """Mean over the shifts minus what the yardstick's curve offers at the run's ID accuracy; None
    where that is not defined.
    """
    own = average({split: metrics.score for split, metrics in record.metrics.items()}, shifts)
    offer = offer_at(record, yardstick, shifts)
    return None if own is None or offer is None else own - offer


def yardsticks(records: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """The yardstick's runs with a curve, by seed.

    They are of one row, whatever its parameters: of several, of the one that the most search trials
    chose, then of the one with the most curves, then of the one nearest to the suite's recipe.
    """
    rows: dict[str, dict[int, RunRecord]] = {}
    for record in records:
        if (
            record.method["name"] == REFERENCE
            and record.curve
            and record.status == "done"
            and record.phase == "final"
        ):
            rows.setdefault(canonical_json(record.method), {})[record.seed] = record

    def rank(row: dict[int, RunRecord]) -> tuple[int, int, int, str]:
        label = next(iter(row.values())).label
        return max(r.search_trials for r in row.values()), len(row), -len(label), label

    return max(rows.values(), key=rank, default={})


def area_under_curve(record: RunRecord, shifts: Sequence[str]) -> float | None:
    """Mean OOD that a run's own curve offers between its lowest and highest ID: the area under the
    envelope over its width.

    Two areas are over two ranges of ID; they tell which curve lies higher only where the ranges are
    alike.

    Returns:
        None without a curve of some width.
    """
    curve = np.array(points(record, shifts)).reshape(-1, 2)
    xs = np.unique(curve[:, 0])
    if len(xs) < 2:
        return None
    ids, oods = (np.broadcast_to(one, (len(xs), len(curve))) for one in curve.T)
    return float(np.trapezoid(offered(ids, oods, xs), xs) / (xs[-1] - xs[0]))


def on_front(places: Sequence[tuple[float | None, float | None]]) -> list[bool | None]:
    """Whether no other point has at least as much of both and more of one; None for a point that
    lacks one.
    """
    known = [(x, y) for x, y in places if x is not None and y is not None]
    return [
        (
            None
            if x is None or y is None
            else not any(a >= x and b >= y and (a > x or b > y) for a, b in known)
        )
        for x, y in places
    ]
