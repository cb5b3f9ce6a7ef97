"""`predictions/<split>.parquet` of a run folder: one row per image, enough to score again without the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ..data.split import Split
from .atomic import write_with

#: More logits than this (images x classes) are not kept: ImageNet's 50,000 x 1000 are 100 MB in half precision, per run.
MOST_LOGITS = 20_000_000


def write_predictions(path: Path, split: Split, logits: NDArray[np.floating[Any]]) -> None:
    """Key, label, group, prediction, what re-scoring needs and, where they are not too many, the logits in half precision.

    Args:
        logits: (N, C), projected to the split's classes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    highest = np.partition(logits, -2, axis=1)[:, -2:]
    columns = {
        "key": pa.array([str(key) for key in split.keys]),
        "label": pa.array(split.labels),
        "group": pa.array(split.groups if split.groups is not None else np.full(len(split), -1)),
        "prediction": pa.array(logits.argmax(axis=1)),
        "label_logit": pa.array(logits[np.arange(len(split)), split.labels]),
        "maximum": pa.array(highest[:, 1]),
        "runner_up": pa.array(highest[:, 0]),
        "log_sum_exp": pa.array(logsumexp(logits.astype(np.float64), axis=1)),
    }
    if logits.size <= MOST_LOGITS:
        half = pa.array(logits.astype(np.float16).reshape(-1))
        columns["logits"] = pa.FixedSizeListArray.from_arrays(half, logits.shape[1])
    write_with(path, lambda file: pq.write_table(pa.table(columns), file))
