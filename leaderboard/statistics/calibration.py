"""Whether confidence means what it says: calibration errors, before and after temperature scaling
fitted on id-val.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score, roc_curve

from bench.evaluation.metrics import expected_calibration_error
from bench.results.record import RunRecord

from .predictions import Predictions
from .tradeoff import ID

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Calibration of one classifier on one split at one temperature.

    Attributes:
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error over 15 bins of equal width (Guo et al., 2017).
        ece_adaptive: the same over 15 bins of equal numbers of images (Nguyen and O'Connor, 2015).
        brier: mean squared distance
        of the probabilities to the one-hot label; None where the logits that it needs were not
            kept.
    """

    nll: float
    ece: float
    ece_adaptive: float
    brier: float | None


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: its images, their mean confidence and their accuracy (None
    without images).
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def adaptive_calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS
) -> float:
    """Mean of |accuracy - confidence| over bins of (nearly) equal numbers of images, sorted by
    confidence.
    """
    order = np.argsort(confidence, kind="stable")
    parts = zip(
        np.array_split(confidence[order], bins), np.array_split(correct[order], bins), strict=True
    )
    return float(sum(abs(right.sum() - said.sum()) for said, right in parts) / len(confidence))


def calibration(logits: Floats, labels: Ints, t: float = 1.0) -> Calibration:
    """Of softmax(logits / t).

    Args:
        logits: (N, C).
        labels: (N,).
    """
    log_p = log_softmax(logits / t, axis=1)
    p = np.exp(log_p)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    truth = np.eye(p.shape[1])[labels]
    return Calibration(
        nll=float(-log_p[np.arange(len(labels)), labels].mean()),
        ece=expected_calibration_error(confidence, correct, BINS),
        ece_adaptive=adaptive_calibration_error(confidence, correct),
        brier=float(((p - truth) ** 2).sum(axis=1).mean()),
    )


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Data of a reliability diagram: bins (0, 1/b], (1/b, 2/b], ..., empty ones included."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    made = []
    for number in range(bins):
        here = place == number
        count = int(here.sum())
        means = (
            (float(confidence[here].mean()), float(correct[here].mean())) if count else (None, None)
        )
        made.append(Bin(number / bins, (number + 1) / bins, count, *means))
    return made


@dataclass(frozen=True)
class Scaled:
    """Calibration of a run on one split before and after temperature scaling.

    Attributes:
        temperature: fitted on id-val.
        before, after: see `Calibration`.
        diagram, scaled_diagram: of the same.
        hole: why a part is missing, with what would have kept it.
    """

    before: Calibration | None = None
    diagram: tuple[Bin, ...] = ()
    temperature: float | None = None
    after: Calibration | None = None
    scaled_diagram: tuple[Bin, ...] = ()
    hole: str = ""


def scaled(record: RunRecord, split: str, predictions: Predictions) -> Scaled:
    """Re-scored from what the run kept on `split` and on id-val, without a model.

    Without logits, what the stored maxima, log-sum-exps and label logits determine is there, and
    the rest is a hole.
    """
    names = (
        "label",
        "prediction",
        "label_logit",
        "maximum",
        "log_sum_exp",
        "log_sum_exp_scaled",
        "logits",
    )
    here = predictions.columns(record, split, names)
    if here is None:
        return Scaled(hole=record.holes.get(split) or "no predictions are kept")
    labels = here["label"]
    if "logits" not in here:
        return _condensed(record, split, here)
    logits = here["logits"].astype(float)
    before, diagram = calibration(logits, labels), _diagram(logits, labels, 1.0)
    t = record.temperature or predictions.fitted_temperature(record)
    if t is None:
        return Scaled(before, diagram, hole=f"temperature scaling: id-val: {_not_kept(record)}")
    return Scaled(before, diagram, t, calibration(logits, labels, t), _diagram(logits, labels, t))


