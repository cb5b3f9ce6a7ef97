"""Parts of data sets that are arrays of pixels in a file: NumPy files, CIFAR's batches, STL-10's
records.
"""

from __future__ import annotations

import hashlib
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ...errors import BenchError
from ...storage.atomic import Progress
from ...storage.files import most_unpacked, regular
from ...storage.pickles import BoundedUnpickler
from ..cards.data_set import Arrays, Part
from ..collection import Collection, Originals, Rows
from .folder import COLUMNS
from .here import DataSet, NotHere, Opened
from .same_file import numbers_in

#: What reading a damaged file of arrays or a pickle of them may raise.
_DAMAGED = (
    OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, OverflowError,
    MemoryError, SyntaxError,
    tokenize.TokenError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, RuntimeError,
    AssertionError,
)  # fmt: skip
#: Labels before the 3 x 32 x 32 pixels of CIFAR's binary records; of CIFAR-100's two, the coarse
#: and the fine, the last counts.
_CIFAR_LABELS = {"cifar-binary": 1, "cifar-100-binary": 2}


@dataclass(frozen=True, eq=False)
class ArrayOriginals(Originals):
    """Images (N, H, W, 3) uint8 in memory, small as they are (CIFAR-10: 184 MB)."""

    pixels: NDArray[np.uint8]
    order: Rows
    file: Path

    def open(self, row: int) -> Image.Image:
        """Never undecodable."""
        return Image.fromarray(np.asarray(self.pixels[self.order[row]]))

    def place(self, row: int) -> str:
        """The file, and the row in it."""
        return f"{self.file}, image {self.order[row]}"


def read_arrays(
    data_set: DataSet,
    part: Part,
    layout: Arrays,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """See `parts.open_part`. Images are identified by their pixels.

    Raises:
        BenchError: the file is damaged, or holds something else than images and the numbers of
            classes.
    """
    assert data_set.folder is not None
    file, what = data_set.folder / layout.path, f"{data_set.card.name} {layout.path}"
    try:
        pixels, numbers, counts = _read(data_set.folder, layout)
    except _DAMAGED as error:
        raise BenchError(
            f"the images cannot be read: {error}", where=str(file), fix="restore the file"
        ) from error
    pixels, numbers = _colour(pixels), _class_numbers(numbers)
    if (
        pixels.ndim != 4
        or pixels.dtype != np.uint8
        or not all(pixels.shape[1:])
        or pixels.shape[:1] != numbers.shape
    ):
        shown = f"{pixels.shape} {pixels.dtype} pixels and {numbers.shape} {numbers.dtype} labels"
        raise BenchError(
            f"{shown} are no set of images",
            where=str(file),
            fix="(N, H, W, 3) uint8 pixels and (N,) class numbers",
        )
    if numbers.dtype.kind not in "iu":
        raise BenchError(f"labels of {numbers.dtype} are no class numbers", where=str(file))
    first, last = layout.rows or (0, len(pixels))
    pixels, numbers = pixels[first:last], numbers[first:last].astype(np.int64) - layout.first_label
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(data_set.classes):
        raise BenchError(
            f"labels from {numbers.min()} to {numbers.max()} are not those of the classes",
            where=str(file),
        )
    wanted = np.array(labels, dtype=np.int64)[numbers]
    rows = np.flatnonzero(wanted >= 0)
    if not len(rows):
        raise NotHere(f"{data_set.card.title}: no image of a wanted class in {file}")
    content = np.array(
        [
            hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
            for image in pixels[rows]
        ]
    )
    order = np.lexsort((rows, wanted[rows], content))
    rows = rows[order].astype(np.int64)
    collection = Collection(
        what=what,
        keys=np.array([f"{layout.path}/{first + row:06d}" for row in rows], dtype=np.str_),
        labels=wanted[rows],
        groups=None,
        content=content[order],
        problems=np.full(len(rows), "", dtype="U1"),
        originals=ArrayOriginals(pixels, rows, file),
        files=_places(data_set.folder, layout, counts)[first:last][rows],
    )
    left = len(numbers) - len(rows)
    remarks = (
        [f"{what}: {left} images of classes that the suite does not have are left out"]
        if left
        else []
    )
    return Opened(collection, remarks, pd.DataFrame(columns=COLUMNS))


def _colour(pixels: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W, 3) of pixels that are grey, or whose channels come first; as they are if they are
    neither. Nothing is copied.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    grey = pixels.ndim == 4 and pixels.shape[3] == 1
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3)) if grey else pixels


