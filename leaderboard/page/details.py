"""Details of rows from saved predictions: pairwise comparisons and bins of reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bench.results.record import RunRecord

from ..board.comparison import Comparison, Difference, compare
from ..board.rows import BoardRow
from ..statistics.calibration import reliability
from ..statistics.predictions import Predictions


class Pairwise:
    """Comparisons of rows, cached until one of their runs changes.

    Args:
        predictions: the predictions of the rows' store.
        tell: called with a message before slow work.
    """

    def __init__(self, predictions: Predictions, tell: Callable[[str], None]) -> None:
        self._predictions, self._tell = predictions, tell
        # A served page is made again after every run, and a comparison takes a bootstrap: only the
        # pairs with a new run are computed.
        self._known: dict[tuple[str, ...], dict[str, Any]] = {}

    def of(self, rows: Sequence[tuple[str, BoardRow]]) -> dict[str, Any]:
        """Compare all pairs of rows.

        Args:
            rows: (id, row), in the order of the board.

        Returns:
            `<id of A> <id of B>` -> comparison, where A is the higher of the two on the board.
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
    """Return the cache key of a pair: which runs, and which edition of each."""
    # `finished` changes when a run is made again under its id. The word between them keeps (a, b)
    # and (ab, nothing) apart.
    return (
        *(f"{r.eval_id} {r.finished}" for r in a.records),
        "against",
        *(f"{r.eval_id} {r.finished}" for r in b.records),
    )


def _compact(of: Comparison) -> dict[str, Any]:
    """Return a comparison as lists, which comparison.js reads by position."""
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
    """Return [about, A, B, difference, low, high, corrected p, verdict, missing, deterministic]."""
    low, high = (d.interval.low, d.interval.high) if d.interval else (None, None)
    return [
        d.about,
        *map(_short, (d.a, d.b, d.value, low, high, d.p_holm)),
        d.verdict,
        d.missing,
        d.deterministic,
    ]


def _short(value: float | None) -> float | None:
    """Round to four significant digits: with decimals, a small p-value would become 0."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def bins(
    records: Sequence[RunRecord], splits: Sequence[str], predictions: Predictions
) -> dict[str, list[list[Any]]]:
    """Return the bins of a row's reliability diagrams, with the images of all seeds pooled.

    Args:
        records: the runs of the row.
        splits: the splits. One that a run has no saved predictions for is left out.
        predictions: the predictions of the row's store.

    Returns:
        Split -> `[mean confidence, accuracy, images]` of every bin that is not empty.
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
    """Return (images,) confidence and (images,) whether correct; None without predictions."""
    if split not in record.metrics:
        return None
    columns = predictions.columns(record, split, ("label", "prediction", "maximum", "log_sum_exp"))
    if columns is None or len(columns) < 4:
        return None
    confidence = np.exp(columns["maximum"].astype(float) - columns["log_sum_exp"].astype(float))
    # Rounding of the saved columns can give a probability slightly above 1.
    return np.minimum(confidence, 1.0), columns["prediction"] == columns["label"]
