"""What a board needs in print: which cells are bold, a caption that stands by itself, and the literature of its methods."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bench.plain import plain
from bench.results.record import RunRecord

from .measures import Measure
from .rows import Board


def printed(measure: Measure, board: Board) -> bool:
    """Whether a paper's table has the column: no cost, and of the shifts those that the OOD average is over, if any is."""
    if measure.key == "cost":
        return False
    aside = len(measure.splits) == 1 and measure.key != "id" and not set(measure.splits) <= set(board.shifts.shared)
    return not (aside and board.shifts.shared)


def bold(board: Board) -> frozenset[tuple[int, str]]:
    """(number of the row, key of the column) of the best value of every column, and of what ties with it.

    In the column that the marks are about, a tie is a row that is not shown to be below the best; elsewhere, a value that is
    printed alike. Costs are never bold.
    """
    if len(board.rows) < 2:
        return frozenset()
    found: set[tuple[int, str]] = set()
    for measure in board.columns:
        if not measure.spread or measure.key == "cost":
            continue
        values = {i: value for i, row in enumerate(board.rows) if (value := row.cells[measure.key].value) is not None}
        marked = {i for i, row in enumerate(board.rows) if row.tie in ("best", "tie")}
        if measure.key == board.ties_about and marked:
            found |= {(i, measure.key) for i in marked}
        elif values:
            best = max(values.values()) if measure.better == "high" else min(values.values())
            found |= {
                (i, measure.key) for i, value in values.items() if _as_printed(value, measure) == _as_printed(best, measure)
            }
    return frozenset(found)


def _as_printed(value: float, measure: Measure) -> str:
    return f"{100 * value:.1f}" if measure.kind == "percent" else f"{value:.3f}"


def caption(board: Board, title: str, notes: Sequence[str]) -> str:
    """The title, what the numbers mean (the first of the notes), how parameters were chosen, and what bold says."""
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
            f"; for {about.title}, all rows not shown to be below the best, as {what}." if tested and about else "."
        )
    return " ".join(part for part in (f"{title}.", *notes[:1], chosen, strong) if part)


def bibtex(records: Iterable[RunRecord]) -> str:
    """BibTeX entries of the methods of these runs, those that they wrap included, each key once; a comment for one without."""
    from bench.configure import load_method
    from bench.errors import BenchError

    names: dict[str, None] = {}
    for record in records:
        waiting = [record.method]
        while waiting:
            method = waiting.pop(0)
            names.setdefault(str(method.get("name")))
            waiting += [
                value for value in (method.get("parameters") or {}).values() if isinstance(value, dict) and "name" in value
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
