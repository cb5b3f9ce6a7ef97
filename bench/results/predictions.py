"""Write per-image predictions, from which a run can be scored again without images or weights.

`predictions/<split>.parquet` in a run's folder has the predictions of its classifier, and
`curve/<split>.parquet` those of every point of its interpolation curve.
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

#: Images times classes above which logits are saved on request only. ImageNet's 50,000 x 1000 would
#: be 100 MB in half precision for every run.
MOST_LOGITS = 20_000_000


def write_predictions(
    path: Path,
    split: Split,
    logits: NDArray[np.floating[Any]],
    temperature: float | None = None,
    *,
    keep_logits: bool = False,
) -> None:
    """Write the predictions of a classifier on one split.

    The columns are key, label, group, prediction and what scores are computed from; logits are
    added, in half precision, up to `MOST_LOGITS`.

    Args:
        path: Parquet file to write.
        split: the images.
        logits: (N, C), projected to the split's classes.
        temperature: softmax temperature from id-val; without logits, their log-sum-exp at this
            temperature is saved.
        keep_logits: save the logits even above `MOST_LOGITS`.
    """
    # In full precision even where logits are saved: accuracy, NLL and confidence of the prediction
    # follow from these columns exactly, and from logits in half precision only nearly.
    highest = np.partition(logits, -2, axis=1)[:, -2:]
    columns = {
        **_images(split),
        "prediction": pa.array(logits.argmax(axis=1)),
        "label_logit": pa.array(logits[np.arange(len(split)), split.labels]),
        "maximum": pa.array(highest[:, 1]),
        "runner_up": pa.array(highest[:, 0]),
        "log_sum_exp": pa.array(_log_sum_exp(logits)),
    }
    # The calibration at another temperature needs all logits of an image, or their log-sum-exp at
    # that temperature.
    if keep_logits or logits.size <= MOST_LOGITS:
        half = pa.array(logits.astype(np.float16).reshape(-1))
        columns["logits"] = pa.FixedSizeListArray.from_arrays(half, logits.shape[1])
    elif temperature is not None:
        columns["log_sum_exp_scaled"] = pa.array(_log_sum_exp(logits, temperature))
    _write(path, columns)


def write_curve(
    path: Path, split: Split, predicted: Mapping[float, NDArray[np.integer[Any]]]
) -> None:
    """Write the predictions of an interpolation curve on one split, one column per alpha.

    Args:
        path: Parquet file to write.
        split: the images.
        predicted: alpha -> (N,) predicted classes.
    """
    # Classes alone: eleven points with logits would take eleven times the space of a run.
    columns = {
        alpha_column(alpha): pa.array(classes.astype(np.int32))
        for alpha, classes in predicted.items()
    }
    _write(path, {**_images(split), **columns})


def alpha_column(alpha: float) -> str:
    """Return the column name of a point of the curve, such as `0`, `0.1` or `1`."""
    return f"{alpha:g}"


def has_logits(folder: Path, splits: Iterable[str]) -> bool:
    """Return whether a run's predictions on all these splits contain the logits."""
    paths = [folder / "predictions" / f"{split}.parquet" for split in splits]
    return all(path.exists() and "logits" in pq.read_schema(path).names for path in paths)


def has_curve(folder: Path, splits: Iterable[str]) -> bool:
    """Return whether the predictions of a run's curve were saved on all these splits."""
    return all((folder / "curve" / f"{split}.parquet").exists() for split in splits)


def _images(split: Split) -> dict[str, pa.Array]:
    return {
        "key": pa.array([str(key) for key in split.keys]),
        "label": pa.array(split.labels),
        # A split without groups has the column too, so that all files have one schema.
        "group": pa.array(split.groups if split.groups is not None else np.full(len(split), -1)),
    }


def _log_sum_exp(
    logits: NDArray[np.floating[Any]], temperature: float = 1.0, chunk: int = 4096
) -> NDArray[np.float64]:
    # A chunk at a time: 50,000 x 1000 doubles at once would be 400 MB.
    starts = range(0, len(logits), chunk)
    return np.concatenate(
        [
            logsumexp(logits[at : at + chunk].astype(np.float64) / temperature, axis=1)
            for at in starts
        ]
    )


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    write_with(path, lambda file: pq.write_table(pa.table(columns), file))