def _condensed(record: RunRecord, split: str, here: Mapping[str, NDArray[Any]]) -> Scaled:
    """From maxima, label logits and log-sum-exps, which give everything but the Brier score; the
    record has that as trained.
    """
    correct = here["prediction"] == here["label"]

    def at(
        t: float, log_sum_exp: Floats, brier: float | None
    ) -> tuple[Calibration, tuple[Bin, ...]]:
        confidence = np.minimum(np.exp(here["maximum"].astype(float) / t - log_sum_exp), 1.0)
        found = Calibration(
            nll=float((log_sum_exp - here["label_logit"].astype(float) / t).mean()),
            ece=expected_calibration_error(confidence, correct, BINS),
            ece_adaptive=adaptive_calibration_error(confidence, correct),
            brier=brier,
        )
        return found, tuple(reliability(confidence, correct))

    before, diagram = at(1.0, here["log_sum_exp"].astype(float), record.metrics[split].brier)
    t, kept = record.temperature, here.get("log_sum_exp_scaled")
    if t is None or kept is None:
        return Scaled(before, diagram, hole=f"temperature scaling: {_not_kept(record)}")
    after, scaled_diagram = at(t, kept, None)
    return Scaled(
        before, diagram, t, after, scaled_diagram, hole=f"Brier score at T: {_not_kept(record)}"
    )


def _not_kept(record: RunRecord) -> str:
    """Why there are no logits, and the switch that would have kept them."""
    if record.origin:
        return (
            "its pack has no logits; `bench pack --logits` carries what a run kept, and `bench run"
            " --keep-logits` keeps all"
        )
    return (
        "the logits were too many to keep; the same `bench run` again with --keep-logits adds them"
    )


def _diagram(logits: Floats, labels: Ints, t: float) -> tuple[Bin, ...]:
    return tuple(
        reliability(softmax(logits / t, axis=1).max(axis=1), logits.argmax(axis=1) == labels)
    )


@dataclass(frozen=True)
class Detected:
    """How well a score tells ID images (high) from a shift's (low).

    Attributes:
        auroc: chance that a random ID image scores above a random shifted one; 0.5 is chance.
        fpr95: share of the shift's images
        that pass as ID at the threshold that 95 % of the ID images pass.
    """

    auroc: float
    fpr95: float


@dataclass(frozen=True)
class Detection:
    """Of one run on one shift, by maximum softmax probability (Hendrycks and Gimpel, 2017) and by
    energy, the log-sum-exp of the logits (Liu et al., 2020); hole: why there is none.
    """

    probability: Detected | None = None
    energy: Detected | None = None
    hole: str = ""


def detected(of_id: NDArray[np.float64], of_shift: NDArray[np.float64]) -> Detected:
    """Compare scores, (N,) and (M,), that should be higher on ID images."""
    truth = np.concatenate([np.ones(len(of_id)), np.zeros(len(of_shift))])
    scores = np.concatenate([of_id, of_shift])
    passing_shifted, passing_id, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Detected(
        float(roc_auc_score(truth, scores)), float(passing_shifted[np.argmax(passing_id >= 0.95)])
    )


def detection(record: RunRecord, shift: str, predictions: Predictions) -> Detection:
    """From the kept maxima and log-sum-exps of a run; no model is needed."""
    projection = record.projections.get(shift)
    if projection:
        return Detection(
            hole=(
                f"scored over the shift's own classes ({projection}) and {ID} over all: the scores"
                " have no common scale"
            )
        )
    scores = []
    for split in (ID, shift):
        kept = predictions.columns(record, split, ("maximum", "log_sum_exp"))
        if kept is None:
            return Detection(hole=record.holes.get(split) or f"no predictions on {split} are kept")
        scores.append(
            (
                np.exp(kept["maximum"].astype(float) - kept["log_sum_exp"]),
                kept["log_sum_exp"].astype(float),
            )
        )
    (p_id, e_id), (p_shift, e_shift) = scores
    return Detection(detected(p_id, p_shift), detected(e_id, e_shift))
