"""Read images and labels from arrays in files: NumPy, CIFAR's batches and STL-10's records."""

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
from ..cards.dataset import Arrays, Part
from ..collection import Collection, Originals, Rows
from .folder import COLUMNS
from .located import Dataset, NotHere, Opened
from .same_file import numbers_in

#: Exceptions of reading a damaged file of arrays or pickle of them. The list is long because NumPy
#: parses the header of an array as Python, and a pickle runs arbitrary steps of our own classes.
_DAMAGED = (
    OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, OverflowError,
    MemoryError, SyntaxError,
    tokenize.TokenError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, RuntimeError,
    AssertionError,
)  # fmt: skip
#: Format -> number of label bytes before the 3 x 32 x 32 pixels of a record. CIFAR-100 has a coarse
#: and a fine label, of which the last one, the fine label, is used.
_CIFAR_LABELS = {"cifar-binary": 1, "cifar-100-binary": 2}


@dataclass(frozen=True, eq=False)
class ArrayOriginals(Originals):
    """Images that are rows of an array, in memory or mapped from a .npy file.

    Attributes:
        pixels: (N, H, W, 3) uint8. In memory, CIFAR-10's training images are 154 MB.
        order: (n,) row in `pixels` of every image of the collection.
        file: where the array is from, for messages.
    """

    pixels: NDArray[np.uint8]
    order: Rows
    file: Path

    def open(self, row: int) -> Image.Image:
        """Return the image of a row, which cannot fail to decode."""
        return Image.fromarray(np.asarray(self.pixels[self.order[row]]))

    def place(self, row: int) -> str:
        """Return the file and the row in it."""
        return f"{self.file}, image {self.order[row]}"


def read_arrays(
    dataset: Dataset,
    part: Part,
    layout: Arrays,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Read a part that is stored as arrays (see `parts.open_part`).

    Images are identified by the hash of their pixels, since they have no bytes of a file.

    Raises:
        NotHere: no image is of a requested class.
        BenchError: the file is damaged, or does not contain images and class numbers.
    """
    assert dataset.folder is not None
    file, what = dataset.folder / layout.path, f"{dataset.card.name} {layout.path}"
    try:
        pixels, numbers, counts = _read(dataset.folder, layout)
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
        raise BenchError(
            f"the arrays are not a set of images: {pixels.shape} {pixels.dtype} pixels and"
            f" {numbers.shape} {numbers.dtype} labels",
            where=str(file),
            fix="save (N, H, W, 3) uint8 pixels and (N,) class numbers",
        )
    if numbers.dtype.kind not in "iu":
        raise BenchError(
            f"the labels are {numbers.dtype} and not integer class numbers", where=str(file)
        )
    first, last = layout.rows or (0, len(pixels))
    # Signed before the subtraction: an unsigned 0 minus 1 would wrap around to a large number.
    pixels, numbers = pixels[first:last], numbers[first:last].astype(np.int64) - layout.first_label
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(dataset.classes):
        raise BenchError(
            f"the labels are {numbers.min()} to {numbers.max()}, expected 0 to"
            f" {len(dataset.classes) - 1}",
            where=str(file),
        )
    wanted = np.array(labels, dtype=np.int64)[numbers]
    rows = np.flatnonzero(wanted >= 0)
    if not len(rows):
        raise NotHere(f"{dataset.card.title}: no image of a requested class in {file}")
    # The shape is hashed as well, or images of 2 x 8 and 4 x 4 equal pixels would be the same.
    content = np.array(
        [
            hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
            for image in pixels[rows]
        ]
    )
    # Collections are sorted by content, so that their order does not depend on the storage; the
    # row comes last and only makes the order of equal images definite.
    order = np.lexsort((rows, wanted[rows], content))
    rows = rows[order].astype(np.int64)
    collection = Collection(
        what=what,
        # Numbered in the whole array: ranges of one array that overlap have the same keys.
        keys=np.array([f"{layout.path}/{first + row:06d}" for row in rows], dtype=np.str_),
        labels=wanted[rows],
        groups=None,
        content=content[order],
        problems=np.full(len(rows), "", dtype="U1"),
        originals=ArrayOriginals(pixels, rows, file),
        files=_places(dataset.folder, layout, counts)[first:last][rows],
    )
    excluded = len(numbers) - len(rows)
    remarks = (
        [f"{what}: {excluded} images of classes that the suite does not have are left out"]
        if excluded
        else []
    )
    return Opened(collection, remarks, pd.DataFrame(columns=COLUMNS))


def _colour(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return a view (N, H, W, 3) of grey or channels-first pixels; other arrays are unchanged."""
    # Views only: a copy of a mapped file would load all of it.
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    grey = pixels.ndim == 4 and pixels.shape[3] == 1
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3)) if grey else pixels


