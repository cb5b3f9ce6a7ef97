"""A loaded split of a suite: keys, labels and pixels of its images."""

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
    """Rows of a .npy file of images, which is mapped into memory on first use."""

    file: Path
    rows: Rows
    _array: NDArray[np.uint8] | None = field(default=None, init=False, repr=False)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return a copy of these images, (n, S, S, 3)."""
        if self._array is None:
            self._array = mapped(self.file)
        return np.asarray(np.take(self._array, self.rows[rows], axis=0))

    # Another process maps the file itself; pickling the array would copy all its pixels.
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}


def opened(originals: Originals, row: int, decoder: Decoder) -> Original:
    """Open an image at its full size with the given decoder; raises as `Originals.open`."""
    # PIL and the array path resize differently (see `pixels.cache.resized`), so the decoder decides
    # about both.
    return originals.open(row) if decoder == "pil" else originals.open_fast(row)


@dataclass(eq=False)
class DecodedPixels:
    """Rows of a collection that are decoded whenever they are taken, being too large to cache."""

    originals: Originals
    rows: Rows
    pixels: Pixels

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Decode these images on all cores, (n, S, S, 3).

        Raises:
            BenchError: an image cannot be read.
        """
        # A pool per call: starting threads is cheap next to decoding, and a permanent pool could
        # not be pickled with the split.
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
    """The images of a split, in an order that depends on their contents alone.

    Attributes:
        name: `train`, `id-val`, `id-test` or a shift.
        keys: (N,) name of every image: its path below the suite's root, or split and number of a
            rendered image.
        labels: (N,) int64.
        groups: (N,) int64, or None if the suite has no groups.
        fingerprint: hash of contents, labels and groups, independent of order and location.
        skipped: number of unreadable images that were left out.
        size: side of the images in pixels.
        pixels: name of the preprocessing.
        decoder: decoder of the preprocessing.
        cached_as: cache key of what is computed from these images on this machine: the fingerprint,
            or, for listed images, a hash that also changes when a file is overwritten in place.
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
    # Two ways to the pixels: the preprocessed images, and the originals for augmentations that crop
    # from the full size. `keys[i]` is row `_original_rows[i]` of the originals.
    _pixels: MappedPixels | DecodedPixels = field(repr=False)
    _originals: Originals = field(repr=False)
    _original_rows: Rows = field(repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def cached(self) -> bool:
        """Whether decoded pixels are cached; otherwise every `take` decodes its images."""
        return isinstance(self._pixels, MappedPixels)

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return a copy of the resized and cropped images of these rows, (n, S, S, 3) uint8 RGB."""
        return self._pixels.take(rows)

    def original(self, row: int) -> Original:
        """Open the RGB image of a row at its full size.

        Raises:
            BenchError: the file is gone, or has changed since it was indexed.
        """
        try:
            return opened(self._originals, int(self._original_rows[row]), self.decoder)
        except Undecodable as error:
            raise BenchError(
                f"the image cannot be read: {error}", where=str(self.keys[row])
            ) from error
