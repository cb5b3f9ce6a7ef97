"""Read what a run, and every point of its curve, predicted for every image.

`bench.results.predictions` writes these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.evaluation.metrics import fitted_temperature
from bench.results.predictions import alpha_column
from bench.results.record import RunRecord
from bench.results.store import Store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Folder below a run's: predictions of its classifier, or of the points of its curve.
PredictionKind = Literal["predictions", "curve"]


@dataclass(frozen=True)
class Outcomes:
    """Predictions of one run on the N images of one split.

    Attributes:
        keys: (N,) names of the images, unique and sorted.
        labels: (N,) class of each image.
        predicted: (N,) predicted class of each image.
        groups: (N,) group of each image; negative for none.
    """

    keys: NDArray[np.str_]
    labels: Ints
    predicted: Ints
    groups: Ints

    def same_images(self, other: Outcomes) -> bool:
        """Return whether both are about the same images."""
        # Equal keys are one array after `_sorted`, so that most comparisons end at `is`.
        return self.keys is other.keys or np.array_equal(self.keys, other.keys)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether each prediction is the label, (N,)."""
        return np.asarray(self.labels == self.predicted)


class Predictions:
    """The predictions of the runs in a store, cached in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Per instance and not per class, so that the cache goes when the object does. Every pair of
        # rows reads the same outcomes.
        self._outcomes = lru_cache(maxsize=4096)(self._read_outcomes)
        self._keys: dict[bytes, NDArray[np.str_]] = {}
        self._temperatures: dict[str, float] = {}

    def outcomes(self, record: RunRecord, split: str) -> Outcomes | None:
        """Return labels and predictions, sorted by key; None where none are saved for that split.

        Raises:
            BenchError: the file cannot be read, or contradicts the record.
        """
        metrics = record.metrics.get(split)
        return self._outcomes(
            str(self._store.run_dir(record)), split, metrics.images if metrics else -1
        )

    def curve(self, record: RunRecord, split: str) -> dict[float, Outcomes] | None:
        """Return alpha -> labels and predictions, sorted by key; None where none are saved.

        Raises:
            BenchError: the file cannot be read, or contradicts the record.
        """
        names = {alpha_column(point.alpha): point.alpha for point in record.curve}
        folder, images = str(self._store.run_dir(record)), record.metrics[split].images
        found = self._read(folder, "curve", split, ("key", "label", "group", *names))
        if found is None:
            return None
        if absent := {"key", "label", "group", *names} - found.keys():
            raise _damaged(folder, "curve", split, f"the column {min(absent)} is missing")
        keys, order = self._sorted(folder, "curve", split, found["key"], images)
        labels, groups = found["label"][order], found["group"][order]
        return {
            alpha: Outcomes(keys, labels, found[name][order], groups)
            for name, alpha in names.items()
        }

    def columns(
        self, record: RunRecord, split: str, names: Sequence[str]
    ) -> Mapping[str, NDArray[Any]] | None:
        """Return columns of a file as arrays, in the order of its rows.

        Args:
            record: a run.
            split: name of the split.
            names: columns, of which only existing ones are returned. `logits` is (N, C), others are
                (N,).

        Returns:
            None where there is no file.

        Raises:
            BenchError: the file cannot be read.
        """
        return self._read(str(self._store.run_dir(record)), "predictions", split, names)

    def fitted_temperature(self, record: RunRecord) -> float | None:
        """Return the temperature of a run whose record has none, fitted on id-val.

        Runs of earlier versions did not record it.

        Returns:
            None where id-val's logits are not saved.

        Raises:
            BenchError: the file cannot be read.
        """
        folder = str(self._store.run_dir(record))
        if folder not in self._temperatures:
            val = self.columns(record, "id-val", ("label", "logits"))
            if val is None or "logits" not in val:
                return None
            # Fitted once per run: every split needs it, and the fit takes all of id-val's logits.
            self._temperatures[folder] = fitted_temperature(val["logits"], val["label"])
        return self._temperatures[folder]

    def _read(
        self, folder: str, kind: PredictionKind, split: str, names: Sequence[str]
    ) -> dict[str, NDArray[Any]] | None:
        path = f"{folder}/{kind}/{split}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                # Logits are most of a file, and are only read where they are needed.
                table = file.read(
                    columns=[name for name in names if name in file.schema_arrow.names]
                )
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException) as error:
            raise _damaged(folder, kind, split, str(error)) from error
        found: dict[str, NDArray[Any]] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            # Packs come from others. A wrong type would otherwise fail far from here, or give wrong
            # numbers.
            if not _is_of_its_kind(name, column):
                raise _damaged(
                    folder,
                    kind,
                    split,
                    f"the column {name} has type {column.type} and"
                    f" {column.null_count} missing values",
                )
            # `to_numpy` of a list column gives an array of arrays; its flat values only need a
            # shape.
            if pa.types.is_fixed_size_list(column.type):
                values = column.flatten().to_numpy(zero_copy_only=False)
                found[name] = values.reshape(len(column), column.type.list_size)
            else:
                found[name] = column.to_numpy(zero_copy_only=False)
        return found

    def _read_outcomes(self, folder: str, split: str, images: int) -> Outcomes | None:
        found = self._read(folder, "predictions", split, ("key", "label", "prediction", "group"))
        if found is None:
            return None
        if absent := {"key", "label", "prediction", "group"} - found.keys():
            raise _damaged(folder, "predictions", split, f"the column {min(absent)} is missing")
        keys, order = self._sorted(folder, "predictions", split, found["key"], images)
        return Outcomes(
            keys, found["label"][order], found["prediction"][order], found["group"][order]
        )

    def _sorted(
        self, folder: str, kind: PredictionKind, split: str, names: NDArray[Any], images: int
    ) -> tuple[NDArray[np.str_], Ints]:
        """Return the keys, sorted and unique, and the order of the file's rows that sorts them."""
        keys = names.astype(str)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if (keys[1:] == keys[:-1]).any() or len(keys) != images:
            counts = f"{len(keys)} rows, {len(np.unique(keys))} images, {images} in the record"
            raise _damaged(folder, kind, split, f"the numbers do not match: {counts}")
        # Names of images take the most memory, and all runs on a split have the same ones. They
        # share one array, found by the hash of its bytes.
        return self._keys.setdefault(hashlib.sha256(keys.tobytes()).digest(), keys), order


def _is_of_its_kind(name: str, column: Any) -> bool:
    """Return whether a column has the type that its name implies, and no missing values."""
    kind = column.type
    if name == "key":
        right = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    elif name == "logits":
        right = (
            pa.types.is_fixed_size_list(kind)
            and pa.types.is_floating(kind.value_type)
            and not column.flatten().null_count
        )
    # In a curve's file, predictions at an alpha have the alpha as the name of their column.
    elif name in ("label", "prediction", "group") or name[:1].isdigit():
        right = pa.types.is_integer(kind)
    else:
        right = pa.types.is_floating(kind)
    return bool(right) and not column.null_count


def _damaged(folder: str, kind: PredictionKind, split: str, why: str) -> BenchError:
    return BenchError(
        f"predictions cannot be read: {why}",
        where=f"{folder}/{kind}/{split}.parquet",
        fix="remove the run's folder and run it again; its fit stays",
    )
