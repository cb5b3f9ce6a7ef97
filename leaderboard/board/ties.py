"""Which rows of a board cannot be told from its best one, and between which ranks every row
lies.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from bench.errors import BenchError

from ..statistics.pairs import Pairs, the_method, these_models
from ..statistics.predictions import Predictions
from ..statistics.strata import NotPaired, contributions, every_outcome
from .measures import Measure
from .rows import Board, BoardRow

Question = Literal["models", "method"]
#: Boards with more rows than this are not marked: all pairs of hundreds of rows answer nobody's
#: question.
MOST_ROWS = 100


def mark(board: Board, question: Question, predictions: Predictions | None) -> None:
    """Fill in `tie` and `ranks` of the rows, or say on the board why that is not possible.

    The marks are about the column that the board is sorted by if that is an accuracy or a mean of
    accuracies, else about OOD.

    Args:
        question: `models` (the images vary; needs predictions) or `method` (the seeds vary; needs
            records only).
    """
    measure = next(
        m
        for key in (board.sort, "ood")
        if (m := board.measure(key)) is not None and (m.splits or key == "ood")
    )
    rows = [row for row in board.rows if row.cells[measure.key].value is not None]
    board.ties_about, board.ties_question = measure.key, question
    try:
        if len(rows) < 2:
            raise NotPaired("there are not two rows with a value")
        if len(rows) > MOST_ROWS:
            raise NotPaired(
                f"there are {len(rows)} rows, and at most {MOST_ROWS} are tested; show fewer with"
                " --method"
            )
        testable = _with_predictions if question == "models" else _with_seeds
        board.ties_untested = {
            row.name: why for row in rows if (why := testable(row, measure, predictions))
        }
        rows = [row for row in rows if row.name not in board.ties_untested]
        if len(rows) < 2:
            raise NotPaired(next(iter(board.ties_untested.values())))
        found = (
            _models(rows, measure, predictions) if question == "models" else _method(rows, measure)
        )
    except NotPaired as why:
        board.ties_missing = str(why)
        return
    best = int(np.argmax(found.estimates))
    for number, (row, tied, ranks) in enumerate(
        zip(rows, found.tied_with_best, found.ranks, strict=True)
    ):
        row.tie = "best" if number == best else "tie" if tied else ""
        row.ranks = ranks


def _with_predictions(row: BoardRow, measure: Measure, predictions: Predictions | None) -> str:
    """Why the row cannot be compared image by image; empty if it can."""
    if predictions is None:
        return "no predictions are at hand"
    try:
        for split in measure.splits:
            every_outcome(row.records, split, predictions)
    except (
        NotPaired,
        BenchError,
    ) as why:  # a damaged file costs the row its mark, and not the board
        return str(why).splitlines()[0]
    return ""


def _models(rows: list[BoardRow], measure: Measure, predictions: Predictions | None) -> Pairs:
    assert predictions is not None
    return these_models(contributions([row.records for row in rows], measure.splits, predictions))


def _with_seeds(row: BoardRow, measure: Measure, predictions: Predictions | None) -> str:
    """Why the row cannot be compared over seeds; empty if it can."""
    if row.external:
        return "weights from elsewhere are not a recipe with seeds"
    return "fewer than two seeds" if len(_by_seed(row, measure)) < 2 else ""


def _by_seed(row: BoardRow, measure: Measure) -> dict[int, float]:
    return {r.seed: value for r in row.records if (value := measure.of(r)) is not None}


def _method(rows: list[BoardRow], measure: Measure) -> Pairs:
    values = [_by_seed(row, measure) for row in rows]
    seeds = sorted(set.union(*(set(own) for own in values)))
    by_seed = np.array([[own.get(seed, np.nan) for own in values] for seed in seeds])
    return the_method(by_seed, [row.deterministic for row in rows])
