"""Whether a classifier notices that an image is from a shift: its scores on the shift's images against those on ID images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from bench.results.record import RunRecord

from .predictions import Predictions
from .tradeoff import ID

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detected:
    """How well a score tells ID images (high) from a shift's (low).

    Attributes:
        auroc: chance that a random ID image scores above a random shifted one; 0.5 is chance. fpr95: share of the shift's images
        that pass as ID at the threshold that 95 % of the ID images pass.
    """

    auroc: float
    fpr95: float


@dataclass(frozen=True)
class Detection:
    """Of one run on one shift, by maximum softmax probability (Hendrycks and Gimpel, 2017) and by energy, the log-sum-exp of the
    logits (Liu et al., 2020); hole: why there is none."""

    probability: Detected | None = None
    energy: Detected | None = None
    hole: str = ""


def detected(of_id: Floats, of_shift: Floats) -> Detected:
    """Compare scores, (N,) and (M,), that should be higher on ID images."""
    truth = np.concatenate([np.ones(len(of_id)), np.zeros(len(of_shift))])
    scores = np.concatenate([of_id, of_shift])
    passing_shifted, passing_id, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Detected(float(roc_auc_score(truth, scores)), float(passing_shifted[np.argmax(passing_id >= 0.95)]))


def detection(record: RunRecord, shift: str, predictions: Predictions) -> Detection:
    """From the kept maxima and log-sum-exps of a run; no model is needed."""
    projection = record.projections.get(shift)
    if projection:
        return Detection(
            hole=f"scored over the shift's own classes ({projection}) and {ID} over all: the scores have no common scale"
        )
    scores = []
    for split in (ID, shift):
        kept = predictions.columns(record, split, ("maximum", "log_sum_exp"))
        if kept is None:
            return Detection(hole=record.holes.get(split) or f"no predictions on {split} are kept")
        scores.append((np.exp(kept["maximum"].astype(float) - kept["log_sum_exp"]), kept["log_sum_exp"].astype(float)))
    (p_id, e_id), (p_shift, e_shift) = scores
    return Detection(detected(p_id, p_shift), detected(e_id, e_shift))
