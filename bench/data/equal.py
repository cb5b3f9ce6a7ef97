"""Equal images under two names: counted within a split and between splits, by their bytes.

Of images that are identified by their content it is known at once. Of listed ones `compare` finds
out: it reads the first and last bytes of those that share their size with another, and all bytes of
those that still look alike. What it finds is kept in the index, under what the listing is, and read
from there by whoever counts.
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
from .readers.packed_originals import PackedOriginals

#: Bytes that are read at each end of an image before all of it is.
END: Final = 4096

_VERSION: Final = 1
_STEP: Final = 4096
#: In place of its content: of an image that is equal to no other, as far as is known.
UNKNOWN: Final = -1
#: Images without a byte; they are told as what they are.
_ALIKE: Final = (EMPTY, DANGLING)


@dataclass(frozen=True)
class Repetition:
    """Equal images in one place.

    Attributes:
        where: a set of images, or `one in another`.
        found: how many of it are equal to another.
        stated: how many a card states.
        names: of the first of them.
    """

    where: str
    found: int
    stated: int
    names: Sequence[str]

    @property
    def is_stated(self) -> bool:
        """Whether the card states as many: a part of the data may hold fewer."""
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
    """Counts of equal images in collections, as far as they are known; each is looked up once.

    Args:
        cache: folder of what `compare` found.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        # The collection stands beside what is known of it, so that its id stays its own.
        self._known: dict[int, tuple[Collection, NDArray[np.int64] | None, frozenset[str]]] = {}

    def within(self, collection: Collection, rows: Rows | None = None) -> int | None:
        """How many images repeat another of these rows; None if they were not compared."""
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
        """How many of these rows are equal to one of the `others` in `other`; None if they were not
        compared.
        """
        if not self._compared(collection, other):
            return None
        return int(np.isin(self._some(collection, rows), self._some(other, others)).sum())

    def contents(self, collection: Collection) -> NDArray[np.int64]:
        """(N,) a number that equal images share; UNKNOWN where it is not known to be equal to
        another.
        """
        codes, _ = self._look_up(collection)
        return np.full(len(collection), UNKNOWN, dtype=np.int64) if codes is None else codes

    def contradictory(self, collection: Collection) -> int:
        """How many contents carry more than one label, as far as is known."""
        codes, labels = self.contents(collection), collection.labels
        order = np.lexsort((labels, codes))
        codes, labels = codes[order], labels[order]
        differ = (codes[1:] == codes[:-1]) & (labels[1:] != labels[:-1]) & (codes[1:] != UNKNOWN)
        return len(np.unique(codes[1:][differ]))

    def pairs(self, collection: Collection, other: Collection, most: int = 3) -> list[str]:
        """Names of images of `collection` that are equal to one of `other` (which may be the same),
        the first few.
        """
        codes, more = self.contents(collection), self.contents(other)
        told: list[str] = []
        shared = (codes != UNKNOWN) & (
            _shared(codes) if collection is other else np.isin(codes, more)
        )
        for row in np.flatnonzero(shared).tolist():
            twins = [
                twin
                for twin in np.flatnonzero(more == codes[row]).tolist()
                if collection is not other or twin > row
            ]
            told += [f"{collection.keys[row]} = {other.keys[twin]}" for twin in twins[:1]]
            if len(told) > most:
                return [*told[:most], "..."]
        return told

    def compare(
        self,
        collections: Sequence[Collection],
        progress: Progress | None = None,
        *,
        anew: bool = False,
    ) -> None:
        """Find the images of all these that are equal, and keep it for whoever counts later.

        Args:
            anew: also where it is known already.

        Raises:
            BenchError: an image cannot be read.
        """
        chosen = [one for one in collections if _sizes(one.originals) is not None]
        if not chosen:
            return
        if not anew and all(self._compared(one, two) for one in chosen for two in chosen):
            return
        twins = _twins(chosen, progress)
        for one, found in zip(chosen, twins, strict=True):
            if one.listed:
                _keep(self._file(one), found, [other.listing for other in chosen])
        self._known.clear()

    def _compared(self, one: Collection, two: Collection) -> bool:
        """Whether it is known which images of both are equal.

        Corrupted images are no copies of the clean ones, and pixels in an array cannot be compared
        with files.
        """
        (codes, known), (more, also) = self._look_up(one), self._look_up(two)
        if (
            codes is None
            or more is None
            or (_sizes(one.originals) is None) != (_sizes(two.originals) is None)
        ):
            return False
        return (not one.listed or two.listing in known) and (not two.listed or one.listing in also)

    def _some(self, collection: Collection, rows: Rows | None) -> NDArray[np.int64]:
        codes = self.contents(collection) if rows is None else self.contents(collection)[rows]
        known: NDArray[np.int64] = codes[codes != UNKNOWN]
        return known

    def _look_up(self, collection: Collection) -> tuple[NDArray[np.int64] | None, frozenset[str]]:
        """What each image is, as a number that equal ones share (-1: equal to none), and which
        listings it was compared with.
        """
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
        found = _kept(self._file(collection))
        if found is None:
            return None, frozenset()
        codes = np.full(len(collection), UNKNOWN, dtype=np.int64)
        codes[list(found[0])] = [_code(one) for one in found[0].values()]
        return codes, frozenset(found[1])

    def _file(self, collection: Collection) -> Path:
        return self._cache / f"{collection.listing}.{_VERSION}.equal.parquet"


def _code(sha256: str) -> int:
    """60 bits of it: a million images share one by chance once in a million such sets."""
    return int(sha256[:15], 16)


def _kept(file: Path) -> tuple[dict[int, str], list[str]] | None:
    """SHA-256 by row of the images that are equal to another, and the listings that were compared;
    None if there is none.
    """
    try:
        table = pq.read_table(file)
        compared = json.loads(table.schema.metadata[b"compared"])
        return (
            dict(zip(table["row"].to_pylist(), table["sha256"].to_pylist(), strict=True)),
            compared,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # none yet, or damaged: a cache is not worth an error
        return None


def _keep(file: Path, found: dict[int, str], compared: Sequence[str]) -> None:
    """Add what was found to what is known of these images from comparisons with others."""
    earlier, before = _kept(file) or ({}, [])
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
    """SHA-256 by row of the images that are equal to another of any of the collections."""
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
    """Which of these occur more than once."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(count[place] > 1)


def _in_threads(
    places: Sequence[tuple[Collection, int]],
    how: Callable[[Collection, int], str],
    what: str,
    progress: Progress | None,
) -> Iterator[str]:
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
    assert isinstance(originals, FolderOriginals | PackedOriginals)
    return originals, row


def _sizes(originals: Originals) -> NDArray[np.int64] | None:
    """Bytes of every image; None of those that are no encoded images but pixels."""
    if isinstance(originals, FolderOriginals | PackedOriginals):
        return originals.sizes
    if not isinstance(originals, MergedOriginals):
        return None
    parts = [sizes for part in originals.parts if (sizes := _sizes(part)) is not None]
    if len(parts) < len(originals.parts):
        return None
    first = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts)[first[originals.member] + originals.row]


def _are_corrupted(originals: Originals) -> bool:
    return isinstance(
        originals.parts[0] if isinstance(originals, MergedOriginals) else originals,
        CorruptedOriginals,
    )
