"""Bootstrap the interval over images of the distance above the interpolation curve.

Method and curve are resampled together, image by image. They err on the same images, so that their
difference varies less than either of them.
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
from ..statistics.resampling import resampled_scores
from ..statistics.strata import NotPaired
from ..statistics.tradeoff import ID, offered
from .measures import ABOVE
from .rows import Board

Floats = NDArray[np.float64]
#: Computing the envelopes again for every resample costs more than a mean does, so that there are
#: fewer of them than for a difference of accuracies (`resampling.RESAMPLES`).
RESAMPLES = 2_000
#: Outcomes of one model: split -> outcomes.
OutcomesBySplit = dict[str, Outcomes]


def spread(board: Board, predictions: Predictions) -> None:
    """Add intervals over images to the above-curve cells, or record why a row has none.

    The reason goes to `board.above_unspread`, by the name of the row.
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
    """Return the interval of each row's mean distance above the curves, or why it has none.

    Args:
        rows: runs of each row, all of one board.
        estimates: mean distance of each row.
        curves: seed -> reference run that has a curve; runs of other seeds are left out.
        shifts: shifts of the OOD average.
        predictions: where the outcomes of runs and of their curves' points are read from.
    """
    reasons: dict[int, str] = {}
    models: list[OutcomesBySplit] = []
    # For each row and seed: index of the run and slice of its curve's points in `models`.
    paired: list[list[tuple[int, slice]]] = []
    # The points of a seed's curve are resampled once, however many rows are measured against it.
    places: dict[int, slice] = {}
    splits = (ID, *shifts)
    for index, runs in enumerate(rows):
        paired.append([])
        try:
            for run in (r for r in runs if r.seed in curves):
                own = _outcomes(run, splits, predictions)
                if run.seed not in places:
                    points = _points(curves[run.seed], splits, predictions)
                    places[run.seed] = slice(len(models), len(models) + len(points))
                    models += points
                models.append(own)
                paired[-1].append((len(models) - 1, places[run.seed]))
        except (NotPaired, BenchError) as why:
            # A damaged file costs this row its interval, and not the board.
            reasons[index] = str(why).splitlines()[0]
    if len(reasons) == len(rows):
        return list(reasons.values())
    metrics = {split: rows[0][0].metrics[split].metric for split in splits}
    try:
        # All models share every resample of the images, which is what pairs them. The seed is
        # fixed, so that a board comes out the same each time.
        scores = resampled_scores(models, metrics, RESAMPLES, np.random.default_rng(0))
    except NotPaired as why:
        return [reasons.get(index, str(why)) for index in range(len(rows))]
    ids, oods = scores[ID], np.mean([scores[split] for split in shifts], axis=0)
    return [
        reasons.get(index) or interval(estimates[index], distances(ids, oods, seeds))
        for index, seeds in enumerate(paired)
    ]


def distances(ids: Floats, oods: Floats, seeds: Sequence[tuple[int, slice]]) -> Floats:
    """Return the mean distance above the curves over the seeds, for each resample.

    Args:
        ids: ID scores, (resamples, models).
        oods: OOD averages, (resamples, models).
        seeds: for each seed, the index of the method's model and the slice of its curve's points.

    Returns:
        (resamples,) OOD minus the OOD that the curve offers at that ID, averaged over the seeds;
        NaN where a seed is outside its curve's range.
    """
    return np.asarray(
        np.mean(
            [oods[:, run] - offered(ids[:, at], oods[:, at], ids[:, run]) for run, at in seeds],
            axis=0,
        )
    )


def interval(estimate: float, resamples: Floats) -> Interval | str:
    """Return the 95 % basic bootstrap interval of a distance, or why there is none.

    An envelope is a maximum of uncertain points. It is too high in the data, and too high once more
    in every resample of the data. The basic interval (reverse percentile; Davison and Hinkley,
    1997) subtracts that bias; a percentile interval would add it twice, and covers only 85 % where
    the curve is flat (simulated in tests/perf/test_statistics.py).

    Args:
        estimate: distance on the images at hand.
        resamples: (resamples,) distances; NaN where a seed is outside its curve's range.
    """
    tail = (1 - LEVEL) / 2
    # A resample without a distance could have any distance. Counting it beyond both ends makes the
    # interval wider, instead of selecting the resamples by their outcome; with 2.5 % of them an end
    # is infinite. `lower` and `higher` keep quantiles from interpolating with infinity.
    low = float(
        np.quantile(np.where(np.isnan(resamples), -np.inf, resamples), tail, method="lower")
    )
    high = float(
        np.quantile(np.where(np.isnan(resamples), np.inf, resamples), 1 - tail, method="higher")
    )
    if not (np.isfinite(low) and np.isfinite(high)):
        share = 100 * np.isnan(resamples).mean()
        return (
            f"its ID is so close to the end of the curve's range that {share:.0f} % of the"
            " bootstrap samples are outside of it"
        )
    how = f"basic paired bootstrap of method and curve, {len(resamples)} resamples"
    return Interval(2 * estimate - high, 2 * estimate - low, "images", how)


def _outcomes(run: RunRecord, splits: Sequence[str], predictions: Predictions) -> OutcomesBySplit:
    found = {split: predictions.outcomes(run, split) for split in splits}
    for split, one in found.items():
        if one is None:
            raise NotPaired(f"{split}: no predictions are saved for {run.label} (seed {run.seed})")
    return {split: one for split, one in found.items() if one is not None}


def _points(
    run: RunRecord, splits: Sequence[str], predictions: Predictions
) -> list[OutcomesBySplit]:
    """Return the outcomes of every point of a run's curve."""
    found = {split: predictions.curve(run, split) for split in splits}
    saved = {split: one for split, one in found.items() if one is not None}
    if len(saved) < len(found):
        raise NotPaired(
            f"the points of the curve of {run.label} (seed {run.seed}) have no saved predictions;"
            " the same `bench run` again with --curve adds them where the weights are"
        )
    return [{split: one[point.alpha] for split, one in saved.items()} for point in run.curve]
