"""Boards as one JSON document: everything that the page shows, as plain values; nothing in it is
markup.

Numbers are rounded to 1e-5 (a thousandth of a percentage point), which is what keeps a page of
thousands of rows small.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from typing import Any

import numpy as np

from bench.identity import canonical_json
from bench.results.record import RunRecord

from ..board.comparison import Comparison, Difference, compare
from ..board.frames import standard_line
from ..board.printed import headline
from ..board.rows import Board, BoardRow, Cell
from ..board.tables import Boards, View, notes, title
from ..charts.style import LIGHT, SHAPES, looks
from ..reported import Reported, ReportedFile, shipped, stands_for
from ..statistics.calibration import reliability
from ..statistics.predictions import Predictions
from ..statistics.tradeoff import ID, average
from .figures import CORNERS, HEIGHT, LABEL_SIZE, RECOLOUR, figures

SCHEMA = 2
#: Of larger boards only the first rows get reliability diagrams and comparisons with each other: a
#: file cannot hold all pairs.
MOST_DETAILED = 16


@dataclass
class Document:
    """Makes documents of one store; what it has compared once it does not compare again.

    Args:
        predictions: of the store.
        tell: hears one sentence before slow work.
    """

    predictions: Predictions
    tell: Callable[[str], None] = lambda text: None
    _pairwise: Pairwise = field(init=False)

    def __post_init__(self) -> None:
        self._pairwise = Pairwise(self.predictions, self.tell)

    def of(self, found: Boards, view: View) -> dict[str, Any]:
        """The document: `boards`, each with rows, figures and comparisons, and `provenance`, which
        runs point into.
        """
        provenance = _Distinct()
        boards = [self._board(board, view, provenance) for board in found.boards]
        for suite, backbone in dict.fromkeys((r.suite, r.backbone) for r in found.unfinished):
            here = [
                _unfinished(r)
                for r in found.unfinished
                if (r.suite, r.backbone) == (suite, backbone)
            ]
            home = next(
                (b for b in boards if (b["suite"], b["backbone"]) == (suite, backbone)), None
            )
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
            "scatter": {
                "height": HEIGHT,
                "letters": LABEL_SIZE,
                "corners": {name: own[1:] for name, own in CORNERS.items()},
            },
            "boards": boards,
            "provenance": provenance.values,
        }

    def _board(self, board: Board, view: View, provenance: _Distinct) -> dict[str, Any]:
        published = (
            reported_rows(board.group.suite, board.group.backbone, board)
            if board.kind == "ranked"
            else []
        )
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
            "headline": [
                part if isinstance(part, str) else {"row": row_id(part.key)}
                for part in headline(board)
            ],
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
            "comparisons": self._pairwise.of(
                [(made["id"], row) for row, made in zip(detailed, rows, strict=False)]
            ),
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
    """The columns with the part of the table that they belong to, and the shift or factor that they
    are about.
    """
    made = []
    for m in board.columns:
        about = (
            ""
            if m.key in ("id", "ood") or not m.splits
            else m.title
            if by == "factor"
            else m.splits[0]
        )
        part = (
            "trade-off" if m.key in ("id", "ood", "above_curve", "effective")
            else "more" if not about
            else "factors" if by == "factor"
            else "averaged" if about in board.shifts.shared
            else "aside"
        )  # fmt: skip
        made.append(
            {
                "key": m.key,
                "title": m.title,
                "kind": m.kind,
                "better": m.better,
                "part": part,
                "split": about,
                "shown": m.human,
            }
        )
    searched = any(r.search_trials for r in board.records)
    for key, name, kind, shown in (
        ("trials", "search trials", "count", searched),
        ("search_seconds", "search", "seconds", searched),
        ("candidates", "path candidates", "count", any(row.candidates for row in board.rows)),
        ("runs", "runs", "count", True),
    ):
        made.append(
            {
                "key": key,
                "title": name,
                "kind": kind,
                "better": "low",
                "part": "more",
                "split": "",
                "shown": shown,
            }
        )
    return made


def _cell(cell: Cell) -> list[float | None]:
    """Value, SD, then the intervals over seeds and over images; trailing holes are left out."""
    pair = [
        (interval.low, interval.high) if interval else (None, None)
        for interval in (cell.seeds, cell.images)
    ]
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
        "cells": (
            {m.key: _cell(row.cells[m.key]) for m in board.columns}
            | {"trials": [row.trials], "search_seconds": [short(row.search_seconds)]}
            | {"candidates": [row.candidates], "runs": [len(row.records)]}
        ),
        "holes": {
            m.key: row.cells[m.key].hole for m in board.columns if row.cells[m.key].value is None
        },
        "tie": row.tie,
        "ranks": row.ranks,
        "front": row.front,
        "deterministic": row.deterministic,
        "asha": row.cut_short,
        "identity": plain(first.method),
        "runs": [_run(r, provenance) for r in row.records],
    }


def _colour(rows: Sequence[dict[str, Any]]) -> None:
    """Give every row the places of its colour and mark; a reported one has those of the measured
    row that it stands for.
    """
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
        "seen": provenance.place(
            {"backbone has seen": record.backbone_seen, "id-val was among it": record.id_val_seen}
        ),
    }
    made |= {
        key: plain(value)
        for key in ("selection", "facts", "origin", "holes")
        if (value := getattr(record, key, None))
    }
    return made


def _curve(
    name: str, runs: Sequence[RunRecord], identity: str, shared: Sequence[str]
) -> list[dict[str, Any]]:
    """Mean over seeds of every point of the runs' interpolation curve; alphas that not every seed
    has are left out.

    Args:
        shared: the shifts that the board's OOD average is over.
    """
    runs = [r for r in runs if r.curve]
    points: dict[float, list[dict[str, float]]] = {}
    for run in runs:
        for point in run.curve:
            ood = average(point.scores, shared)
            points.setdefault(point.alpha, []).append(
                point.scores | ({} if ood is None else {"ood": ood})
            )
    made = []
    for alpha, own in sorted(points.items()):
        everywhere = [
            split
            for split in own[0]
            if len(own) == len(runs) and all(split in scores for scores in own)
        ]
        if ID in everywhere:
            means = {
                split: short(sum(scores[split] for scores in own) / len(own))
                for split in everywhere
            }
            made.append({"row": identity, "of": name, "alpha": alpha, "scores": means})
    return made


def _baseline(board: Board, key: str) -> list[list[float | None]]:
    """What standard models of an ID accuracy reach in a column, as (ID, column) from 1 to 99 %;
    empty where that is not known.
    """
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


def _without_results(
    suite: str, backbone: str, kind: str = "empty", rows: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A board of nothing measured: a place for runs that failed, and for what others reported."""
    shifts = list(
        dict.fromkeys(key for row in rows for key in row["cells"] if key not in ("id", "ood"))
    )
    columns = [
        {
            "key": key,
            "title": name,
            "kind": "percent",
            "better": "high",
            "part": part,
            "split": split,
            "shown": True,
        }
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
        "notes": (
            ["Reported by the sources named, not measured here."]
            if rows
            else ["No run here has a result yet."]
        ),
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


def bins(
    records: Sequence[RunRecord], splits: Sequence[str], predictions: Predictions
) -> dict[str, list[list[Any]]]:
    """Split -> `[mean confidence, accuracy, images]` of every bin with images; a split that a run
    kept nothing of is left out.
    """
    made = {}
    for split in splits:
        found = [_confidences(record, split, predictions) for record in records]
        known = [pair for pair in found if pair is not None]
        if known and len(known) == len(found):
            confidence, correct = (np.concatenate(part) for part in zip(*known, strict=True))
            diagram = reliability(confidence, correct)
            made[split] = [[round(b.confidence, 4), round(b.accuracy, 4), b.images] for b in diagram
                           if b.confidence is not None and b.accuracy is not None]  # fmt: skip
    return made


def _confidences(record: RunRecord, split: str, predictions: Predictions) -> tuple[Any, Any] | None:
    """(images,) largest probability and whether the prediction is right."""
    if split not in record.metrics:
        return None
    columns = predictions.columns(record, split, ("label", "prediction", "maximum", "log_sum_exp"))
    if columns is None or len(columns) < 4:
        return None
    confidence = np.exp(columns["maximum"].astype(float) - columns["log_sum_exp"].astype(float))
    return np.minimum(confidence, 1.0), columns["prediction"] == columns["label"]


def reported_backbones(suite: str) -> list[str]:
    """The backbones, by their names here, that a source reports on the suite; none where nothing is
    published.
    """
    file = shipped().get(suite)
    return (
        []
        if file is None
        else list(dict.fromkeys(file.backbones[row.backbone] for row in file.rows))
    )


def reported_rows(suite: str, backbone: str, board: Board | None = None) -> list[dict[str, Any]]:
    """The published rows of a suite and backbone that state ID and OOD.

    Args:
        board: what was measured there; a row that stands for one of its rows says by how much that
            one differs.
    """
    file = shipped().get(suite)
    if file is None:
        return []
    rows = [
        row
        for row in file.rows
        if file.backbones[row.backbone] == backbone and {"id", "ood"} <= row.quantities().keys()
    ]
    names = Counter((row.method, row.source) for row in rows)
    return [
        _reported_row(row, file, board, shared=names[row.method, row.source] > 1) for row in rows
    ]


def _reported_row(
    row: Reported, file: ReportedFile, board: Board | None, *, shared: bool
) -> dict[str, Any]:
    stated = {_reported_key(name, board): value / 100 for name, value in row.quantities().items()}
    measured = stands_for(row, board) if board else None
    here = (
        {key: measured.cells[key].value for key in stated if key in measured.cells}
        if measured
        else {}
    )
    gaps = {key: short(value - stated[key]) for key, value in here.items() if value is not None}
    return {
        "id": row_id(canonical_json([file.suite, row.backbone, row.name])),
        # Unlike the name of any measured row, and not shared.
        "name": f"{row.method} (reported, {row.source})" + (f" [{row.name}]" if shared else ""),
        "kind": "reported",
        "method": row.method,
        "cells": {key: [short(value)] for key, value in stated.items()},
        "gaps": gaps,
        "measured": row_id(measured.key) if measured else None,
        "holes": {},
        "tie": None,
        "ranks": None,
        "front": None,
        "identity": {},
        "runs": [],
        "source": file.sources[row.source],
        "certainty": row.certainty + (", doubtful" if row.doubtful else ""),
        "note": row.note,
        "recipe": f"bench reproduce {file.suite}/{row.name}" if row.recipe else "",
    }


def _reported_key(name: str, board: Board | None) -> str:
    """The column of a quantity: a shift may have the name of another column."""
    if name in ("id", "ood") or board is None:
        return name
    return next((m.key for m in board.columns if m.splits == (name,)), name)


class Pairwise:
    """Compares rows; what it has compared once it does not compare again, as long as the runs are
    the same.
    """

    def __init__(self, predictions: Predictions, tell: Callable[[str], None]) -> None:
        self._predictions, self._tell = predictions, tell
        self._known: dict[tuple[str, ...], dict[str, Any]] = {}

    def of(self, rows: Sequence[tuple[str, BoardRow]]) -> dict[str, Any]:
        """`<id of A> <id of B>` -> what the two rows say about each other; A is the one that stands
        higher.
        """
        pairs = {f"{first} {second}": (a, b) for (first, a), (second, b) in combinations(rows, 2)}
        new = [(a, b) for a, b in pairs.values() if _pair(a, b) not in self._known]
        if len(new) > 1:
            self._tell(f"comparing {len(new)} pairs of rows")
        for a, b in new:
            self._known[_pair(a, b)] = _compact(
                compare(a.records, b.records, self._predictions, (a.name, b.name))
            )
        return {names: self._known[_pair(a, b)] for names, (a, b) in pairs.items()}


def _pair(a: BoardRow, b: BoardRow) -> tuple[str, ...]:
    return (
        *(f"{r.eval_id} {r.finished}" for r in a.records),
        "against",
        *(f"{r.eval_id} {r.finished}" for r in b.records),
    )


def _compact(of: Comparison) -> dict[str, Any]:
    models, method = of.verdict
    return {
        "seeds": of.seeds,
        "verdicts": {"models": models, "method": method},
        "models": [_difference(d) for d in of.models],
        "method": [_difference(d) for d in of.method],
        "tests": [[t.about, t.seed, t.only_a, t.only_b, _short(t.p_holm)] for t in of.tests],
        "alike": [
            [x.about, *map(_short, (x.same, x.only_a, x.only_b, x.overlap, x.kappa))]
            for x in of.alike
        ],
    }


def _difference(d: Difference) -> list[Any]:
    """About, A, B, difference, its interval's ends, corrected p, verdict, why it is missing,
    whether it is deterministic.
    """
    low, high = (d.interval.low, d.interval.high) if d.interval else (None, None)
    return [
        d.about,
        *map(_short, (d.a, d.b, d.value, low, high, d.p_holm)),
        d.verdict,
        d.hole,
        d.deterministic,
    ]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
