"""Measure trade-offs of ID and OOD accuracy: interpolation curves, envelopes, Pareto fronts.

Most methods only move along the curve between the start and the fine-tuned weights. The distance
above it tells a better method from a milder one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bench.identity import canonical_json
from bench.results.record import RunRecord
from bench.run_spec import REFERENCE

Floats = NDArray[np.float64]
#: Name of the split of ID accuracy.
ID = "id-test"


def offered(ids: Floats, oods: Floats, at: Floats) -> Floats:
    """Return the OOD that curves offer at an ID accuracy of `at` or more.

    A curve is its upper Pareto envelope, linear between points. A point with less ID and less OOD
    than another is not on it, so that the envelope is flat to the left of the best OOD.

    Args:
        ids: ID of the points of interpolation curves, (curves, points), in any order.
        oods: OOD of the points.
        at: one ID accuracy for each curve, (curves,).

    Returns:
        (curves,); NaN outside a curve's range of ID, since nothing is extrapolated.
    """
    # All curves at once, without a loop over them: a bootstrap asks for thousands (see
    # `board.above_curve`).
    order = np.lexsort((oods, ids))
    x, y = np.take_along_axis(ids, order, axis=1), np.take_along_axis(oods, order, axis=1)
    # Points are sorted by ID. A point is on the envelope if it has more OOD than every point to its
    # right.
    best_from_here = np.maximum.accumulate(y[:, ::-1], axis=1)[:, ::-1]
    front = np.ones(x.shape, dtype=bool)
    front[:, :-1] = y[:, :-1] > best_from_here[:, 1:]
    # The last point is always on the front, so that a point to the right exists wherever `at` is in
    # range. To the left there may be none: then the envelope is flat.
    beyond = front & (x >= at[:, None])
    right = np.where(beyond, x, np.inf).argmin(axis=1)
    left = np.where(front & ~beyond, x, -np.inf).argmax(axis=1)
    rows = np.arange(len(x))
    left = np.where((front & ~beyond).any(axis=1), left, right)
    width = x[rows, right] - x[rows, left]
    # There is no width where there is one point alone or `at` is out of range. Both are replaced
    # below, and must not divide by zero here.
    width = np.where(width > 0, width, 1.0)
    found = y[rows, left] + (y[rows, right] - y[rows, left]) * (at - x[rows, left]) / width
    found = np.where(left == right, y[rows, right], found)
    return np.where((x[:, 0] <= at) & (at <= x[:, -1]), found, np.nan)


def average(scores: Mapping[str, float], shifts: Sequence[str]) -> float | None:
    """Return the mean over the shifts, or None if one is missing.

    The shifts are the board's, which need not be those that the record averaged.
    """
    return (
        fmean([scores[shift] for shift in shifts])
        if shifts and all(shift in scores for shift in shifts)
        else None
    )


def points(record: RunRecord, shifts: Sequence[str]) -> list[tuple[float, float]]:
    """Return (ID, mean over the shifts) of the points of a run's curve.

    Points that were not measured on all of them are left out.
    """
    places = [(point.scores.get(ID), average(point.scores, shifts)) for point in record.curve]
    return [(x, y) for x, y in places if x is not None and y is not None]


def offer_at(record: RunRecord, reference: RunRecord, shifts: Sequence[str]) -> float | None:
    """Return the mean over the shifts that the reference's curve offers at the run's ID accuracy.

    Returns:
        None outside the curve's range, or without a curve.
    """
    curve = points(reference, shifts)
    if not curve or ID not in record.metrics:
        return None
    ids, oods = np.array(curve).T
    found = float(offered(ids[None], oods[None], np.array([record.metrics[ID].score]))[0])
    return None if np.isnan(found) else found


def above_curve(record: RunRecord, reference: RunRecord, shifts: Sequence[str]) -> float | None:
    """Return the mean over the shifts minus what the reference's curve offers at the run's ID.

    Returns:
        None where either is not defined.
    """
    own = average({split: metrics.score for split, metrics in record.metrics.items()}, shifts)
    offer = offer_at(record, reference, shifts)
    return None if own is None or offer is None else own - offer


def references(records: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """Return the reference's runs with a curve, by seed.

    All are of one row, so that every method is measured against the same curve. Of several rows it
    is the one whose parameters most search trials chose, then the one with the most curves, then
    the one closest to the suite's recipe.
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
        # A label lists the parameters that differ from the recipe: the shortest is closest to it.
        label = next(iter(row.values())).label
        return max(r.search_trials for r in row.values()), len(row), -len(label), label

    return max(rows.values(), key=rank, default={})


def area_under_curve(record: RunRecord, shifts: Sequence[str]) -> float | None:
    """Return the mean OOD that a run's own curve offers between its lowest and highest ID.

    This is the area under the envelope, divided by its width. Two areas are over two ranges of ID:
    they show which curve is higher only where the ranges are alike.

    Returns:
        None for a curve without width.
    """
    curve = np.array(points(record, shifts)).reshape(-1, 2)
    # The envelope is linear between points, so that trapezoids between their IDs are exact.
    xs = np.unique(curve[:, 0])
    if len(xs) < 2:
        return None
    ids, oods = (np.broadcast_to(one, (len(xs), len(curve))) for one in curve.T)
    return float(np.trapezoid(offered(ids, oods, xs), xs) / (xs[-1] - xs[0]))


def on_front(places: Sequence[tuple[float | None, float | None]]) -> list[bool | None]:
    """Return whether each point is on the Pareto front; None for a point that lacks a value.

    A point is on it if no other point has at least as much of both and more of one.
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
