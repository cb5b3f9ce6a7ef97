"""List the files of an image folder by name and size, without opening them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ...storage.atomic import Progress, in_cache, write_with
from ..pixels import image_bytes
from ..pixels.image_bytes import EMPTY, SYSTEM
from .folder import COLUMNS, UNSETTLED_NS, inodes, key_prefix, walk

#: A listing of at least this many files is cached and reused while no folder in it has changed.
#: Below, listing takes about a second, so every file is checked each time.
TRUSTED_FROM: Final = 100_000

#: Part of the cache key; raise it when the same folder gives another listing.
_VERSION = 2


@dataclass(frozen=True)
class Listing:
    """The files below a folder, each once.

    Attributes:
        stamp: identifies a cached listing; "" for a small one, which is not cached.
    """

    # A path stands for a cached table that is only read when the frame is requested: what follows
    # from it is usually cached as well (see `index_cache`).

    stamp: str
    _table: pa.Table | Path

    def frame(self) -> pd.DataFrame:
        """Return a table as `folder.index_folder` does, with `sha256` and `format` empty."""
        if isinstance(self._table, Path):
            with in_cache(self._table):
                table = pq.read_table(self._table)
        else:
            table = self._table
        # Blocks of columns are not merged, which would copy a million rows once more.
        frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(split_blocks=True)
        return frame.assign(read_ns=0, sha256="", format="")[[*COLUMNS, "inode"]]


def list_folder(
    root: Path, part: str, *, cache: Path, progress: Progress | None = None, refresh: bool = False
) -> Listing:
    """List every file below `root/part`, classified by its name and size alone.

    A folder's time stamp changes when a file in it is added, removed or renamed, but not when one
    is overwritten in place. A large cached listing does not notice the latter. Reading the image
    does if its size has changed; `refresh` always does.

    Args:
        root: folder of the dataset.
        part: folder below `root`, or an absolute path.
        cache: folder of cached listings.
        progress: called with the number of files listed.
        refresh: check every file and ignore the cached listing.

    Raises:
        BenchError: a folder cannot be read, or a name is not valid Unicode.
    """
    folder = root / part
    name = hashlib.sha256(
        f"{root.absolute().as_posix()}\n{part}\n{image_bytes.VERSION} {_VERSION}".encode()
    ).hexdigest()[:32]
    stored = cache / f"{name}.listing.parquet"
    listed_ns = None if refresh else _cached(stored, folder)
    if listed_ns is None:
        table, folders = _list(folder, part, progress)
        if table.num_rows < TRUSTED_FROM:
            return Listing("", table)
        listed_ns = _write(stored, table, folders)
    return Listing(f"{name} {listed_ns}", stored)


def _list(folder: Path, part: str, progress: Progress | None) -> tuple[pa.Table, dict[str, int]]:
    """Return the files, sorted by key, and the time stamp of every folder before it was read."""
    # Columns of Python lists instead of rows: a million tuples would take several times the memory.
    prefix = key_prefix(part)
    folders: dict[str, int] = {}
    relative: list[str] = []
    classes: list[str] = []
    numbers: tuple[list[int], ...] = ([], [], [], [])
    problems: list[str] = []
    for file in walk(folder, folders):
        relative.append(file.relative)
        # Interned, as a million files share a thousand names of folders.
        classes.append(sys.intern(file.relative.partition("/")[0]) if "/" in file.relative else "")
        for values, value in zip(
            numbers, (file.size, file.mtime_ns, file.ctime_ns, file.inode), strict=True
        ):
            values.append(value)
        problem = SYSTEM if file.system else image_bytes.by_name(file.relative)
        problems.append((file.unreadable or EMPTY) if not file.size and not problem else problem)
        if progress is not None and len(relative) % 10_000 == 0:
            progress(f"listing {part}", len(relative), 0)
    if progress is not None and len(relative) >= TRUSTED_FROM:
        progress(f"listing {part}", len(relative), len(relative))
    size, mtime_ns, ctime_ns = (np.array(values, dtype=np.int64) for values in numbers[:3])
    table = pa.table(
        {
            "key": [prefix + name for name in relative],
            "folder": classes,
            "size": size,
            "mtime_ns": mtime_ns,
            "ctime_ns": ctime_ns,
            "inode": inodes(folder, relative, numbers[0], numbers[3]),
            "problem": problems,
        }
    )
    return table.sort_by("key"), folders


def _cached(stored: Path, folder: Path) -> int | None:
    """Return the time (ns) of the cached listing, or None if it is missing or a folder changed."""
    try:
        metadata = pq.read_schema(stored).metadata
        known: dict[str, Any] = json.loads(metadata[b"folders"])
        listed_ns = int(metadata[b"listed_ns"])
    # Missing or damaged: a cache is not worth an error.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for relative, mtime_ns in known.items():
        try:
            now = os.stat(folder / relative).st_mtime_ns
        except OSError:
            return None
        # A folder that was listed right after its change may have changed again unnoticed, within
        # the resolution of its time stamp.
        if now != mtime_ns or listed_ns - now < UNSETTLED_NS:
            return None
    return listed_ns


def _write(stored: Path, table: pa.Table, folders: dict[str, int]) -> int:
    stored.parent.mkdir(parents=True, exist_ok=True)
    listed_ns = time.time_ns()
    # In the Parquet file's metadata, which is read without the table, and cannot get out of step
    # with it.
    about = {"folders": json.dumps(folders), "listed_ns": str(listed_ns)}
    write_with(stored, lambda part: pq.write_table(table.replace_schema_metadata(about), part))
    return listed_ns
