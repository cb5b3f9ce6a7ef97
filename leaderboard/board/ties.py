"""Mark the rows that are not shown to be below the best, and bound the rank of every row."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bench.errors import BenchError

from ..statistics.pairs import Pairs, the_method, these_models
from ..statistics.predictions import Predictions
from ..statistics.strata import NotPaired, contributions, every_outcome
from .measures import Measure
from .rows import Board, BoardRow

#: What varies: the test images, for trained models as they are, or the seeds, for methods.
Question = Literal["models", "method"]
#: Boards with more rows than this are not marked: nobody has a question about all pairs of hundreds
#: of rows.
MOST_ROWS = 100


def mark(board: Board, question: Question, predictions: Predictions | None) -> None:
    """Set `tie` and `ranks` of the rows, or record on the board why that is not possible.

    The best row was chosen from the data: a test of each row against it would find too many
    differences. So all pairs of rows are tested at once, and a row is marked unless another row is
    shown to exceed it. That set holds every truly best row with 95 % confidence. `statistics.pairs`
    has the tests.

    The marks are about the column that the board is sorted by if that is an accuracy or a mean of
    accuracies, and else about OOD.

    Args:
        board: its rows are changed in place.
        question: `models` (needs predictions) or `method` (needs records only).
        predictions: outcomes of single images.
    """
    # Costs and losses have no test here: only means of accuracies add up from single images.
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
        # A row that cannot be tested is left out of the family and named, instead of costing the
        # other rows their marks.
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
    for index, (row, tied, ranks) in enumerate(
        zip(rows, found.tied_with_best, found.ranks, strict=True)
    ):
        row.tie = "best" if index == best else "tie" if tied else ""
        row.ranks = ranks


def _with_predictions(row: BoardRow, measure: Measure, predictions: Predictions | None) -> str:
    """Return why the row cannot be compared image by image; empty if it can."""
    if predictions is None:
        return "no predictions are available"
    try:
        for split in measure.splits:
            every_outcome(row.records, split, predictions)
    except (NotPaired, BenchError) as why:
        # A damaged file costs this row its mark, and not the board.
        return str(why).splitlines()[0]
    return ""


def _models(rows: list[BoardRow], measure: Measure, predictions: Predictions | None) -> Pairs:
    assert predictions is not None
    return these_models(contributions([row.records for row in rows], measure.splits, predictions))


def _with_seeds(row: BoardRow, measure: Measure, predictions: Predictions | None) -> str:
    """Return why the row cannot be compared over seeds; empty if it can."""
    if row.external:
        return "external weights have no recipe that could run with other seeds"
    return "fewer than two seeds" if len(_by_seed(row, measure)) < 2 else ""


def _by_seed(row: BoardRow, measure: Measure) -> dict[int, float]:
    """Return seed -> value of the row."""
    return {r.seed: value for r in row.records if (value := measure.of(r)) is not None}


def _method(rows: list[BoardRow], measure: Measure) -> Pairs:
    values = [_by_seed(row, measure) for row in rows]
    seeds = sorted(set.union(*(set(own) for own in values)))
    # NaN where a row has not run with a seed: `the_method` compares a pair over the seeds that both
    # have.
    by_seed = np.array([[own.get(seed, np.nan) for own in values] for seed in seeds])
    return the_method(by_seed, [row.deterministic for row in rows])
