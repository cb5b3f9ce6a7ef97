"""Results that are computed once and kept, in a cache that anybody may empty at any time."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import BenchError
from .atomic import locked, sync

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


def made_by_one(path: Path, progress: Progress | None) -> AbstractContextManager[None]:
    """Hold the lock of what `path` is to become; while another process does, `progress` is called, and may raise."""
    return locked(path, lambda: None if progress is None else progress(f"waiting for another process, at {path.name}", 0, 1))


def stored_folder(
    folder: Path, build: Callable[[Path], None], intact: Callable[[Path], bool], progress: Progress | None = None
) -> None:
    """Make `folder` by `build(empty folder)` unless it is there and `intact`; one process builds, the others wait for it.

    Args:
        progress: called while another process builds; may raise to stop waiting.

    Raises:
        Whatever `build` raises; nothing is kept then. BenchError: as `in_cache`.
    """
    if folder.is_dir() and intact(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_cache(folder), made_by_one(folder, progress):
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
