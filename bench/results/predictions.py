"""What a run folder keeps of every image, enough to score again without images and weights.

`predictions/<split>.parquet` is what the run's classifier said, `curve/<split>.parquet` what every
point of its interpolation curve said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import logsumexp

from ..data.split import Split
from ..storage.atomic import write_with

#: More logits than this (images x classes) are not kept unasked: ImageNet's 50,000 x 1000 are 100
#: MB in half precision, per run.
MOST_LOGITS = 20_000_000


def write_predictions(
    path: Path,
    split: Split,
    logits: NDArray[np.floating[Any]],
    temperature: float | None = None,
    *,
    keep_logits: bool = False,
) -> None:
    """Key, label, group, prediction, what re-scoring needs and, where they are not too many, the
    logits in half precision.

    Args:
        logits: (N, C), projected to the split's classes.
        temperature: of id-val; where the logits are not kept, their log-sum-exp at that temperature
            is.
        keep_logits: keep them, however many they are.
    """
    highest = np.partition(logits, -2, axis=1)[:, -2:]
    columns = {
        **_images(split),
        "prediction": pa.array(logits.argmax(axis=1)),
        "label_logit": pa.array(logits[np.arange(len(split)), split.labels]),
        "maximum": pa.array(highest[:, 1]),
        "runner_up": pa.array(highest[:, 0]),
        "log_sum_exp": pa.array(_log_sum_exp(logits)),
    }
    if keep_logits or logits.size <= MOST_LOGITS:
        half = pa.array(logits.astype(np.float16).reshape(-1))
        columns["logits"] = pa.FixedSizeListArray.from_arrays(half, logits.shape[1])
    elif temperature is not None:
        columns["log_sum_exp_scaled"] = pa.array(_log_sum_exp(logits, temperature))
    _write(path, columns)


def write_curve(
    path: Path, split: Split, predicted: Mapping[float, NDArray[np.integer[Any]]]
) -> None:
    """Key, label, group, and the predicted class at every alpha, in a column of its name (`0`,
    `0.1`, ...).

    Args:
        predicted: alpha -> (N,) classes.
    """
    columns = {
        alpha_column(alpha): pa.array(classes.astype(np.int32))
        for alpha, classes in predicted.items()
    }
    _write(path, {**_images(split), **columns})


def alpha_column(alpha: float) -> str:
    """Name of a point's column."""
    return f"{alpha:g}"


def has_logits(folder: Path, splits: Iterable[str]) -> bool:
    """Whether a run's predictions on all these splits hold the logits."""
    paths = [folder / "predictions" / f"{split}.parquet" for split in splits]
    return all(path.exists() and "logits" in pq.read_schema(path).names for path in paths)


def has_curve(folder: Path, splits: Iterable[str]) -> bool:
    """Whether a run kept what its curve's points predicted on all these splits; earlier versions
    did not.
    """
    return all((folder / "curve" / f"{split}.parquet").exists() for split in splits)


def _images(split: Split) -> dict[str, pa.Array]:
    return {
        "key": pa.array([str(key) for key in split.keys]),
        "label": pa.array(split.labels),
        "group": pa.array(split.groups if split.groups is not None else np.full(len(split), -1)),
    }


def _log_sum_exp(
    logits: NDArray[np.floating[Any]], temperature: float = 1.0, chunk: int = 4096
) -> NDArray[np.float64]:
    """(N,); a chunk at a time, since 50,000 x 1000 doubles are 400 MB."""
    starts = range(0, len(logits), chunk)
    return np.concatenate(
        [
            logsumexp(logits[at : at + chunk].astype(np.float64) / temperature, axis=1)
            for at in starts
        ]
    )


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    write_with(path, lambda file: pq.write_table(pa.table(columns), file))
