"""Unpack untrusted archives: nothing outside the folder, no links, and a limit on the size.

The filters of the standard library only exist for tar archives, have no limit on sizes, and allow
links that stay below the folder.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final, Literal

from rich.filesize import decimal as size

from ...errors import BenchError
from ...storage.atomic import Progress
from ...storage.files import most_unpacked
from ..readers.archive import CheckedTarInfo

#: More files than any supported dataset has; beyond that, an archive is taken for an attack on the
#: file system.
_MOST_FILES: Final = 5_000_000
_BLOCK: Final = 1 << 20

#: Errors of damaged archives, besides an OSError without a number. zipfile raises RuntimeError for
#: encrypted members, and the others come from sizes and offsets that are nonsense.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError,
    ValueError, OverflowError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A member of a tar or zip archive; `target` is where a link leads."""

    name: str
    size: int
    kind: Literal["file", "folder", "link", "other"]
    target: str = ""


def unpack(
    archive: Path,
    kind: Literal["tar", "zip"],
    folder: Path,
    *,
    strip: int = 0,
    unpacked_bytes: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Unpack an archive into an empty or new folder.

    An archive with links, devices, absolute names or names that lead out of the folder is refused:
    image datasets have no use for them. Files get default permissions and the current time.

    Args:
        archive: path of the archive.
        kind: its format; tar archives may be compressed.
        folder: where to unpack it.
        strip: number of leading folders to remove from every name; files above them are left out.
        unpacked_bytes: expected size of the contents, of which 110 % are allowed; by default twenty
            times the archive's own size.
        progress: called with what is done, the number of files so far, and 0 (or all, at the end).

    Returns:
        The number of files.

    Raises:
        BenchError: the archive is damaged, truncated, unsafe or too large. Files that are unpacked
            already stay.
    """
    most = round(1.1 * unpacked_bytes) if unpacked_bytes else most_unpacked(archive)
    files, written = 0, 0
    # `mkdir` once per folder instead of once per file: ImageNet has a million files in 1,000.
    made: set[Path] = set()
    try:
        for entry, content in _tar(archive) if kind == "tar" else _zip(archive):
            target = _place(entry, folder, strip, archive)
            if target is None or content is None:
                continue
            files += 1
            if files > _MOST_FILES:
                raise _bomb(archive, f"more than {_MOST_FILES:,} files")
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            try:
                written += _copy(content, target, most - written)
            except _TooMuch:
                raise _bomb(archive, f"more than {size(most)}") from None
            if progress is not None and files % 64 == 0:
                progress(f"unpacking {archive.name}", files, 0)
    except _DAMAGED as error:
        raise _damaged(archive, str(error) or type(error).__name__) from error
    except OSError as error:
        # gzip and bz2 report damage as an OSError without a number; the system's have one.
        if error.errno is None:
            raise _damaged(archive, str(error)) from error
        raise BenchError(
            f"{archive.name} cannot be unpacked: {error.strerror}",
            where=str(error.filename or folder),
            fix="fix the cause, and run the same command again",
        ) from error
    if progress is not None:
        progress(f"unpacking {archive.name}", files, files)
    return files


class _TooMuch(Exception):
    """More bytes than allowed have been unpacked."""


def _tar(archive: Path) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    with tarfile.open(archive, "r:*", tarinfo=CheckedTarInfo) as tar:
        for member in tar:
            # tarfile remembers every member, which takes gigabytes for a million files.
            tar.members = []  # type: ignore[attr-defined]
            kind: Literal["file", "folder", "link", "other"] = "other"
            if member.isreg():
                kind = "file"
            elif member.isdir():
                kind = "folder"
            elif member.issym() or member.islnk():
                kind = "link"
            yield (
                _Member(member.name, member.size, kind, member.linkname),
                (tar.extractfile(member) if kind == "file" else None),
            )


def _zip(archive: Path) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if info.flag_bits & 1:
                raise zipfile.BadZipFile("it is encrypted")
            if info.is_dir():
                yield _Member(info.filename, 0, "folder"), None
            # The upper half is the mode of a Unix file, whose type 0o120000 is a symbolic link.
            elif (info.external_attr >> 16) & 0o170000 == 0o120000:
                yield _Member(info.filename, 0, "link"), None
            else:
                with opened.open(info) as content:
                    yield _Member(info.filename, info.file_size, "file"), content


def _place(entry: _Member, folder: Path, strip: int, archive: Path) -> Path | None:
    """Return the path to write an entry to; None for folders and for names above `strip`.

    Folders are made when a file needs them, so empty ones are not unpacked.
    """
    # Names are judged by the rules of both systems on either one: "C:\x" and "..\x" are harmless
    # names on Linux, but an archive with them was made to attack.
    name = PurePosixPath(entry.name)
    if (
        name.is_absolute()
        or PureWindowsPath(entry.name).is_absolute()
        or PureWindowsPath(entry.name).drive
    ):
        raise _unsafe(archive, f"{entry.name!r} is an absolute path")
    if ".." in name.parts or ".." in PureWindowsPath(entry.name).parts or "\0" in entry.name:
        raise _unsafe(archive, f"{entry.name!r} leads out of the folder")
    if entry.kind == "link":
        raise _unsafe(
            archive, f"{entry.name!r} is a link" + (f" to {entry.target!r}" if entry.target else "")
        )
    if entry.kind == "other":
        raise _unsafe(archive, f"{entry.name!r} is neither a file nor a folder")
    parts = name.parts[strip:]
    return folder.joinpath(*parts) if entry.kind == "file" and parts else None


def _copy(content: IO[bytes], target: Path, most: int) -> int:
    """Write a new file, and count its bytes instead of trusting the size in the archive."""
    written = 0
    # O_EXCL: a second member of the same name must not replace the first. O_NOFOLLOW: nor may a
    # link that appeared in the folder lead elsewhere.
    with os.fdopen(
        os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666),
        "wb",
    ) as file:
        while block := content.read(_BLOCK):
            written += len(block)
            if written > most:
                raise _TooMuch
            file.write(block)
    return written


def _damaged(archive: Path, why: str) -> BenchError:
    return BenchError(
        f"{archive.name} is damaged or truncated: {why}",
        where=str(archive),
        fix="download it again",
    )


def _unsafe(archive: Path, why: str) -> BenchError:
    return BenchError(
        f"{archive.name} was not unpacked because it is not safe: {why}", where=str(archive)
    )


def _bomb(archive: Path, what: str) -> BenchError:
    return BenchError(
        f"{archive.name} was not unpacked further: it has {what}, far beyond what is expected of"
        f" {size(archive.stat().st_size)}",
        where=str(archive),
    )
