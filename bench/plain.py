"""Escape text from files before it reaches a terminal, a log, a chart or a document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Pattern of names that become names of files or folders: no separators, and no leading dot or
#: hyphen, which would make a hidden file or an option.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


def plain(text: str, *, strip: bool = True) -> str:
    """Return a text on one line, with unprintable characters escaped.

    Args:
        text: any text.
        strip: remove space at both ends.
    """
    # A name in somebody's file may contain escape sequences, which a terminal executes, or marks of
    # direction, which show a text in another order than it has.
    one_line = re.sub(r"[ \t\r\n\v\f]*[\t\r\n\v\f][ \t\r\n\v\f]*", " ", text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in one_line)
    return shown.strip() if strip else shown


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first of several names, with an ellipsis if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def plain_within(value: Any) -> Any:
    """Apply `plain` to every text in nested tables and lists, keys included."""
    if isinstance(value, Mapping):
        return {plain_within(key): plain_within(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_within(item) for item in value]
    return plain(value, strip=False) if isinstance(value, str) else value
