"""Published rows of a suite, as the page lists them beside measured ones; shares in [0, 1]."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..reported import shipped


@dataclass(frozen=True)
class ReportedRow:
    """One published row: its name says who reported it, unlike the name of any measured row, and is not shared."""

    name: str
    backbone: str
    method: str
    id: float
    ood: float
    source: str
    certainty: str
    note: str = ""


def reported_rows(suite: str, backbone: str | None = None) -> list[ReportedRow]:
    """The published rows of a suite with ID and OOD, of one backbone if given; none where nothing is published."""
    file = shipped().get(suite)
    if file is None:
        return []
    rows = [row for row in file.rows if backbone in (None, file.backbones[row.backbone])]
    names = Counter((row.backbone, row.method, row.source) for row in rows)
    return [
        ReportedRow(
            name=f"{row.method} (reported, {row.source})"
            + (f" [{row.name}]" if names[row.backbone, row.method, row.source] > 1 else ""),
            backbone=file.backbones[row.backbone],
            method=row.method,
            id=row.id / 100,
            ood=row.ood / 100,
            source=file.sources[row.source],
            certainty=row.certainty + (", doubtful" if row.doubtful else ""),
            note=row.note,
        )
        for row in rows
        if row.id is not None and row.ood is not None
    ]
