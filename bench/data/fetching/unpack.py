"""Unpack a downloaded archive that is not trusted: never outside the folder, no links, no more than
was to be expected.

The standard library's filters bound no sizes and follow links that stay below the folder, and know
tar archives alone.
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

_MOST_FILES: Final = 5_000_000
_BLOCK: Final = 1 << 20


#: What reading a damaged archive may raise, beside an OSError without a number.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError,
    ValueError, OverflowError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class _Entry:
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
    """Unpack into `folder`, which has to be empty or new, and count the files.

    Names that are absolute or lead out of the folder, links and devices refuse the whole archive;
    an image data set has no use for them. Files get the permissions of new files and the time of
    now.

    Args:
        strip: leading folders of every name that are left out; files that lie higher are, too.
        unpacked_bytes: what the archive should hold; a tenth more is too much. Default: twenty
            times its own size.

    Raises:
        BenchError: the archive is damaged or truncated, unsafe, or larger than it may be. What was
            unpacked stays.
    """
    most = round(1.1 * unpacked_bytes) if unpacked_bytes else most_unpacked(archive)
    files, written = 0, 0
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
        if error.errno is None:  # gzip and bz2 report damage so; the system always gives a number
            raise _damaged(archive, str(error)) from error
        raise BenchError(
            f"{archive.name} cannot be unpacked: {error.strerror}",
            where=str(error.filename or folder),
            fix="mend that, and run again",
        ) from error
    if progress is not None:
        progress(f"unpacking {archive.name}", files, files)
    return files


class _TooMuch(Exception):
    pass


def _tar(archive: Path) -> Iterator[tuple[_Entry, IO[bytes] | None]]:
    with tarfile.open(archive, "r:*", tarinfo=CheckedTarInfo) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member: gigabytes for a million files
            kind: Literal["file", "folder", "link", "other"] = "other"
            if member.isreg():
                kind = "file"
            elif member.isdir():
                kind = "folder"
            elif member.issym() or member.islnk():
                kind = "link"
            yield (
                _Entry(member.name, member.size, kind, member.linkname),
                (tar.extractfile(member) if kind == "file" else None),
            )


def _zip(archive: Path) -> Iterator[tuple[_Entry, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if info.flag_bits & 1:
                raise zipfile.BadZipFile("it is encrypted")
            if info.is_dir():
                yield _Entry(info.filename, 0, "folder"), None
            elif (info.external_attr >> 16) & 0o170000 == 0o120000:
                yield _Entry(info.filename, 0, "link"), None
            else:
                with opened.open(info) as content:
                    yield _Entry(info.filename, info.file_size, "file"), content


def _place(entry: _Entry, folder: Path, strip: int, archive: Path) -> Path | None:
    """Where an entry goes; None if it goes nowhere (a folder, or a name of no more than `strip`
    parts).
    """
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
    """Write a new file; the bytes are counted, whatever the archive says that there are."""
    written = 0
    # Exclusive: a second file of the same name would replace the first.
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
        f"{archive.name} is not unpacked, since it is not safe: {why}", where=str(archive)
    )


def _bomb(archive: Path, what: str) -> BenchError:
    return BenchError(
        f"{archive.name} is not unpacked further: it holds {what}, far beyond what its"
        f" {size(archive.stat().st_size)} should",
        where=str(archive),
    )
