"""Equal images under two names: counted within a split and between splits, by their bytes.

Of images that are identified by their content it is known at once. Of listed ones `compare` finds out: it reads the first and
last bytes of those that share their size with another, and all bytes of those that still look alike. What it finds is kept in
the index, under what the listing is, and read from there by whoever counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .collection import Collection, EncodedOriginals, FolderOriginals, MergedOriginals, Originals, Rows
from .corrupted import CorruptedOriginals
from .image_bytes import DANGLING, EMPTY
from .packed_originals import PackedOriginals
from .pixel_cache import available_cores
from .stored import Progress, replace_file

#: Bytes that are read at each end of an image before all of it is.
END: Final = 4096

_VERSION: Final = 1
_STEP: Final = 4096
_UNKNOWN: Final = -1
#: Images without a byte; they are told as what they are.
_ALIKE: Final = (EMPTY, DANGLING)


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
        codes, compared = self._look_up(collection)
        if codes is None or (collection.listed and collection.listing not in compared):
            return None
        some = _some(codes, rows)
        return len(some) - len(np.unique(some))

    def among(
        self, collection: Collection, other: Collection, rows: Rows | None = None, others: Rows | None = None
    ) -> int | None:
        """How many of these rows are equal to one of the `others` in `other`; None if they were not compared.

        Corrupted images are no copies of the clean ones, and pixels in an array cannot be compared with files.
        """
        (codes, compared), (more, also) = self._look_up(collection), self._look_up(other)
        if codes is None or more is None or (_sizes(collection.originals) is None) != (_sizes(other.originals) is None):
            return None
        if (collection.listed and other.listing not in compared) or (other.listed and collection.listing not in also):
            return None
        return int(np.isin(_some(codes, rows), _some(more, others)).sum())

    def contradictory(self, collection: Collection) -> int:
        """How many contents carry more than one label, as far as is known."""
        codes, _ = self._look_up(collection)
        if codes is None:
            return 0
        known = codes != _UNKNOWN
        pairs = np.unique(np.stack([codes[known], collection.labels[known]]), axis=1)[0]
        return int((np.unique(pairs, return_counts=True)[1] > 1).sum())

    def pairs(self, collection: Collection, other: Collection, most: int = 3) -> list[str]:
        """Names of images of `collection` that are equal to one of `other` (which may be the same), the first few."""
        (codes, _), (more, _) = self._look_up(collection), self._look_up(other)
        assert codes is not None
        assert more is not None
        told = []
        shared = np.flatnonzero((codes != _UNKNOWN) & np.isin(codes, more))
        for row in shared.tolist():
            twins = [twin for twin in np.flatnonzero(more == codes[row]).tolist() if collection is not other or twin > row]
            told += [f"{collection.keys[row]} = {other.keys[twin]}" for twin in twins[:1]]
            if len(told) > most:
                return [*told[:most], "..."]
        return told

    def compare(self, collections: Sequence[Collection], progress: Progress | None = None, *, anew: bool = False) -> None:
        """Find the images of all these that are equal, and keep it for whoever counts later.

        Args:
            anew: also where it is known already.

        Raises:
            BenchError: an image cannot be read.
        """
        chosen = [one for one in collections if _sizes(one.originals) is not None]
        known = all(self.among(one, two) is not None for one in chosen for two in chosen)
        if not any(one.listed for one in chosen) or (known and not anew):
            return
        twins = _twins(chosen, progress)
        for one, found in zip(chosen, twins, strict=True):
            if one.listed:
                _keep(self._file(one), found, [other.listing for other in chosen])
        self._known.clear()

    def _look_up(self, collection: Collection) -> tuple[NDArray[np.int64] | None, frozenset[str]]:
        """What each image is, as a number that equal ones share (-1: equal to none), and which listings it was compared with."""
        if id(collection) not in self._known:
            self._known[id(collection)] = (collection, *self._read(collection))
        return self._known[id(collection)][1:]

    def _read(self, collection: Collection) -> tuple[NDArray[np.int64] | None, frozenset[str]]:
        if _are_corrupted(collection.originals):
            return None, frozenset()
        if not collection.listed:
            codes = np.array([_code(one) for one in collection.content.tolist()], dtype=np.int64)
            codes[np.isin(collection.problems, _ALIKE)] = _UNKNOWN
            return codes, frozenset()
        found = _kept(self._file(collection))
        if found is None:
            return None, frozenset()
        codes = np.full(len(collection), _UNKNOWN, dtype=np.int64)
        codes[list(found[0])] = [_code(one) for one in found[0].values()]
        return codes, frozenset(found[1])

    def _file(self, collection: Collection) -> Path:
        return self._cache / f"{collection.listing}.{_VERSION}.equal.parquet"


def _code(sha256: str) -> int:
    """60 bits of it: a million images share one by chance once in a million such sets."""
    return int(sha256[:15], 16)


def _some(codes: NDArray[np.int64], rows: Rows | None) -> NDArray[np.int64]:
    chosen = codes if rows is None else codes[rows]
    return chosen[chosen != _UNKNOWN]


def _kept(file: Path) -> tuple[dict[int, str], list[str]] | None:
    """SHA-256 by row of the images that are equal to another, and the listings that were compared; None if there is none."""
    try:
        table = pq.read_table(file)
        compared = json.loads(table.schema.metadata[b"compared"])
        return dict(zip(table["row"].to_pylist(), table["sha256"].to_pylist(), strict=True)), compared
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: a cache is not worth an error
        return None


def _keep(file: Path, found: dict[int, str], compared: Sequence[str]) -> None:
    """Add what was found to what is known of these images from comparisons with others."""
    earlier, before = _kept(file) or ({}, [])
    rows = earlier | found
    table = pa.table({"row": pa.array(list(rows), pa.int64()), "sha256": pa.array(list(rows.values()), pa.string())})
    table = table.replace_schema_metadata({"compared": json.dumps(sorted({*before, *compared}))})
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda part: pq.write_table(table, part))


def _twins(collections: Sequence[Collection], progress: Progress | None) -> list[dict[int, str]]:
    """SHA-256 by row of the images that are equal to another of any of the collections."""
    member = np.concatenate([np.full(len(one), number) for number, one in enumerate(collections)])
    row = np.concatenate([np.arange(len(one)) for one in collections])
    size = np.concatenate([sizes for one in collections if (sizes := _sizes(one.originals)) is not None])
    readable = np.concatenate([~np.isin(one.problems, _ALIKE) for one in collections])
    alike = np.flatnonzero(readable)
    alike = alike[_shared(size[alike])]

    def read(which: NDArray[np.int64], how: Callable[[Collection, int], str], what: str) -> list[str]:
        places = [(collections[member[one]], int(row[one])) for one in which.tolist()]
        return list(_in_threads(places, how, what, progress))

    ends = read(alike, _ends, "comparing the ends of images")
    look = pd.factorize(pd.Series([f"{bytes_} {end}" for bytes_, end in zip(size[alike].tolist(), ends, strict=True)]))[0]
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
    places: Sequence[tuple[Collection, int]], how: Callable[[Collection, int], str], what: str, progress: Progress | None
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
    return isinstance(originals.parts[0] if isinstance(originals, MergedOriginals) else originals, CorruptedOriginals)
