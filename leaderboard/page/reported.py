"""Published rows of a suite as the page lists them: apart from what was measured, with the gap to it where both exist."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.identity import canonical_json

from ..board.rows import Board
from ..reported import Reported, ReportedFile, shipped, stands_for
from .plain import row_id, short


def reported_backbones(suite: str) -> list[str]:
    """The backbones, by their names here, that a source reports on the suite; none where nothing is published."""
    file = shipped().get(suite)
    return [] if file is None else list(dict.fromkeys(file.backbones[row.backbone] for row in file.rows))


def reported_rows(suite: str, backbone: str, board: Board | None = None) -> list[dict[str, Any]]:
    """The published rows of a suite and backbone that state ID and OOD.

    Args:
        board: what was measured there; a row that stands for one of its rows says by how much that one differs.
    """
    file = shipped().get(suite)
    if file is None:
        return []
    rows = [row for row in file.rows if file.backbones[row.backbone] == backbone and {"id", "ood"} <= row.quantities().keys()]
    names = Counter((row.method, row.source) for row in rows)
    return [_row(row, file, board, shared=names[row.method, row.source] > 1) for row in rows]


def _row(row: Reported, file: ReportedFile, board: Board | None, *, shared: bool) -> dict[str, Any]:
    stated = {_key(name, board): value / 100 for name, value in row.quantities().items()}
    measured = stands_for(row, board) if board else None
    here = {key: measured.cells[key].value for key in stated if key in measured.cells} if measured else {}
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


def _key(name: str, board: Board | None) -> str:
    """The column of a quantity: a shift may have the name of another column."""
    if name in ("id", "ood") or board is None:
        return name
    return next((m.key for m in board.columns if m.splits == (name,)), name)
