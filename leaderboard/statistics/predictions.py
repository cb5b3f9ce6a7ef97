"""What a run, and every point of its curve, said about every image, read from its folder: see
bench.results.predictions.
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
#: Folder of a run: what its classifier said, or its curve's points.
Kind = Literal["predictions", "curve"]


@dataclass(frozen=True)
class Outcomes:
    """Predictions of one run on the N images of one split.

    Attributes:
        keys: (N,) names of the images, unique.
        labels, predicted, groups: (N,) integers; a negative group is none.
    """

    keys: NDArray[np.str_]
    labels: Ints
    predicted: Ints
    groups: Ints

    def same_images(self, other: Outcomes) -> bool:
        """Whether the two are about the same images."""
        return self.keys is other.keys or np.array_equal(self.keys, other.keys)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return np.asarray(self.labels == self.predicted)


class Predictions:
    """The predictions below a store; what was read stays in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._outcomes = lru_cache(maxsize=4096)(self._read_outcomes)
        self._keys: dict[bytes, NDArray[np.str_]] = {}
        self._temperatures: dict[str, float] = {}

    def outcomes(self, record: RunRecord, split: str) -> Outcomes | None:
        """Labels and predictions, sorted by key; None where the run kept none on that split.

        Raises:
            BenchError: the file cannot be read, or does not add up with the record.
        """
        metrics = record.metrics.get(split)
        return self._outcomes(
            str(self._store.run_dir(record)), split, metrics.images if metrics else -1
        )

    def curve(self, record: RunRecord, split: str) -> dict[float, Outcomes] | None:
        """Alpha -> labels and predictions, sorted by key; None where what the curve's points
        predict was not kept.

        Raises:
            BenchError: the file cannot be read, or does not add up with the record.
        """
        names = {alpha_column(point.alpha): point.alpha for point in record.curve}
        folder, images = str(self._store.run_dir(record)), record.metrics[split].images
        found = self._read(folder, "curve", split, ("key", "label", "group", *names))
        if found is None:
            return None
        if absent := {"key", "label", "group", *names} - found.keys():
            raise _damaged(folder, "curve", split, f"there is no column {min(absent)}")
        keys, order = self._sorted(folder, "curve", split, found["key"], images)
        labels, groups = found["label"][order], found["group"][order]
        return {
            alpha: Outcomes(keys, labels, found[name][order], groups)
            for name, alpha in names.items()
        }

    def columns(
        self, record: RunRecord, split: str, names: Sequence[str]
    ) -> Mapping[str, NDArray[Any]] | None:
        """Columns of the file as arrays in its own order, those that are there: `logits` is (N, C),
        others (N,).

        Returns:
            None where there is no file.

        Raises:
            BenchError: the file cannot be read.
        """
        return self._read(str(self._store.run_dir(record)), "predictions", split, names)

    def fitted_temperature(self, record: RunRecord) -> float | None:
        """The temperature that runs of earlier versions did not record, fitted once; None where
        id-val's logits are not kept.

        Raises:
            BenchError: the file cannot be read.
        """
        folder = str(self._store.run_dir(record))
        if folder not in self._temperatures:
            val = self.columns(record, "id-val", ("label", "logits"))
            if val is None or "logits" not in val:
                return None
            self._temperatures[folder] = fitted_temperature(val["logits"], val["label"])
        return self._temperatures[folder]

    def _read(
        self, folder: str, kind: Kind, split: str, names: Sequence[str]
    ) -> dict[str, NDArray[Any]] | None:
        path = f"{folder}/{kind}/{split}.parquet"
        try:
            with pq.ParquetFile(path) as file:
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
            if not _is_of_its_kind(name, column):
                raise _damaged(
                    folder,
                    kind,
                    split,
                    f"the column {name} is of {column.type}, {column.null_count} missing",
                )
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
            raise _damaged(folder, "predictions", split, f"there is no column {min(absent)}")
        keys, order = self._sorted(folder, "predictions", split, found["key"], images)
        return Outcomes(
            keys, found["label"][order], found["prediction"][order], found["group"][order]
        )

    def _sorted(
        self, folder: str, kind: Kind, split: str, names: NDArray[Any], images: int
    ) -> tuple[NDArray[np.str_], Ints]:
        """Sorted keys, each once, and the order of the file's rows that sorts them."""
        keys = names.astype(str)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if (keys[1:] == keys[:-1]).any() or len(keys) != images:
            counts = f"{len(keys)} rows, {len(np.unique(keys))} images, {images} in the record"
            raise _damaged(folder, kind, split, f"they do not add up: {counts}")
        # Names of images take the most memory, and all runs on a split have the same.
        return self._keys.setdefault(hashlib.sha256(keys.tobytes()).digest(), keys), order


def _is_of_its_kind(name: str, column: Any) -> bool:
    """Whether a column holds what its name says, and nothing is missing."""
    kind = column.type
    if name == "key":
        right = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    elif name == "logits":
        right = (
            pa.types.is_fixed_size_list(kind)
            and pa.types.is_floating(kind.value_type)
            and not column.flatten().null_count
        )
    elif name in ("label", "prediction", "group") or name[:1].isdigit():  # predictions at an alpha
        right = pa.types.is_integer(kind)
    else:
        right = pa.types.is_floating(kind)
    return bool(right) and not column.null_count


def _damaged(folder: str, kind: Kind, split: str, why: str) -> BenchError:
    return BenchError(
        f"predictions cannot be read: {why}",
        where=f"{folder}/{kind}/{split}.parquet",
        fix="remove the run's folder and run again; the fit is kept",
    )
