"""Which rows of a board cannot be told from its best one, and between which ranks every row lies."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bench.runs.record import RunRecord

from .board import Board, BoardRow
from .pairs import Pairs, the_method, these_models
from .predictions import Predictions
from .strata import NotPaired, contributions

Question = Literal["models", "method"]
#: Boards with more rows than this are not marked: all pairs of hundreds of rows answer nobody's question.
MOST_ROWS = 100


def mark(board: Board, question: Question, predictions: Predictions | None) -> None:
    """Fill in `tie` and `ranks` of the rows, or say on the board why that is not possible.

    The marks are about the column that the board is sorted by if that is an accuracy or a mean of accuracies, else about OOD.

    Args:
        question: `models` (the images vary; needs predictions) or `method` (the seeds vary; needs records only).
    """
    measure = board.measure(board.sort)
    about = board.sort if measure is not None and measure.splits else "ood"
    rows = [row for row in board.rows if row.cells[about].value is not None]
    board.ties_about, board.ties_question = about, question
    try:
        if len(rows) < 2:
            raise NotPaired("there are not two rows with a value")
        if len(rows) > MOST_ROWS:
            raise NotPaired(f"there are {len(rows)} rows, and at most {MOST_ROWS} are tested; show fewer with --method")
        found = _models(board, about, rows, predictions) if question == "models" else _method(board, about, rows)
    except NotPaired as why:
        board.ties_missing = str(why)
        return
    best = int(np.argmax(found.estimates))
    for number, (row, tied, ranks) in enumerate(zip(rows, found.tied_with_best, found.ranks, strict=True)):
        row.tie = "best" if number == best else "tie" if tied else ""
        row.ranks = ranks


def _models(board: Board, about: str, rows: list[BoardRow], predictions: Predictions | None) -> Pairs:
    if predictions is None:
        raise NotPaired("no predictions are at hand")
    measure = board.measure(about)
    assert measure is not None
    return these_models(contributions([row.records for row in rows], measure.splits, predictions))


def _method(board: Board, about: str, rows: list[BoardRow]) -> Pairs:
    measure = board.measure(about)
    assert measure is not None

    def by_seed(records: list[RunRecord]) -> dict[int, float]:
        return {r.seed: value for r in records if r.phase != "external" and (value := measure.of(r)) is not None}

    values = [by_seed(row.records) for row in rows]
    seeds = sorted(set.intersection(*(set(own) for own in values)))
    if len(seeds) < 2:
        raise NotPaired("fewer than two seeds are shared by all rows")
    return the_method(np.array([[own[seed] for own in values] for seed in seeds]))
