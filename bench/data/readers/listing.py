"""The listing of an image folder: names and sizes of its files, none of which is opened; remembered
where they are many.
"""

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

#: From this many files on, a listing is believed while no folder in it has changed; below, every
#: file is looked at each time.
TRUSTED_FROM: Final = 100_000

_VERSION = 2


@dataclass(frozen=True)
class Listing:
    """The files below a folder, each once.

    Attributes:
        stamp: what the listing is known by while it is believed without looking at every file; ""
            for a small one.
    """

    stamp: str
    _table: pa.Table | Path

    def frame(self) -> pd.DataFrame:
        """The columns of `folder.index_folder` with `sha256` and `format` empty, sorted by key."""
        if isinstance(self._table, Path):
            with in_cache(self._table):
                table = pq.read_table(self._table)
        else:
            table = self._table
        frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(split_blocks=True)
        return frame.assign(read_ns=0, sha256="", format="")[[*COLUMNS, "inode"]]


def list_folder(
    root: Path, part: str, *, cache: Path, progress: Progress | None = None, refresh: bool = False
) -> Listing:
    """Every file below `root/part`, judged by its name and size alone.

    A folder's time stamp changes when a file is added, removed or renamed in it, and not when one
    is overwritten in place. So a large remembered listing does not notice the latter: reading the
    image does if its size is another, `refresh` always does.

    Args:
        cache: folder of remembered listings.
        refresh: look at every file, whatever is remembered.

    Raises:
        BenchError: a folder cannot be read, or a name is not valid Unicode.
    """
    folder = root / part
    name = hashlib.sha256(
        f"{root.absolute().as_posix()}\n{part}\n{image_bytes.VERSION} {_VERSION}".encode()
    ).hexdigest()[:32]
    stored = cache / f"{name}.listing.parquet"
    listed_ns = None if refresh else _remembered(stored, folder)
    if listed_ns is None:
        table, folders = _list(folder, part, progress)
        if table.num_rows < TRUSTED_FROM:
            return Listing("", table)
        listed_ns = _write(stored, table, folders)
    return Listing(f"{name} {listed_ns}", stored)


def _list(folder: Path, part: str, progress: Progress | None) -> tuple[pa.Table, dict[str, int]]:
    """The files, sorted by name, and the time stamp of every folder, taken before it was read."""
    prefix = key_prefix(part)
    folders: dict[str, int] = {}
    relative: list[str] = []
    classes: list[str] = []
    numbers: tuple[list[int], ...] = ([], [], [], [])
    problems: list[str] = []
    for file in walk(folder, folders):
        relative.append(file.relative)
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


def _remembered(stored: Path, folder: Path) -> int | None:
    """When the remembered listing was made (ns) if there is one, and every folder in it is as it
    was.
    """
    try:
        metadata = pq.read_schema(stored).metadata
        known: dict[str, Any] = json.loads(metadata[b"folders"])
        listed_ns = int(metadata[b"listed_ns"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # none yet, or damaged: a cache is not worth an error
        return None
    for relative, mtime_ns in known.items():
        try:
            now = os.stat(folder / relative).st_mtime_ns
        except OSError:
            return None
        if now != mtime_ns or listed_ns - now < UNSETTLED_NS:
            return None
    return listed_ns


def _write(stored: Path, table: pa.Table, folders: dict[str, int]) -> int:
    stored.parent.mkdir(parents=True, exist_ok=True)
    listed_ns = time.time_ns()
    about = {"folders": json.dumps(folders), "listed_ns": str(listed_ns)}
    write_with(stored, lambda part: pq.write_table(table.replace_schema_metadata(about), part))
    return listed_ns
