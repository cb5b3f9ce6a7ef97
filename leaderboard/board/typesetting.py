"""Prepare a board for print: bold cells, captions, a summary in words, and BibTeX entries."""

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
    """Return whether a table in print has the column.

    Costs have no room there. Of the shifts, only those of the OOD average are printed, if there is
    an average.
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
    """Return the cells in bold as (index of the row, key of the column): the best, with ties.

    In the column that the marks of ties are about, a tie is a row that is not shown to be below the
    best. In other columns it is a value that is printed alike. Costs are never bold.
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
                # Digits that nobody sees must not decide between two cells that look equal.
                if _typeset(value, measure) == _typeset(best, measure)
            }
    return frozenset(found)


def _typeset(value: float, measure: Measure) -> str:
    """Return a value as it is printed."""
    return f"{100 * value:.1f}" if measure.kind == "percent" else f"{value:.3f}"


def caption(board: Board, title: str, notes: Sequence[str]) -> str:
    """Return a caption that can be read without the text around it.

    It has the title, the first of the notes, how parameters were chosen, and the meaning of bold.
    """
    trials = sorted({row.trials for row in board.rows if not row.external})
    if trials == [0] or not trials:
        chosen = "Parameters as in the suite's recipe or as named."
    else:
        count = str(trials[0]) if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
        chosen = f"Parameters chosen on held-out ID data with {count} trial(s) per row" + (
            " (0: the recipe's, or as named)." if 0 in trials else "."
        )
    meaning = ""
    if len(board.rows) > 1:
        about = board.measure(board.ties_about)
        what = "these trained models" if board.ties_question == "models" else "methods over seeds"
        tested = about is not None and any(row.tie for row in board.rows)
        meaning = "Bold: the best of a column" + (
            f"; for {about.title}, all rows not shown to be below the best, as {what}."
            if tested and about
            else "."
        )
    return " ".join(part for part in (f"{title}.", *notes[:1], chosen, meaning) if part)


def bibtex(records: Iterable[RunRecord]) -> str:
    """Return BibTeX entries of the methods of these runs, including methods that they wrap.

    Each key occurs once. A method without an entry gets a comment.
    """
    names: dict[str, None] = {}
    for record in records:
        # Methods nest, such as `wise-ft` of `lp-ft`, and each is somebody's work.
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
        # Runs from a pack may name a plug-in that is not installed here.
        except BenchError:
            entries[name] = f"% {plain(name)}: not installed here"
            continue
        entry = method_class.bibtex.strip() or f"% {name}: {method_class.paper or 'no citation'}"
        # Two methods of one paper share its entry.
        key = re.match(r"@\w+\s*\{\s*([^,\s]+)", entry)
        entries.setdefault(key[1] if key else name, entry)
    return "\n\n".join(entries.values()) + "\n"


#: If more rows than this tie with the best, the summary counts them instead of naming them.
MOST_NAMED = 3

#: Part of a summary: text, or a row, which the page turns into a link.
Piece = str | BoardRow


def summary(board: Board) -> list[Piece]:
    """Return what a board shows, and what it cannot show, as alternating text and rows.

    Empty for a board without two rows to rank. Marks of ties on the board are used as they are;
    ties over seeds are computed here as well.
    """
    rows = [row for row in board.rows if row.cells["ood"].value is not None]
    if board.kind != "ranked" or len(rows) < 2:
        return []
    # The summary is about the column that was tested, so that `highest` and `tie` are about the
    # same numbers.
    by = board.measure(board.ties_about) or board.measure("ood")
    assert by is not None
    rows = sorted(
        (r for r in rows if r.cells[by.key].value is not None),
        key=lambda r: -(r.cells[by.key].value or 0),
    )
    if len(rows) < 2:
        return []
    best = rows[0]
    parts: list[Piece] = [
        best,
        f" has the highest {_about(by.key, by.title)}, {_percent(best, by.key)} %",
    ]
    # Without a test, or if the best row was left out of it, the summary must not suggest a tie or a
    # lead.
    if not board.ties_question or board.ties_missing or best.name in board.ties_untested:
        parts.append("; whether other rows tie with it was not tested.")
    else:
        parts += _tied(board, rows, best)
    # What a lead on one shift or on ID costs is another question.
    if by.key == "ood":
        parts += _cost(rows, best)
    return parts


def in_words(board: Board) -> str:
    """Return the summary as plain text."""
    return "".join(part if isinstance(part, str) else part.name for part in summary(board))


def _tied(board: Board, rows: Sequence[BoardRow], best: BoardRow) -> list[Piece]:
    """Return which rows tie with the best: on these images, and over seeds."""
    if board.ties_question == "method":
        return [", and as methods over seeds ", *_company(rows, best), "."]
    # A copy: the board itself has to keep the marks of the question that was requested.
    over_seeds = replace(
        board,
        rows=[replace(row, tie=None) for row in board.rows],
        ties_untested={},
        ties_missing="",
    )
    mark(over_seeds, "method", None)
    parts: list[Piece] = [", and on these test images ", *_company(rows, best)]
    if over_seeds.ties_missing or best.name in over_seeds.ties_untested:
        return [*parts, "; whether training again would show the same was not tested."]
    tied = {row.key for row in over_seeds.rows if row.tie}
    if (
        not over_seeds.ties_untested
        and best.key in tied
        and tied == {row.key for row in rows if row.tie}
    ):
        return [*parts, "; trained again with other seeds, likewise."]
    return [
        *parts,
        "; trained again with other seeds, ",
        *_company([r for r in over_seeds.rows if r.key in _keys(rows)], best),
        ".",
    ]


def _company(rows: Sequence[BoardRow], best: BoardRow) -> list[Piece]:
    """Return which rows tie with the best, as the end of a sentence about the best."""
    tied = [row for row in rows if row.tie and row.key != best.key]
    untested = [row for row in rows if row.tie is None and row.key != best.key]
    but = f" ({_counted(len(untested))} not tested)" if untested else ""
    if not tied:
        return [f"no other row ties with it{but}"]
    if len(tied) > MOST_NAMED:
        return [f"{len(tied)} other rows tie with it{but}"]
    return ["it ties with ", *_listed(tied), but]


def _cost(rows: Sequence[BoardRow], best: BoardRow) -> list[Piece]:
    """Return how much less ID accuracy the row with the best OOD has than the best in ID."""
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


def _listed(rows: Sequence[BoardRow]) -> list[Piece]:
    parts: list[Piece] = []
    for number, row in enumerate(rows):
        parts += [row] if number == 0 else [" and " if number == len(rows) - 1 else ", ", row]
    return parts


def _keys(rows: Sequence[BoardRow]) -> set[str]:
    return {row.key for row in rows}
