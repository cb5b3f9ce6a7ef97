"""Index the files of an image folder: type, problems and SHA-256, cached until a file changes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from numpy.typing import NDArray
from PIL import Image

from ...errors import BenchError
from ...plain import some
from ...storage.atomic import Progress, write_with
from ...storage.files import regular, special
from ..cards.labels import ClassList
from ..pixels import image_bytes
from ..pixels.cache import available_cores
from ..pixels.image_bytes import DANGLING, OTHER, READ_ALL_THE_SAME, SPECIAL, SYSTEM, UNREADABLE
from .same_file import file_numbers

#: Columns of an index, in order.
COLUMNS = (
    "key",
    "folder",
    "size",
    "mtime_ns",
    "ctime_ns",
    "read_ns",
    "sha256",
    "format",
    "problem",
)

#: A file that was read this soon after its last change may have changed again within the resolution
#: of its time stamp (2 s on FAT), so it is read again next time.
UNSETTLED_NS = 2_000_000_000

#: Files and folders that Windows, macOS and network storage leave in datasets. They are ignored,
#: as is every name that starts with a dot.
_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"}
)


@dataclass(frozen=True)
class FileEntry:
    """A file, or a system folder, that `walk` found.

    Attributes:
        relative: POSIX path below the walked folder.
        size: bytes.
        mtime_ns: time of the last change of the content.
        ctime_ns: time of the last change of the content or the inode.
        system: whether it belongs to an operating system and is ignored.
        unreadable: why it cannot be read (`DANGLING`, `SPECIAL`), or "".
        inode: its number on disk, the same for all links to it; 0 if the system has none.
    """

    relative: str
    size: int
    mtime_ns: int
    ctime_ns: int
    system: bool
    unreadable: str = ""
    inode: int = 0


def index_folder(
    root: Path, part: str, *, cache: Path, progress: Progress | None = None
) -> pd.DataFrame:
    """Index every file below `root/part`, each once, sorted by key.

    The cached index is only a hint: a file whose size or time stamps differ from it is read again,
    and decoding compares the SHA-256 once more.

    Args:
        root: folder of the dataset.
        part: folder below `root`, or an absolute path.
        cache: folder of cached indexes.
        progress: called with the number of files read.

    Returns:
        A table with the columns `COLUMNS` and `inode`. `key` is the POSIX path relative to `root`.
        `folder` is the first folder below `part`, or "". `sha256` and `format` (by content) are ""
        for files that were not read. `problem` is "" or one of the names in `image_bytes`.
        `inode` is the number from `inodes`. A system folder is one row, without its files.

    Raises:
        BenchError: a file or folder cannot be read, or its name is not valid Unicode.
    """
    folder = root / part
    found = list(walk(folder))
    stored = cache / f"{_store_name(folder)}.parquet"
    known = _read(stored)
    rows: list[tuple[object, ...]] = []
    changed: list[FileEntry] = []
    for file in found:
        row = known.get(file.relative)
        if row is not None and _is_current(row, file):
            rows.append(row)
        else:
            changed.append(file)
    # A shorter list means that files were removed: the index is written again without them.
    if changed or len(rows) != len(known):
        rows.extend(_read_files(folder, part, changed, progress))
        _write(stored, rows)
    index = pd.DataFrame(rows, columns=["relative", *COLUMNS[1:]])
    # Not from the cache, since `walk` reads the inodes on every start anyway.
    names = [file.relative for file in found]
    numbers = inodes(folder, names, [file.size for file in found], [file.inode for file in found])
    index["inode"] = index["relative"].map(dict(zip(names, numbers.tolist(), strict=True)))
    index.insert(0, "key", key_prefix(part) + index.pop("relative").astype(str))
    return index.sort_values("key", ignore_index=True)


def inodes(
    folder: Path, relative: Sequence[str], size: Sequence[int], inode: Sequence[int]
) -> NDArray[np.int64]:
    """Return a number (N,) for every file that is the same for all links to it.

    Args:
        folder: folder that the paths are relative to.
        relative: (N,) paths.
        size: (N,) bytes.
        inode: (N,) inodes, 0 where the system has none.
    """
    known = np.array(inode, dtype=np.uint64)
    numbers = file_numbers(np.array(size, dtype=np.uint64), known)
    # Some network and FUSE file systems have no inodes. There the resolved path identifies a file,
    # which finds symbolic links but no hard links.
    for row in np.flatnonzero(known == 0).tolist():
        path = os.path.realpath(folder / relative[row]).encode()
        numbers[row] = int.from_bytes(
            hashlib.blake2b(path, digest_size=8).digest(), "little", signed=True
        )
    return numbers


def key_prefix(part: str) -> str:
    """Return the prefix of the keys of a part's files, such that `root / key` is the file."""
    # This holds for an absolute part as well, since `root / "/absolute"` is the latter.
    return "" if part in ("", ".") else part.rstrip("/") + "/"


