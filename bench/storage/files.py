"""Files as strangers hand them over: no pipe is waited for, no text without end is read, and a
byte-order mark is no letter.
"""

from __future__ import annotations

import errno
import json
import math
import stat
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import tomli_w

#: Bytes of a card, a list or a record; the longest that is shipped, ImageNet's 21,841 classes, has
#: 1.4 million.
_LONGEST: Final = 256 << 20

#: Bytes of the description at the begin of a safetensors file; the library reads no more either.
_LONGEST_HEADER: Final = 100_000_000

_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special(mode: int) -> str:
    """What stands under a name that is neither a file nor a folder, such as "a pipe"; ""
    otherwise.
    """
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def absent(path: Path, *, what: str = "file") -> str:
    """Why there is no file under a name, as a sentence; "" if there is one."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return f"there is no {what} {path}"
    kind = "a folder" if stat.S_ISDIR(mode) else special(mode)
    return f"{path} is {kind}, and no {what}" if kind else ""


def not_weights(path: Path) -> str:
    """What a file is that was to be one of weights, as a clause such as "it is a web page"; "" if
    nothing speaks against it.
    """
    length = path.stat().st_size
    with regular(path).open("rb") as file:
        start = file.read(1024)
        header = min(int.from_bytes(start[:8], "little"), _LONGEST_HEADER)
        described = (
            start[8 : 8 + header] + file.read(max(8 + header - len(start), 0))
            if path.suffix == ".safetensors"
            else b""
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is a web page: what was saved is where the file can be had"
    if text.startswith(b"<?xml"):
        return "it is a server's message in XML"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: `git lfs pull` brings the file itself"
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "it is the beginning of a zip archive: its end is missing"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "it is compressed: unpack it"
    if path.suffix != ".safetensors":
        return ""
    try:
        tensors = json.loads(described)
        end = max(
            (entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"),
            default=0,
        )
        return (
            f"its end is missing: it has {length:,} of {8 + header + end:,} bytes"
            if length < 8 + header + end
            else ""
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""  # damage of another kind, which the library names


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
        OSError: as `regular`, or it cannot be read.
        ValueError: it is not UTF-8, or far too long.
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
    table: dict[str, Any] = _parsed(path, tomllib.loads)
    return table


def toml_of(table: Mapping[str, Any]) -> str:
    """A table as TOML; what does not print is an escape."""
    return "".join(
        c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in tomli_w.dumps(table)
    )


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError, ValueError: as `read_text`, or it is not JSON, or a number is not finite.
    """
    return _parsed(path, finite_json)


def finite_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or a number is not finite (`NaN`, `Infinity`, `1e999`).
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.30} is no finite number")
    return number


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(read_text(path))
    except RecursionError:
        raise ValueError("its lists or tables lie too deep in each other") from None
