"""Convert boards to one JSON document that contains everything the web page shows.

Values are plain text and numbers, never markup. Numbers are rounded to 1e-5 (a thousandth of a
percentage point), which keeps a page of thousands of rows small. Optional parts are present but
empty, so that the page's scripts need no checks for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.identity import canonical_json
from bench.results.record import RunRecord

from ..board.frames import standard_line
from ..board.notes import notes, title
from ..board.rows import Board, BoardRow, ScoreCell
from ..board.tables import Boards, View
from ..board.typesetting import summary
from ..charts.style import LIGHT, SHAPES, looks
from ..reported import Reported, ReportedFile, shipped, stands_for
from ..statistics.predictions import Predictions
from ..statistics.tradeoff import ID, average
from .details import Pairwise, bins
from .figures import CORNERS, HEIGHT, LABEL_SIZE, RECOLOUR, figures
from .values import Distinct, plain, row_id, short

#: Version of the document's layout, which the page's scripts rely on.
SCHEMA = 2
#: Rows of a board that have reliability diagrams and comparisons with each other. The number of
#: pairs grows with the square: 120 for these, half a million for a board of a thousand rows.
MOST_DETAILED = 16


@dataclass
class Document:
    """A maker of documents for one store, which caches comparisons.

    Args:
        predictions: the store's predictions.
        tell: called with a message before slow work.
    """

    predictions: Predictions
    tell: Callable[[str], None] = lambda text: None
    _pairwise: Pairwise = field(init=False)

    def __post_init__(self) -> None:
        self._pairwise = Pairwise(self.predictions, self.tell)

    def of(self, found: Boards, view: View) -> dict[str, Any]:
        """Return the document of boards.

        Args:
            found: the boards and the unfinished runs.
            view: the view that the boards were made for.

        Returns:
            A dictionary that JSON can express. Runs refer to `provenance` by index.
        """
        provenance = Distinct()
        boards = [self._board(board, view, provenance) for board in found.boards]
        # Unfinished runs are listed with the first board of their suite and backbone, which is the
        # ranked one, or with an empty board where none has a result.
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
        # Last, since they are for backbones that have no board so far.
        for suite in dict.fromkeys(board["suite"] for board in boards):
            boards += _reported_only(suite, boards)
        return {
            "schema": SCHEMA,
            "version": version("shiftbench"),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            # What the page needs to style marks as the charts of `bench plot` do: one definition.
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

    def _board(self, board: Board, view: View, provenance: Distinct) -> dict[str, Any]:
        # Published numbers are compared with the ranked board only, not with trials and exceptions.
        published = (
            reported_rows(board.group.suite, board.group.backbone, board)
            if board.kind == "ranked"
            else []
        )
        detailed, shared = board.rows[:MOST_DETAILED], board.shifts.shared
        rows = [_row(row, board, provenance) for row in board.rows]
        for row, made in zip(detailed, rows, strict=False):
            made["bins"] = bins(row.records, (ID, *board.shifts.all), self.predictions)
        # Looks are assigned after the reported rows are added, which share those of measured ones.
        rows += published
        _colour(rows)
        curves = [
            point
            for row, made in zip(board.rows, rows, strict=False)
            for point in _curve(row.name, row.records, made["id"], shared)
        ]
        # If a filter excludes the reference's row, its curve is still plotted, without a row.
        references = list(board.curves.values())
        if references and references[0] not in board.records:
            curves += _curve(references[0].label, references, "", shared)
        return {
            "suite": board.group.suite,
            "backbone": board.group.backbone,
            "kind": board.kind,
            "title": title(board),
            # Parts that are rows become links; the others are text.
            "summary": [
                part if isinstance(part, str) else {"row": row_id(part.key)}
                for part in summary(board)
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
            # So that the page can say why a pair of later rows has no comparison.
            "compared": len(detailed),
            "unfinished": [],
        }


def _columns(board: Board, by: str) -> list[dict[str, Any]]:
    """Return the columns, each with its part of the table and the shift or factor it is about."""
    made = []
    for m in board.columns:
        # Only accuracies have splits: a shift's column has one, a factor's those of its shifts.
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
    # The cost of selecting parameters belongs next to the scores. Columns without information on
    # this board are hidden until the reader selects them.
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


def _cell(cell: ScoreCell) -> list[float | None]:
    """Return [value, SD, seeds low, seeds high, images low, images high], cut after the last."""
    pair = [
        (interval.low, interval.high) if interval else (None, None)
        for interval in (cell.seeds, cell.images)
    ]
    numbers = [short(number) for number in (cell.value, cell.sd, *pair[0], *pair[1])]
    # Thousands of rows have no interval: without the trailing nulls, the page is smaller.
    while numbers and numbers[-1] is None:
        numbers.pop()
    return numbers


def _row(row: BoardRow, board: Board, provenance: Distinct) -> dict[str, Any]:
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
        # Reasons for the missing cells only.
        "holes": {
            m.key: row.cells[m.key].missing for m in board.columns if row.cells[m.key].value is None
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
    """Set the indices of every row's colour and shape in its `look`."""
    # A reported row that stands for a measured one has the same look, and a hollow mark.
    found = looks({row["id"]: row["method"] for row in rows if not row.get("measured")})
    for row in rows:
        row["look"] = list(found[row.get("measured") or row["id"]])


