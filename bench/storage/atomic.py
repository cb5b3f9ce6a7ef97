"""Write files and folders atomically, and build shared cache entries once."""

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

#: Seconds after which a temporary file counts as abandoned by a killed process. Nothing that we
#: write takes an hour, and deleting the file of a live writer would fail its rename.
_ABANDONED = 3600.0


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    # Some systems refuse to open or sync a folder. That costs durability after a power failure, but
    # never atomicity, so it is no reason to fail.
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
    """Write a file under a temporary name, sync it, and move it to `path` in one step.

    Readers see the old file or the new one, never a part, even if this process is killed.

    Args:
        path: the file to write; its folder is created.
        write: writes the content to the path that it is given.
        exclusive: leave an existing file as it is (the first writer wins, on NFS too).

    Returns:
        Whether the file was written; False only with `exclusive`.

    Raises:
        BenchError: the disk is full or the folder is not writable; nothing is left behind.
    """
    # The temporary file is next to `path`, since a rename is atomic only within a file system. Its
    # name is unique, since two processes may write the same file at the same time.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        # Content before name: after a power failure the new name must not refer to an empty file.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        written_at = temporary.stat().st_mtime
        if exclusive:
            # A hard link fails if the name exists, also on file systems (older NFS) where O_EXCL is
            # not atomic, and unlike O_EXCL it never shows a half-written file.
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        else:
            os.replace(temporary, path)
        sync(path.parent)
        # Remove what killed processes left. Both times are the file system's own, since the clock
        # of a file server may differ from ours.
        for leftover in path.parent.glob(f".{path.name}.*.part"):
            with contextlib.suppress(FileNotFoundError):
                if leftover.stat().st_mtime < written_at - _ABANDONED:
                    leftover.unlink()
        return True
    # The safetensors library reports a full disk as an error of its own.
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BenchError(
            f"cannot write a file: {reason}",
            where=str(path),
            fix="free disk space or fix the permissions, then run the same command again",
        ) from error
    finally:
        # This fails too if the file system has become read-only, which must not hide the error
        # above.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, exclusive: bool = False) -> bool:
    """Write a UTF-8 text file atomically; see `write_with`."""
    return write_with(
        path, lambda temporary: temporary.write_text(text, encoding="utf-8"), exclusive=exclusive
    )


@contextlib.contextmanager
def locked(path: Path, between: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `<path>.lock` while `path` is being built.

    Args:
        path: the file or folder to build, which need not exist yet.
        between: called once a second while another process holds the lock, perhaps for many
            minutes; may raise to stop waiting.
    """
    # A lock of the operating system ends with its process, so a killed builder blocks nobody. It
    # guards caches only: what must survive a stalled owner is guarded by a `Lease`.
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


#: Called with what is being done, the number of items done, and their total number.
Progress = Callable[[str, int, int], None]


@contextmanager
def in_cache(place: Path) -> Iterator[None]:
    """Turn a file that disappears inside the `with` block into an error that names the cause.

    Args:
        place: the file or folder in the cache, reported if the error names no file.

    Raises:
        BenchError: a cached file was deleted by another process in the meantime.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise BenchError(
            "the cache was emptied while it was in use",
            where=str(error.filename or place),
            fix="run the same command again: it rebuilds what is missing",
        ) from error


def mapped(file: Path) -> NDArray[Any]:
    """Return the array in a cached .npy file, memory-mapped and read-only.

    Raises:
        BenchError: the file was deleted; see `in_cache`.
    """
    # Imported here, since commands that print only help should not wait for NumPy.
    import numpy as np

    with in_cache(file):
        array: NDArray[Any] = np.load(file, mmap_mode="r")
    return array


def made_by_one(path: Path, progress: Progress | None) -> AbstractContextManager[None]:
    """Hold the lock of `path` as `locked` does, and report to `progress` while waiting.

    Args:
        path: the file or folder to build.
        progress: called once a second while another process holds the lock; may raise to stop.
    """

    def report() -> None:
        if progress is not None:
            progress(f"waiting for another process, at {path.name}", 0, 1)

    return locked(path, report)


def cached_folder(
    folder: Path,
    build: Callable[[Path], None],
    intact: Callable[[Path], bool],
    progress: Progress | None = None,
) -> None:
    """Build a cached folder unless it exists and is intact; one process builds, the others wait.

    Args:
        folder: where the result is saved.
        build: fills the empty folder that it is given. What it raises is passed on, and nothing is
            saved.
        intact: whether an existing folder is complete.
        progress: called while another process builds; may raise to stop waiting.

    Raises:
        BenchError: the cache was emptied in the meantime; see `in_cache`.
    """
    # The common case takes no lock, so that readers do not queue behind each other.
    if folder.is_dir() and intact(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_cache(folder), made_by_one(folder, progress):
        # Another process may have built it while this one waited for the lock.
        if folder.is_dir():
            if intact(folder):
                return
            shutil.rmtree(folder)
        # Whoever wrote these held the lock that we hold now, so it was killed.
        for abandoned in folder.parent.glob(f"{folder.name}.part-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        part = folder.parent / f"{folder.name}.part-{uuid.uuid4().hex}"
        part.mkdir()
        try:
            build(part)
            # On disk before the rename: a folder under its final name counts as complete.
            for file in part.iterdir():
                sync(file)
            sync(part)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync(folder.parent)
