"""Boards as one JSON document: everything that the page shows, as plain values; nothing in it is markup.

Numbers are rounded to 1e-5 (a thousandth of a percentage point), which is what keeps a page of thousands of rows small.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.identity import canonical_json
from bench.runs.record import RunRecord

from ..board import Board, BoardRow, Cell
from ..chart_style import LIGHT
from ..measures import ID
from ..predictions import Predictions
from ..tables import Boards, View, notes, title
from .figures import RECOLOUR, Figures
from .pairs import Pairwise
from .reliability import bins
from .reported import ReportedRow, reported_rows

SCHEMA = 1
#: Of larger boards only the first rows get reliability diagrams and comparisons with each other: a file cannot hold all pairs.
MOST_DETAILED = 16


@dataclass
class Document:
    """Makes documents of one store; what it has compared once it does not compare again.

    Args:
        predictions: of the store. tell: hears one sentence before slow work.
    """

    predictions: Predictions
    tell: Callable[[str], None] = lambda text: None
    _pairwise: Pairwise = field(init=False)

    def __post_init__(self) -> None:
        self._pairwise = Pairwise(self.predictions, self.tell)

    def of(self, found: Boards, view: View) -> dict[str, Any]:
        """The document: `boards`, each with rows, figures and comparisons, and `provenance`, which runs point into."""
        provenance = _Distinct()
        boards = [self._board(board, view, provenance) for board in found.boards]
        for suite, backbone in dict.fromkeys((r.suite, r.backbone) for r in found.unfinished):
            here = [_unfinished(r) for r in found.unfinished if (r.suite, r.backbone) == (suite, backbone)]
            home = next((b for b in boards if (b["suite"], b["backbone"]) == (suite, backbone)), None)
            if home is None:
                home = _without_results(suite, backbone)
                boards.append(home)
            home["unfinished"] = here
        for suite in dict.fromkeys(board["suite"] for board in boards):
            boards += _reported_only(suite, boards)
        return {
            "schema": SCHEMA,
            "version": version("shiftbench"),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "colours": list(LIGHT.rows),
            "recolour": RECOLOUR,
            "boards": boards,
            "provenance": provenance.values,
        }

    def _board(self, board: Board, view: View, provenance: _Distinct) -> dict[str, Any]:
        published = [] if board.kind != "ranked" else reported_rows(board.group.suite, board.group.backbone)
        detailed = board.rows[:MOST_DETAILED]
        rows = [_row(row, board, provenance) for row in board.rows]
        for row, made in zip(detailed, rows, strict=False):
            made["bins"] = bins(row.records, (ID, *board.shifts.all), self.predictions)
        rows += [_reported(row) for row in published]
        curves = [point for row, made in zip(board.rows, rows, strict=False) for point in _curve(row, made["id"])]
        names = [row["name"] for row in rows]
        return {
            "suite": board.group.suite,
            "backbone": board.group.backbone,
            "kind": board.kind,
            "title": title(board),
            "apart": {key: list(pair) for key, pair in board.group.apart.items()},
            "facts": board.group.facts,
            "shifts": board.shifts.all,
            "averaged": board.shifts.shared,
            "columns": _columns(board, view.by),
            "sort": board.sort,
            "ties": bool(board.ties_question and not board.ties_missing),
            "notes": notes(board, view),
            "rows": rows,
            "curves": curves,
            "figures": Figures(names, board.shifts.all).of(rows, curves),
            "comparisons": self._pairwise.of([(made["id"], row) for row, made in zip(detailed, rows, strict=False)]),
            "compared": len(detailed),
            "unfinished": [],
        }


class _Distinct:
    """Values that occur once each: thousands of runs share a handful of machines."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._place: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Where the value stands."""
        value = plain(value)
        key = canonical_json(value)
        if key not in self._place:
            self._place[key] = len(self.values)
            self.values.append(value)
        return self._place[key]


def short(value: float | None) -> float | None:
    """A number as the page has it; None for a missing one and for one that JSON cannot say."""
    return None if value is None or not math.isfinite(value) else round(value, 5)


