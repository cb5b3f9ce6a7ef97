"""One file is one image: a file that lies in two splits, or under two labels, is refused with its
names, before training.
"""

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

#: What is wrong with files that are listed twice, or under two classes.
TWICE: Final = "more than one image"

_MOST_NAMED = 5
_FIX = (
    "keep every image in one place, under one class; if the data set has it twice, as two files and"
    " no link"
)


def file_numbers(size: ArrayLike, inode: ArrayLike, place: ArrayLike = 0) -> NDArray[np.int64]:
    """A number for every place on disk: two names of one file have the same one, whatever links
    lead to it.

    The number of the device is not in it: that of a network's file system changes when it is
    mounted anew, and the numbers are remembered. Whether files of one number are one file is found
    out by `_place`.

    Args:
        size, inode: (N,) of the files, as `os.stat` has them.
        place: (N,) where in the file an image is: an offset or a row.
    """
    shape = np.broadcast_shapes(*(np.shape(one) for one in (size, inode, place)))
    value = np.zeros(shape, dtype=np.uint64)
    for part in (size, inode, place):
        value = _mixed(value ^ np.asarray(part).astype(np.uint64))
    return value.view(np.int64)


def numbers_in(files: Sequence[Path], file: NDArray[Any], place: NDArray[Any]) -> NDArray[np.int64]:
    """As `file_numbers`, of images that lie many to a file: image i at `place[i]` of
    `files[file[i]]`.
    """
    status = [os.stat(one) for one in files]
    size, inode = (
        np.array([getattr(one, key) for one in status], dtype=np.uint64)
        for key in ("st_size", "st_ino")
    )
    return file_numbers(size[file], inode[file], place)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014): every bit of the input changes half of the
    output's.
    """
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def refuse_repeated(collection: Collection, called: Callable[[int], str]) -> None:
    """Nothing, unless a collection names a file twice, or a file has two names under two labels.

    Two names under one label are two equal images, which are counted as such (see `equal`).

    Args:
        called: what a label is called.

    Raises:
        BenchError: it does; the message has the names.
    """
    if collection.files is None or len(collection.distinct_files) == len(collection):
        return
    told = []
    for rows in _same(collection):
        names = sorted({str(collection.keys[row]) for row in rows})
        labels = sorted(called(int(collection.labels[row])) for row in rows)
        if len(names) < len(rows) or len(set(labels)) > 1:
            told.append(f"{' = '.join(names)} ({' and '.join(labels)})")
    refuse(told, collection.what, TWICE)


def refuse_parted(collection: Collection, parts: Mapping[str, Rows]) -> None:
    """Nothing, unless a division parts two names of one file.

    Raises:
        BenchError: it does.
    """
    if collection.files is None or len(collection.distinct_files) == len(collection):
        return
    split_of = {int(row): name for name, rows in parts.items() for row in rows}
    told = [
        " = ".join(f"{collection.keys[row]} ({split_of[row]})" for row in rows)
        for rows in _same(collection)
        if len({split_of[row] for row in rows}) > 1
    ]
    refuse(told, collection.what, "in two splits")


def refuse_shared(collections: Mapping[str, Collection], chosen_on: Sequence[str]) -> None:
    """Nothing, unless two splits share a file.

    Test sets may be the same files, or one of them a part of the other: then a card measures them
    in two ways.

    Args:
        chosen_on: the collections that are trained or selected on, which no other may share a file
            with.

    Raises:
        BenchError: they do.
    """
    found = {name: one for name, one in collections.items() if one.files is not None and len(one)}
    if not _any_shared([one.distinct_files for one in found.values()]):
        return
    names = list(found)
    for number, name in enumerate(names):
        for other in names[:number]:
            one, two = found[name], found[other]
            may_be_part = name not in chosen_on and other not in chosen_on
            told = shared_files(one, two, may_be_part=may_be_part) or []
            refuse(told, f"{two.what} and {one.what}", f"in two splits, {other} and {name}")


def shared_files(one: Collection, two: Collection, *, may_be_part: bool = True) -> list[str] | None:
    """Names of the files that both have, as `two` calls them and, where that is another name, as
    `one` does.

    None if all files of one are files of the other, and that `may_be`.
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
    """Whether any two of these sorted sets share a number: the largest is never copied, since it
    may be a million.
    """
    if len(sets) < 2:
        return False
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
    """Groups of rows that are one file, in the order of their first names."""
    assert collection.files is not None
    numbers, count = np.unique(collection.files, return_counts=True)
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for row in _rows_of(collection, numbers[count > 1]):
        groups[_place(collection, row)].append(row)
    return sorted(
        (rows for rows in groups.values() if len(rows) > 1),
        key=lambda rows: str(collection.keys[rows[0]]),
    )


def _place(collection: Collection, row: int) -> object:
    """What is the same for two names of one file, and only for them.

    Files of two devices, and on some network file systems of one, may have the same number. A file
    with several names is counted as such by the system, or a symbolic link leads to it.
    """
    assert collection.files is not None
    path = collection.originals.place(row)
    try:
        status = os.stat(path)
    except OSError:  # not a file of its own but a place in one
        return int(collection.files[row])
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(path)


def refuse(told: Sequence[str], where: str, what: str) -> None:
    """Raise BenchError if there is anything to tell: how many files are `what`, and the first of
    them by name.
    """
    if told:
        some = "; ".join(told[:_MOST_NAMED]) + (
            f"; and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
        )
        files = "1 file is" if len(told) == 1 else f"{len(told)} files are"
        raise BenchError(f"{files} {what}: {some}", where=where, fix=_FIX)
