"""Metrics of logits against labels. Accuracy, ECE and F1 are in [0, 1]; NLL is in nats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from ..data.cards.labels import Projection
from ..data.cards.suite_card import Metric, SuiteCard
from ..errors import Diverged
from ..results.record import RunRecord, SplitMetrics

Floats = NDArray[np.float32] | NDArray[np.float64]
Ints = NDArray[np.int64]


def expected_calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], bins: int = 15
) -> float:
    """Return the expected calibration error (Guo et al., 2017).

    The mean of |accuracy - confidence| over bins (0, 1/b], (1/b, 2/b], ..., weighted by their size.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool.
        bins: number of bins b; 15 as in the paper.
    """
    # Bins are open at the left, hence `ceil`; a confidence of 0 goes to the first one.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def score(
    logits: Floats, labels: Ints, groups: Ints | None, metric: Metric = "accuracy", skipped: int = 0
) -> SplitMetrics:
    """Return all metrics of one classifier on one split.

    Args:
        logits: (N, C).
        labels: (N,).
        groups: (N,) or None; a negative number is no group.
        metric: the metric that is the split's `score`.
        skipped: images left out as unreadable, for the record.

    Raises:
        Diverged: a logit is not finite.
    """
    # NaN would pass on: `argmax` of a row of NaN is class 0, and the accuracy looks like a result.
    if not np.isfinite(logits).all():
        raise Diverged(
            "the classifier returns logits that are not finite",
            fix="lower the learning rate: its training diverged",
        )
    nll, brier, confidence = _per_image(logits, labels)
    return scored(
        labels, groups, logits.argmax(axis=1), nll, confidence, float(brier.mean()), metric, skipped
    )


def scored(
    labels: Ints,
    groups: Ints | None,
    predicted: Ints,
    nll: Floats,
    confidence: Floats,
    brier: float,
    metric: Metric = "accuracy",
    skipped: int = 0,
) -> SplitMetrics:
    """Return all metrics, given the predictions of single images instead of logits.

    Args:
        labels: (N,).
        groups: (N,) or None; a negative number is no group.
        predicted: (N,) classes.
        nll: (N,) of the labels.
        confidence: (N,) probability of the predicted class.
        brier: mean over the images.
        metric: the metric that is the split's `score`.
        skipped: images left out as unreadable, for the record.

    Raises:
        ValueError: the metric is `worst_group`, and there are no groups.
    """
    found = shares(labels, groups, predicted)
    chosen = found[metric]
    if chosen is None:
        raise ValueError("the card's metric is worst_group, but the split has no groups")
    return SplitMetrics(
        images=len(labels),
        score=chosen,
        metric=metric,
        **found,
        nll=float(nll.mean()),
        ece=expected_calibration_error(confidence, predicted == labels),
        brier=brier,
        skipped_unreadable=skipped,
    )


def shares(labels: Ints, groups: Ints | None, predicted: Ints) -> dict[str, float | None]:
    """Return the metrics that depend on the predicted classes (N,) only, by their names.

    `worst_group` is None if there are no groups.
    """
    # Class means and F1 are over the classes that occur, since a split may have only some of them.
    correct = predicted == labels
    classes, named = np.unique(labels), np.unique(groups[groups >= 0]) if groups is not None else ()
    return {
        "accuracy": float(correct.mean()),
        "class_mean": float(np.mean([correct[labels == c].mean() for c in classes])),
        "macro_f1": float(
            f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)
        ),
        "worst_group": (
            float(min(correct[groups == g].mean() for g in named)) if len(named) else None
        ),
    }


def _per_image(logits: Floats, labels: Ints, chunk: int = 4096) -> tuple[NDArray[np.float64], ...]:
    """Return NLL, Brier score and confidence of every image, (N,) each."""
    # In chunks: several arrays of 50,000 x 1000 doubles would take 400 MB each.
    parts = []
    for first in range(0, len(labels), chunk):
        truth = labels[first : first + chunk]
        log_p = log_softmax(logits[first : first + chunk].astype(np.float64), axis=1)
        p = np.exp(log_p)
        error = p - np.eye(logits.shape[1])[truth]
        parts.append((-log_p[np.arange(len(truth)), truth], (error**2).sum(axis=1), p.max(axis=1)))
    nll, brier, confidence = (np.concatenate(values) for values in zip(*parts, strict=True))
    return nll, brier, confidence


def relative_scores(card: SuiteCard, record: RunRecord) -> dict[str, float]:
    """Return the card's relative score, such as mCE of ImageNet-C, by its name.

    100 times the mean over families of (sum of errors over the family's shifts) / (the same sum of
    the reference). Empty if the card has no reference, or a shift of a family has no result.
    """
    if card.relative is None:
        return {}
    ratios = []
    for family, reference in card.relative.reference.items():
        shifts = [shift.name for shift in card.shifts if shift.family == family]
        if not shifts or any(name not in record.metrics for name in shifts):
            return {}
        # The card states the reference as a mean, and both sums have the same number of terms.
        ratios.append(np.mean([1 - record.metrics[name].accuracy for name in shifts]) / reference)
    return {card.relative.name: 100 * float(np.mean(ratios))}


def nll_at(
    temperature: float, logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> float:
    """Return the mean negative log-likelihood of softmax(logits / temperature), in nats.

    Args:
        temperature: above 0.
        logits: (N, C).
        labels: (N,).
    """
    scaled = logits.astype(np.float64) / temperature
    return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())


def fitted_temperature(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> float:
    """Return the T in [1/50, 50] that minimises the NLL of softmax(logits / T) (Guo et al., 2017).

    Args:
        logits: (N, C) of id-val, never of a test split.
        labels: (N,).
    """
    # Over log T, in which the scale of the logits is a shift. Bounded, since logits that separate
    # the classes perfectly have no minimum.
    found = minimize_scalar(
        lambda log_t: nll_at(float(np.exp(log_t)), logits, labels),
        bounds=(-np.log(50), np.log(50)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def project(logits: NDArray[np.float32], projection: Projection) -> NDArray[np.float32]:
    """Return logits (N, K) of the projected classes: of each, the maximum over its members.

    A softmax over the result renormalises the probabilities over the projected classes; NLL and
    calibration are measured on these.

    Args:
        logits: (N, C) over the suite's classes.
        projection: from the suite's classes to K classes.
    """
    # With the maximum, the predicted class is the one that the best of all members belongs to. A
    # mean, or a sum of probabilities, would prefer classes with many members.
    if projection.identity:
        return logits
    flat = np.array([label for members in projection.members for label in members])
    starts = np.cumsum([0, *(len(members) for members in projection.members[:-1])])
    projected: NDArray[np.float32] = np.maximum.reduceat(logits[:, flat], starts, axis=1)
    return projected


def matched(
    labels: NDArray[np.int64], projection: Projection
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images whose class exists after a projection.

    Args:
        labels: (N,) over the suite's classes.
        projection: from the suite's classes to those of a shift.

    Returns:
        Their rows, and their labels among the projected classes.
    """
    # A table over all labels that occur; -1 stands for a class that the shift does not have.
    lookup = np.full(
        max([*projection.class_of, int(labels.max(initial=0))]) + 1, -1, dtype=np.int64
    )
    lookup[list(projection.class_of)] = list(projection.class_of.values())
    projected = lookup[labels]
    rows = np.flatnonzero(projected >= 0).astype(np.int64)
    return rows, projected[rows]