def count_ignored(index: pd.DataFrame) -> int:
    """Return the number of files that are not images, or that are outside every class folder."""
    return int(
        (
            (index["problem"] == OTHER) | ((index["problem"] != SYSTEM) & (index["folder"] == ""))
        ).sum()
    )


def has_images(index: pd.DataFrame) -> bool:
    """Return whether any file of an index is an image, or has the suffix of one."""
    return bool((~index["problem"].isin([SYSTEM, OTHER])).any())


def class_images(
    index: pd.DataFrame, part: str, folders: Sequence[str], groups: Sequence[str] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Label the images of an index by their class folders, including unreadable ones.

    Args:
        index: result of `index_folder`.
        part: folder of the index, for messages.
        folders: (C,) names of the class folders, in label order.
        groups: names of the subfolders of every class folder, in the order of the group numbers.

    Returns:
        The rows of images, with the columns `label` and `group` (-1 without `groups`), and
        warnings about files that are left out or unusual.

    Raises:
        BenchError: class folders are missing, or folders with images are not on the card (one
            message names both), or an image is in no group's folder.
    """
    images = index[~index["problem"].isin([SYSTEM, OTHER])]
    present = sorted(set(images["folder"]) - {""})
    label_of = ClassList.plain(folders).labels_of(present, ("id",))
    found = set(label_of.values())
    missing, extra = (
        [name for label, name in enumerate(folders) if label not in found],
        sorted(set(present) - label_of.keys()),
    )
    # Both in one message, since a renamed folder shows up as one missing and one extra name.
    if missing or extra:
        raise BenchError(
            f"the class folders of {part} do not match the card. Missing or without images:"
            f" {', '.join(missing) or 'none'}. Not on the card: {', '.join(extra) or 'none'}",
            where=part,
            fix="rename or restore the folders, or fix `classes` or `source.folders` on the card",
        )
    outside = images["folder"] == ""
    labelled = images[~outside].copy()
    labelled["label"] = labelled["folder"].map(label_of).astype("int64")
    labelled["group"] = _groups(labelled, part, groups)
    return labelled.reset_index(drop=True), remarks_on(index, part) + remarks_outside(
        images[outside], part
    )


def _groups(images: pd.DataFrame, part: str, groups: Sequence[str] | None) -> pd.Series[int]:
    if groups is None:
        return pd.Series(-1, index=images.index, dtype="int64")
    depth = key_prefix(part).count("/")
    names = images["key"].str.split("/").str[depth + 1 : -1].str[0]
    numbers = names.map({name: number for number, name in enumerate(groups)})
    if numbers.isna().any():
        key = images["key"][numbers.isna()].iloc[0]
        raise BenchError(
            f"an image is not in the folder of any group ({', '.join(groups)})",
            where=key,
            fix="move the image, or fix `source.groups` on the card",
        )
    return numbers.astype("int64")


def remarks_on(index: pd.DataFrame, part: str) -> list[str]:
    """Return remarks on unusual files of an index, one sentence per kind of problem."""
    # "(ignored)" and the like mark remarks that are not differences to `bench data verify`.
    remarks = []
    for problem, note in (
        *READ_ALL_THE_SAME.items(),
        (SYSTEM, "system files (ignored)"),
        (OTHER, "files that are not images (ignored)"),
        *((problem, f"{problem}: cannot be read") for problem in UNREADABLE),
    ):
        keys = list(index["key"][index["problem"] == problem])
        if keys:
            remarks.append(f"{part}: {len(keys)} {note}: {some(keys, 3)}")
    return remarks


def remarks_outside(outside: pd.DataFrame, part: str) -> list[str]:
    """Return the remark on images outside every class folder, if there are any."""
    if outside.empty:
        return []
    return [
        f"{part}: {len(outside)} images outside every class folder (ignored):"
        f" {some(list(outside['key']), 3)}"
    ]


def walk(folder: Path, folders: dict[str, int] | None = None) -> Iterator[FileEntry]:
    """Yield all files below a folder, following links, which datasets often consist of.

    Args:
        folder: folder to walk.
        folders: filled with the modification time (ns) of every folder by its path below `folder`,
            "" for `folder` itself.

    Raises:
        BenchError: a file or folder cannot be read, or its name is not valid Unicode.
    """
    # Each pending folder has the real paths of the folders above it: a link to one of those would
    # never end. A link to a folder elsewhere is followed, even if that was visited already.
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(folder)}))]
    while pending:
        relative, above = pending.pop()
        try:
            # Taken before the folder is read: a file that is added meanwhile then changes it.
            if folders is not None:
                folders[relative] = os.stat(folder / relative).st_mtime_ns
            with os.scandir(folder / relative) as entries:
                for entry in entries:
                    name = f"{relative}/{entry.name}" if relative else entry.name
                    _check_name(name, folder)
                    system = entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES
                    try:
                        is_folder, status = entry.is_dir(), entry.stat()
                    except OSError:
                        if not entry.is_symlink():
                            raise
                        yield FileEntry(name, 0, 0, 0, system, DANGLING)
                        continue
                    if is_folder and not system:
                        real = os.path.realpath(entry.path)
                        if real not in above:
                            pending.append((name, above | {real}))
                        continue
                    times = status.st_mtime_ns, status.st_ctime_ns
                    unreadable = SPECIAL if special(status.st_mode) else ""
                    yield FileEntry(name, status.st_size, *times, system, unreadable, status.st_ino)
        except OSError as error:
            raise BenchError(
                f"the file or folder cannot be read: {error.strerror}",
                where=str(error.filename or folder / relative),
            ) from error


def _check_name(name: str, folder: Path) -> None:
    # Python decodes bytes that are not UTF-8 to surrogates, which Parquet and JSON cannot store.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BenchError(
            "the name of a file is not valid Unicode", where=f"{folder}/{name!r}", fix="rename it"
        ) from error


def _read_files(
    folder: Path, part: str, files: list[FileEntry], progress: Progress | None
) -> Iterator[tuple[object, ...]]:
    # Pillow loads its format plug-ins on first use; here once, before several threads do.
    Image.init()
    # Threads suffice: reading waits for the disk, and hashing releases the GIL.
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="index") as pool:
        for done, row in enumerate(pool.map(lambda file: _row(folder, file), files), start=1):
            yield row
            if progress is not None and (done % 64 == 0 or done == len(files)):
                progress(f"indexing {part}", done, len(files))


def _row(folder: Path, file: FileEntry) -> tuple[object, ...]:
    path = folder / file.relative
    # Before the read, for the comparison with `UNSETTLED_NS`: a change during it must not look
    # older than the read.
    read_ns = time.time_ns()
    sha256, found, problem = "", "", SYSTEM
    if file.unreadable and not file.system:
        problem = file.unreadable if image_bytes.has_image_suffix(file.relative) else OTHER
    elif not file.system:
        try:
            sha256, found, problem = _judge(path, file.relative)
        except OSError as error:
            raise BenchError(
                f"the file cannot be read: {error.strerror}", where=str(path)
            ) from error
    top = file.relative.partition("/")[0] if "/" in file.relative else ""
    return (
        file.relative,
        top,
        file.size,
        file.mtime_ns,
        file.ctime_ns,
        read_ns,
        sha256,
        found,
        problem,
    )


def _judge(path: Path, name: str) -> tuple[str, str, str]:
    """Return the SHA-256, format and problem of a file."""
    # 64 KiB tell whether a file without the suffix of an image is one. Large archives and weights
    # next to images are not read to the end.
    with regular(path).open("rb") as file:
        data = file.read(1 << 16)
        if not image_bytes.has_image_suffix(name) and image_bytes.inspect(data, name)[1] == OTHER:
            return "", "", OTHER
        data += file.read()
    found, problem = image_bytes.inspect(data, name)
    return hashlib.sha256(data).hexdigest(), found, problem


def _is_current(row: tuple[object, ...], file: FileEntry) -> bool:
    """Return whether a row of the cached index still describes a file."""
    _, _, size, mtime_ns, ctime_ns, read_ns, _, _, problem = row
    # The ctime as well: tools such as rsync set the mtime, but none can set the ctime.
    if (size, mtime_ns, ctime_ns, problem == SYSTEM) != (
        file.size,
        file.mtime_ns,
        file.ctime_ns,
        file.system,
    ):
        return False
    return int(str(read_ns)) - max(file.mtime_ns, file.ctime_ns) > UNSETTLED_NS


def _store_name(folder: Path) -> str:
    judged_by = f"{image_bytes.VERSION} {PIL.__version__}"
    return hashlib.sha256(f"{folder.absolute().as_posix()}\n{judged_by}".encode()).hexdigest()[:32]


def _read(stored: Path) -> dict[str, tuple[object, ...]]:
    try:
        table = pd.read_parquet(stored)
        rows = table[["relative", *COLUMNS[1:]]].itertuples(index=False, name=None)
        return {str(row[0]): tuple(row) for row in rows}
    # Missing, damaged, or with other columns: a cache is not worth an error.
    except (OSError, ValueError, KeyError):
        return {}


def _write(stored: Path, rows: list[tuple[object, ...]]) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=["relative", *COLUMNS[1:]])
    write_with(stored, lambda part: table.to_parquet(part, index=False))
