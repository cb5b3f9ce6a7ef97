"""Effective robustness: accuracy on a shift above what a standard model of the same ID accuracy has
(Taori et al., 2020).

The lines of baselines.toml are fitted by scripts/baselines.py from the ImageNet Testbed's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import expit, logit

from bench.errors import UsageError
from bench.results.record import RunRecord
from bench.spec import REFERENCE
from bench.storage.files import read_toml

#: Fewer independently pre-trained models than this give no line.
FEWEST = 5
_FILE = Path(__file__).parent / "baselines.toml"
_FORM = 'a TOML file with [[standard]] blocks of suite = "..." and backbones = ["...", ...]'


@dataclass(frozen=True)
class Piece:
    """logit(shift) = slope * logit(ID) + intercept, for ID accuracies up to `below`."""

    slope: float
    intercept: float
    below: float = 1.0


@dataclass(frozen=True)
class Line:
    """What standard models have on a shift.

    Attributes:
        id: the ID accuracy that it is a function of: all of id-test, or id-test on the shift's
            classes only.
        pieces: in the order of `below`.
        source: where the line is from.
    """

    id: Literal["id-test", "id_matched"]
    pieces: tuple[Piece, ...]
    source: str

    def at(self, accuracy: float) -> float | None:
        """Accuracy on the shift of a standard model with that ID accuracy, in [0, 1]; None at 0 and
        1.
        """
        if not 0 < accuracy < 1:
            return None
        piece = next(p for p in self.pieces if accuracy <= p.below)
        return float(expit(piece.slope * logit(accuracy) + piece.intercept))


def fit(points: Iterable[tuple[float, float]]) -> Piece:
    """Least-squares line through (ID, shift) accuracies in logit space; points at 0 or 1 are left
    out.

    Raises:
        ValueError: fewer than `FEWEST` points are left, or they all have one ID accuracy.
    """
    known = [(x, y) for x, y in points if 0 < x < 1 and 0 < y < 1]
    if len(known) < FEWEST or len({x for x, _ in known}) < 2:
        raise ValueError(
            f"a line needs at least {FEWEST} models of different accuracies, and there are"
            f" {len(known)}"
        )
    xs, ys = logit(np.array(known)).T
    slope, intercept = np.polyfit(xs, ys, 1)
    return Piece(float(slope), float(intercept))


@lru_cache
def _content(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"the baselines cannot be read: {why}", where=str(path), fix=_FORM
        ) from error


def published(suite: str) -> dict[str, list[Line]]:
    """Shift -> its lines (one per kind of ID accuracy), from baselines.toml; empty for a suite that
    is not there.
    """
    found: dict[str, list[Line]] = {}
    for block in _content(_FILE).get("lines", []):
        if suite in block["suites"]:
            for shift, entries in block["shifts"].items():
                for kind in dict.fromkeys(entry["id"] for entry in entries):
                    pieces = [
                        Piece(e["slope"], e["intercept"], e.get("below", 1.0))
                        for e in entries
                        if e["id"] == kind
                    ]
                    found.setdefault(shift, []).append(Line(kind, tuple(pieces), block["source"]))
    return found


def standard_models(suite: str, path: Path | None = None) -> list[str]:
    """Backbones that a baselines file declares as standard and independently pre-trained for a
    suite.

    Raises:
        UsageError: the file cannot be read.
    """
    blocks = _content(path or _FILE).get("standard", [])
    try:
        known = [
            (str(block["suite"]), [str(name) for name in block["backbones"]]) for block in blocks
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            "a block of standard models is incomplete", where=str(path or _FILE), fix=_FORM
        ) from error
    return [name for of, names in known if of == suite for name in names]


def measured(records: Sequence[RunRecord], backbones: Sequence[str]) -> dict[str, list[Line]]:
    """Shift -> the line through the full fine-tuning runs of standard backbones; empty for fewer
    than five different weights.

    Args:
        records: of one suite. Runs on other data than the most recent one do not count.
    """
    runs = [
        r
        for r in records
        if r.method["name"] == REFERENCE
        and r.backbone in backbones
        and r.status == "done"
        and not r.limit
    ]
    found: dict[str, list[Line]] = {}
    for shift in dict.fromkeys(shift for r in runs for shift in r.shifts):
        here = [r for r in runs if shift in r.metrics and "id-test" in r.metrics]
        data = {(r.data.get("id-test"), r.data.get(shift)) for r in here}
        points: dict[str, list[tuple[float, float]]] = {}
        for r in here:
            points.setdefault(r.backbone_sha256, []).append(
                (r.metrics["id-test"].score, r.metrics[shift].score)
            )
        if len(points) >= FEWEST and len(data) == 1:
            means = [
                (sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own))
                for own in points.values()
            ]
            with suppress(
                ValueError
            ):  # accuracies of 0 and 1 have no logit, and too few are left: no line
                found[shift] = [
                    Line(
                        "id-test",
                        (fit(means),),
                        f"{len(means)} standard backbones of this store, {REFERENCE}",
                    )
                ]
    return found


def baselines(
    suite: str, records: Sequence[RunRecord], path: Path | None = None
) -> dict[str, list[Line]]:
    """Shift -> lines of a suite: the published ones, else those of the standard backbones that a
    file declares.
    """
    found = published(suite)
    return found or measured([r for r in records if r.suite == suite], standard_models(suite, path))


def chosen(lines: Mapping[str, Sequence[Line]], records: Sequence[RunRecord]) -> dict[str, Line]:
    """Of every shift one line for all records: in ID on the shift's classes if all have that, else
    in ID.
    """
    found = {}
    for shift, options in lines.items():
        matched = all(shift in r.id_matched for r in records)
        order = ["id_matched", "id-test"] if matched else ["id-test"]
        best = next((line for kind in order for line in options if line.id == kind), None)
        if best is not None:
            found[shift] = best
    return found


def matched_id(record: RunRecord, shift: str, otherwise: float | None = None) -> float | None:
    """Score on id-test under the shift's projection; `otherwise` where the shift has all classes,
    or it was not measured.
    """
    found = record.id_matched.get(shift)
    return otherwise if found is None else float(found.score)


def effective(record: RunRecord, shift: str, line: Line) -> float | None:
    """Effective robustness of a run on a shift, in [-1, 1]: its accuracy minus the line's at its ID
    accuracy.
    """
    if shift not in record.metrics or "id-test" not in record.metrics:
        return None
    own = record.metrics["id-test"].score if line.id == "id-test" else matched_id(record, shift)
    expected = None if own is None else line.at(own)
    return None if expected is None else record.metrics[shift].score - expected
