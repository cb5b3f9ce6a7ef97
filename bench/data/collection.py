"""Collections of labelled images, and their division into ID splits by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from ..errors import BenchError
from ..identity import numpy_stream
from ..storage.atomic import mapped
from ..storage.files import regular
from .cards.suite_card import InDistribution
from .pixels.image_bytes import DEEP, decode, decode_fast
from .rendered import RenderedSplit

#: Indices into a collection, (n,) int64.
Rows = NDArray[np.int64]


class Originals(Protocol):
    """The images of a collection at their full size."""

    def open(self, row: int) -> Image.Image:
        """Return the RGB image of a row.

        Raises:
            Undecodable: the bytes are not an image, or a damaged one.
            BenchError: the image is gone, or has changed since it was indexed.
        """
        ...

    def open_fast(self, row: int) -> NDArray[np.uint8]:
        """Return the same image, (H, W, 3) uint8, from a faster decoder where there is one."""
        return np.asarray(self.open(row))

    def place(self, row: int) -> str:
        """Return where the image of a row is located, for messages."""
        ...


class EncodedOriginals(Originals, Protocol):
    """Encoded images in files or in parts of files.

    Attributes:
        pre_crop: pixels that are cut from every side, before anything else is done.
    """

    pre_crop: int

    def data(self, row: int) -> bytes:
        """Return the bytes of an image; raise BenchError if they are gone or have changed."""
        ...

    def ends(self, row: int, size: int) -> bytes:
        """Return the first and last `size` bytes of an image; raise BenchError if they are gone."""
        ...

    def open(self, row: int) -> Image.Image:
        """Return the image as RGB; see `Originals`."""
        image, cut = decode(self.data(row)), self.pre_crop
        return image.crop((cut, cut, image.width - cut, image.height - cut)) if cut else image

    def open_fast(self, row: int) -> NDArray[np.uint8]:
        """Return the image as an array; see `Originals`."""
        image, cut = decode_fast(self.data(row)), self.pre_crop
        return image[cut : len(image) - cut, cut : image.shape[1] - cut]


def unchanged(data: bytes, size: int, content: str | None, *, where: str) -> bytes:
    """Return `data` if its size and its SHA-256 (`content`, if known) are those of the index.

    Raises:
        BenchError: they differ.
    """
    # The labels, the division and the fingerprint come from the index: other bytes under the same
    # name would be counted under the identity of the old ones.
    if len(data) != size or (content is not None and hashlib.sha256(data).hexdigest() != content):
        raise BenchError(
            "the file changed while it was in use", where=where, fix="run the same command again"
        )
    return data


@dataclass(frozen=True, eq=False)
class FolderOriginals(EncodedOriginals):
    """One file per image.

    Attributes:
        root: folder that the keys are relative to.
        keys: (N,) path of every file below the root.
        content: (N,) expected SHA-256; None if only the size is known.
        sizes: (N,) expected size in bytes.
        pre_crop: pixels that are cut from every side.
    """

    root: Path
    keys: NDArray[np.str_]
    content: NDArray[np.str_] | None
    sizes: NDArray[np.int64]
    pre_crop: int = 0

    def data(self, row: int) -> bytes:
        """Return the bytes of an image; see `EncodedOriginals`."""
        path = self.root / str(self.keys[row])
        try:
            # `regular`: a pipe or device that took the file's place would block for ever.
            data = regular(path).read_bytes()
        except OSError as error:
            raise BenchError(
                f"the image cannot be read: {error.strerror}", where=str(path)
            ) from error
        content = None if self.content is None else str(self.content[row])
        return unchanged(data, int(self.sizes[row]), content, where=str(path))

    def ends(self, row: int, size: int) -> bytes:
        """Return the first and the last bytes of an image; see `EncodedOriginals`."""
        path = self.root / str(self.keys[row])
        try:
            # Unbuffered: Python would read ahead more bytes than are compared.
            with regular(path).open("rb", buffering=0) as file:
                start = file.read(size)
                # Never back into what was read: a short file is returned once, not twice.
                file.seek(max(len(start), int(self.sizes[row]) - size))
                return start + file.read(size)
        except OSError as error:
            raise BenchError(
                f"the image cannot be read: {error.strerror}", where=str(path)
            ) from error

    def place(self, row: int) -> str:
        """Return the path of the file."""
        return str(self.root / str(self.keys[row]))


@dataclass(frozen=True, eq=False)
class RenderedOriginals(Originals):
    """Rows of a .npy file, (N, H, W, 3) uint8.

    Attributes:
        file: path of the .npy file.
        order: (N,) row of the file that every row of the collection is.
    """

    file: Path
    order: Rows

    def open(self, row: int) -> Image.Image:
        """Return the image of a row, which is never undecodable."""
        return Image.fromarray(np.asarray(mapped(self.file)[self.order[row]]))

    def place(self, row: int) -> str:
        """Return the path of the array and the row in it."""
        return f"{self.file}, row {self.order[row]}"


# eq=False, here and above: arrays have no single truth value to compare by, and what is known of a
# collection is cached by its identity (see `duplicates`).
@dataclass(frozen=True, eq=False)
class Collection:
    """Labelled images, sorted by content so that their order is the same on every machine.

    Attributes:
        what: name for messages.
        keys: (N,) path below the suite's root, or split and number of a rendered image.
        labels: (N,) int64.
        groups: (N,) int64, or None if the images have no groups.
        content: (N,) identity of an image, ascending: the SHA-256 of its bytes, or class, name and
            size of its file.
        problems: (N,) "", or why the image is unusual (see `image_bytes`).
        originals: the images.
        stamps: (N,) modification times of listed files in ns. Cached pixels depend on them as well
            as on the content.
        listed: whether `content` comes from a listing; equal bytes are then not recognised by it.
        treatment: what is done to every image before the usual preprocessing; part of the identity.
        cache_folder: folder of the cache that these arrays are mapped from, or None (see
            `index_cache`).
        files: (N,) number of the location on disk (see `same_file`): equal for two rows that are
            one file.
        ignored: number of files among the images that are not images or belong to no class.
    """

    what: str
    keys: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    content: NDArray[np.str_]
    problems: NDArray[np.str_]
    originals: Originals
    stamps: NDArray[np.int64] | None = None
    listed: bool = False
    treatment: str = ""
    cache_folder: Path | None = None
    files: NDArray[np.int64] | None = None
    ignored: int = 0

    @cached_property
    def distinct_files(self) -> NDArray[np.int64]:
        """The distinct numbers in `files`, ascending."""
        assert self.files is not None
        return np.unique(self.files)

    @cached_property
    def listing(self) -> str:
        """Hash of where these images are located, of their names, contents and time stamps."""
        # The first location stands for all: the others differ from it by their keys alone. Arrays
        # are hashed as raw memory, since a million Python strings would take seconds.
        found = hashlib.blake2b(
            self.originals.place(0).encode() if len(self) else b"", digest_size=16
        )
        for values in (self.keys, self.content, self.stamps):
            if values is not None and len(values):
                found.update(np.ascontiguousarray(values).view(np.uint8).data)
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def decoded_from(self, rows: Rows) -> NDArray[np.str_]:
        """Return the content of these rows, marked where decoding has changed, (n,)."""
        # Earlier versions decoded 16-bit images differently. The mark gives those images another
        # fingerprint and other cached pixels, and leaves all others theirs.
        deep = self.problems[rows] == DEEP
        if not deep.any():
            return self.content[rows]
        return np.where(deep, np.char.add(self.content[rows], " 16 bits"), self.content[rows])

    def cached_as(self, rows: Rows) -> NDArray[np.str_]:
        """Return the keys that the decoded pixels of these rows are cached under, (n,)."""
        # Not the fingerprint: a file that was overwritten in place has the same listing, and only
        # its time stamp shows that the cached pixels are those of the old file.
        if self.stamps is None and not self.treatment:
            return self.decoded_from(rows)
        stamps = [""] * len(rows)
        if self.stamps is not None:
            stamps = [f"\t{stamp}" for stamp in self.stamps[rows].tolist()]
        pairs = zip(self.decoded_from(rows).tolist(), stamps, strict=True)
        keys = [f"{content}{stamp}\t{self.treatment}" for content, stamp in pairs]
        return np.array(keys, dtype=np.str_)


def folder_collection(
    what: str,
    root: Path,
    images: pd.DataFrame,
    *,
    grouped: bool,
    listed: bool = False,
    pre_crop: int = 0,
    ignored: int = 0,
) -> Collection:
    """Return a collection of image files.

    Args:
        what: name for messages.
        root: folder that the keys are relative to.
        images: rows of an index with `label` and `group`, as from `folder.class_images` or of a
            part of a dataset.
        grouped: whether the images have groups.
        listed: identify an image by its class (column `class`), file name and size instead of by
            its bytes.
        pre_crop: pixels to cut from every side of every image.
        ignored: number of files among the images that do not belong to the collection.
    """
    treatment = f"crop {pre_crop}" if pre_crop else ""
    if listed:
        images = images.assign(sha256=_listing(images))
    columns = ["sha256", "label", "group", "key"]
    # Arrow sorts text by code points, as pandas does, but a million files in a fraction of the
    # time.
    order = pc.sort_indices(
        pa.table(images[columns]), sort_keys=[(column, "ascending") for column in columns]
    )
    images = images.take(order.to_numpy())
    keys, content = images["key"].to_numpy(dtype=np.str_), images["sha256"].to_numpy(dtype=np.str_)
    return Collection(
        what=what,
        keys=keys,
        labels=images["label"].to_numpy(dtype=np.int64),
        groups=images["group"].to_numpy(dtype=np.int64) if grouped else None,
        content=content,
        problems=images["problem"].to_numpy(dtype=np.str_),
        originals=FolderOriginals(
            root,
            keys,
            None if listed else content,
            images["size"].to_numpy(dtype=np.int64),
            pre_crop,
        ),
        stamps=images["mtime_ns"].to_numpy(dtype=np.int64) if listed else None,
        listed=listed,
        treatment=treatment,
        files=images["inode"].to_numpy(dtype=np.int64),
        ignored=ignored,
    )


def _listing(images: pd.DataFrame) -> pd.Series[str]:
    """Return `class/file name:size` of every file: independent of root and folder names.

    The size catches copies that were resized or compressed again. `bench data verify` compares the
    bytes.
    """
    names = images["key"].str.replace(r"(?s)^.*/", "", regex=True)
    return images["class"].astype(str) + "/" + names + ":" + images["size"].astype(str)


def rendered_collection(what: str, split: RenderedSplit) -> Collection:
    """Return a collection of the images of a rendered split."""
    count = len(split.labels)
    groups = np.full(count, -1, dtype=np.int64) if split.groups is None else split.groups
    # By content first (the last key of `lexsort`); the number breaks ties between equal images.
    order = np.lexsort((np.arange(count), groups, split.labels, split.content)).astype(np.int64)
    return Collection(
        what=what,
        keys=np.array([f"{what}/{number:06d}" for number in order], dtype=np.str_),
        labels=split.labels[order],
        groups=None if split.groups is None else split.groups[order],
        content=split.content[order],
        problems=np.full(count, "", dtype="U1"),
        originals=RenderedOriginals(split.pixels, order),
    )


@dataclass(frozen=True, eq=False)
class MergedOriginals(Originals):
    """Images of several collections.

    Attributes:
        parts: the originals of each collection.
        member: (N,) index of the collection that a row comes from.
        row: (N,) its row there.
    """

    parts: tuple[Originals, ...]
    member: Rows
    row: Rows

    def open(self, row: int) -> Image.Image:
        """Open the image as its own collection does."""
        return self._part(row).open(int(self.row[row]))

    def open_fast(self, row: int) -> NDArray[np.uint8]:
        """Open the image as its own collection does, with the faster decoder."""
        return self._part(row).open_fast(int(self.row[row]))

    def place(self, row: int) -> str:
        """Return where the image's own collection has it."""
        return self._part(row).place(int(self.row[row]))

    def _part(self, row: int) -> Originals:
        return self.parts[int(self.member[row])]


