"""Plain values for the page's JSON document: rounded numbers, row ids, and values saved once."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from bench.identity import canonical_json


def short(value: float | None) -> float | None:
    """Round a number to 1e-5; None for a missing number and for one that JSON cannot express."""
    return None if value is None or not math.isfinite(value) else round(value, 5)


def plain(value: Any) -> Any:
    """Convert a value of a record to JSON types, with NaN and infinity as text.

    Methods and machines may put anything that JSON can express into a record, and Python reads NaN
    where a browser's parser fails.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def row_id(key: str) -> str:
    """Return a short id of a row for links, which stays the same while runs are added."""
    return hashlib.sha256(key.encode()).hexdigest()[:10]


class Distinct:
    """A list of distinct values, which others refer to by index.

    Thousands of runs share a handful of machines; repeated in every run, their description would be
    most of the page.
    """

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._place: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Return the index of a value, which is added if it is new."""
        value = plain(value)
        key = canonical_json(value)
        if key not in self._place:
            self._place[key] = len(self.values)
            self.values.append(value)
        return self._place[key]
