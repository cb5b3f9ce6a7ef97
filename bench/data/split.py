"""One split of a suite, ready for use: keys, labels and pixels of its images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BenchError
from ..storage.atomic import mapped
from .collection import Originals, Rows
from .pixels.cache import Original, available_cores, prepared
from .pixels.decoder import Decoder, Pixels
from .pixels.image_bytes import Undecodable


@dataclass(eq=False)
class MappedPixels:
    """Rows of a .npy file of images, mapped into memory on first use and never pickled with their
    pixels.
    """

    file: Path
    rows: Rows
    _array: NDArray[np.uint8] | None = field(default=None, init=False, repr=False)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """A copy of these images, (n, S, S, 3)."""
        if self._array is None:
            self._array = mapped(self.file)
        return np.asarray(np.take(self._array, self.rows[rows], axis=0))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}


def opened(originals: Originals, row: int, decoder: Decoder) -> Original:
    """An image at its full size, by this decoder; raises as `Originals.open`."""
    return originals.open(row) if decoder == "pil" else originals.open_fast(row)


@dataclass(eq=False)
class DecodedPixels:
    """Rows of a collection whose pixels are too many to keep: decoded whenever they are taken."""

    originals: Originals
    rows: Rows
    pixels: Pixels

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """The images, (n, S, S, 3), decoded on all cores.

        Raises:
            BenchError: one cannot be read.
        """
        with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
            return np.stack(list(pool.map(self._decode, self.rows[rows].tolist())))

    def _decode(self, row: int) -> NDArray[np.uint8]:
        try:
            return prepared(opened(self.originals, row, self.pixels.decoder), self.pixels)
        except Undecodable as error:
            raise BenchError(
                f"the image cannot be read: {error}",
                where=self.originals.place(row),
                fix="restore the file",
            ) from error


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split, in an order that depends on their contents only.

    Attributes:
        name: `train`, `id-val`, `id-test` or a shift.
        keys: (N,) name of every image: its path below the suite's root, or split and number of a
            rendered one.
        labels: (N,) int64.
        groups: (N,) int64, or None if the suite has none.
        fingerprint: hash of contents, labels and groups, whatever their order or place.
        skipped: unreadable images that were left out.
        size: side of the images in pixels.
        pixels: name of the preprocessing.
        decoder: of the preprocessing.
        cached_as: what results computed from these images are kept under on this machine: the
            fingerprint, or where that is a listing, a hash that tells when a file was changed in
            place.
    """

    name: str
    keys: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    fingerprint: str
    skipped: int
    size: int
    pixels: str
    decoder: Decoder
    cached_as: str
    _pixels: MappedPixels | DecodedPixels = field(repr=False)
    _originals: Originals = field(repr=False)
    _original_rows: Rows = field(repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def kept(self) -> bool:
        """Whether the pixels are kept decoded; otherwise every `take` decodes its images, on all
        cores.
        """
        return isinstance(self._pixels, MappedPixels)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """A copy of the resized and cropped images of these rows, (n, S, S, 3) uint8 RGB."""
        return self._pixels.take(rows)

    def original(self, row: int) -> Original:
        """The RGB image of a row at its full size.

        Raises:
            BenchError: the file is gone, or has changed since it was indexed.
        """
        try:
            return opened(self._originals, int(self._original_rows[row]), self.decoder)
        except Undecodable as error:
            raise BenchError(
                f"the image cannot be read: {error}", where=str(self.keys[row])
            ) from error
