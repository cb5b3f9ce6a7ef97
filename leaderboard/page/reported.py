"""Published rows of a suite, as the page lists them beside measured ones; shares in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from ..published import REPORTED, reported


@dataclass(frozen=True)
class ReportedRow:
    """One published row: its name says who reported it."""

    backbone: str
    method: str
    id: float
    ood: float
    source: str
    certainty: str
    note: str = ""

    @property
    def name(self) -> str:
        """Unlike the name of any measured row."""
        return f"{self.method} (reported, {self.source.split(',')[0]})"


def reported_rows(suite: str, backbone: str | None = None) -> list[ReportedRow]:
    """The published rows of a suite, of one backbone if given; none where nothing is published."""
    # A suite is named by whoever wrote the record: a name that is a path must not lead anywhere.
    if f"{suite}.toml" not in {path.name for path in REPORTED.iterdir()}:
        return []
    return [
        ReportedRow(
            backbone=row["backbone"],
            method=row["method"],
            id=row["id"] / 100,
            ood=row["ood"] / 100,
            source=row.get("source", ""),
            certainty=row.get("certainty", ""),
            note=row.get("doubtful", "") if isinstance(row.get("doubtful"), str) else "",
        )
        for row in reported(suite)
        if backbone in (None, row["backbone"])
    ]