def _run(record: RunRecord, provenance: Distinct) -> dict[str, Any]:
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
        # Both are the same for most runs of a board, hence places in a shared list.
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
    """Average the interpolation curves of a row's runs over seeds.

    Args:
        name: the row's name.
        runs: the runs; those without a curve are skipped.
        identity: the row's id; "" for a curve of no row on the board.
        shared: the shifts in the board's OOD average.

    Returns:
        A dictionary per alpha that all seeds have.
    """
    runs = [r for r in runs if r.curve]
    points: dict[float, list[dict[str, float]]] = {}
    for run in runs:
        for point in run.curve:
            # Not the point's own OOD average, which may be over other shifts than the board's.
            ood = average(point.scores, shared)
            points.setdefault(point.alpha, []).append(
                point.scores | ({} if ood is None else {"ood": ood})
            )
    made = []
    for alpha, own in sorted(points.items()):
        everywhere = [
            split
            for split in own[0]
            # A mean over other seeds than its neighbours' would put a kink into the curve.
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
    """Return the line of standard models as points (ID, column) from 1 to 99 %; [] if unknown."""
    # Points instead of a formula, since the page's axes can be linear or logit-scaled.
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
    """Return a board without measured rows, for unfinished runs or for published numbers.

    Args:
        suite: the suite.
        backbone: the backbone.
        kind: `empty`, or `reported` for published numbers.
        rows: the reported rows.
    """
    # Without runs, only the names of the reported numbers say which shifts there are.
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
        "summary": [],
        "apart": {},
        "facts": {},
        "shifts": shifts,
        "averaged": [],
        "columns": columns if rows else [],
        "sort": "ood",
        "ties": False,
        "notes": (
            ["Reported by the named sources, not measured here."]
            if rows
            else ["No run has a result yet."]
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
    """Return the boards of backbones that were reported on a suite but not measured."""
    measured = {board["backbone"] for board in boards if board["suite"] == suite}
    return [
        _without_results(suite, backbone, "reported", reported_rows(suite, backbone))
        for backbone in reported_backbones(suite)
        if backbone not in measured
    ]


def reported_backbones(suite: str) -> list[str]:
    """Return the backbones with published numbers on a suite, by their names in ShiftBench."""
    file = shipped().get(suite)
    return (
        []
        if file is None
        else list(dict.fromkeys(file.backbones[row.backbone] for row in file.rows))
    )


def reported_rows(suite: str, backbone: str, board: Board | None = None) -> list[dict[str, Any]]:
    """Return the published rows of a suite and backbone that have both ID and OOD.

    Args:
        suite: the suite.
        backbone: the backbone.
        board: the measured rows. A published row that stands for one of them has the differences.
    """
    file = shipped().get(suite)
    if file is None:
        return []
    rows = [
        row
        for row in file.rows
        if file.backbones[row.backbone] == backbone and {"id", "ood"} <= row.quantities().keys()
    ]
    # One source may report a method several times, with other parameters.
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
        # Differs from the name of every measured row, and of every other reported one.
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
    """Return the key of a quantity's column, which differs where a shift is called like another."""
    if name in ("id", "ood") or board is None:
        return name
    return next((m.key for m in board.columns if m.splits == (name,)), name)
