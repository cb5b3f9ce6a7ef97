"""What the charts draw, from a board to plain frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from bench.results.record import RunRecord
from bench.spec import REFERENCE

from ..statistics.calibration import scaled
from ..statistics.intervals import over_seeds
from ..statistics.predictions import Predictions
from ..statistics.tradeoff import ID, average
from .baseline import Line, published
from .groups import deterministic
from .rows import Board


def points(board: Board, x: str = "id", y: str = "ood") -> pd.DataFrame:
    """One row per row of the board that has both columns: for `charts.scatter`.

    Args:
        x, y: keys of columns; the intervals are those over seeds.
    """
    drawn = []
    for row in board.rows:
        across, up = row.cells[x], row.cells[y]
        if across.value is not None and up.value is not None:
            drawn.append(
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
    return pd.DataFrame(drawn, columns=columns)


def yardstick(board: Board, key: str = "ood") -> pd.DataFrame | None:
    """The yardstick's interpolation curve, the mean over the seeds that have one: `alpha`, `id`,
    `ood`, `of`.

    Args:
        key: of the column that stands against ID: the OOD average, a shift, a factor.

    Returns:
        None where no curve was measured.
    """
    measure = board.measure(key)
    places = [
        {"alpha": point.alpha, "id": point.scores[ID], "ood": up}
        for run in board.curves.values()
        for point in run.curve
        if measure is not None
        and ID in point.scores
        and (up := average(point.scores, measure.splits)) is not None
    ]
    if not places:
        return None
    return (
        pd.DataFrame(places)
        .groupby("alpha", as_index=False)
        .mean()
        .assign(of=f"start to {REFERENCE}")
    )


def standard_line(board: Board, key: str = "ood") -> Callable[[float], float | None] | None:
    """ID accuracy on id-test -> what standard models of that accuracy reach in a column: a shift,
    or the OOD average.

    For the average it is the mean of the shifts' lines; a line over ID on the shift's classes is
    none over this axis.

    Returns:
        None where a shift of the column has no line.
    """
    known = published(board.group.suite)
    measure = board.measure(key)
    lines: list[Line] = []
    for shift in measure.splits if measure is not None and key != "id" else ():
        options = [*([board.lines[shift]] if shift in board.lines else []), *known.get(shift, [])]
        lines += [line for line in options if line.id == "id-test"][:1]
    if measure is None or not lines or len(lines) < len(measure.splits):
        return None

    def reached(accuracy: float) -> float | None:
        every = [value for line in lines if (value := line.at(accuracy)) is not None]
        return sum(every) / len(every) if len(every) == len(lines) else None

    return reached


def curve_of(runs: Sequence[RunRecord], shifts: Sequence[str]) -> pd.DataFrame | None:
    """Accuracy along the curves of runs, mean and 95 % t-interval over them: `alpha`, `split`,
    `score`, `low`, `high`, `runs`.

    Runs that no seed changes have no interval.

    Args:
        shifts: those of the split "OOD average", which a point that lacks one of them does not
            have.
    """
    every = [
        {"alpha": point.alpha, "split": split, "score": score}
        for run in runs
        for point in run.curve
        for split, score in {**point.scores, "OOD average": average(point.scores, shifts)}.items()
        if score is not None
    ]
    if not every:
        return None
    drawn, fixed = [], deterministic(runs)
    for (alpha, split), own in pd.DataFrame(every).groupby(["alpha", "split"], sort=False):
        values = [float(value) for value in own["score"]]
        interval = None if fixed else over_seeds(values)
        drawn.append(
            {
                "alpha": alpha,
                "split": split,
                "score": sum(values) / len(values),
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "runs": len(values),
            }
        )
    return pd.DataFrame(drawn)


def scores(board: Board, splits: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy of every row on every split: `key`, `row`, `family`, `split`, `score`; for
    `diagrams.radar`.
    """
    drawn = []
    for row in board.rows:
        for split in splits:
            known = [r.metrics[split].score for r in row.records if split in r.metrics]
            if known:
                drawn.append((row.key, row.name, row.family, split, sum(known) / len(known)))
    return pd.DataFrame(drawn, columns=["key", "row", "family", "split", "score"])


def bins(
    board: Board, splits: Sequence[str], predictions: Predictions, *, after: bool = False
) -> pd.DataFrame:
    """Reliability of every row, the images of all its seeds together: what `diagrams.reliability`
    draws.

    Args:
        after: after temperature scaling, fitted on id-val; rows whose logits are not kept are then
            left out.
    """
    drawn = []
    for row in board.rows:
        for split in splits:
            for record in row.records:
                found = scaled(record, split, predictions)
                for number, bin in enumerate(found.scaled_diagram if after else found.diagram):
                    if bin.images and bin.confidence is not None and bin.accuracy is not None:
                        who = (row.key, row.name, row.family)
                        drawn.append(
                            (split, *who, number, bin.images, bin.confidence, bin.accuracy)
                        )
    every = pd.DataFrame(
        drawn, columns=["panel", "key", "row", "family", "bin", "images", "confidence", "accuracy"]
    )
    for mean in ("confidence", "accuracy"):
        every[mean] = every[mean] * every["images"]
    pooled = every.groupby(
        ["panel", "key", "row", "family", "bin"], sort=False, as_index=False
    ).sum()
    for mean in ("confidence", "accuracy"):
        pooled[mean] = pooled[mean] / pooled["images"]
    return pooled.drop(columns="bin")
