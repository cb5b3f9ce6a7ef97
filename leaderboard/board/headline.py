"""One sentence on a board: its best method, and what cannot be told from it, for these models and for the methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .rows import Board, BoardRow
from .ties import mark

#: More names than this are counted instead.
MOST_NAMED = 3

#: Text, or a row of the board, which the page makes a link of.
Part = str | BoardRow


def headline(board: Board) -> list[Part]:
    """What the board says, and what it cannot say; text and rows in turn, empty for a board without two rows to rank.

    The marks of ties that the board has are reported as what they are about; those over seeds are found here as well.
    """
    rows = [row for row in board.rows if row.cells["ood"].value is not None]
    if board.kind != "ranked" or len(rows) < 2:
        return []
    by = board.measure(board.ties_about) or board.measure("ood")
    assert by is not None
    rows = sorted((r for r in rows if r.cells[by.key].value is not None), key=lambda r: -(r.cells[by.key].value or 0))
    if len(rows) < 2:
        return []
    best = rows[0]
    said: list[Part] = [best, f" has the highest {_about(by.key, by.title)}, {_percent(best, by.key)} %"]
    if not board.ties_question or board.ties_missing or best.name in board.ties_untested:
        said.append("; which rows cannot be told from it was not tested.")
    else:
        said += _tied(board, rows, best)
    if by.key == "ood":
        said += _cost(rows, best)
    return said


def in_words(board: Board) -> str:
    """The headline as plain text."""
    return "".join(part if isinstance(part, str) else part.name for part in headline(board))


def _tied(board: Board, rows: Sequence[BoardRow], best: BoardRow) -> list[Part]:
    """What cannot be told from the best, by each of the two questions."""
    if board.ties_question == "method":
        return [", and as methods over seeds ", *_company(rows, best), "."]
    over_seeds = replace(board, rows=[replace(row, tie=None) for row in board.rows], ties_untested={}, ties_missing="")
    mark(over_seeds, "method", None)
    said: list[Part] = [", and on these test images ", *_company(rows, best)]
    if over_seeds.ties_missing or best.name in over_seeds.ties_untested:
        return [*said, "; whether training again would say the same was not tested."]
    tied = {row.key for row in over_seeds.rows if row.tie}
    if not over_seeds.ties_untested and best.key in tied and tied == {row.key for row in rows if row.tie}:
        return [*said, "; trained again with other seeds, likewise."]
    return [
        *said,
        "; trained again with other seeds, ",
        *_company([r for r in over_seeds.rows if r.key in _keys(rows)], best),
        ".",
    ]


def _company(rows: Sequence[BoardRow], best: BoardRow) -> list[Part]:
    """Which rows are shown to be below none, in words about the best."""
    tied = [row for row in rows if row.tie and row.key != best.key]
    untested = [row for row in rows if row.tie is None and row.key != best.key]
    but = f" ({_counted(len(untested))} not tested)" if untested else ""
    if not tied:
        return [f"no other row ties with it{but}"]
    if len(tied) > MOST_NAMED:
        return [f"{len(tied)} other rows cannot be told from it{but}"]
    return ["it cannot be told from ", *_listed(tied), but]


def _cost(rows: Sequence[BoardRow], best: BoardRow) -> list[Part]:
    """What the row with the best OOD has less of in ID."""
    known = [row for row in rows if row.cells["id"].value is not None]
    first = max(known, key=lambda row: row.cells["id"].value or 0, default=None)
    own = best.cells["id"].value
    if first is None or own is None or first.key == best.key:
        return [" It has the highest ID as well."] if first is not None and first.key == best.key else []
    gap = (first.cells["id"].value or 0) - own
    return [f" It has {100 * gap:.1f} points less ID than ", first, f" ({_percent(first, 'id')} %), the highest."]


def _about(key: str, title: str) -> str:
    return {"ood": "OOD average", "id": "ID accuracy"}.get(key, f"accuracy on {title}")


def _percent(row: BoardRow, key: str) -> str:
    return f"{100 * (row.cells[key].value or 0):.1f}"


def _counted(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"


def _listed(rows: Sequence[BoardRow]) -> list[Part]:
    parts: list[Part] = []
    for number, row in enumerate(rows):
        parts += [row] if number == 0 else [" and " if number == len(rows) - 1 else ", ", row]
    return parts


def _keys(rows: Sequence[BoardRow]) -> set[str]:
    return {row.key for row in rows}
