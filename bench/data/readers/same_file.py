"""Refuse a file that is in two splits or under two labels, through links or repeated entries."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import BenchError
from ..collection import Collection, Rows

#: What files are that are listed twice, or under two classes, in a message.
TWICE: Final = "more than one image"

_MOST_NAMED = 5
#: Two equal files are allowed, unlike two names of one file: official datasets contain the former,
#: while the latter come from a mistake in links or lists.
_FIX = (
    "keep every image in one place, under one class; replace a link by a copy if the dataset is"
    " published with both images"
)


def file_numbers(size: ArrayLike, inode: ArrayLike, place: ArrayLike = 0) -> NDArray[np.int64]:
    """Return a number for every place on disk, which is the same for all links to a file.

    Different files may have the same number, so a match has to be confirmed (see `_place`).

    Args:
        size: (N,) bytes of the files.
        inode: (N,) inodes of the files.
        place: (N,) where in its file an image is: an offset or a row.

    Returns:
        (N,) int64.
    """
    # Without the number of the device, since that of a network file system changes when it is
    # mounted again, and these numbers are cached. The size makes up for some of it.
    shape = np.broadcast_shapes(*(np.shape(one) for one in (size, inode, place)))
    value = np.zeros(shape, dtype=np.uint64)
    for part in (size, inode, place):
        value = _mixed(value ^ np.asarray(part).astype(np.uint64))
    return value.view(np.int64)


def numbers_in(files: Sequence[Path], file: NDArray[Any], place: NDArray[Any]) -> NDArray[np.int64]:
    """Return the numbers of images with many per file, as `file_numbers` does.

    Args:
        files: (F,) the files.
        file: (N,) index in `files` of every image.
        place: (N,) offset or row of every image in its file.
    """
    status = [os.stat(one) for one in files]
    size, inode = (
        np.array([getattr(one, key) for one in status], dtype=np.uint64)
        for key in ("st_size", "st_ino")
    )
    return file_numbers(size[file], inode[file], place)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix bits by the finaliser of SplitMix64 (Steele et al., 2014)."""
    # Inodes and offsets are small and regular. Combined without mixing, they would often collide.
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def refuse_repeated(collection: Collection, called: Callable[[int], str]) -> None:
    """Raise if a collection contains a file twice under one name, or under two labels.

    Two names under one label are two equal images, which are counted elsewhere (`duplicates`).

    Args:
        collection: the collection to check.
        called: returns the name of a label, for the message.

    Raises:
        BenchError: there is such a file; the message has its names and labels.
    """
    # The numbers of distinct files are cached. For almost every collection they settle the
    # question without a look at the disk.
    if collection.files is None or len(collection.distinct_files) == len(collection):
        return
    repeated = []
    for rows in _same(collection):
        names = sorted({str(collection.keys[row]) for row in rows})
        labels = sorted(called(int(collection.labels[row])) for row in rows)
        if len(names) < len(rows) or len(set(labels)) > 1:
            repeated.append(f"{' = '.join(names)} ({' and '.join(labels)})")
    refuse(repeated, collection.what, TWICE)


def refuse_parted(collection: Collection, parts: Mapping[str, Rows]) -> None:
    """Raise if a division puts two names of one file into different splits.

    Args:
        collection: the collection that is divided.
        parts: rows of every split.

    Raises:
        BenchError: there is such a file; the message has its names and splits.
    """
    if collection.files is None or len(collection.distinct_files) == len(collection):
        return
    split_of = {int(row): name for name, rows in parts.items() for row in rows}
    divided = [
        " = ".join(f"{collection.keys[row]} ({split_of[row]})" for row in rows)
        for rows in _same(collection)
        if len({split_of[row] for row in rows}) > 1
    ]
    refuse(divided, collection.what, "in two splits")


