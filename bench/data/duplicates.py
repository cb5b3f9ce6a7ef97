"""Find images with equal bytes within a split and between splits.

Images that are identified by their content need no comparison. For listed ones `compare` reads the
first and last bytes of all files that share their size with another, and then all bytes of those
that are still alike. It caches the result under the hash of the listing, and everything else here
counts from that cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..storage.atomic import Progress, write_with
from .collection import (
    Collection,
    EncodedOriginals,
    FolderOriginals,
    MergedOriginals,
    Originals,
    Rows,
)
from .corruptions.corrupted import CorruptedOriginals
from .pixels.cache import available_cores
from .pixels.image_bytes import DANGLING, EMPTY
from .readers.shard_images import ShardImages

#: Bytes to read at each end of an image before all of it is read: one block of most file systems.
#: Different images of one size nearly always differ there, so few are read as a whole.
END: Final = 4096

#: Part of the cached file's name; increase it when the comparison changes.
_VERSION: Final = 1
#: Images to submit to the threads at a time; progress is reported after each such batch.
_STEP: Final = 4096
#: Code of an image that is equal to no other, as far as is known.
UNKNOWN: Final = -1
#: Problems of images without a byte. All of them are equal, and reported as problems instead.
_ALIKE: Final = (EMPTY, DANGLING)


@dataclass(frozen=True)
class Repetition:
    """The equal images of a split, or of a split in another.

    Attributes:
        where: name of a split, or `one in another`.
        found: number of images that are equal to another.
        stated: number that a card states.
        names: the first of them, as `name = name`.
    """

    where: str
    found: int
    stated: int
    names: Sequence[str]

    @property
    def is_stated(self) -> bool:
        """Whether the card states at least as many."""
        # Fewer than stated is fine: a partial copy has fewer of all images.
        return self.found <= self.stated

    def __str__(self) -> str:
        says = (
            "as the card says"
            if self.found == self.stated
            else f"the card says {self.stated or 'none'}"
        )
        return f"{self.where}: {self.found} equal images, {says}" + (
            f": {', '.join(self.names)}" if self.names else ""
        )


class EqualImages:
    """The equal images of collections, as far as they were compared.

    Args:
        cache: folder of the results of `compare`.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        # By id. Each entry holds its collection as well: Python could otherwise give the id of a
        # deleted one to another.
        self._known: dict[int, tuple[Collection, NDArray[np.int64] | None, frozenset[str]]] = {}

    def within(self, collection: Collection, rows: Rows | None = None) -> int | None:
        """Count the images that repeat another of these rows.

        Returns:
            Their number, or None if the images were not compared.
        """
        if not self._compared(collection, collection):
            return None
        some = self._some(collection, rows)
        return len(some) - len(np.unique(some))

    def among(
        self,
        collection: Collection,
        other: Collection,
        rows: Rows | None = None,
        others: Rows | None = None,
    ) -> int | None:
        """Count the images of a collection that are also in another.

        Args:
            collection: the images to count.
            other: the images to compare with.
            rows: (n,) rows of `collection` to count; None for all.
            others: (m,) rows of `other` to compare with; None for all.

        Returns:
            Their number, or None if the images were not compared.
        """
        if not self._compared(collection, other):
            return None
        return int(np.isin(self._some(collection, rows), self._some(other, others)).sum())

    def contents(self, collection: Collection) -> NDArray[np.int64]:
        """Return a number for every image, (N,), which is the same for equal images.

        It is UNKNOWN where no equal image is known.
        """
        codes, _ = self._look_up(collection)
        return np.full(len(collection), UNKNOWN, dtype=np.int64) if codes is None else codes

    def contradictory(self, collection: Collection) -> int:
        """Count the contents that have more than one label, as far as is known."""
        codes, labels = self.contents(collection), collection.labels
        # Sorted by code, then label: a content with two labels has two neighbours that differ.
        order = np.lexsort((labels, codes))
        codes, labels = codes[order], labels[order]
        differ = (codes[1:] == codes[:-1]) & (labels[1:] != labels[:-1]) & (codes[1:] != UNKNOWN)
        return len(np.unique(codes[1:][differ]))

    def pairs(self, collection: Collection, other: Collection, most: int = 3) -> list[str]:
        """Return the first pairs of equal images as `name = name`, then "..." if there are more.

        Args:
            collection: images to find.
            other: images to find them in; may be the same collection.
            most: number of pairs.
        """
        codes, more = self.contents(collection), self.contents(other)
        names: list[str] = []
        shared = (codes != UNKNOWN) & (
            _shared(codes) if collection is other else np.isin(codes, more)
        )
        for row in np.flatnonzero(shared).tolist():
            twins = [
                twin
                for twin in np.flatnonzero(more == codes[row]).tolist()
                # Within one collection every pair would be found twice.
                if collection is not other or twin > row
            ]
            names += [f"{collection.keys[row]} = {other.keys[twin]}" for twin in twins[:1]]
            if len(names) > most:
                return [*names[:most], "..."]
        return names

    def compare(
        self,
        collections: Sequence[Collection],
        progress: Progress | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Find the equal images within and between collections, and cache the result.

        Args:
            collections: the images to compare; those that are not files are left out.
            progress: called with the phase, the images done and their number.
            force: compare even if a result is cached.

        Raises:
            BenchError: an image cannot be read.
        """
        chosen = [one for one in collections if _sizes(one.originals) is not None]
        if not chosen:
            return
        if not force and all(self._compared(one, two) for one in chosen for two in chosen):
            return
        twins = _twins(chosen, progress)
        for one, found in zip(chosen, twins, strict=True):
            # The content of the others identifies them without a file in the cache.
            if one.listed:
                _save(self._file(one), found, [other.listing for other in chosen])
        self._known.clear()

    def _compared(self, one: Collection, two: Collection) -> bool:
        """Whether the equal images of both are known.

        Never for corrupted images, which are not copies of the clean ones, nor between pixels in an
        array and files.
        """
        (codes, known), (more, also) = self._look_up(one), self._look_up(two)
        if (
            codes is None
            or more is None
            or (_sizes(one.originals) is None) != (_sizes(two.originals) is None)
        ):
            return False
        # A cached result counts only for the listings that it was computed with: another dataset,
        # or the same one after a change, has another hash.
        return (not one.listed or two.listing in known) and (not two.listed or one.listing in also)

    def _some(self, collection: Collection, rows: Rows | None) -> NDArray[np.int64]:
        codes = self.contents(collection) if rows is None else self.contents(collection)[rows]
        known: NDArray[np.int64] = codes[codes != UNKNOWN]
        return known

    def _look_up(self, collection: Collection) -> tuple[NDArray[np.int64] | None, frozenset[str]]:
        """Return the code of every image and the hashes of the listings it was compared with."""
        # Read once per process: suites ask for every pair of splits, and a file in the cache may
        # list a million images.
        if id(collection) not in self._known:
            self._known[id(collection)] = (collection, *self._read(collection))
        return self._known[id(collection)][1:]

    def _read(self, collection: Collection) -> tuple[NDArray[np.int64] | None, frozenset[str]]:
        if _are_corrupted(collection.originals):
            return None, frozenset()
        if not collection.listed:
            codes = np.full(len(collection), UNKNOWN, dtype=np.int64)
            read = ~np.isin(collection.problems, _ALIKE)
            codes[read] = [_code(one) for one in collection.content[read].tolist()]
            return codes, frozenset()
        found = _cached(self._file(collection))
        if found is None:
            return None, frozenset()
        codes = np.full(len(collection), UNKNOWN, dtype=np.int64)
        codes[list(found[0])] = [_code(one) for one in found[0].values()]
        return codes, frozenset(found[1])

    def _file(self, collection: Collection) -> Path:
        return self._cache / f"{collection.listing}.{_VERSION}.equal.parquet"


def _code(sha256: str) -> int:
    """Return the first 60 bits, which fit an int64.

    Two of a million images share a code by chance in one of two million such datasets.
    """
    return int(sha256[:15], 16)


def _cached(file: Path) -> tuple[dict[int, str], list[str]] | None:
    """Return the SHA-256 of repeated images by row, and the hashes of the compared listings.

    None if there is no such file, or it is damaged.
    """
    try:
        table = pq.read_table(file)
        compared = json.loads(table.schema.metadata[b"compared"])
        return (
            dict(zip(table["row"].to_pylist(), table["sha256"].to_pylist(), strict=True)),
            compared,
        )
    # A damaged cache is not worth an error: the comparison can be repeated.
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(file: Path, found: dict[int, str], compared: Sequence[str]) -> None:
    """Merge a result with those of earlier comparisons with other collections, and write it."""
    earlier, before = _cached(file) or ({}, [])
    rows = earlier | found
    table = pa.table(
        {
            "row": pa.array(list(rows), pa.int64()),
            "sha256": pa.array(list(rows.values()), pa.string()),
        }
    )
    table = table.replace_schema_metadata({"compared": json.dumps(sorted({*before, *compared}))})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_with(file, lambda part: pq.write_table(table, part))


def _twins(collections: Sequence[Collection], progress: Progress | None) -> list[dict[int, str]]:
    """Return, for each collection, the SHA-256 by row of the images that are equal to another.

    A funnel: by size, then by both ends, then by all bytes. Each stage reads more bytes of fewer
    images; of a million photographs, the last reads hardly more than the true repetitions.
    """
    member = np.concatenate([np.full(len(one), number) for number, one in enumerate(collections)])
    row = np.concatenate([np.arange(len(one)) for one in collections])
    size = np.concatenate(
        [sizes for one in collections if (sizes := _sizes(one.originals)) is not None]
    )
    readable = np.concatenate([~np.isin(one.problems, _ALIKE) for one in collections])
    alike = np.flatnonzero(readable)
    alike = alike[_shared(size[alike])]

    def read(
        which: NDArray[np.int64], how: Callable[[Collection, int], str], what: str
    ) -> list[str]:
        places = [(collections[member[one]], int(row[one])) for one in which.tolist()]
        return list(_in_threads(places, how, what, progress))

    # By size and both ends. The size is compared again, since two images of different sizes may
    # have equal ends.
    ends = read(alike, _ends, "comparing the ends of images")
    look = pd.factorize(
        pd.Series(
            [f"{bytes_} {end}" for bytes_, end in zip(size[alike].tolist(), ends, strict=True)]
        )
    )[0]
    alike = alike[_shared(look)]
    contents = np.array(read(alike, _content, "comparing images that look alike"), dtype=np.str_)
    equal = _shared(contents) if len(alike) else np.zeros(0, dtype=bool)
    found: list[dict[int, str]] = [{} for _ in collections]
    for one, content in zip(alike[equal].tolist(), contents[equal].tolist(), strict=True):
        found[member[one]][int(row[one])] = content
    return found


def _shared(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of the values occur more than once, (N,)."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(count[place] > 1)


def _in_threads(
    places: Sequence[tuple[Collection, int]],
    how: Callable[[Collection, int], str],
    what: str,
    progress: Progress | None,
) -> Iterator[str]:
    # Threads, since hashing and reading release the GIL. Results come in the order of `places`.
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="equal")
    try:
        for start in range(0, len(places), _STEP):
            yield from pool.map(lambda place: how(*place), places[start : start + _STEP])
            if progress is not None:
                progress(what, min(start + _STEP, len(places)), len(places))
    finally:
        pool.shutdown(cancel_futures=True)


def _ends(collection: Collection, row: int) -> str:
    originals, row = _part(collection.originals, row)
    return hashlib.blake2b(originals.ends(row, END), digest_size=16).hexdigest()


def _content(collection: Collection, row: int) -> str:
    if not collection.listed:
        return str(collection.content[row])
    originals, row = _part(collection.originals, row)
    return hashlib.sha256(originals.data(row)).hexdigest()


def _part(originals: Originals, row: int) -> tuple[EncodedOriginals, int]:
    if isinstance(originals, MergedOriginals):
        return _part(originals.parts[int(originals.member[row])], int(originals.row[row]))
    assert isinstance(originals, FolderOriginals | ShardImages)
    return originals, row


def _sizes(originals: Originals) -> NDArray[np.int64] | None:
    """Return the size of every image in bytes, or None if they are not all encoded files."""
    if isinstance(originals, FolderOriginals | ShardImages):
        return originals.sizes
    if not isinstance(originals, MergedOriginals):
        return None
    parts = [sizes for part in originals.parts if (sizes := _sizes(part)) is not None]
    if len(parts) < len(originals.parts):
        return None
    # The sizes of all parts one after the other; `first` is where each part starts.
    first = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts)[first[originals.member] + originals.row]


def _are_corrupted(originals: Originals) -> bool:
    return isinstance(
        originals.parts[0] if isinstance(originals, MergedOriginals) else originals,
        CorruptedOriginals,
    )
