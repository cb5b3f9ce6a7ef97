"""Compute effective robustness: accuracy beyond that of standard models of the same ID accuracy.

The definition is that of Taori et al. (2020). The lines in baselines.toml are fitted by
scripts/baselines.py to the table of the ImageNet Testbed.
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
from bench.run_spec import REFERENCE
from bench.storage.files import read_toml

#: A line needs at least this many independently pre-trained models: any two fit one exactly.
FEWEST = 5
_FILE = Path(__file__).parent / "baselines.toml"
_FORM = 'a TOML file with [[standard]] blocks of suite = "..." and backbones = ["...", ...]'


@dataclass(frozen=True)
class Piece:
    """One straight piece: logit(shift) = slope * logit(ID) + intercept, for ID up to `below`."""

    slope: float
    intercept: float
    below: float = 1.0


@dataclass(frozen=True)
class Line:
    """The accuracy of standard models on one shift, as a function of their ID accuracy.

    Attributes:
        id: which ID accuracy: all of id-test, or id-test on the shift's classes only.
        pieces: ordered by `below`.
        source: where the line is from.
    """

    id: Literal["id-test", "id_matched"]
    pieces: tuple[Piece, ...]
    source: str

    def at(self, accuracy: float) -> float | None:
        """Return the shift accuracy of standard models of that ID accuracy; None at 0 and 1."""
        if not 0 < accuracy < 1:
            return None
        piece = next(p for p in self.pieces if accuracy <= p.below)
        return float(expit(piece.slope * logit(accuracy) + piece.intercept))


def fit(points: Iterable[tuple[float, float]]) -> Piece:
    """Fit a least-squares line to (ID, shift) accuracies in logit space.

    Points at 0 or 1 have no logit and are left out.

    Raises:
        ValueError: fewer than `FEWEST` points are left, or all have the same ID accuracy.
    """
    known = [(x, y) for x, y in points if 0 < x < 1 and 0 < y < 1]
    if len(known) < FEWEST or len({x for x, _ in known}) < 2:
        raise ValueError(
            f"a line needs at least {FEWEST} models of different accuracies; there are {len(known)}"
        )
    xs, ys = logit(np.array(known)).T
    slope, intercept = np.polyfit(xs, ys, 1)
    return Piece(float(slope), float(intercept))


# A board asks for the lines of its suite several times; the file is read once per process.
@lru_cache
def _content(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the baselines: {why}", where=str(path), fix=_FORM) from error


def published(suite: str) -> dict[str, list[Line]]:
    """Return the lines of a suite in baselines.toml, by shift; empty for other suites.

    A shift has one line for each kind of ID accuracy.
    """
    found: dict[str, list[Line]] = {}
    for block in _content(_FILE).get("lines", []):
        if suite in block["suites"]:
            for shift, entries in block["shifts"].items():
                # One line may have several pieces: ImageNet-A was filtered with a ResNet-50, and
                # models below and above that one's accuracy follow different lines.
                for kind in dict.fromkeys(entry["id"] for entry in entries):
                    pieces = [
                        Piece(e["slope"], e["intercept"], e.get("below", 1.0))
                        for e in entries
                        if e["id"] == kind
                    ]
                    found.setdefault(shift, []).append(Line(kind, tuple(pieces), block["source"]))
    return found


def standard_models(suite: str, path: Path | None = None) -> list[str]:
    """Return the backbones that a baselines file declares as standard for a suite.

    Which models count as standard and independently pre-trained cannot be read off their weights,
    so that a file has to say it.

    Raises:
        UsageError: the file cannot be read, or a block is incomplete.
    """
    blocks = _content(path or _FILE).get("standard", [])
    try:
        known = [
            (str(block["suite"]), [str(name) for name in block["backbones"]]) for block in blocks
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            "a [[standard]] block is incomplete", where=str(path or _FILE), fix=_FORM
        ) from error
    return [name for of, names in known if of == suite for name in names]


def measured(records: Sequence[RunRecord], backbones: Sequence[str]) -> dict[str, list[Line]]:
    """Fit lines to full fine-tuning runs of standard backbones, by shift.

    Args:
        records: runs of one suite.
        backbones: the standard ones (`standard_models`).

    Returns:
        Only shifts that at least `FEWEST` different weights were measured on, all on the same data.
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
            # By weights and not by name: two names of one backbone are one model, not two.
            points.setdefault(r.backbone_sha256, []).append(
                (r.metrics["id-test"].score, r.metrics[shift].score)
            )
        # Runs on several versions of the data are not mixed, and none of them is preferred.
        if len(points) >= FEWEST and len(data) == 1:
            means = [
                # Seeds are averaged first, so that a backbone with more seeds does not pull the
                # line more.
                (sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own))
                for own in points.values()
            ]
            # `fit` leaves out accuracies of 0 and 1, after which there may be too few for a line.
            with suppress(ValueError):
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
    """Return the published lines of a suite, or else lines of the declared standard backbones."""
    # Published lines are fitted to more models than a store has.
    found = published(suite)
    return found or measured([r for r in records if r.suite == suite], standard_models(suite, path))


def chosen(lines: Mapping[str, Sequence[Line]], records: Sequence[RunRecord]) -> dict[str, Line]:
    """Choose one line for each shift, the same for all records.

    The line over ID on the shift's classes compares like with like, and is chosen if every record
    has that score; otherwise the line over ID. Different lines for different rows would make their
    distances incomparable.
    """
    found = {}
    for shift, options in lines.items():
        # `Effective` is one column, in which every row is measured against the same line.
        matched = all(shift in r.id_matched for r in records)
        order = ["id_matched", "id-test"] if matched else ["id-test"]
        best = next((line for kind in order for line in options if line.id == kind), None)
        if best is not None:
            found[shift] = best
    return found


def matched_id(record: RunRecord, shift: str, otherwise: float | None = None) -> float | None:
    """Return the id-test score on the shift's classes; `otherwise` if there is none."""
    found = record.id_matched.get(shift)
    return otherwise if found is None else float(found.score)


def effective(record: RunRecord, shift: str, line: Line) -> float | None:
    """Return a run's accuracy on a shift minus the line's at its ID accuracy, in [-1, 1].

    Returns:
        None where one of the scores is missing, or the ID accuracy is 0 or 1.
    """
    if shift not in record.metrics or "id-test" not in record.metrics:
        return None
    own = record.metrics["id-test"].score if line.id == "id-test" else matched_id(record, shift)
    expected = None if own is None else line.at(own)
    return None if expected is None else record.metrics[shift].score - expected
