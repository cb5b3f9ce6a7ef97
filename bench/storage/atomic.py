"""Files that are either the old one or the new one, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..errors import BenchError

#: Seconds after which what a process was writing is taken for abandoned.
_ABANDONED = 3600.0


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to disk; some systems refuse to sync folders, which costs only durability."""
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
        exclusive: keep an existing file, and say so by returning False (the first writer wins, on NFS too).

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
        for left in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed, by the disk's clock
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
        # On a file system that has become read-only even this fails, which must not hide the error above.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, exclusive: bool = False) -> bool:
    """`write_with` for a text."""
    return write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), exclusive=exclusive)


@contextlib.contextmanager
def locked(path: Path, between: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of what `path` is to become.

    Args:
        between: called once a second while another process holds it, perhaps for many minutes; may raise to stop waiting.
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
