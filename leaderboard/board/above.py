"""The distance above the curve on other images of the same kind: method and curve are drawn
together, image by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.results.record import RunRecord

from ..statistics.intervals import LEVEL, Interval
from ..statistics.predictions import Outcomes, Predictions
from ..statistics.resampling import redrawn_scores
from ..statistics.strata import NotPaired
from ..statistics.tradeoff import ID, offered
from .measures import ABOVE
from .rows import Board

Floats = NDArray[np.float64]
DRAWS = 2_000
#: What one model said: set -> outcomes.
Said = dict[str, Outcomes]


def spread(board: Board, predictions: Predictions) -> None:
    """Give the cells of the distance above the curve their intervals over images, or say on the
    board why there is none.
    """
    known = [
        (row, value)
        for row in board.rows
        if ABOVE in row.cells and (value := row.cells[ABOVE].value) is not None
    ]
    if not known:
        return
    rows, estimates = zip(*known, strict=True)
    found = over_images(
        [row.records for row in rows], estimates, board.curves, board.shifts.shared, predictions
    )
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, Interval):
            row.cells[ABOVE] = replace(row.cells[ABOVE], images=one)
        else:
            board.above_unspread[row.name] = one


def over_images(
    rows: Sequence[Sequence[RunRecord]],
    estimates: Sequence[float],
    curves: Mapping[int, RunRecord],
    shifts: Sequence[str],
    predictions: Predictions,
) -> list[Interval | str]:
    """Interval of every row's mean distance above the curves of its seeds, or why there is none.

    Args:
        rows: runs of one board.
        estimates: their mean distances.
        curves: seed -> the yardstick's run; runs of other seeds are left out.
        shifts: those of the OOD average.
    """
    reasons: dict[int, str] = {}
    models: list[Said] = []
    paired: list[
        list[tuple[int, slice]]
    ] = []  # per row and seed: place of the run and of its curve's points among the models
    places: dict[int, slice] = {}
    splits = (ID, *shifts)
    for number, runs in enumerate(rows):
        paired.append([])
        try:
            for run in (r for r in runs if r.seed in curves):
                own = _said(run, splits, predictions)
                if run.seed not in places:
                    points = _points(curves[run.seed], splits, predictions)
                    places[run.seed] = slice(len(models), len(models) + len(points))
                    models += points
                models.append(own)
                paired[-1].append((len(models) - 1, places[run.seed]))
        except (
            NotPaired,
            BenchError,
        ) as why:  # a damaged file costs the row its interval, and not the board
            reasons[number] = str(why).splitlines()[0]
    if len(reasons) == len(rows):
        return list(reasons.values())
    metrics = {split: rows[0][0].metrics[split].metric for split in splits}
    try:
        drawn = redrawn_scores(models, metrics, DRAWS, np.random.default_rng(0))
    except NotPaired as why:
        return [reasons.get(number, str(why)) for number in range(len(rows))]
    ids, oods = drawn[ID], np.mean([drawn[split] for split in shifts], axis=0)
    return [
        reasons.get(number) or interval(estimates[number], distances(ids, oods, seeds))
        for number, seeds in enumerate(paired)
    ]


def distances(ids: Floats, oods: Floats, seeds: Sequence[tuple[int, slice]]) -> Floats:
    """(draws,) mean over seeds of OOD minus what the curve offers at that ID; NaN where a seed is
    outside its curve's range.

    Args:
        ids, oods: (draws, models).
        seeds: which model is the method's, and which are its curve's points.
    """
    return np.asarray(
        np.mean(
            [oods[:, run] - offered(ids[:, at], oods[:, at], ids[:, run]) for run, at in seeds],
            axis=0,
        )
    )


def interval(estimate: float, draws: Floats) -> Interval | str:
    """The 95 % basic interval (reverse percentile; Davison and Hinkley, 1997) of a distance, or why
    there is none.

    An envelope is a maximum of uncertain points, which lies too high in the data and again in every
    draw of them. The basic interval takes that off; a percentile interval would add it twice, and
    cover 85 % where the curve is flat (simulated).

    A draw in which a seed lies outside its curve's range has no distance. It could be anything: it
    counts beyond both ends, which makes the interval wider, and 2.5 % of such draws leave none.
    """
    tail = (1 - LEVEL) / 2
    low = float(np.quantile(np.where(np.isnan(draws), -np.inf, draws), tail, method="lower"))
    high = float(np.quantile(np.where(np.isnan(draws), np.inf, draws), 1 - tail, method="higher"))
    if not (np.isfinite(low) and np.isfinite(high)):
        share = 100 * np.isnan(draws).mean()
        return (
            f"its ID lies so near to the end of the curve's range that {share:.0f} % of the draws"
            " of images leave it"
        )
    how = f"basic paired bootstrap of method and curve, {len(draws)} draws"
    return Interval(2 * estimate - high, 2 * estimate - low, "images", how)


def _said(run: RunRecord, splits: Sequence[str], predictions: Predictions) -> Said:
    found = {split: predictions.outcomes(run, split) for split in splits}
    for split, one in found.items():
        if one is None:
            raise NotPaired(f"{split}: no predictions are kept for {run.label} (seed {run.seed})")
    return {split: one for split, one in found.items() if one is not None}


def _points(run: RunRecord, splits: Sequence[str], predictions: Predictions) -> list[Said]:
    """What every point of the curve said."""
    found = {split: predictions.curve(run, split) for split in splits}
    kept = {split: one for split, one in found.items() if one is not None}
    if len(kept) < len(found):
        raise NotPaired(
            f"what the points of the curve of {run.label} (seed {run.seed}) predict was not kept; "
            "the same `bench run` again with --curve adds it where the weights are"
        )
    return [{split: one[point.alpha] for split, one in kept.items()} for point in run.curve]