def merged(parts: Sequence[Collection]) -> Collection:
    """Merge several parts of one dataset into one collection; groups stay those of the parts.

    Raises:
        ValueError: the parts differ in groups, in how they are identified or in their treatment.
    """
    if len(parts) == 1:
        return parts[0]
    if len({(part.groups is None, part.listed, part.treatment) for part in parts}) > 1:
        raise ValueError("parts that are read in different ways cannot be merged")

    def joined(values: Iterable[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(list(values))[order]

    def joined_if_all(values: Iterable[NDArray[Any] | None]) -> NDArray[Any] | None:
        every = list(values)
        found = [one for one in every if one is not None]
        return joined(found) if len(found) == len(every) else None

    content = np.concatenate([part.content for part in parts])
    # Sorted again, by content, label and key: the order must not depend on that of the parts.
    order = np.lexsort(
        (*(np.concatenate([getattr(p, key) for p in parts]) for key in ("keys", "labels")), content)
    )
    return Collection(
        what=", ".join(part.what for part in parts),
        keys=joined(part.keys for part in parts),
        labels=joined(part.labels for part in parts),
        groups=joined_if_all(part.groups for part in parts),
        content=content[order],
        problems=joined(part.problems for part in parts),
        originals=MergedOriginals(
            tuple(part.originals for part in parts),
            joined(np.full(len(part), number) for number, part in enumerate(parts)),
            joined(np.arange(len(part), dtype=np.int64) for part in parts),
        ),
        stamps=joined_if_all(part.stamps for part in parts),
        listed=parts[0].listed,
        treatment=parts[0].treatment,
        ignored=sum(part.ignored for part in parts),
        files=joined(part.files for part in parts if part.files is not None),
    )


def divide(collection: Collection, id_data: InDistribution) -> dict[str, Rows]:
    """Divide the ID images into train, id-val and (unless the card names one) id-test.

    The division is stratified by class and depends on the images' contents and `split_seed` alone.
    Equal contents stay in one split, so the fractions hold for distinct contents.

    Raises:
        BenchError: there are too few images for every class to be in every split.
    """
    # Imported here: scikit-learn takes long to import, and divisions of large data are cached.
    from sklearn.model_selection import train_test_split

    if collection.listed:
        # Equal bytes are not recognised in a listing; every file counts as an image of its own.
        first = member = np.arange(len(collection))
    else:
        # `np.unique` returns the first row of every content. Rows are sorted by label within equal
        # contents, so contents with several labels are stratified under the smallest.
        _, first, member = np.unique(collection.content, return_index=True, return_inverse=True)
    labels = collection.labels[first]
    count, seed = len(first), id_data.split_seed
    rest = np.arange(count)
    parts: dict[str, NDArray[np.int64]] = {}
    try:
        if id_data.path is not None:
            rest, test = train_test_split(
                rest,
                test_size=round(id_data.test_fraction * count),
                stratify=labels,
                random_state=seed,
            )
            # Sorted, so that the second division sees the order of the contents again.
            rest, parts["id-test"] = np.sort(rest), test
        held_out = id_data.val_count
        if held_out is None:
            held_out = round(id_data.val_fraction * count)
        train, val = train_test_split(
            rest, test_size=held_out, stratify=labels[rest], random_state=seed
        )
    except ValueError as error:
        raise BenchError(
            f"{count} distinct images are too few to divide into train, id-val and id-test:"
            f" {error}",
            where=collection.what,
            fix="complete the copy, or set a smaller val_count under [id] in a card with `extends`",
        ) from error
    parts = {"train": train, "id-val": val} | parts
    return {
        name: np.flatnonzero(np.isin(member, part)).astype(np.int64) for name, part in parts.items()
    }


def limited(collection: Collection, rows: Rows, limit: int | None) -> Rows:
    """Return at most `limit` of the rows (None: all), balanced over the classes, in order."""
    if limit is None or len(rows) <= limit:
        return rows
    labels = pd.Series(collection.labels[rows])
    rank = labels.groupby(labels).cumcount().to_numpy()
    # The first image of every class, then the second of every class, and so on: a class that runs
    # out leaves its share to the others. Rows are sorted by content, so "first" is arbitrary.
    chosen = np.lexsort((labels.to_numpy(), rank))[:limit]
    return rows[np.sort(chosen)]


def few(collection: Collection, rows: Rows, shots: int, seed: int) -> Rows:
    """Sample `shots` rows of every class (all rows of a smaller class), in their order.

    The sample depends on the contents, the seed and the number of shots alone. The sample of a
    larger number contains that of a smaller one.
    """
    labels = collection.labels[rows]
    # One permutation of all rows, ranked within the classes, rather than a sample per class: this
    # is what nests the samples.
    rank = numpy_stream("few shots", seed).permutation(len(rows))
    place = pd.Series(rank).groupby(labels).rank(method="first")
    return rows[place.to_numpy() <= shots]


def fingerprint(collection: Collection, rows: Rows) -> str:
    """Return the SHA-256 of the sorted contents, labels and groups (-1 for none) of these rows.

    Where the images are located is not part of it.
    """
    content, labels = collection.decoded_from(rows).tolist(), collection.labels[rows].tolist()
    groups = [-1] * len(rows) if collection.groups is None else collection.groups[rows].tolist()
    # Sorted as text, groups included: a fingerprint depends neither on the order of the rows nor on
    # how a later version sorts collections. Data without a treatment have no line for it.
    triples = zip(content, labels, groups, strict=True)
    lines = sorted(f"{one} {label} {group}\n" for one, label, group in triples)
    if collection.treatment:
        lines.append(f"{collection.treatment}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
