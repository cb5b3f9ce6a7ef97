"""Read files in tar archives in place, by a cached index of their offsets.

Readers such as webdataset's go through a tar from start to end. Here any image is read directly by
its offset, so that nothing has to be unpacked and samples can be in any order.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import pandas as pd
import PIL

from ...errors import BenchError, UsageError
from ...storage.atomic import Progress, write_with
from ..pixels import image_bytes
from ..pixels.image_bytes import EMPTY, SYSTEM

#: Columns of an archive's index: `within` is the inner archive that contains a file ("" for none),
#: `name` its path there.
COLUMNS: Final = ("within", "name", "offset", "size", "sha256", "format", "problem")

#: Part of the cache key; raise it when the same archive gives another index.
_VERSION: Final = 1
#: Magic numbers of compressed archives, which have no offsets to read at.
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
#: Files between two reports of progress.
_STEP: Final = 1000
#: Kinds of members that describe the next one. tarfile reads these into memory whatever their
#: size, so a header of gigabytes has to be refused before.
_HEADERS: Final = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
#: Limit of bytes in such a header. Paths in them have a few hundred.
_LONGEST_HEADER: Final = 1 << 20
#: Limit of names that a pattern with ranges expands to. ImageNet-21k has 2,048 shards.
_MOST_NAMES: Final = 100_000


class CheckedTarInfo(tarfile.TarInfo):
    """A tar member that raises on damaged or oversized headers and on a missing end mark.

    tarfile takes any block that is not a header for the end of the archive. An archive that was
    truncated between two members, or is damaged in a header, would silently lose images.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> CheckedTarInfo:
        """Parse a header block; raise ReadError if it is neither a header nor the end mark."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # A block of zeros is the end mark, which tarfile handles.
            if buf and not any(buf):
                raise
            # ReadError and not HeaderError: tarfile catches the latter and stops there.
            raise tarfile.ReadError(
                "the end mark is missing" if not buf else f"a header is invalid: {error}"
            ) from error

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and not 0 <= self.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def archives_at(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match a card's path, sorted.

    Args:
        folder: folder that a relative pattern is relative to.
        pattern: path in which `*` matches anything and `{000..127}` every number of that width.
    """
    found: set[Path] = set()
    for one in map(Path, expanded(pattern)):
        # `Path.glob` accepts relative patterns only.
        place, names = (
            (Path(one.anchor), one.relative_to(one.anchor)) if one.is_absolute() else (folder, one)
        )
        found.update(path for path in place.glob(str(names)) if path.is_file())
    return sorted(found)


def expanded(pattern: str) -> list[str]:
    """Return all names that a pattern with ranges such as `{000..127}` expands to.

    Raises:
        UsageError: there are more names than any dataset has files, or `**` occurs twice.
    """
    pieces = re.split(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}", pattern)
    spans = [
        range(int(first), int(last) + 1)
        for first, last in zip(pieces[1::3], pieces[2::3], strict=True)
    ]
    # Counted before anything is expanded: cards come from others, and two ranges of nine digits
    # would fill the memory.
    if math.prod(map(len, spans)) > _MOST_NAMES:
        raise UsageError(
            f"{pattern:.200} expands to more than {_MOST_NAMES:,} files",
            where="the dataset's card",
        )
    # Each further ** multiplies the time of a glob by the number of folders.
    if pattern.count("**") > 1:
        raise UsageError(
            f"{pattern:.200} has ** more than once",
            where="the dataset's card",
            fix="use ** once, which matches all folders",
        )
    numbers = (
        [f"{n:0{len(first)}d}" for n in span]
        for span, first in zip(spans, pieces[1::3], strict=True)
    )
    return [
        pieces[0]
        + "".join(number + text for number, text in zip(chosen, pieces[3::3], strict=True))
        for chosen in itertools.product(*numbers)
    ]


