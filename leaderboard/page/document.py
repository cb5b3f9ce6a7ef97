"""Boards as one JSON document: everything that the page shows, as plain values; nothing in it is markup.

Numbers are rounded to 1e-5 (a thousandth of a percentage point), which is what keeps a page of thousands of rows small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.identity import canonical_json
from bench.results.record import RunRecord

from ..board.frames import standard_line
from ..board.headline import headline
from ..board.rows import Board, BoardRow, Cell
from ..board.tables import Boards, View, notes, title
from ..charts.style import LIGHT, SHAPES, looks
from ..statistics.predictions import Predictions
from ..statistics.tradeoff import ID, average
from .figures import CORNERS, HEIGHT, LABEL_SIZE, RECOLOUR, figures
from .pairs import Pairwise
from .plain import plain, row_id, short
from .reliability import bins
from .reported import reported_backbones, reported_rows

SCHEMA = 2
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
            "shapes": list(SHAPES),
            "recolour": RECOLOUR,
            "scatter": {"height": HEIGHT, "letters": LABEL_SIZE, "corners": {name: own[1:] for name, own in CORNERS.items()}},
            "boards": boards,
            "provenance": provenance.values,
        }

    def _board(self, board: Board, view: View, provenance: _Distinct) -> dict[str, Any]:
        published = reported_rows(board.group.suite, board.group.backbone, board) if board.kind == "ranked" else []
        detailed, shared = board.rows[:MOST_DETAILED], board.shifts.shared
        rows = [_row(row, board, provenance) for row in board.rows]
        for row, made in zip(detailed, rows, strict=False):
            made["bins"] = bins(row.records, (ID, *board.shifts.all), self.predictions)
        rows += published
        _colour(rows)
        curves = [
            point
            for row, made in zip(board.rows, rows, strict=False)
            for point in _curve(row.name, row.records, made["id"], shared)
        ]
        measured_against = list(board.curves.values())
        if measured_against and measured_against[0] not in board.records:  # then it is of no row
            curves += _curve(measured_against[0].label, measured_against, "", shared)
        return {
            "suite": board.group.suite,
            "backbone": board.group.backbone,
            "kind": board.kind,
            "title": title(board),
            "headline": [part if isinstance(part, str) else {"row": row_id(part.key)} for part in headline(board)],
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
            "baselines": {m.key: line for m in board.columns if (line := _baseline(board, m.key))},
            "figures": figures(rows, board.shifts.all),
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
        "method": row.family,
        "cells": {m.key: _cell(row.cells[m.key]) for m in board.columns}
        | {"trials": [row.trials], "search_seconds": [short(row.search_seconds)]}
        | {"candidates": [row.candidates], "runs": [len(row.records)]},
        "holes": {m.key: row.cells[m.key].hole for m in board.columns if row.cells[m.key].value is None},
        "tie": row.tie,
        "ranks": row.ranks,
        "front": row.front,
        "deterministic": row.deterministic,
        "asha": row.cut_short,
        "identity": plain(first.method),
        "runs": [_run(r, provenance) for r in row.records],
    }


def _colour(rows: Sequence[dict[str, Any]]) -> None:
    """Give every row the places of its colour and mark; a reported one has those of the measured row that it stands for."""
    found = looks({row["id"]: row["method"] for row in rows if not row.get("measured")})
    for row in rows:
        row["look"] = list(found[row.get("measured") or row["id"]])


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


def _curve(name: str, runs: Sequence[RunRecord], identity: str, shared: Sequence[str]) -> list[dict[str, Any]]:
    """Mean over seeds of every point of the runs' interpolation curve; alphas that not every seed has are left out.

    Args:
        shared: the shifts that the board's OOD average is over.
    """
    runs = [r for r in runs if r.curve]
    points: dict[float, list[dict[str, float]]] = {}
    for run in runs:
        for point in run.curve:
            ood = average(point.scores, shared)
            points.setdefault(point.alpha, []).append(point.scores | ({} if ood is None else {"ood": ood}))
    made = []
    for alpha, own in sorted(points.items()):
        everywhere = [split for split in own[0] if len(own) == len(runs) and all(split in scores for scores in own)]
        if ID in everywhere:
            means = {split: short(sum(scores[split] for scores in own) / len(own)) for split in everywhere}
            made.append({"row": identity, "of": name, "alpha": alpha, "scores": means})
    return made


def _baseline(board: Board, key: str) -> list[list[float | None]]:
    """What standard models of an ID accuracy reach in a column, as (ID, column) from 1 to 99 %; empty where that is not known."""
    line = standard_line(board, key)
    return [] if line is None else [[x / 100, short(line(x / 100))] for x in range(1, 100)]


def _unfinished(record: RunRecord) -> dict[str, Any]:
    return {
        "name": record.label,
        "seed": record.seed,
        "status": record.status,
        "error": record.error,
        "started": record.started,
        "fit": record.fit_id,
    }


def _without_results(suite: str, backbone: str, kind: str = "empty", rows: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A board of nothing measured: a place for runs that failed, and for what others reported."""
    shifts = list(dict.fromkeys(key for row in rows for key in row["cells"] if key not in ("id", "ood")))
    columns = [
        {"key": key, "title": name, "kind": "percent", "better": "high", "part": part, "split": split, "shown": True}
        for key, name, part, split in (
            ("id", "ID", "trade-off", ""),
            ("ood", "OOD", "trade-off", ""),
            *((shift, shift, "averaged", shift) for shift in shifts),
        )
    ]
    _colour(rows)
    return {
        "suite": suite,
        "backbone": backbone,
        "kind": kind,
        "title": f"{suite} · {backbone}",
        "headline": [],
        "apart": {},
        "facts": {},
        "shifts": shifts,
        "averaged": [],
        "columns": columns if rows else [],
        "sort": "ood",
        "ties": False,
        "notes": ["Reported by the sources named, not measured here."] if rows else ["No run here has a result yet."],
        "rows": list(rows),
        "curves": [],
        "baselines": {},
        "figures": figures(rows, shifts),
        "comparisons": {},
        "compared": 0,
        "unfinished": [],
    }


def _reported_only(suite: str, boards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Boards of backbones that were reported on the suite and not measured."""
    there = {board["backbone"] for board in boards if board["suite"] == suite}
    return [
        _without_results(suite, backbone, "reported", reported_rows(suite, backbone))
        for backbone in reported_backbones(suite)
        if backbone not in there
    ]
