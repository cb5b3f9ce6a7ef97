"""A set of labelled images before they are pixels, and how the ID images are divided: by content,
never by place or order.
"""

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

Rows = NDArray[np.int64]


class Originals(Protocol):
    """The images of a collection at their full size."""

    def open(self, row: int) -> Image.Image:
        """The RGB image of a row; raises `Undecodable` or BenchError."""
        ...

    def open_fast(self, row: int) -> NDArray[np.uint8]:
        """The same, (H, W, 3) uint8, by the faster decoder where it can; raises the same."""
        return np.asarray(self.open(row))

    def place(self, row: int) -> str:
        """Where a person finds the image of a row."""
        ...


class EncodedOriginals(Originals, Protocol):
    """Images in files, or in parts of files. pre_crop: pixels that are cut from every side, before
    anything else.
    """

    pre_crop: int

    def data(self, row: int) -> bytes:
        """The bytes of an image; raises BenchError if they are gone, or are not those that were
        indexed.
        """
        ...

    def ends(self, row: int, size: int) -> bytes:
        """The first and the last `size` bytes of an image, all of a smaller one; raises BenchError
        if they are gone.
        """
        ...

    def open(self, row: int) -> Image.Image:
        """See `Originals`."""
        image, cut = decode(self.data(row)), self.pre_crop
        return image.crop((cut, cut, image.width - cut, image.height - cut)) if cut else image

    def open_fast(self, row: int) -> NDArray[np.uint8]:
        """See `Originals`."""
        image, cut = decode_fast(self.data(row)), self.pre_crop
        return image[cut : len(image) - cut, cut : image.shape[1] - cut]


def unchanged(data: bytes, size: int, content: str | None, *, where: str) -> bytes:
    """`data`, if it is what was indexed.

    Args:
        size: bytes.
        content: SHA-256; None if the size alone is known.

    Raises:
        BenchError: it is not.
    """
    if len(data) != size or (content is not None and hashlib.sha256(data).hexdigest() != content):
        raise BenchError(
            "the file changed while it was in use", where=where, fix="run the same command again"
        )
    return data


@dataclass(frozen=True, eq=False)
class FolderOriginals(EncodedOriginals):
    """Image files.

    Attributes:
        content: what their SHA-256 has to be; None if their size alone is known (`sizes`, bytes).
    """

    root: Path
    keys: NDArray[np.str_]
    content: NDArray[np.str_] | None
    sizes: NDArray[np.int64]
    pre_crop: int = 0

    def data(self, row: int) -> bytes:
        """See `EncodedOriginals`."""
        path = self.root / str(self.keys[row])
        try:
            data = regular(path).read_bytes()
        except OSError as error:
            raise BenchError(f"it cannot be read: {error.strerror}", where=str(path)) from error
        return unchanged(
            data,
            int(self.sizes[row]),
            None if self.content is None else str(self.content[row]),
            where=str(path),
        )

    def ends(self, row: int, size: int) -> bytes:
        """See `EncodedOriginals`."""
        path = self.root / str(self.keys[row])
        try:
            with regular(path).open("rb", buffering=0) as file:
                start = file.read(size)
                file.seek(max(len(start), int(self.sizes[row]) - size))
                return start + file.read(size)
        except OSError as error:
            raise BenchError(f"it cannot be read: {error.strerror}", where=str(path)) from error

    def place(self, row: int) -> str:
        """The file's path."""
        return str(self.root / str(self.keys[row]))


@dataclass(frozen=True, eq=False)
class RenderedOriginals(Originals):
    """Rows of a .npy file, (N, H, W, 3) uint8."""

    file: Path
    order: Rows

    def open(self, row: int) -> Image.Image:
        """Never undecodable."""
        return Image.fromarray(np.asarray(mapped(self.file)[self.order[row]]))

    def place(self, row: int) -> str:
        """The file of the array, and the row."""
        return f"{self.file}, row {self.order[row]}"