def _class_numbers(labels: NDArray[Any]) -> NDArray[Any]:
    """(N,) of labels that are one column, as MedMNIST's, or one-hot; as they are if they are
    neither.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if (
        labels.ndim == 2
        and labels.dtype.kind in "biuf"
        and np.isin(labels, (0, 1)).all()
        and (labels.sum(axis=1) == 1).all()
    ):
        return np.asarray(labels.argmax(axis=1))
    return labels


def _places(folder: Path, layout: Arrays, counts: Sequence[int]) -> NDArray[np.int64]:
    """Number of every image by its file and its row there."""
    files = [folder / path for path in (layout.path, *layout.more)][: len(counts)]
    rows = np.concatenate([np.arange(count) for count in counts])
    return numbers_in(files, np.repeat(np.arange(len(files)), counts), rows)


def _read(folder: Path, layout: Arrays) -> tuple[NDArray[np.uint8], NDArray[Any], list[int]]:
    """Pixels and labels of all images, and how many lie in each file."""
    files = [regular(folder / path) for path in (layout.path, *layout.more)]
    if layout.format == "cifar-python":
        read = [_cifar_batch(file) for file in files]
        pixels = np.concatenate([some for some, _ in read]).reshape(-1, 3, 32, 32)
        return (
            pixels.transpose(0, 2, 3, 1),
            np.concatenate([labels for _, labels in read]),
            [len(some) for _, some in read],
        )
    if layout.format in _CIFAR_LABELS:
        labels = _CIFAR_LABELS[layout.format]
        batches = [
            np.fromfile(file, dtype=np.uint8).reshape(-1, labels + 3 * 32 * 32) for file in files
        ]
        records = np.concatenate(batches)
        pixels = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return pixels, records[:, labels - 1], [len(batch) for batch in batches]
    if layout.format == "stl10-binary":  # channels, then columns, then rows
        pixels = np.fromfile(files[0], dtype=np.uint8).reshape(-1, 3, 96, 96)
        return (
            pixels.transpose(0, 3, 2, 1),
            np.fromfile(regular(folder / layout.labels), dtype=np.uint8),
            [len(pixels)],
        )
    if files[0].suffix == ".npz":
        _check_zip(files[0])
        with np.load(files[0], allow_pickle=False) as arrays:
            pixels = arrays[layout.keys[0]]
            return pixels, arrays[layout.keys[1]], [len(pixels)]
    pixels = np.load(files[0], mmap_mode="r")
    return pixels, np.load(regular(folder / layout.labels)), [len(pixels)]


def _check_zip(file: Path) -> None:
    """NumPy's own archives may be compressed: what they unpack to is told first."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > (most := most_unpacked(file)):
        raise ValueError(
            f"it would unpack to {unpacked:,} bytes, and {most:,} are the most that its size allows"
        )


class _Array:
    """An array in a pickle: made of the bytes that follow, whatever shape it says that it has."""

    def __init__(self, *ignored: Any) -> None:
        self.array: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, kind, transposed, data = state
        self.array = np.frombuffer(data, dtype=kind.kind).reshape(
            shape, order="F" if transposed else "C"
        )


class _Kind:
    """The type of an array's numbers."""

    def __init__(self, name: str, *ignored: Any) -> None:
        if name not in ("u1", "i1", "i2", "i4", "i8"):
            raise pickle.UnpicklingError(f"{name!r:.20} are no pixels and no class numbers")
        self.kind = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.kind = f"{'>' if state[1] == '>' else '<'}{self.kind}"


def _latin(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in a pickle that Python 2 can read."""
    return text.encode("latin-1")


#: All that CIFAR's pickled batches name, whichever NumPy wrote them.
_CIFAR = {
    "numpy.core.multiarray._reconstruct": _Array, "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Kind, "_codecs.encode": _latin,
}  # fmt: skip


def _plain(name: str) -> Any:
    if name not in _CIFAR:
        raise pickle.UnpicklingError(f"{name:.100} has no place in a file of images")
    return _CIFAR[name]


def _cifar_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Pixels (N, 3072) and labels (N,) of one of CIFAR's pickled batches."""
    batch = BoundedUnpickler(file.read_bytes(), _plain, encoding="bytes").load()
    batch = {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}
    pixels = batch[b"data"].array
    return pixels, np.array(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"])
