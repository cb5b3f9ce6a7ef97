"""Files that are either the old one or the new one, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..errors import BenchError

#: Seconds after which what a process was writing is taken for abandoned.
_ABANDONED = 3600.0


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to disk; some systems refuse to sync folders, which costs
    only durability.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_with(path: Path, write: Callable[[Path], object], *, exclusive: bool = False) -> bool:
    """Let `write` make a file beside `path`, sync it, and put it in place in one step.

    Args:
        exclusive: keep an existing file, and say so by returning False (the first writer wins, on
            NFS too).

    Raises:
        BenchError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        made = temporary.stat().st_mtime
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        else:
            os.replace(temporary, path)
        sync(path.parent)
        for left in path.parent.glob(
            f".{path.name}.*.part"
        ):  # of a process that was killed, by the disk's clock
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < made - _ABANDONED:
                    left.unlink()
        return True
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BenchError(
            f"a file cannot be written: {reason}",
            where=str(path),
            fix="free space or mend the permissions, then run the same command again",
        ) from error
    finally:
        # On a file system that has become read-only even this fails, which must not hide the error
        # above.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, exclusive: bool = False) -> bool:
    """`write_with` for a text."""
    return write_with(
        path, lambda temporary: temporary.write_text(text, encoding="utf-8"), exclusive=exclusive
    )


@contextlib.contextmanager
def locked(path: Path, between: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of what `path` is to become.

    Args:
        between: called once a second while another process holds it, perhaps for many minutes; may
            raise to stop waiting.
    """
    lock = FileLock(f"{path}.lock")
    while True:
        try:
            lock.acquire(timeout=1.0)
            break
        except Timeout:
            between()
    try:
        yield
    finally:
        lock.release()


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
    """Hold the lock of what `path` is to become; while another process does, `progress` is called,
    and may raise.
    """
    return locked(
        path,
        lambda: (
            None
            if progress is None
            else progress(f"waiting for another process, at {path.name}", 0, 1)
        ),
    )


def stored_folder(
    folder: Path,
    build: Callable[[Path], None],
    intact: Callable[[Path], bool],
    progress: Progress | None = None,
) -> None:
    """Make `folder` by `build(empty folder)` unless it is there and `intact`; one process builds,
    the others wait for it.

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
        for abandoned in folder.parent.glob(
            f"{folder.name}.part-*"
        ):  # of a builder that was killed: we hold its lock
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
