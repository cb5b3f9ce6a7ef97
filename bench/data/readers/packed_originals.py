"""Images that lie many to a file, read where they are."""

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
class PackedOriginals(EncodedOriginals):
    """Images in files that hold many: image i is `sizes[i]` bytes from `offsets[i]` on of
    `files[file[i]]`.

    Attributes:
        content: what their SHA-256 has to be; None if only the file's size and time stamp are
            compared.
    """

    files: Sequence[Path]
    file: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.str_]
    content: NDArray[np.str_] | None
    pre_crop: int = 0
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
                f"it cannot be read: {error.strerror}", where=str(self.files[number])
            ) from error
        except EOFError:
            data = b""
        content = None if self.content is None else str(self.content[row])
        return unchanged(data, int(self.sizes[row]), content, where=self.place(row))

    def ends(self, row: int, size: int) -> bytes:
        """See `EncodedOriginals`."""
        number, offset, whole = (
            int(values[row]) for values in (self.file, self.offsets, self.sizes)
        )
        last = max(min(size, whole), whole - size)
        try:
            descriptor = self._descriptor(number)
            return read_at(descriptor, offset, min(size, whole)) + read_at(
                descriptor, offset + last, whole - last
            )
        except (OSError, EOFError) as error:
            raise BenchError(
                f"it cannot be read: {error}", where=str(self.files[number])
            ) from error

    def place(self, row: int) -> str:
        """The file, and the image's name in it."""
        return f"{self.files[int(self.file[row])]}: {self.keys[row]}"

    def _descriptor(self, number: int) -> int:
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
        return self.__dict__ | {"_descriptors": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def stamp(status: os.stat_result) -> tuple[int, int]:
    """What changes when a file is replaced: its size in bytes and its time stamp in ns."""
    return status.st_size, status.st_mtime_ns
