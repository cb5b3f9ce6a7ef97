"""Check that all runs on the same data have the same labels and groups."""

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
LabelOfImage = dict[str, tuple[int, int]]
#: (record, split) -> fingerprint and labels of the suite's own images.
DataOfSuite = Callable[[RunRecord, str], tuple[str, LabelOfImage]]

# The form of `Pixels` in a record, such as pil-bicubic-256-224.
_PIXELS = re.compile(r"pil-(bicubic|bilinear)-([0-9]{1,4})-([0-9]{1,4})")


class TrueLabels:
    """The labels of every dataset that is known, by its fingerprint.

    The reference for a dataset is the first that exists of: the suite's images on this machine, a
    run in the store, the first packed run.

    Args:
        store: the store whose runs are the reference.
        data: reads the suites' own images, which take precedence over the store.
    """

    def __init__(self, store: Store, data: DataOfSuite | None = None) -> None:
        self._data = data
        self._known: dict[str, LabelOfImage] = {}
        # One file per fingerprint, opened when it is first needed: a store has thousands of runs on
        # a handful of datasets.
        self._places: dict[str, Path] = {}
        for path, record in store.records():
            for split, fingerprint in record.data.items():
                if record.status == "done" and split in record.metrics:
                    self._places.setdefault(
                        fingerprint, path.parent / "predictions" / f"{split}.parquet"
                    )

    def differs(self, record: RunRecord, split: str, labels: LabelOfImage) -> str:
        """Compare labels with the reference for their data.

        Labels of data without a reference become the reference.

        Args:
            record: the run.
            split: the split.
            labels: the labels and groups that the run states.

        Returns:
            The difference as a sentence; "" if there is none.
        """
        fingerprint = record.data[split]
        if fingerprint not in self._known:
            if self._data is not None:
                here, own = self._data(record, split)
                if here != fingerprint:
                    return (
                        f"the images of {record.suite} here have the fingerprint {here[:12]}, but"
                        f" the run states {fingerprint[:12]}"
                    )
                self._known[fingerprint] = own
            else:
                self._known[fingerprint] = self._from_store(fingerprint) or labels
        known = self._known[fingerprint]
        if known.keys() == labels.keys():
            wrong = [key for key in known if known[key] != labels[key]]
            return (
                f"{len(wrong)} labels or groups differ, such as that of {wrong[0][:80]!r}"
                if wrong
                else ""
            )
        # Another copy of the data may have other file names, which are not in the fingerprint. The
        # numbers of images per label and group are, so these can be compared.
        return (
            ""
            if sorted(known.values()) == sorted(labels.values())
            else "the numbers of images per label and group differ"
        )

    def _from_store(self, fingerprint: str) -> LabelOfImage | None:
        import pyarrow.parquet as pq

        path = self._places.get(fingerprint)
        if path is None or not path.exists():
            return None
        with pq.ParquetFile(path) as file:
            return labels_of_images(columns_of(file.read(columns=list(IMAGES))))


def labels_of_images(images: dict[str, NDArray[Any]]) -> LabelOfImage:
    """Return the labels from the columns `key`, `label` and `group`, (N,) each."""
    return dict(
        zip(
            images["key"].tolist(),
            zip(images["label"].tolist(), images["group"].tolist(), strict=True),
            strict=True,
        )
    )


def columns_of(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return a table's columns as arrays.

    Args:
        table: N rows.

    Returns:
        Name -> (N,), or (N, C) for lists of fixed length C; empty floats become NaN.
    """
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
    """Return a reader of the labels of installed suites on this machine.

    Args:
        data_root: folder of the datasets, as in `bench run --data-root`.
    """
    from bench.data.pixels.decoder import Pixels
    from bench.data.suite import Suite, open_suite

    # A suite is opened once, since that lists all of its files.
    opened: dict[str, Suite] = {}

    def look_up(record: RunRecord, split: str) -> tuple[str, LabelOfImage]:
        if record.suite not in opened:
            card, path = find_card(record.suite)
            opened[record.suite] = open_suite(card, card_path=path, data_root=data_root)
        named = _PIXELS.fullmatch(record.pixels)
        if named is None:
            return "unknown: no such pixels", {}
        pixels = Pixels.model_validate(
            {"interpolation": named[1], "resize": int(named[2]), "size": int(named[3])}
        )
        # Images are decoded as for a run: the fingerprint leaves out those that cannot be read.
        found = opened[record.suite].load(split, pixels)
        groups = found.groups.tolist() if found.groups is not None else [-1] * len(found)
        pairs = zip(found.labels.tolist(), groups, strict=True)
        return found.fingerprint, dict(zip(map(str, found.keys), pairs, strict=True))

    return look_up
