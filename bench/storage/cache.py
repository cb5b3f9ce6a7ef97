"""Results that are computed once and kept: written beside their target, synced and renamed, so that a crash leaves no half."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BenchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Called with what is being done, how many are done and how many there are.
Progress = Callable[[str, int, int], None]


@contextmanager
def in_cache(place: Path) -> Iterator[None]:
    """Read or write what is kept at `place`.

    Raises:
        BenchError: it is gone: somebody has emptied the cache meanwhile.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise BenchError(
            "the cache was emptied while it was in use",
            where=str(error.filename or place),
            fix="run the same command again: what is missing is made anew",
        ) from error


def mapped(file: Path) -> NDArray[Any]:
    """The array in a .npy file of the cache, mapped into memory.

    Raises:
        BenchError: as `in_cache`.
    """
    import numpy as np

    with in_cache(file):
        array: NDArray[Any] = np.load(file, mmap_mode="r")
    return array


def stored_folder(folder: Path, build: Callable[[Path], None], intact: Callable[[Path], bool]) -> None:
    """Make `folder` by `build(empty folder)` unless it is there and `intact`; one process builds, the others wait for it.

    Raises:
        Whatever `build` raises; nothing is kept then. BenchError: as `in_cache`.
    """
    from filelock import FileLock

    if folder.is_dir() and intact(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_cache(folder), FileLock(f"{folder}.lock"):
        if folder.is_dir():
            if intact(folder):
                return
            shutil.rmtree(folder)
        for abandoned in folder.parent.glob(f"{folder.name}.part-*"):  # of a builder that was killed: we hold its lock
            shutil.rmtree(abandoned, ignore_errors=True)
        part = folder.parent / f"{folder.name}.part-{uuid.uuid4().hex}"
        part.mkdir()
        try:
            build(part)
            for file in part.iterdir():
                sync(file)
            sync(part)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync(folder.parent)


def replace_file(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write(path)` make a file beside `file`, then put it in its place at once.

    Raises:
        BenchError: as `in_cache`.
    """
    part = file.parent / f"{file.name}.part-{uuid.uuid4().hex}"
    try:
        with in_cache(file):
            write(part)
            sync(part)
            made = part.stat().st_mtime
            part.replace(file)
            for left in file.parent.glob(f"{file.name}.part-*"):  # of a process that was killed, an hour ago on the disk's clock
                if left.stat().st_mtime < made - 3600:
                    left.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Put a text in place of `file` at once."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    replace_file(file, write)


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to disk, where the system can."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
