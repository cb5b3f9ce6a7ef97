"""Files as strangers hand them over: no pipe is waited for, no text without end is read, and a byte-order mark is no letter."""

from __future__ import annotations

import errno
import json
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

#: Bytes of a card, a list or a record; the longest that is shipped, ImageNet's 21,841 classes, has 1.4 million.
_LONGEST: Final = 256 << 20

_KINDS: Final = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def special(mode: int) -> str:
    """What stands under a name that is neither a file nor a folder, such as "a pipe"; "" otherwise."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def absent(path: Path, *, what: str = "file") -> str:
    """Why there is no file under a name, as a sentence; "" if there is one."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return f"there is no {what} {path}"
    kind = "a folder" if stat.S_ISDIR(mode) else special(mode)
    return f"{path} is {kind}, and no {what}" if kind else ""


def most_unpacked(path: Path) -> int:
    """Bytes that an archive of unknown images may unpack to: they hardly compress."""
    return max(20 * path.stat().st_size, 256 << 20)


def regular(path: Path) -> Path:
    """Give the path back if reading it ends.

    Raises:
        OSError: it is a pipe, a socket or a device, or a link to one; or it is not there.
    """
    if kind := special(path.stat().st_mode):
        raise OSError(errno.EINVAL, f"it is {kind}, and no file", str(path))
    return path


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte-order mark.

    Raises:
        OSError: as `regular`, or it cannot be read. ValueError: it is not UTF-8, or far too long.
    """
    with regular(path).open(encoding="utf-8-sig") as file:
        text = file.read(_LONGEST)
    if len(text) == _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST >> 20} MB")
    return text


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        OSError, ValueError: as `read_text`, or it is not TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except RecursionError:
        raise ValueError("its lists or tables lie too deep in each other") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError, ValueError: as `read_text`, or it is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("its lists or objects lie too deep in each other") from None
