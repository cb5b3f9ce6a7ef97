"""Read untrusted files: no blocking on pipes, no unbounded input, and JSON without NaN."""

from __future__ import annotations

import errno
import json
import math
import re
import stat
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import tomli_w

#: Largest size in characters of a card, a list or a record. The longest file that is shipped, for
#: the 21,841 classes of ImageNet, has 1.4 million.
_LONGEST: Final = 256 << 20

#: Largest header in bytes of a safetensors file; the limit of the safetensors library itself.
_LONGEST_HEADER: Final = 100_000_000
_ADDRESS = re.compile(r"(https?|hf|s3|gs|ftp):/")

#: The kinds of file whose reading may block or never end, with their names in messages.
_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special(mode: int) -> str:
    """Return what a path is if neither file nor folder, such as "a pipe"; otherwise "".

    Args:
        mode: `st_mode` of the path.
    """
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def absent(path: Path, *, what: str = "file") -> str:
    """Return why there is no file at a path, as a sentence; "" if there is one.

    Args:
        path: where a file is expected.
        what: the name of the file in the sentence.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        # A `Path` has lost one of the slashes of `https://`.
        if _ADDRESS.match(str(path)):
            whole = str(path).replace(":/", "://", 1)
            return f"{whole} is an address, not a {what}; download it first"
        return f"there is no {what} {path}"
    kind = "a folder" if stat.S_ISDIR(mode) else special(mode)
    return f"{path} is {kind}, not a {what}" if kind else ""


def not_weights(path: Path) -> str:
    """Return what a file is instead of model weights, such as "it is a web page"; "" if plausible.

    Only the start of the file is read, so "" does not mean that the weights are intact.
    """
    length = path.stat().st_size
    with regular(path).open("rb") as file:
        start = file.read(1024)
        # A safetensors file begins with the length of its JSON header, in 8 bytes.
        header = min(int.from_bytes(start[:8], "little"), _LONGEST_HEADER)
        described = (
            start[8 : 8 + header] + file.read(max(8 + header - len(start), 0))
            if path.suffix == ".safetensors"
            else b""
        )
    # What servers and tools leave in place of a download: a login or error page, an error of S3, a
    # repository cloned without Git LFS, half an archive.
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is a web page: the page with the download link was saved, not the file"
    if text.startswith(b"<?xml"):
        return "it is a server's message in XML"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: `git lfs pull` downloads the file itself"
    # torch.save writes zip archives too; the directory of a whole one is at its end.
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "it is the beginning of a zip archive: its end is missing"
    # gzip, bzip2, xz and Zstandard.
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
        # Other damage: the safetensors library reports it when it loads the file.
        return ""


def most_unpacked(path: Path) -> int:
    """Return the number of bytes to which an archive of unknown images may unpack."""
    # Images hardly compress, so a ratio of 20 is a sign of a zip bomb; small archives may hold a
    # compressible list or two.
    return max(20 * path.stat().st_size, 256 << 20)


def regular(path: Path) -> Path:
    """Return the path if it can be read to an end without blocking.

    Raises:
        OSError: the path does not exist, or is a pipe, a socket, a device or a link to one.
    """
    if kind := special(path.stat().st_mode):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return path


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, without its byte-order mark.

    Raises:
        OSError: the file cannot be read; see `regular`.
        ValueError: it is not UTF-8, or longer than 256 MB.
    """
    # Editors on Windows write the mark, which tomllib and json refuse.
    with regular(path).open(encoding="utf-8-sig") as file:
        text = file.read(_LONGEST)
    if len(text) == _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST >> 20} MB")
    return text


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: the file cannot be read; see `regular`.
        ValueError: it is not TOML, not UTF-8, or too long.
    """
    table: dict[str, Any] = _parsed(path, tomllib.loads)
    return table


def toml_of(table: Mapping[str, Any]) -> str:
    """Return a table as TOML, with unprintable characters escaped."""
    # tomli_w writes characters that turn the writing direction as they are; a terminal or an editor
    # would then show another text than the file has.
    return "".join(
        c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in tomli_w.dumps(table)
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: the file cannot be read; see `regular`.
        ValueError: it is not JSON, not UTF-8, or too long; or a number is not finite.
    """
    return _parsed(path, finite_json)


def finite_json(text: str | bytes) -> Any:
    """Parse a JSON text in which all numbers are finite.

    Raises:
        ValueError: it is not JSON, or a number is not finite (`NaN`, `Infinity`, `1e999`).
    """
    # NaN passes every comparison in a sort or a range check, and JSON has no such number.
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        # Cut, since an attacker may write a number of a million digits.
        raise ValueError(f"{text:.30} is not a finite number")
    return number


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(read_text(path))
    except RecursionError:
        raise ValueError("its lists or tables are nested too deeply") from None