def _class_numbers(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels (N,) of a single column or one-hot labels; other arrays are unchanged."""
    # MedMNIST has labels of one column.
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
    """Return the number of every image's place on disk: its file, and its row there."""
    files = [folder / path for path in (layout.path, *layout.more)][: len(counts)]
    rows = np.concatenate([np.arange(count) for count in counts])
    return numbers_in(files, np.repeat(np.arange(len(files)), counts), rows)


def _read(folder: Path, layout: Arrays) -> tuple[NDArray[np.uint8], NDArray[Any], list[int]]:
    """Return pixels and labels of all images, and the number of images in each file."""
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
    # STL-10's records are column-major: channels, then columns, then rows.
    if layout.format == "stl10-binary":
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
    # Mapped, since a part is often one range of a much larger array (CIFAR-10-C: a fifth).
    # `np.load` refuses pickled objects by default, so a hostile file cannot run code.
    pixels = np.load(files[0], mmap_mode="r")
    return pixels, np.load(regular(folder / layout.labels)), [len(pixels)]


def _check_zip(file: Path) -> None:
    """Raise ValueError if a compressed .npz file unpacks to more than images plausibly do."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > (limit := most_unpacked(file)):
        raise ValueError(
            f"it would unpack to {unpacked:,} bytes, more than the limit of {limit:,} bytes for a"
            " file of its size"
        )


class _Array:
    """The replacement of a NumPy array in a pickle, made only of the bytes that follow it."""

    # The constructor ignores the shape: NumPy's own would allocate whatever the pickle requests.
    def __init__(self, *ignored: Any) -> None:
        self.array: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, kind, transposed, data = state
        self.array = np.frombuffer(data, dtype=kind.kind).reshape(
            shape, order="F" if transposed else "C"
        )


class _Kind:
    """The replacement of a NumPy dtype in a pickle: integers only."""

    def __init__(self, name: str, *ignored: Any) -> None:
        if name not in ("u1", "i1", "i2", "i4", "i8"):
            raise pickle.UnpicklingError(f"{name!r:.20} is not a type of pixels or class numbers")
        self.kind = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Second entry of a dtype's state: its byte order, where "=" and "|" occur as well.
        self.kind = f"{'>' if state[1] == '>' else '<'}{self.kind}"


def _latin(text: str, encoding: str) -> bytes:
    # In protocol 2, Python 3 pickles bytes as a call of `_codecs.encode(text, "latin1")`.
    return text.encode("latin-1")


#: Global name -> replacement, for all globals that CIFAR's pickled batches refer to, whichever
#: version of NumPy wrote them. Nothing is imported from a pickle, so it cannot run code.
_CIFAR = {
    "numpy.core.multiarray._reconstruct": _Array, "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Kind, "_codecs.encode": _latin,
}  # fmt: skip


def _plain(name: str) -> Any:
    if name not in _CIFAR:
        raise pickle.UnpicklingError(f"{name:.100} is not allowed in a file of images")
    return _CIFAR[name]


def _cifar_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return pixels (N, 3072) and labels (N,) of one of CIFAR's pickled batches."""
    # The original files are from Python 2 and have bytes as keys; copies that were written again
    # may have text.
    batch = BoundedUnpickler(file.read_bytes(), _plain, encoding="bytes").load()
    batch = {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}
    pixels = batch[b"data"].array
    return pixels, np.array(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"])