def refuse_shared(collections: Mapping[str, Collection], chosen_on: Sequence[str]) -> None:
    """Raise if two splits share a file.

    Two test sets may be the same files, or one a subset of the other: the card then measures them
    in two ways, such as by average and by worst group.

    Args:
        collections: the collections by name.
        chosen_on: names of the collections that are trained or selected on, which must not share a
            file with any other.

    Raises:
        BenchError: two splits share files; the message has their names.
    """
    found = {name: one for name, one in collections.items() if one.files is not None and len(one)}
    if not _any_shared([one.distinct_files for one in found.values()]):
        return
    names = list(found)
    for number, name in enumerate(names):
        for other in names[:number]:
            one, two = found[name], found[other]
            may_be_part = name not in chosen_on and other not in chosen_on
            shared = shared_files(one, two, may_be_part=may_be_part) or []
            refuse(shared, f"{two.what} and {one.what}", f"in two splits, {other} and {name}")


def shared_files(one: Collection, two: Collection, *, may_be_part: bool = True) -> list[str] | None:
    """Return the names of the files that two collections share.

    Args:
        one: a collection.
        two: another one.
        may_be_part: whether one may be a subset of the other.

    Returns:
        The names in `two`, followed by those in `one` where they differ; or None if one collection
        is a subset of the other and may be.
    """
    if one.files is None or two.files is None or not len(one) or not len(two):
        return []
    shared = np.intersect1d(one.distinct_files, two.distinct_files, assume_unique=True)
    if may_be_part and len(shared) == min(len(one.distinct_files), len(two.distinct_files)):
        return None
    mine, theirs = (
        {_place(c, row): str(c.keys[row]) for row in _rows_of(c, shared)} for c in (one, two)
    )
    pairs = sorted((theirs[place], mine[place]) for place in mine.keys() & theirs.keys())
    return [their if their == own else f"{their} = {own}" for their, own in pairs]


def _any_shared(sets: Sequence[NDArray[np.int64]]) -> bool:
    """Return whether any two of these sorted sets have a number in common."""
    if len(sets) < 2:
        return False
    # The largest set, often a million mapped training images, is searched and never copied.
    *small, large = sorted(sets, key=len)
    rest = np.sort(np.concatenate(small))
    place = np.searchsorted(large, rest)
    inside = place < len(large)
    return bool(
        (rest[1:] == rest[:-1]).any() or (np.asarray(large)[place[inside]] == rest[inside]).any()
    )


def _rows_of(collection: Collection, numbers: NDArray[np.int64]) -> list[int]:
    assert collection.files is not None
    return [int(row) for row in np.flatnonzero(np.isin(collection.files, numbers))]


def _same(collection: Collection) -> list[list[int]]:
    """Return groups of rows that are the same file, in the order of their first names."""
    assert collection.files is not None
    # Only rows whose numbers repeat are confirmed on disk.
    numbers, count = np.unique(collection.files, return_counts=True)
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for row in _rows_of(collection, numbers[count > 1]):
        groups[_place(collection, row)].append(row)
    return sorted(
        (rows for rows in groups.values() if len(rows) > 1),
        key=lambda rows: str(collection.keys[rows[0]]),
    )


def _place(collection: Collection, row: int) -> object:
    """Return a value that is equal for two names if and only if they are the same file."""
    # Files on two devices may have the same inode, and on some network file systems even two files
    # on one. So the inode is used only for a file with several hard links; any other file has one
    # name once symbolic links are resolved.
    assert collection.files is not None
    path = collection.originals.place(row)
    try:
        status = os.stat(path)
    # The image is a section of a file, and `place` is not a path.
    except OSError:
        return int(collection.files[row])
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(path)


def refuse(names: Sequence[str], where: str, what: str) -> None:
    """Raise if there are any names.

    Args:
        names: the files that are refused.
        where: dataset and part, or file, for the message.
        what: completes the sentence "2 files are ...".

    Raises:
        BenchError: there are names; the message has their number and the first ones.
    """
    if names:
        some = "; ".join(names[:_MOST_NAMED]) + (
            f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        )
        files = "1 file is" if len(names) == 1 else f"{len(names)} files are"
        raise BenchError(f"{files} {what}: {some}", where=where, fix=_FIX)
