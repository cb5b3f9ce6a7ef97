"""How far a method lies above the curve on which most methods merely move: start -> fine-tuned, interpolated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.runs.record import RunRecord

from .intervals import over_seeds

#: The fine-tuner whose interpolation curve is the yardstick.
YARDSTICK = "full-finetune"


def envelope(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """OOD that the curve offers at an ID accuracy of `at` or more: its upper Pareto envelope, linear between points.

    A point with less ID and less OOD than another is no offer, so that left of the best OOD the envelope is flat.

    Args:
        curve: (ID, OOD) of the points of an interpolation curve, in any order.

    Returns:
        None outside the curve's range of ID: nothing is extrapolated.
    """
    points = sorted(curve)
    if not points or not points[0][0] <= at <= points[-1][0]:
        return None
    front: list[tuple[float, float]] = []
    for x, y in reversed(points):
        if not front or y > front[-1][1]:
            front.append((x, y))
    front.reverse()
    if at <= front[0][0]:
        return front[0][1]
    xs, ys = zip(*front, strict=True)
    return float(np.interp(at, xs, ys))


def above_curve(record: RunRecord, yardstick: RunRecord) -> float | None:
    """OOD of a run minus what the yardstick's curve offers at the run's ID accuracy; None where that is not defined."""
    if record.ood is None or "id-test" not in record.metrics:
        return None
    curve = [(point.scores["id-test"], point.ood) for point in yardstick.curve if point.ood is not None]
    offered = envelope(curve, record.metrics["id-test"].score)
    return None if offered is None else record.ood - offered


def yardsticks(records: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """The yardstick's run with a curve, by seed; among several parameter choices the one that a search chose, else the first."""
    found: dict[int, RunRecord] = {}
    for record in records:
        if record.method["name"] == YARDSTICK and record.curve and record.status == "done" and record.phase == "final":
            known = found.get(record.seed)
            if known is None or record.search_trials > known.search_trials:
                found[record.seed] = record
    return found


def interval_over_seeds(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and t-interval (low, high) over seeds; the interval is NaN for fewer than two."""
    mean, interval = float(np.mean(values)), over_seeds(values, level)
    return (mean, interval.low, interval.high) if interval else (mean, float("nan"), float("nan"))


def area_under_curve(record: RunRecord) -> float | None:
    """Mean OOD that a run's own curve offers between its lowest and highest ID: the area under the envelope over its width.

    Two areas are over two ranges of ID; they tell which curve lies higher only where the ranges are alike.

    Returns:
        None without a curve of some width.
    """
    curve = [(point.scores["id-test"], point.ood) for point in record.curve if point.ood is not None]
    xs = sorted({x for x, _ in curve})
    if len(xs) < 2:
        return None
    offered = [envelope(curve, x) for x in xs]
    return float(np.trapezoid(np.array(offered, dtype=float), xs) / (xs[-1] - xs[0]))


def on_front(points: Sequence[tuple[float | None, float | None]]) -> list[bool | None]:
    """Whether no other point has at least as much of both and more of one; None for a point that lacks one."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return [
        None if x is None or y is None else not any(a >= x and b >= y and (a > x or b > y) for a, b in known) for x, y in points
    ]
