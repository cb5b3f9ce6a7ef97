"""Tar archives read in place: where every file lies in them, remembered, so that nothing has to be
unpacked.

Readers such as webdataset's go through a tar from its begin to its end; here any image is read at
once, by its offset.
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

#: Columns of an archive's index: `within` is the inner archive that a file lies in ("" for none),
#: `name` its path there.
COLUMNS: Final = ("within", "name", "offset", "size", "sha256", "format", "problem")

_VERSION: Final = 1
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_STEP: Final = 1000
#: Kinds of members that tarfile reads whole, since they describe the next one, and their bytes at
#: most.
_HEADERS: Final = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_LONGEST_HEADER: Final = 1 << 20
#: Texts that a pattern with ranges may stand for: ImageNet-21k has 2,048 shards.
_MOST_TEXTS: Final = 100_000


class CheckedTarInfo(tarfile.TarInfo):
    """A member of an archive that ends with its end mark, and whose long names and further headers
    are short enough to be read into memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> CheckedTarInfo:
        """The header in a block. tarfile takes whatever is none for the archive's end: an archive
        that was cut off between two members, or is damaged in one of their headers, would lose
        images without a word.
        """
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise
            raise tarfile.ReadError(
                "it has no end mark" if not buf else f"a header is none: {error}"
            ) from error

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and not 0 <= self.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def archives_at(folder: Path, pattern: str) -> list[Path]:
    """The files that a card's path names: `*` stands for anything, `{000..127}` for every number of
    as many digits.
    """
    found: set[Path] = set()
    for one in map(Path, expanded(pattern)):
        place, names = (
            (Path(one.anchor), one.relative_to(one.anchor)) if one.is_absolute() else (folder, one)
        )
        found.update(path for path in place.glob(str(names)) if path.is_file())
    return sorted(found)


def expanded(pattern: str) -> list[str]:
    """Every text that a pattern with ranges such as `{000..127}` stands for.

    Raises:
        UsageError: there are more than any data set has files.
    """
    pieces = re.split(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}", pattern)
    spans = [
        range(int(first), int(last) + 1)
        for first, last in zip(pieces[1::3], pieces[2::3], strict=True)
    ]
    if math.prod(map(len, spans)) > _MOST_TEXTS:
        raise UsageError(
            f"{pattern:.200} stands for more than {_MOST_TEXTS:,} files",
            where="the data set's card",
        )
    if pattern.count("**") > 1:
        raise UsageError(
            f"{pattern:.200} has ** more than once",
            where="the data set's card",
            fix="** once stands for all folders",
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
    """Every file in a tar archive and in the tar archives in it (ImageNet's training images lie so,
    an archive per class).

    Args:
        read: whether the files are read, for their SHA-256 and format; otherwise they are judged by
            name and size.
        cache: folder of remembered indexes. One is believed while size and time stamp of the
            archive are the same.

    Returns:
        The columns `COLUMNS`; `sha256` and `format` are "" for files that were not read.

    Raises:
        BenchError: the archive is compressed, damaged or truncated, or cannot be read.
    """
    status = path.stat()
    judged_by = f"{_VERSION} {image_bytes.VERSION} {PIL.__version__} {read}"
    what = f"{path.absolute().as_posix()}\n{status.st_size} {status.st_mtime_ns}\n{judged_by}"
    stored = cache / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.archive.parquet"
    try:
        return pd.read_parquet(stored)[list(COLUMNS)]
    except (OSError, ValueError, KeyError):
        pass
    index = pd.DataFrame(_rows(path, read, progress), columns=list(COLUMNS))
    stored.parent.mkdir(parents=True, exist_ok=True)
    write_with(stored, lambda part: index.to_parquet(part, index=False))
    return index


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Bytes of an open file, whatever other threads read from it.

    Raises:
        EOFError: the file is shorter.
    """
    data = os.pread(descriptor, size, offset)
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
                    f"an archive compressed with {name} cannot be read in place",
                    where=str(path),
                    fix="decompress or unpack it",
                )
        count = 0
        try:
            for within, member, offset in _members(file, 0, length, ""):
                count += 1
                if progress is not None and count % _STEP == 0:
                    progress(f"indexing {path.name}", offset >> 20, length >> 20)
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
                fix="compare its size or checksum; get it again",
            ) from error
        except OSError as error:
            raise BenchError(f"it cannot be read: {error.strerror}", where=str(path)) from error
    if progress is not None and count >= _STEP:
        progress(f"indexing {path.name}", length >> 20, length >> 20)


def _members(
    file: IO[bytes], start: int, size: int, within: str
) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    window = io.BufferedReader(_Window(file, start, size), 512)
    with tarfile.open(fileobj=window, mode="r:", tarinfo=CheckedTarInfo) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member: gigabytes for a million files
            if not member.isreg() or member.issparse():
                continue
            offset = start + member.offset_data
            if not member.name.isascii():
                _check_unicode(member.name, str(file.name))
            if member.name.endswith(".tar") and within:
                raise BenchError(
                    f"{member.name:.200} lies in {within:.200}, and archives in archives in"
                    " archives are not read",
                    where=str(file.name),
                    fix="unpack the outer one",
                )
            if member.name.endswith(".tar"):
                yield from _members(file, offset, member.size, member.name)
            else:
                yield within, member, offset


def _check_unicode(name: str, archive: str) -> None:
    """tarfile keeps bytes that are no UTF-8 as halves of letters, which no table and no terminal
    takes.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        what = f"the name of a file in it is not valid Unicode: {name!r:.200}"
        raise BenchError(what, where=archive, fix="unpack it, and rename the file") from error


def _judged(member: tarfile.TarInfo, data: bytes | None) -> tuple[str, str, str]:
    """SHA-256, format and problem of a file."""
    name = member.name.rpartition("/")[2]
    if name.startswith("."):
        return "", "", SYSTEM
    if problem := image_bytes.by_name(name):
        return "", "", problem
    if data is None:
        return "", "", "" if member.size else EMPTY
    return hashlib.sha256(data).hexdigest(), *image_bytes.inspect(data, name)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own; reading it does not move the file."""

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
    """Raise BenchError if a pattern of shards leaves gaps: a missing shard is missing images."""
    wanted = [name for name in expanded(pattern) if "*" not in name]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing and files:
        raise BenchError(
            f"{len(missing)} of {len(wanted)} shards are missing: {', '.join(missing[:3])}",
            where=str(folder),
        )
