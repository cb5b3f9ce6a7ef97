"""Fit the baseline lines of effective robustness for leaderboard/board/baselines.toml.

    python scripts/baselines.py robustness_top1s.csv

The argument is the table of accuracies of the ImageNet Testbed (Taori et al., 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import typer

from bench.leaderboard.board.baseline import Piece, fit, published
from bench.tables.table import Column, Format, Row, Table, print_tables

#: Shift -> columns of the Testbed's table: accuracy on the shift, and on the ImageNet images of the
#: shift's classes. None for a shift with all classes, where the latter is ImageNet accuracy itself.
_TESTBED = {
    "imagenet-v2": ("imagenetv2-matched-frequency-format-val", None),
    "imagenet-sketch": ("imagenet-sketch", None),
    "imagenet-r": ("imagenet-r", "val-on-imagenet-r-classes"),
    "objectnet": ("objectnet-1.0-beta", "val-on-objectnet-classes"),
    "imagenet-a": ("imagenet-a", "val-on-imagenet-a-classes"),
}


def refitted(
    table: Path, breaks: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], tuple[Piece, ...]]:
    """Fit the lines to the Testbed's table.

    Args:
        table: CSV file with columns of model names, model types and accuracies in percent.
        breaks: ID accuracy in [0, 1] at which a line has its break, by shift and kind of ID
            accuracy; other lines are a single piece.

    Returns:
        The pieces by shift and kind of ID accuracy.
    """
    models = pd.read_csv(table)
    # The selection that leaderboard/board/baselines.toml describes. Change both together, or the
    # lines there cannot be reproduced.
    selected = (models["model_type"] == "standard") & (models["val"] >= 55)
    models = models[selected & ~models["model"].str.contains("aws|batch64|subsample")]
    made: dict[tuple[str, str], tuple[Piece, ...]] = {}
    for shift, (column, matched) in _TESTBED.items():
        for kind, x in (("id-test", "val"), ("id_matched", matched)):
            if x is None:
                continue
            points = [
                (a / 100, b / 100)
                for a, b in zip(models[x], models[column], strict=True)
                if not math.isnan(a + b)
            ]
            # ImageNet-A was filtered with a ResNet-50, so models below and above its accuracy
            # follow two lines. The tolerance puts a model at the break on the upper one.
            at = breaks.get((shift, kind))
            if at is None:
                made[shift, kind] = (fit(points),)
            else:
                low, high = (
                    fit(p for p in points if p[0] < at - 1e-9),
                    fit(p for p in points if p[0] >= at - 1e-9),
                )
                made[shift, kind] = (Piece(low.slope, low.intercept, at), high)
    return made


def _breaks(suite: str = "imagenet-shifts") -> dict[tuple[str, str], float]:
    every = ((shift, line) for shift, lines in published(suite).items() for line in lines)
    return {(shift, line.id): line.pieces[0].below for shift, line in every if len(line.pieces) > 1}


def main(table: Path) -> None:
    """Print the lines fitted from the Testbed's table."""
    rows: list[Row] = [
        {
            "shift": shift,
            "id": kind,
            "below": piece.below,
            "slope": f"{piece.slope:.5f}",
            "intercept": f"{piece.intercept:.5f}",
        }
        for (shift, kind), pieces in refitted(table, _breaks()).items()
        for piece in pieces
    ]
    columns = [
        Column("shift"),
        Column("id"),
        Column("below", kind="number"),
        Column("slope"),
        Column("intercept"),
    ]
    print_tables([Table(columns, rows)], Format.table)


if __name__ == "__main__":
    typer.run(main)