@dataclass(frozen=True, eq=False)
class Collection:
    """Labelled images, sorted by content, so that their order is the same wherever they lie.

    Attributes:
        what: name for messages.
        keys: (N,) path below the suite's root, or split and number of a rendered image.
        labels: (N,) int64.
        groups: (N,) int64 or None.
        content: (N,) what makes an image the same, ascending: SHA-256 of its bytes, or class, name
            and size of its file.
        problems: (N,) "", or why the image is unusual (see `image_bytes`).
        originals: the images.
        stamps: (N,) modification times of listed files, ns: what the pixels that are kept of them
            depend on beside the content.
        listed: whether `content` is a listing, which does not tell whether two images are equal.
        ignored: files that lie among the images and are none, or belong to no class.
        treatment: what is done to every image before the usual preprocessing; part of the identity.
        kept_in: folder of the cache that these arrays are mapped from, if they are (see `kept`).
        files: (N,) where on disk an image is, as a number (see `same_file`): two rows have the same
            one if they are one file.
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
    kept_in: Path | None = None
    files: NDArray[np.int64] | None = None
    ignored: int = 0

    @cached_property
    def distinct_files(self) -> NDArray[np.int64]:
        """The different numbers in `files`, ascending."""
        assert self.files is not None
        return np.unique(self.files)

    @cached_property
    def listing(self) -> str:
        """Hash of where these images are, their names, contents and time stamps."""
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
        """The content of these rows, and how it is decoded where earlier versions decoded it
        otherwise, (n,).
        """
        deep = self.problems[rows] == DEEP
        return (
            np.where(deep, np.char.add(self.content[rows], " 16 bits"), self.content[rows])
            if deep.any()
            else self.content[rows]
        )

    def cached_as(self, rows: Rows) -> NDArray[np.str_]:
        """What the decoded pixels of these rows are kept under on this machine, (n,)."""
        if self.stamps is None and not self.treatment:
            return self.decoded_from(rows)
        stamps = (
            [""] * len(rows)
            if self.stamps is None
            else [f"\t{stamp}" for stamp in self.stamps[rows].tolist()]
        )
        pairs = zip(self.decoded_from(rows).tolist(), stamps, strict=True)
        return np.array(
            [f"{content}{stamp}\t{self.treatment}" for content, stamp in pairs], dtype=np.str_
        )


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
    """From image rows of an index with `label` and `group`: those of `folder.class_images`, or of a
    data set's part.

    Args:
        listed: identify an image by its class (column `class`), file name and size, not by its
            bytes.
        pre_crop: pixels to cut from every side of every image.
    """
    treatment = f"crop {pre_crop}" if pre_crop else ""
    if listed:
        images = images.assign(sha256=_listing(images))
    columns = ["sha256", "label", "group", "key"]
    # Arrow sorts text as pandas does, by code points, in a fraction of the time that a million
    # files take.
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
    """`class/file name:size` of every file: the same wherever the data set lies and whatever its
    folders are called.

    Another size is another image, which catches copies that were resized or compressed anew; `bench
    data verify` can read the bytes.
    """
    names = images["key"].str.replace(r"(?s)^.*/", "", regex=True)
    return images["class"].astype(str) + "/" + names + ":" + images["size"].astype(str)


def rendered_collection(what: str, split: RenderedSplit) -> Collection:
    """From a rendered split."""
    count = len(split.labels)
    groups = np.full(count, -1, dtype=np.int64) if split.groups is None else split.groups
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
    """Images of several collections. member: (N,) which of them a row is in; row: (N,) its row
    there.
    """

    parts: tuple[Originals, ...]
    member: Rows
    row: Rows

    def open(self, row: int) -> Image.Image:
        """As the collection that the image comes from."""
        return self._part(row).open(int(self.row[row]))

    def open_fast(self, row: int) -> NDArray[np.uint8]:
        """As the collection that the image comes from."""
        return self._part(row).open_fast(int(self.row[row]))

    def place(self, row: int) -> str:
        """As the collection that the image comes from."""
        return self._part(row).place(int(self.row[row]))

    def _part(self, row: int) -> Originals:
        return self.parts[int(self.member[row])]


def merged(parts: Sequence[Collection]) -> Collection:
    """Several parts of one data set as one collection; groups stay those of the parts."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.groups is None, part.listed, part.treatment) for part in parts}) > 1:
        raise ValueError("parts that are read in different ways cannot be one collection")

    def joined(values: Iterable[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(list(values))[order]

    content = np.concatenate([part.content for part in parts])
    order = np.lexsort(
        (*(np.concatenate([getattr(p, key) for p in parts]) for key in ("keys", "labels")), content)
    )
    return Collection(
        what=", ".join(part.what for part in parts),
        keys=joined(part.keys for part in parts),
        labels=joined(part.labels for part in parts),
        groups=(
            None
            if parts[0].groups is None
            else joined(part.groups for part in parts if part.groups is not None)
        ),
        content=content[order],
        problems=joined(part.problems for part in parts),
        originals=MergedOriginals(
            tuple(part.originals for part in parts),
            joined(np.full(len(part), number) for number, part in enumerate(parts)),
            joined(np.arange(len(part), dtype=np.int64) for part in parts),
        ),
        stamps=(
            None
            if parts[0].stamps is None
            else joined(part.stamps for part in parts if part.stamps is not None)
        ),
        listed=parts[0].listed,
        treatment=parts[0].treatment,
        ignored=sum(part.ignored for part in parts),
        files=joined(part.files for part in parts if part.files is not None),
    )


def divide(collection: Collection, id_data: InDistribution) -> dict[str, Rows]:
    """Divide the ID images into train, id-val and (unless it is ready) id-test, stratified by
    class, by `split_seed`.

    The division is a function of the images' contents alone. Equal contents stay together (under
    their smallest label, should they carry several), so the fractions hold for distinct contents.

    Raises:
        BenchError: too few images for every class to be in every split.
    """
    from sklearn.model_selection import train_test_split

    if collection.listed:  # every file is one of its own
        first = member = np.arange(len(collection))
    else:
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
            rest, parts["id-test"] = np.sort(rest), test
        held_out = (
            id_data.val_count
            if id_data.val_count is not None
            else round(id_data.val_fraction * count)
        )
        train, val = train_test_split(
            rest, test_size=held_out, stratify=labels[rest], random_state=seed
        )
    except ValueError as error:
        raise BenchError(
            f"{count} distinct images are too few to divide into train, id-val and id-test:"
            f" {error}",
            where=collection.what,
            fix=(
                "complete the copy; on part of it, a card of your own with `extends` and a smaller"
                " val_count under [id]"
            ),
        ) from error
    parts = {"train": train, "id-val": val} | parts
    return {
        name: np.flatnonzero(np.isin(member, part)).astype(np.int64) for name, part in parts.items()
    }


def limited(collection: Collection, rows: Rows, limit: int | None) -> Rows:
    """At most `limit` of the rows, as many of every class as of any other where there are enough;
    the order stays.
    """
    if limit is None or len(rows) <= limit:
        return rows
    labels = pd.Series(collection.labels[rows])
    rank = labels.groupby(labels).cumcount().to_numpy()
    chosen = np.lexsort((labels.to_numpy(), rank))[:limit]
    return rows[np.sort(chosen)]


def few(collection: Collection, rows: Rows, shots: int, seed: int) -> Rows:
    """`shots` of the rows of every class (all of a class that has fewer), drawn by `seed`; the
    order stays.

    The draw depends on the contents, the seed and the number of shots alone; a larger number
    contains a smaller one.
    """
    labels = collection.labels[rows]
    rank = numpy_stream("few shots", seed).permutation(len(rows))
    place = pd.Series(rank).groupby(labels).rank(method="first")
    return rows[place.to_numpy() <= shots]


def fingerprint(collection: Collection, rows: Rows) -> str:
    """SHA-256 over the sorted contents, labels and groups (-1 for none) of these rows: where the
    images lie is not in it.
    """
    groups = (
        np.full(len(rows), -1, dtype=np.int64)
        if collection.groups is None
        else collection.groups[rows]
    )
    triples = zip(
        collection.decoded_from(rows).tolist(),
        collection.labels[rows].tolist(),
        groups.tolist(),
        strict=True,
    )
    lines = sorted(f"{content} {label} {group}\n" for content, label, group in triples)
    if collection.treatment:
        lines.append(f"{collection.treatment}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
