"""What the images of a split truly are: their labels and groups, by the fingerprint of the data,
whoever predicted on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from bench.data.cards.suite_card import find_card
from bench.results.record import RunRecord
from bench.results.store import Store

from .pack import IMAGES

#: Key of an image -> (label, group).
Truth = dict[str, tuple[int, int]]
#: (record, split) -> fingerprint and truth of the suite's own images.
DataOfSuite = Callable[[RunRecord, str], tuple[str, Truth]]

_PIXELS = re.compile(r"pil-(bicubic|bilinear)-([0-9]{1,4})-([0-9]{1,4})")


class Truths:
    """All that look at the same data must agree on its labels: with the suite's images, else the
    store, else each other.

    Args:
        store: its runs are believed.
        data: where to find the suites' own images, which are believed most.
    """

    def __init__(self, store: Store, data: DataOfSuite | None = None) -> None:
        self._data = data
        self._known: dict[str, Truth] = {}
        self._places: dict[str, Path] = {}
        for path, record in store.records():
            for split, fingerprint in record.data.items():
                if record.status == "done" and split in record.metrics:
                    self._places.setdefault(
                        fingerprint, path.parent / "predictions" / f"{split}.parquet"
                    )

    def differs(self, record: RunRecord, split: str, truth: Truth) -> str:
        """In what `truth` differs from what is known of this data; empty if in nothing. The first
        that is told is believed.
        """
        fingerprint = record.data[split]
        if fingerprint not in self._known:
            if self._data is not None:
                here, own = self._data(record, split)
                if here != fingerprint:
                    return (
                        f"the images of {record.suite} here have the fingerprint {here[:12]}, and"
                        f" its are {fingerprint[:12]}"
                    )
                self._known[fingerprint] = own
            else:
                self._known[fingerprint] = self._stored(fingerprint) or truth
        known = self._known[fingerprint]
        if known.keys() == truth.keys():
            wrong = [key for key in known if known[key] != truth[key]]
            return (
                f"{len(wrong)} labels or groups differ, such as that of {wrong[0][:80]!r}"
                if wrong
                else ""
            )
        # Another copy of the data may call its files otherwise; how often a label and a group occur
        # is in the fingerprint.
        return (
            ""
            if sorted(known.values()) == sorted(truth.values())
            else "labels and groups occur in other numbers"
        )

    def _stored(self, fingerprint: str) -> Truth | None:
        import pyarrow.parquet as pq

        path = self._places.get(fingerprint)
        if path is None or not path.exists():
            return None
        with pq.ParquetFile(path) as file:
            return truth_of(columns_of(file.read(columns=list(IMAGES))))


def truth_of(images: dict[str, NDArray[Any]]) -> Truth:
    """From the columns `key`, `label` and `group`."""
    return dict(
        zip(
            images["key"].tolist(),
            zip(images["label"].tolist(), images["group"].tolist(), strict=True),
            strict=True,
        )
    )


def columns_of(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns as arrays: (N,), and (N, C) for a list of fixed length; empty floats become NaN."""
    import pyarrow as pa

    found: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            found[name] = (
                column.flatten()
                .to_numpy(zero_copy_only=False)
                .reshape(len(column), column.type.list_size)
            )
        else:
            found[name] = column.to_numpy(zero_copy_only=False)
    return found


def data_here(data_root: Path | None = None) -> DataOfSuite:
    """The images of installed suites on this machine; a suite is opened once, its images are
    decoded as for a run.

    Args:
        data_root: as of `bench run`.
    """
    from bench.data.pixels.decoder import Pixels
    from bench.data.suite import Suite, open_suite

    opened: dict[str, Suite] = {}

    def look_up(record: RunRecord, split: str) -> tuple[str, Truth]:
        if record.suite not in opened:
            card, path = find_card(record.suite)
            opened[record.suite] = open_suite(card, card_path=path, data_root=data_root)
        named = _PIXELS.fullmatch(record.pixels)
        if named is None:
            return "unknown: no such pixels", {}
        pixels = Pixels.model_validate(
            {"interpolation": named[1], "resize": int(named[2]), "size": int(named[3])}
        )
        found = opened[record.suite].load(split, pixels)
        groups = found.groups.tolist() if found.groups is not None else [-1] * len(found)
        pairs = zip(found.labels.tolist(), groups, strict=True)
        return found.fingerprint, dict(zip(map(str, found.keys), pairs, strict=True))

    return look_up
