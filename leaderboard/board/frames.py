"""Turn a board into the data frames that the charts plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from bench.results.record import RunRecord
from bench.run_spec import REFERENCE

from ..statistics.calibration import scaled
from ..statistics.intervals import over_seeds
from ..statistics.predictions import Predictions
from ..statistics.tradeoff import ID, average
from .baseline import Line, published
from .groups import deterministic
from .rows import Board


def points(board: Board, x: str = "id", y: str = "ood") -> pd.DataFrame:
    """Return the rows of a board that have both columns, for `charts.scatter`.

    Args:
        board: rows that were averaged over seeds.
        x: key of the column on the horizontal axis.
        y: key of the column on the vertical axis. Intervals of both are those over seeds.
    """
    rows = []
    for row in board.rows:
        across, up = row.cells[x], row.cells[y]
        if across.value is not None and up.value is not None:
            rows.append(
                {
                    "key": row.key,
                    "row": row.name,
                    "family": row.family,
                    "id": across.value,
                    "ood": up.value,
                    "id_low": across.seeds.low if across.seeds else None,
                    "id_high": across.seeds.high if across.seeds else None,
                    "ood_low": up.seeds.low if up.seeds else None,
                    "ood_high": up.seeds.high if up.seeds else None,
                    "seeds": (
                        " ".join(str(r.seed) for r in row.records)
                        + (" (deterministic)" if row.deterministic else "")
                    ),
                }
            )
    # Named here, since the charts read these columns of a frame without rows as well.
    columns = [
        "key",
        "row",
        "family",
        "id",
        "ood",
        "id_low",
        "id_high",
        "ood_low",
        "ood_high",
        "seeds",
    ]
    return pd.DataFrame(rows, columns=columns)


def reference(board: Board, key: str = "ood") -> pd.DataFrame | None:
    """Return the reference's interpolation curve, averaged over the seeds that have one.

    Args:
        board: its `curves` are the reference's runs.
        key: the column that is plotted against ID: the OOD average, a shift, or a factor.

    Returns:
        Columns `alpha`, `id`, `ood` and `of`; None where no curve was measured.
    """
    measure = board.measure(key)
    places = [
        {"alpha": point.alpha, "id": point.scores[ID], "ood": up}
        for run in board.curves.values()
        for point in run.curve
        if measure is not None
        and ID in point.scores
        # A point that lacks a shift of the column has no average: one over the others would be of
        # another quantity.
        and (up := average(point.scores, measure.splits)) is not None
    ]
    if not places:
        return None
    return (
        # Seeds are averaged at equal alpha: at equal ID they have no points in common.
        pd.DataFrame(places)
        .groupby("alpha", as_index=False)
        .mean()
        .assign(of=f"start to {REFERENCE}")
    )


def standard_line(board: Board, key: str = "ood") -> Callable[[float], float | None] | None:
    """Return the function from ID accuracy to what standard models reach in a column.

    The column is a shift, or the OOD average, for which the shifts' lines are averaged.

    Args:
        board: its `lines` come before published ones.
        key: key of the column.

    Returns:
        None where a shift of the column has no line over ID.
    """
    # A board has one line per shift, which may be over ID on the shift's classes. The published
    # lines include those over all of ID.
    known = published(board.group.suite)
    measure = board.measure(key)
    lines: list[Line] = []
    for shift in measure.splits if measure is not None and key != "id" else ():
        # The board's own line comes first, so that the figure shows the line behind its column.
        options = [*([board.lines[shift]] if shift in board.lines else []), *known.get(shift, [])]
        # The axis is accuracy on id-test. A line over ID on the shift's classes has another axis.
        lines += [line for line in options if line.id == "id-test"][:1]
    if measure is None or not lines or len(lines) < len(measure.splits):
        return None

    def reached(accuracy: float) -> float | None:
        values = [value for line in lines if (value := line.at(accuracy)) is not None]
        return sum(values) / len(values) if len(values) == len(lines) else None

    return reached


def curve_of(runs: Sequence[RunRecord], shifts: Sequence[str]) -> pd.DataFrame | None:
    """Return mean accuracies along the curves of runs, with 95 % t-intervals over the runs.

    Args:
        runs: runs of one row. If no seed changes them, there are no intervals.
        shifts: shifts of the split `OOD average`, which a point that lacks one of them does not
            have.

    Returns:
        Columns `alpha`, `split`, `score`, `low`, `high` and `runs`; None without any point.
    """
    points = [
        {"alpha": point.alpha, "split": split, "score": score}
        for run in runs
        for point in run.curve
        for split, score in {**point.scores, "OOD average": average(point.scores, shifts)}.items()
        if score is not None
    ]
    if not points:
        return None
    rows, constant = [], deterministic(runs)
    for (alpha, split), own in pd.DataFrame(points).groupby(["alpha", "split"], sort=False):
        values = [float(value) for value in own["score"]]
        interval = None if constant else over_seeds(values)
        rows.append(
            {
                "alpha": alpha,
                "split": split,
                "score": sum(values) / len(values),
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "runs": len(values),
            }
        )
    return pd.DataFrame(rows)


def scores(board: Board, splits: Sequence[str]) -> pd.DataFrame:
    """Return the mean accuracy of every row on every split, for `diagrams.radar`."""
    rows = []
    for row in board.rows:
        for split in splits:
            known = [r.metrics[split].score for r in row.records if split in r.metrics]
            if known:
                rows.append((row.key, row.name, row.family, split, sum(known) / len(known)))
    return pd.DataFrame(rows, columns=["key", "row", "family", "split", "score"])


def bins(
    board: Board, splits: Sequence[str], predictions: Predictions, *, after: bool = False
) -> pd.DataFrame:
    """Return reliability bins of every row, pooled over its seeds, for `diagrams.reliability`.

    Args:
        board: the rows.
        splits: each becomes a panel.
        predictions: where confidences are read from.
        after: apply the temperature that was fitted on id-val; leaves out rows that have none.
    """
    rows = []
    for row in board.rows:
        for split in splits:
            for record in row.records:
                found = scaled(record, split, predictions)
                for number, bin in enumerate(found.scaled_diagram if after else found.diagram):
                    # An empty bin has no means, and so no place in the diagram.
                    if bin.images and bin.confidence is not None and bin.accuracy is not None:
                        who = (row.key, row.name, row.family)
                        rows.append((split, *who, number, bin.images, bin.confidence, bin.accuracy))
    frame = pd.DataFrame(
        rows, columns=["panel", "key", "row", "family", "bin", "images", "confidence", "accuracy"]
    )
    for mean in ("confidence", "accuracy"):
        # Seeds are pooled as if all their images were in one bin: sums first, and then means again.
        # A mean of the bins' means would weigh a bin of one image as much as a full one.
        frame[mean] = frame[mean] * frame["images"]
    pooled = frame.groupby(
        ["panel", "key", "row", "family", "bin"], sort=False, as_index=False
    ).sum()
    for mean in ("confidence", "accuracy"):
        pooled[mean] = pooled[mean] / pooled["images"]
    return pooled.drop(columns="bin")
