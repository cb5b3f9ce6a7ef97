"""Read images that are sections of larger files, such as members of a tar archive."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BenchError
from ..collection import EncodedOriginals, unchanged
from .archive import read_at


@dataclass(eq=False)
class ShardImages(EncodedOriginals):
    """Images that are sections of files: image i is `sizes[i]` bytes at `offsets[i]` of a file.

    Attributes:
        files: (F,) the files.
        file: (N,) index in `files` of every image.
        offsets: (N,) bytes.
        sizes: (N,) bytes.
        keys: (N,) names of the images, for messages.
        content: (N,) their SHA-256; None if only size and time stamp of the file are compared.
        pre_crop: pixels to cut from every side.
    """

    files: Sequence[Path]
    file: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.str_]
    content: NDArray[np.str_] | None
    pre_crop: int = 0
    # Of the time of indexing. Offsets in a file that was replaced since would be of other images.
    _stamps: list[tuple[int, int]] = field(default_factory=list)
    _descriptors: dict[int, int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._stamps = [stamp(os.stat(file)) for file in self.files]

    def data(self, row: int) -> bytes:
        """See `EncodedOriginals`."""
        number = int(self.file[row])
        try:
            data = read_at(self._descriptor(number), int(self.offsets[row]), int(self.sizes[row]))
        except OSError as error:
            raise BenchError(
                f"the file cannot be read: {error.strerror}", where=str(self.files[number])
            ) from error
        # The file became shorter, which `unchanged` reports by the size.
        except EOFError:
            data = b""
        content = None if self.content is None else str(self.content[row])
        return unchanged(data, int(self.sizes[row]), content, where=self.place(row))

    def ends(self, row: int, size: int) -> bytes:
        """See `EncodedOriginals`."""
        number, offset, whole = (
            int(values[row]) for values in (self.file, self.offsets, self.sizes)
        )
        # The two sections do not overlap: the second starts after the first in a small image.
        last = max(min(size, whole), whole - size)
        try:
            descriptor = self._descriptor(number)
            return read_at(descriptor, offset, min(size, whole)) + read_at(
                descriptor, offset + last, whole - last
            )
        except (OSError, EOFError) as error:
            raise BenchError(
                f"the file cannot be read: {error}", where=str(self.files[number])
            ) from error

    def place(self, row: int) -> str:
        """Return the file and the image's name in it."""
        return f"{self.files[int(self.file[row])]}: {self.keys[row]}"

    def _descriptor(self, number: int) -> int:
        # Opened once per process and file, and shared by all threads, which read by offset.
        with self._lock:
            if number not in self._descriptors:
                descriptor = os.open(self.files[number], os.O_RDONLY)
                if stamp(os.fstat(descriptor)) != self._stamps[number]:
                    os.close(descriptor)
                    raise BenchError(
                        "the file changed while it was in use", where=str(self.files[number])
                    )
                self._descriptors[number] = descriptor
            return self._descriptors[number]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the files itself: descriptors and locks belong to one process. It
        # compares them with the same stamps.
        return self.__dict__ | {"_descriptors": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def stamp(status: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file is replaced: its size (bytes) and modification time (ns)."""
    return status.st_size, status.st_mtime_ns
