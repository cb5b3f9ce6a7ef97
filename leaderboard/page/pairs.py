"""Every two rows of a board compared, as `bench compare` does it, in the page's compact form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from ..board.comparison import Comparison, Difference, compare
from ..board.rows import BoardRow
from ..statistics.predictions import Predictions


class Pairwise:
    """Compares rows; what it has compared once it does not compare again, as long as the runs are the same."""

    def __init__(self, predictions: Predictions, tell: Callable[[str], None]) -> None:
        self._predictions, self._tell = predictions, tell
        self._known: dict[tuple[str, ...], dict[str, Any]] = {}

    def of(self, rows: Sequence[tuple[str, BoardRow]]) -> dict[str, Any]:
        """`<id of A> <id of B>` -> what the two rows say about each other; A is the one that stands higher."""
        pairs = {f"{first} {second}": (a, b) for (first, a), (second, b) in combinations(rows, 2)}
        new = [(a, b) for a, b in pairs.values() if _key(a, b) not in self._known]
        if len(new) > 1:
            self._tell(f"comparing {len(new)} pairs of rows")
        for a, b in new:
            self._known[_key(a, b)] = _compact(compare(a.records, b.records, self._predictions, (a.name, b.name)))
        return {names: self._known[_key(a, b)] for names, (a, b) in pairs.items()}


def _key(a: BoardRow, b: BoardRow) -> tuple[str, ...]:
    return (*(f"{r.eval_id} {r.finished}" for r in a.records), "against", *(f"{r.eval_id} {r.finished}" for r in b.records))


def _compact(of: Comparison) -> dict[str, Any]:
    models, method = of.verdict
    return {
        "seeds": of.seeds,
        "verdicts": {"models": models, "method": method},
        "models": [_difference(d) for d in of.models],
        "method": [_difference(d) for d in of.method],
        "tests": [[t.about, t.seed, t.only_a, t.only_b, _short(t.p_holm)] for t in of.tests],
        "alike": [[x.about, *map(_short, (x.same, x.only_a, x.only_b, x.overlap, x.kappa))] for x in of.alike],
    }


def _difference(d: Difference) -> list[Any]:
    """About, A, B, difference, its interval's ends, corrected p, verdict, why it is missing, whether it is deterministic."""
    low, high = (d.interval.low, d.interval.high) if d.interval else (None, None)
    return [d.about, *map(_short, (d.a, d.b, d.value, low, high, d.p_holm)), d.verdict, d.hole, d.deterministic]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