def plain(value: Any) -> Any:
    """A value that a method or a machine has put into a record, without what JSON cannot say."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def row_id(key: str) -> str:
    """A short name of a row that stays the same while runs are added: it stands in links."""
    return hashlib.sha256(key.encode()).hexdigest()[:10]


def _columns(board: Board, by: str) -> list[dict[str, Any]]:
    """The columns with the part of the table that they belong to, and the shift or factor that they are about."""
    made = []
    for m in board.columns:
        about = "" if m.key in ("id", "ood") or not m.splits else m.title if by == "factor" else m.splits[0]
        part = (
            "trade-off" if m.key in ("id", "ood", "above_curve", "effective")
            else "more" if not about
            else "factors" if by == "factor"
            else "averaged" if about in board.shifts.shared
            else "aside"
        )  # fmt: skip
        made.append(
            {"key": m.key, "title": m.title, "kind": m.kind, "better": m.better, "part": part, "split": about, "shown": m.human}
        )
    searched = any(r.search_trials for r in board.records)
    for key, name, kind, shown in (
        ("trials", "search trials", "count", searched),
        ("search_seconds", "search", "seconds", searched),
        ("candidates", "path candidates", "count", any(row.candidates for row in board.rows)),
        ("runs", "runs", "count", True),
    ):
        made.append({"key": key, "title": name, "kind": kind, "better": "low", "part": "more", "split": "", "shown": shown})
    return made


def _cell(cell: Cell) -> list[float | None]:
    """Value, SD, then the intervals over seeds and over images; trailing holes are left out."""
    pair = [(interval.low, interval.high) if interval else (None, None) for interval in (cell.seeds, cell.images)]
    numbers = [short(number) for number in (cell.value, cell.sd, *pair[0], *pair[1])]
    while numbers and numbers[-1] is None:
        numbers.pop()
    return numbers


def _row(row: BoardRow, board: Board, provenance: _Distinct) -> dict[str, Any]:
    first = row.records[0]
    return {
        "id": row_id(row.key),
        "name": row.name,
        "kind": "measured",
        "method": str(first.method.get("name")),
        "cells": {m.key: _cell(row.cells[m.key]) for m in board.columns}
        | {"trials": [row.trials], "search_seconds": [short(row.search_seconds)]}
        | {"candidates": [row.candidates], "runs": [len(row.records)]},
        "holes": {m.key: row.cells[m.key].hole for m in board.columns if row.cells[m.key].value is None},
        "tie": row.tie,
        "ranks": row.ranks,
        "front": row.front,
        "asha": row.cut_short,
        "identity": plain(first.method),
        "runs": [_run(r, provenance) for r in row.records],
    }


def _run(record: RunRecord, provenance: _Distinct) -> dict[str, Any]:
    made: dict[str, Any] = {
        "seed": record.seed,
        "fit": record.fit_id,
        "eval": record.eval_id,
        "scores": {split: short(metrics.score) for split, metrics in record.metrics.items()},
        "fit_seconds": short(record.fit_seconds),
        "eval_seconds": short(record.eval_seconds),
        "memory_mb": short(record.peak_memory_mb),
        "started": record.started,
        "finished": record.finished,
        "provenance": provenance.place(record.provenance),
        "seen": provenance.place({"backbone has seen": record.backbone_seen, "id-val was among it": record.id_val_seen}),
    }
    made |= {key: plain(value) for key in ("selection", "facts", "origin", "holes") if (value := getattr(record, key, None))}
    return made


def _curve(row: BoardRow, identity: str) -> list[dict[str, Any]]:
    """Mean over seeds of every point of the row's interpolation curve; alphas that not every seed has are left out."""
    runs = [r for r in row.records if r.curve]
    points: dict[float, list[tuple[float, float]]] = {}
    for run in runs:
        for point in run.curve:
            if point.ood is not None and ID in point.scores:
                points.setdefault(point.alpha, []).append((point.scores[ID], point.ood))
    return [
        {
            "row": identity,
            "of": row.name,
            "alpha": alpha,
            "id": short(sum(x for x, _ in own) / len(own)),
            "ood": short(sum(y for _, y in own) / len(own)),
        }
        for alpha, own in sorted(points.items())
        if len(own) == len(runs)
    ]


def _unfinished(record: RunRecord) -> dict[str, Any]:
    return {
        "name": record.label,
        "seed": record.seed,
        "status": record.status,
        "error": record.error,
        "started": record.started,
        "fit": record.fit_id,
    }


def _without_results(suite: str, backbone: str, kind: str = "empty", rows: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """A board of nothing measured: a place for runs that failed, and for what others reported."""
    shown = list(rows)
    columns = [
        {"key": key, "title": name, "kind": "percent", "better": "high", "part": "trade-off", "split": "", "shown": True}
        for key, name in (("id", "ID"), ("ood", "OOD"))
    ]
    return {
        "suite": suite,
        "backbone": backbone,
        "kind": kind,
        "title": f"{suite} · {backbone}",
        "apart": {},
        "facts": {},
        "shifts": [],
        "averaged": [],
        "columns": columns if shown else [],
        "sort": "ood",
        "ties": False,
        "notes": ["Reported by the sources named, not measured here."] if shown else ["No run here has a result yet."],
        "rows": shown,
        "curves": [],
        "figures": Figures([row["name"] for row in shown], []).of(shown, []),
        "comparisons": {},
        "compared": 0,
        "unfinished": [],
    }


def _reported(row: ReportedRow) -> dict[str, Any]:
    return {
        "id": row_id(canonical_json(asdict(row))),
        "name": row.name,
        "kind": "reported",
        "method": row.method,
        "cells": {"id": [short(row.id)], "ood": [short(row.ood)]},
        "holes": {},
        "tie": None,
        "ranks": None,
        "front": None,
        "identity": {},
        "runs": [],
        "source": row.source,
        "certainty": row.certainty,
        "note": row.note,
    }


def _reported_only(suite: str, boards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Boards of backbones that were reported on the suite and not measured."""
    there = {board["backbone"] for board in boards if board["suite"] == suite}
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in reported_rows(suite):
        if row.backbone not in there:
            grouped.setdefault(row.backbone, []).append(_reported(row))
    return [_without_results(suite, backbone, "reported", rows) for backbone, rows in grouped.items()]
