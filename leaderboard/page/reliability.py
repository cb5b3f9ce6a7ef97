"""Reliability diagrams' data of a row: accuracy against confidence in 15 bins, its seeds pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.results.record import RunRecord

from ..statistics.calibration import reliability
from ..statistics.predictions import Predictions


def bins(records: Sequence[RunRecord], splits: Sequence[str], predictions: Predictions) -> dict[str, list[list[Any]]]:
    """Split -> `[mean confidence, accuracy, images]` of every bin with images; a split that a run kept nothing of is left out."""
    made = {}
    for split in splits:
        found = [_confidences(record, split, predictions) for record in records]
        known = [pair for pair in found if pair is not None]
        if known and len(known) == len(found):
            confidence, correct = (np.concatenate(part) for part in zip(*known, strict=True))
            diagram = reliability(confidence, correct)
            made[split] = [[round(b.confidence, 4), round(b.accuracy, 4), b.images] for b in diagram
                           if b.confidence is not None and b.accuracy is not None]  # fmt: skip
    return made


def _confidences(record: RunRecord, split: str, predictions: Predictions) -> tuple[Any, Any] | None:
    """(images,) largest probability and whether the prediction is right."""
    if split not in record.metrics:
        return None
    columns = predictions.columns(record, split, ("label", "prediction", "maximum", "log_sum_exp"))
    if columns is None or len(columns) < 4:
        return None
    confidence = np.exp(columns["maximum"].astype(float) - columns["log_sum_exp"].astype(float))
    return np.minimum(confidence, 1.0), columns["prediction"] == columns["label"]
