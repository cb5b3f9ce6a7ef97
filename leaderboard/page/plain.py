"""Values of records as the page's document has them: numbers that JSON can say, names that links can hold."""

from __future__ import annotations

import hashlib
import math
from typing import Any


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
