"""The index of an image folder: what every file is and its SHA-256, remembered so that only changed
files are read again.
"""

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

#: A file read this soon after its last change may change again without a new time stamp; it is not
#: believed next time.
UNSETTLED_NS = 2_000_000_000

_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"}
)


@dataclass(frozen=True)
class Found:
    """A file, or a system folder: its POSIX path below the folder, bytes, time stamps, whether it
    belongs to a system, why it is none that can be read (`DANGLING`, `SPECIAL`), and the number
    that it has on disk, whatever names lead to it.
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
    """Every file below `root/part`, each once, sorted by key.

    The index is kept below `cache` and is a hint only: a file whose size or time stamps differ from
    it is read again, and the decoder compares the SHA-256 once more.

    Returns:
        The columns `COLUMNS` and `inode`: `key` is the POSIX path relative to `root`; `folder` the
            first folder below `part`
        ("" for a file that lies in none); `sha256` and `format` (by content) are "" for files that
            were not read; `problem` is
        "" or one of the names in `image_bytes`; `inode` is as of `inodes`. A system folder is one
            row; its files are not
        looked at.

    Raises:
        BenchError: a file or folder cannot be read, or its name is not valid Unicode.
    """
    folder = root / part
    found = list(walk(folder))
    stored = cache / f"{_store_name(folder)}.parquet"
    known = _read(stored)
    rows: list[tuple[object, ...]] = []
    changed: list[Found] = []
    for file in found:
        row = known.get(file.relative)
        if row is not None and _believed(row, file):
            rows.append(row)
        else:
            changed.append(file)
    if changed or len(rows) != len(known):
        rows.extend(_read_files(folder, part, changed, progress))
        _write(stored, rows)
    index = pd.DataFrame(rows, columns=["relative", *COLUMNS[1:]])
    names = [file.relative for file in found]
    numbers = inodes(folder, names, [file.size for file in found], [file.inode for file in found])
    index["inode"] = index["relative"].map(dict(zip(names, numbers.tolist(), strict=True)))
    index.insert(0, "key", key_prefix(part) + index.pop("relative").astype(str))
    return index.sort_values("key", ignore_index=True)


def inodes(
    folder: Path, relative: Sequence[str], size: Sequence[int], inode: Sequence[int]
) -> NDArray[np.int64]:
    """A number for every file, the same for all its names; a system that has none to give (0) knows
    a file by its path.
    """
    known = np.array(inode, dtype=np.uint64)
    numbers = file_numbers(np.array(size, dtype=np.uint64), known)
    for row in np.flatnonzero(known == 0).tolist():
        path = os.path.realpath(folder / relative[row]).encode()
        numbers[row] = int.from_bytes(
            hashlib.blake2b(path, digest_size=8).digest(), "little", signed=True
        )
    return numbers


def key_prefix(part: str) -> str:
    """What the keys of a part's files begin with: `root / key` is the file, also where the part is
    an absolute path.
    """
    return "" if part in ("", ".") else part.rstrip("/") + "/"


def count_ignored(index: pd.DataFrame) -> int:
    """How many files of class folders are no images, or lie in no class's folder."""
    return int(
        (
            (index["problem"] == OTHER) | ((index["problem"] != SYSTEM) & (index["folder"] == ""))
        ).sum()
    )


def has_images(index: pd.DataFrame) -> bool:
    """Whether any file of an index is, or claims to be, an image."""
    return bool((~index["problem"].isin([SYSTEM, OTHER])).any())


