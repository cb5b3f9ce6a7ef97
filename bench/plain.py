"""Foreign text made plain: names and messages of files reach a terminal, a log, a chart or a
document through here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: What a name may be that becomes a folder's or a file's.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


def plain(text: str, *, strip: bool = True) -> str:
    """Put a text on one line, with what does not print (escape sequences of a terminal, marks of
    direction) made visible.
    """
    one_line = re.sub(r"[ \t\r\n\v\f]*[\t\r\n\v\f][ \t\r\n\v\f]*", " ", text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in one_line)
    return shown.strip() if strip else shown


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of several names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def plain_within(value: Any) -> Any:
    """Make every text in tables and lists plain, their keys as well."""
    if isinstance(value, Mapping):
        return {plain_within(key): plain_within(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_within(item) for item in value]
    return plain(value, strip=False) if isinstance(value, str) else value