def index_archive(
    path: Path, *, read: bool, cache: Path, progress: Progress | None = None
) -> pd.DataFrame:
    """Index every file in a tar archive and in the tar archives that it contains.

    ImageNet's training images are published as an archive of one archive per class.

    Args:
        path: the archive.
        read: whether to read the files, for their SHA-256 and format; otherwise only their names
            and sizes are checked.
        cache: folder of cached indexes. An index is reused while the size and the modification
            time of the archive are unchanged.
        progress: called with the position in the archive (MiB).

    Returns:
        A table with the columns `COLUMNS`; `sha256` and `format` are "" for files that were not
        read.

    Raises:
        BenchError: the archive is compressed, damaged or truncated, or cannot be read.
    """
    status = path.stat()
    # Pillow's version as well, since it decides which files are images.
    judged_by = f"{_VERSION} {image_bytes.VERSION} {PIL.__version__} {read}"
    what = f"{path.absolute().as_posix()}\n{status.st_size} {status.st_mtime_ns}\n{judged_by}"
    stored = cache / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.archive.parquet"
    # A missing or damaged index is made again: a cache is not worth an error.
    try:
        return pd.read_parquet(stored)[list(COLUMNS)]
    except (OSError, ValueError, KeyError):
        pass
    index = pd.DataFrame(_rows(path, read, progress), columns=list(COLUMNS))
    stored.parent.mkdir(parents=True, exist_ok=True)
    write_with(stored, lambda part: index.to_parquet(part, index=False))
    return index


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Read bytes of an open file, independent of its position, so that threads can share it.

    Args:
        descriptor: file descriptor.
        offset: position of the first byte.
        size: number of bytes.

    Raises:
        EOFError: the file is shorter.
    """
    data = os.pread(descriptor, size, offset)
    # Linux reads at most 2 GiB at once, and network file systems may return less than requested.
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _rows(path: Path, read: bool, progress: Progress | None) -> Iterator[tuple[object, ...]]:
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        for magic, name in _COMPRESSED:
            if start.startswith(magic):
                raise BenchError(
                    f"an archive that is compressed with {name} cannot be read in place",
                    where=str(path),
                    fix="decompress or unpack it",
                )
        count = 0
        try:
            for within, member, offset in _members(file, 0, length, ""):
                count += 1
                if progress is not None and count % _STEP == 0:
                    progress(f"indexing {path.name}", offset >> 20, length >> 20)
                # tarfile seeks over the content, so it does not notice that the last member is
                # truncated.
                if offset + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                data = read_at(file.fileno(), offset, member.size) if read else b""
                yield (
                    within,
                    member.name,
                    offset,
                    member.size,
                    *_judged(member, data if read else None),
                )
        except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
            raise BenchError(
                f"the archive is damaged or truncated: {error}",
                where=str(path),
                fix="compare its size or checksum, and download it again if they differ",
            ) from error
        except OSError as error:
            raise BenchError(
                f"the archive cannot be read: {error.strerror}", where=str(path)
            ) from error
    if progress is not None and count >= _STEP:
        progress(f"indexing {path.name}", length >> 20, length >> 20)


def _members(
    file: IO[bytes], start: int, size: int, within: str
) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """Yield the inner archive, the member and its offset in `file` of every regular file."""
    # A buffer of one tar block: a larger one would read content of images that is then skipped.
    window = io.BufferedReader(_Window(file, start, size), 512)
    with tarfile.open(fileobj=window, mode="r:", tarinfo=CheckedTarInfo) as tar:
        for member in tar:
            # tarfile keeps every member, which takes gigabytes for a million files.
            tar.members = []  # type: ignore[attr-defined]
            # A sparse file is not contiguous, so it cannot be read by offset and size.
            if not member.isreg() or member.issparse():
                continue
            offset = start + member.offset_data
            if not member.name.isascii():
                _check_unicode(member.name, str(file.name))
            if member.name.endswith(".tar") and within:
                raise BenchError(
                    f"the archives are nested too deeply: {member.name:.200} is in {within:.200},"
                    " which is in this archive",
                    where=str(file.name),
                    fix="unpack the outer archive",
                )
            if member.name.endswith(".tar"):
                yield from _members(file, offset, member.size, member.name)
            else:
                yield within, member, offset


def _check_unicode(name: str, archive: str) -> None:
    """Raise BenchError if a name is not valid Unicode."""
    # tarfile decodes bytes that are not UTF-8 to surrogates, which neither Parquet nor a terminal
    # can write.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        what = f"the name of a file in the archive is not valid Unicode: {name!r:.200}"
        raise BenchError(
            what, where=archive, fix="unpack the archive and rename the file"
        ) from error


def _judged(member: tarfile.TarInfo, data: bytes | None) -> tuple[str, str, str]:
    """Return the SHA-256, format and problem of a file."""
    name = member.name.rpartition("/")[2]
    if name.startswith("."):
        return "", "", SYSTEM
    if problem := image_bytes.by_name(name):
        return "", "", problem
    if data is None:
        return "", "", "" if member.size else EMPTY
    return hashlib.sha256(data).hexdigest(), *image_bytes.inspect(data, name)


class _Window(io.RawIOBase):
    """A section of a file as a file of its own; reading it does not move the file's position."""

    # Nested archives are indexed while the outer one is iterated, on the same descriptor.

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._at = file.fileno(), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(min(len(buffer), self._size - self._at), 0)
        data = os.pread(self._descriptor, count, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def require_some(files: Sequence[Path], pattern: str, folder: Path) -> None:
    """Raise BenchError if some shards of a pattern exist and others are missing.

    Args:
        files: shards that were found.
        pattern: the card's path.
        folder: folder that the pattern is relative to.
    """
    # None at all is another case: the layout is not on disk, and the next one is tried.
    expected = [name for name in expanded(pattern) if "*" not in name]
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing and files:
        raise BenchError(
            f"{len(missing)} of {len(expected)} shards are missing: {', '.join(missing[:3])}",
            where=str(folder),
        )