def class_images(
    index: pd.DataFrame, part: str, folders: Sequence[str], groups: Sequence[str] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """The images of an index with their labels, unreadable ones included, and warnings on what is
    left out.

    Args:
        index: of `index_folder`.
        part: folder of the index, for messages.
        folders: name of each class's folder, in label order.
        groups: names of the subfolders of every class folder, in the order of the group numbers.

    Returns:
        The index's image rows with the columns `label` and `group` (-1 without `groups`), and
            sentences for the user.

    Raises:
        BenchError: class folders are missing, or hold images without being on the card (both named
            in one message), or a group's folder is not on the card.
    """
    images = index[~index["problem"].isin([SYSTEM, OTHER])]
    present = sorted(set(images["folder"]) - {""})
    label_of = ClassList.plain(folders).labels_of(present, ("id",))
    found = set(label_of.values())
    missing, extra = (
        [name for label, name in enumerate(folders) if label not in found],
        sorted(set(present) - label_of.keys()),
    )
    if missing or extra:
        raise BenchError(
            f"the class folders of {part} do not match the card; missing or without images:"
            f" {', '.join(missing) or 'none'}; not on the card: {', '.join(extra) or 'none'}",
            where=part,
            fix="rename or restore the folders, or mend `classes` or `source.folders` on the card",
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
            f"an image lies in no group's folder ({', '.join(groups)})",
            where=key,
            fix="mend `source.groups`",
        )
    return numbers.astype("int64")


def remarks_on(index: pd.DataFrame, part: str) -> list[str]:
    """What the user should know about the files of an index, a sentence per kind of problem."""
    remarks = []
    for problem, note in (
        *READ_ALL_THE_SAME.items(),
        (SYSTEM, "system files (ignored)"),
        (OTHER, "files that are no images (ignored)"),
        *((problem, f"{problem}: cannot be read") for problem in UNREADABLE),
    ):
        keys = list(index["key"][index["problem"] == problem])
        if keys:
            remarks.append(f"{part}: {len(keys)} {note}: {some(keys, 3)}")
    return remarks


def remarks_outside(outside: pd.DataFrame, part: str) -> list[str]:
    """Of the images that lie in no class folder."""
    if outside.empty:
        return []
    return [
        f"{part}: {len(outside)} images outside every class folder (ignored):"
        f" {some(list(outside['key']), 3)}"
    ]


def walk(folder: Path, folders: dict[str, int] | None = None) -> Iterator[Found]:
    """All files; links are followed (data sets are often linked together), each real folder only
    once on a path.

    Args:
        folders: filled with the modification time of every folder by its path below `folder` (""
            for itself).

    Raises:
        BenchError: a file or folder cannot be read, or its name is not valid Unicode.
    """
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(folder)}))]
    while pending:
        relative, above = pending.pop()
        try:
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
                        yield Found(name, 0, 0, 0, system, DANGLING)
                        continue
                    if is_folder and not system:
                        real = os.path.realpath(entry.path)
                        if real not in above:
                            pending.append((name, above | {real}))
                        continue
                    times = status.st_mtime_ns, status.st_ctime_ns
                    unreadable = SPECIAL if special(status.st_mode) else ""
                    yield Found(name, status.st_size, *times, system, unreadable, status.st_ino)
        except OSError as error:
            raise BenchError(
                f"it cannot be read: {error.strerror}",
                where=str(error.filename or folder / relative),
            ) from error


def _check_name(name: str, folder: Path) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BenchError(
            "the name of a file is not valid Unicode", where=f"{folder}/{name!r}", fix="rename it"
        ) from error


def _read_files(
    folder: Path, part: str, files: list[Found], progress: Progress | None
) -> Iterator[tuple[object, ...]]:
    Image.init()  # loads the format plug-ins before several threads do
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="index") as pool:
        for done, row in enumerate(pool.map(lambda file: _row(folder, file), files), start=1):
            yield row
            if progress is not None and (done % 64 == 0 or done == len(files)):
                progress(f"indexing {part}", done, len(files))


def _row(folder: Path, file: Found) -> tuple[object, ...]:
    path = folder / file.relative
    read_ns = time.time_ns()
    sha256, found, problem = "", "", SYSTEM
    if file.unreadable and not file.system:
        problem = file.unreadable if image_bytes.has_image_suffix(file.relative) else OTHER
    elif not file.system:
        try:
            sha256, found, problem = _judge(path, file.relative)
        except OSError as error:
            raise BenchError(f"it cannot be read: {error.strerror}", where=str(path)) from error
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
    """SHA-256, format and problem of a file; one that neither by its name nor by its first bytes is
    an image is not hashed.
    """
    with regular(path).open("rb") as file:
        data = file.read(1 << 16)
        if not image_bytes.has_image_suffix(name) and image_bytes.inspect(data, name)[1] == OTHER:
            return "", "", OTHER
        data += file.read()
    found, problem = image_bytes.inspect(data, name)
    return hashlib.sha256(data).hexdigest(), found, problem


def _believed(row: tuple[object, ...], file: Found) -> bool:
    _, _, size, mtime_ns, ctime_ns, read_ns, _, _, problem = row
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
    except (
        OSError,
        ValueError,
        KeyError,
    ):  # none yet, damaged, or of other columns: a cache is not worth an error
        return {}


def _write(stored: Path, rows: list[tuple[object, ...]]) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=["relative", *COLUMNS[1:]])
    write_with(stored, lambda part: table.to_parquet(part, index=False))
