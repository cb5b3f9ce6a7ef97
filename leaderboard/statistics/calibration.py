"""Measure calibration before and after temperature scaling, and detection of shifted images."""

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
#: As Guo et al. (2017), and as the ECE in records.
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Calibration of one classifier on one split at one temperature.

    Attributes:
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error over 15 bins of equal width (Guo et al., 2017).
        ece_adaptive: the same over 15 bins of equal numbers of images (Nguyen and O'Connor, 2015).
        brier: mean squared distance of the probabilities to the one-hot label; None where the
            logits that it needs were not saved.
    """

    nll: float
    ece: float
    ece_adaptive: float
    brier: float | None


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        low: lower end of the confidences, exclusive.
        high: upper end, inclusive.
        images: number of images.
        confidence: their mean confidence; None without images.
        accuracy: their accuracy; None without images.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def adaptive_calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS
) -> float:
    """Return the mean of |accuracy - confidence| over bins of equal numbers of images.

    Args:
        confidence: (N,) confidences, by which images are sorted into bins.
        correct: (N,) whether the prediction is right.
        bins: number of bins, which differ by at most one image.
    """
    # Equal confidences keep their order, so that the result does not depend on the sort.
    order = np.argsort(confidence, kind="stable")
    parts = zip(
        np.array_split(confidence[order], bins), np.array_split(correct[order], bins), strict=True
    )
    return float(sum(abs(right.sum() - stated.sum()) for stated, right in parts) / len(confidence))


def calibration(logits: Floats, labels: Ints, t: float = 1.0) -> Calibration:
    """Measure the calibration of softmax(logits / t).

    Args:
        logits: (N, C).
        labels: (N,).
        t: temperature.
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
    """Return the bins of a reliability diagram: (0, 1/b], (1/b, 2/b], ..., empty ones included.

    Args:
        confidence: (N,) confidences.
        correct: (N,) whether the prediction is right.
        bins: number of bins.
    """
    # Upper ends are inclusive, as in the ECE; a confidence of 0 is in the first bin.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    made = []
    # Empty bins stay, so that the diagrams of two runs have the same bins.
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
    """Calibration of a run on one split, before and after temperature scaling.

    Attributes:
        before: without scaling.
        diagram: reliability diagram without scaling.
        temperature: fitted on id-val.
        after: with scaling.
        scaled_diagram: reliability diagram with scaling.
        missing: why a part is missing, and which option would have saved what it needs.
    """

    before: Calibration | None = None
    diagram: tuple[Bin, ...] = ()
    temperature: float | None = None
    after: Calibration | None = None
    scaled_diagram: tuple[Bin, ...] = ()
    missing: str = ""


def scaled(record: RunRecord, split: str, predictions: Predictions) -> Scaled:
    """Score a run's calibration on a split from its saved predictions, without a model.

    Without logits, what the saved maxima, log-sum-exps and label logits determine is returned, and
    `missing` says what is not.
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
        return Scaled(missing=record.holes.get(split) or "no predictions are saved")
    labels = here["label"]
    # Sets as large as ImageNet are saved condensed (`bench.results.predictions.MOST_LOGITS`).
    if "logits" not in here:
        return _condensed(record, split, here)
    # Logits are saved in half precision, in which a sum over classes would lose digits.
    logits = here["logits"].astype(float)
    before, diagram = calibration(logits, labels), _diagram(logits, labels, 1.0)
    # A temperature in the record was fitted to logits in full precision, and is the better one.
    t = record.temperature or predictions.fitted_temperature(record)
    if t is None:
        return Scaled(
            before, diagram, missing=f"temperature scaling: id-val: {_logits_missing(record)}"
        )
    return Scaled(before, diagram, t, calibration(logits, labels, t), _diagram(logits, labels, t))


def _condensed(record: RunRecord, split: str, here: Mapping[str, NDArray[Any]]) -> Scaled:
    """Score from maxima, label logits and log-sum-exps, which give everything but the Brier score.

    Without scaling, the record has the Brier score. With scaling, nothing has it.
    """
    # No temperature changes which logit is the largest.
    correct = here["prediction"] == here["label"]

    def at(
        t: float, log_sum_exp: Floats, brier: float | None
    ) -> tuple[Calibration, tuple[Bin, ...]]:
        # Rounding may bring the largest probability above 1, which is in no bin.
        confidence = np.minimum(np.exp(here["maximum"].astype(float) / t - log_sum_exp), 1.0)
        found = Calibration(
            nll=float((log_sum_exp - here["label_logit"].astype(float) / t).mean()),
            ece=expected_calibration_error(confidence, correct, BINS),
            ece_adaptive=adaptive_calibration_error(confidence, correct),
            brier=brier,
        )
        return found, tuple(reliability(confidence, correct))

    # The temperature at which a log-sum-exp was saved is that of the record, and no other one can
    # be used.
    before, diagram = at(1.0, here["log_sum_exp"].astype(float), record.metrics[split].brier)
    t, log_sum_exp_at_t = record.temperature, here.get("log_sum_exp_scaled")
    if t is None or log_sum_exp_at_t is None:
        return Scaled(before, diagram, missing=f"temperature scaling: {_logits_missing(record)}")
    after, scaled_diagram = at(t, log_sum_exp_at_t, None)
    return Scaled(
        before,
        diagram,
        t,
        after,
        scaled_diagram,
        missing=f"Brier score at T: {_logits_missing(record)}",
    )


def _logits_missing(record: RunRecord) -> str:
    """Return why there are no logits, and which option would have saved them."""
    if record.origin:
        return (
            "its pack has no logits; `bench pack --logits` packs the saved logits, and `bench run"
            " --keep-logits` saves all of them"
        )
    return (
        "there were too many logits to save; the same `bench run` again with --keep-logits adds"
        " them"
    )


def _diagram(logits: Floats, labels: Ints, t: float) -> tuple[Bin, ...]:
    """Return the reliability diagram of softmax(logits / t)."""
    return tuple(
        reliability(softmax(logits / t, axis=1).max(axis=1), logits.argmax(axis=1) == labels)
    )


@dataclass(frozen=True)
class Detected:
    """How well a score separates ID images (high) from a shift's images (low).

    Attributes:
        auroc: probability that a random ID image scores above a random shifted one; 0.5 is chance.
        fpr95: share of the shift's images above the threshold that 95 % of the ID images pass.
    """

    auroc: float
    fpr95: float


@dataclass(frozen=True)
class Detection:
    """Detection of one shift's images by the scores of one run.

    Attributes:
        probability: by the maximum softmax probability (Hendrycks and Gimpel, 2017).
        energy: by the log-sum-exp of the logits (Liu et al., 2020).
        missing: why there is neither.
    """

    probability: Detected | None = None
    energy: Detected | None = None
    missing: str = ""


def detected(of_id: NDArray[np.float64], of_shift: NDArray[np.float64]) -> Detected:
    """Measure how well scores separate ID images from a shift's images.

    Args:
        of_id: (N,) scores of ID images, which should be higher.
        of_shift: (M,) scores of the shift's images.
    """
    truth = np.concatenate([np.ones(len(of_id)), np.zeros(len(of_shift))])
    scores = np.concatenate([of_id, of_shift])
    # By default roc_curve drops thresholds that do not change the area, and with them maybe the
    # first one that 95 % of the ID images pass.
    passing_shifted, passing_id, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Detected(
        float(roc_auc_score(truth, scores)), float(passing_shifted[np.argmax(passing_id >= 0.95)])
    )


def detection(record: RunRecord, shift: str, predictions: Predictions) -> Detection:
    """Measure detection from a run's saved maxima and log-sum-exps, without a model."""
    # Over fewer classes, the same image has a lower log-sum-exp and a higher maximum probability.
    projection = record.projections.get(shift)
    if projection:
        return Detection(
            missing=(
                f"the shift is scored over its own classes ({projection}) and {ID} over all:"
                " their scores have no common scale"
            )
        )
    scores = []
    for split in (ID, shift):
        saved = predictions.columns(record, split, ("maximum", "log_sum_exp"))
        if saved is None:
            return Detection(
                missing=record.holes.get(split) or f"no predictions on {split} are saved"
            )
        scores.append(
            (
                np.exp(saved["maximum"].astype(float) - saved["log_sum_exp"]),
                saved["log_sum_exp"].astype(float),
            )
        )
    (p_id, e_id), (p_shift, e_shift) = scores
    return Detection(detected(p_id, p_shift), detected(e_id, e_shift))
