"""What a board needs in print: which cells are bold, a caption that stands by itself, and the
literature of its methods.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.configure import load_method
from bench.errors import BenchError
from bench.plain import plain
from bench.results.record import RunRecord

from .measures import Measure
from .rows import Board, BoardRow
from .ties import mark


def printed(measure: Measure, board: Board) -> bool:
    """Whether a paper's table has the column: no cost, and of the shifts those that the OOD average
    is over, if any is.
    """
    if measure.key == "cost":
        return False
    aside = (
        len(measure.splits) == 1
        and measure.key != "id"
        and not set(measure.splits) <= set(board.shifts.shared)
    )
    return not (aside and board.shifts.shared)


def bold(board: Board) -> frozenset[tuple[int, str]]:
    """(number of the row, key of the column) of the best value of every column, and of what ties
    with it.

    In the column that the marks are about, a tie is a row that is not shown to be below the best;
    elsewhere, a value that is printed alike. Costs are never bold.
    """
    if len(board.rows) < 2:
        return frozenset()
    found: set[tuple[int, str]] = set()
    for measure in board.columns:
        if not measure.spread or measure.key == "cost":
            continue
        values = {
            i: value
            for i, row in enumerate(board.rows)
            if (value := row.cells[measure.key].value) is not None
        }
        marked = {i for i, row in enumerate(board.rows) if row.tie in ("best", "tie")}
        if measure.key == board.ties_about and marked:
            found |= {(i, measure.key) for i in marked}
        elif values:
            best = max(values.values()) if measure.better == "high" else min(values.values())
            found |= {
                (i, measure.key)
                for i, value in values.items()
                if _as_printed(value, measure) == _as_printed(best, measure)
            }
    return frozenset(found)


def _as_printed(value: float, measure: Measure) -> str:
    return f"{100 * value:.1f}" if measure.kind == "percent" else f"{value:.3f}"


def caption(board: Board, title: str, notes: Sequence[str]) -> str:
    """The title, what the numbers mean (the first of the notes), how parameters were chosen, and
    what bold says.
    """
    trials = sorted({row.trials for row in board.rows if not row.external})
    if trials == [0] or not trials:
        chosen = "Parameters as in the suite's recipe or as named."
    else:
        many = str(trials[0]) if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
        chosen = f"Parameters chosen on held-out ID data with {many} trial(s) per row" + (
            " (0: the recipe's, or as named)." if 0 in trials else "."
        )
    strong = ""
    if len(board.rows) > 1:
        about = board.measure(board.ties_about)
        what = "these trained models" if board.ties_question == "models" else "methods over seeds"
        tested = about is not None and any(row.tie for row in board.rows)
        strong = "Bold: the best of a column" + (
            f"; for {about.title}, all rows not shown to be below the best, as {what}."
            if tested and about
            else "."
        )
    return " ".join(part for part in (f"{title}.", *notes[:1], chosen, strong) if part)


def bibtex(records: Iterable[RunRecord]) -> str:
    """BibTeX entries of the methods of these runs, those that they wrap included, each key once; a
    comment for one without.
    """
    names: dict[str, None] = {}
    for record in records:
        waiting = [record.method]
        while waiting:
            method = waiting.pop(0)
            names.setdefault(str(method.get("name")))
            waiting += [
                value
                for value in (method.get("parameters") or {}).values()
                if isinstance(value, dict) and "name" in value
            ]
    entries: dict[str, str] = {}
    for name in sorted(names):
        try:
            method_class = load_method(name)
        except BenchError:
            entries[name] = f"% {plain(name)}: not installed here"
            continue
        entry = method_class.bibtex.strip() or f"% {name}: {method_class.paper or 'no citation'}"
        key = re.match(r"@\w+\s*\{\s*([^,\s]+)", entry)
        entries.setdefault(key[1] if key else name, entry)
    return "\n\n".join(entries.values()) + "\n"


#: More names than this are counted instead.
MOST_NAMED = 3

#: Text, or a row of the board, which the page makes a link of.
Part = str | BoardRow


def headline(board: Board) -> list[Part]:
    """What the board says, and what it cannot say; text and rows in turn, empty for a board without
    two rows to rank.

    The marks of ties that the board has are reported as what they are about; those over seeds are
    found here as well.
    """
    rows = [row for row in board.rows if row.cells["ood"].value is not None]
    if board.kind != "ranked" or len(rows) < 2:
        return []
    by = board.measure(board.ties_about) or board.measure("ood")
    assert by is not None
    rows = sorted(
        (r for r in rows if r.cells[by.key].value is not None),
        key=lambda r: -(r.cells[by.key].value or 0),
    )
    if len(rows) < 2:
        return []
    best = rows[0]
    said: list[Part] = [
        best,
        f" has the highest {_about(by.key, by.title)}, {_percent(best, by.key)} %",
    ]
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
    over_seeds = replace(
        board,
        rows=[replace(row, tie=None) for row in board.rows],
        ties_untested={},
        ties_missing="",
    )
    mark(over_seeds, "method", None)
    said: list[Part] = [", and on these test images ", *_company(rows, best)]
    if over_seeds.ties_missing or best.name in over_seeds.ties_untested:
        return [*said, "; whether training again would say the same was not tested."]
    tied = {row.key for row in over_seeds.rows if row.tie}
    if (
        not over_seeds.ties_untested
        and best.key in tied
        and tied == {row.key for row in rows if row.tie}
    ):
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
        return (
            [" It has the highest ID as well."]
            if first is not None and first.key == best.key
            else []
        )
    gap = (first.cells["id"].value or 0) - own
    return [
        f" It has {100 * gap:.1f} points less ID than ",
        first,
        f" ({_percent(first, 'id')} %), the highest.",
    ]


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
