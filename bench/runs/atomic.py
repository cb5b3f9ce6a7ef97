"""Files that are either the old one or the new one, whatever dies in between."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from ..errors import BenchError


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once the folder entry is; some file systems refuse to sync folders, which costs only durability.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_with(path: Path, write: Callable[[Path], object], *, exclusive: bool = False) -> bool:
    """Let `write` make a file beside `path`, sync it, and put it in place in one step.

    Args:
        exclusive: keep an existing file, and say so by returning False (the first writer wins, on NFS too).

    Raises:
        BenchError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
        return True
    except OSError as error:
        raise BenchError(
            f"a file cannot be written: {error.strerror or error}",
            where=str(path),
            fix="free space or mend the permissions, then run the same command again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, exclusive: bool = False) -> bool:
    """`write_with` for a text."""
    return write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), exclusive=exclusive)
