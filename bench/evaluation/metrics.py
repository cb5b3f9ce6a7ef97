"""Scores of logits against labels. Accuracies, ECE and F1 are shares in [0, 1]; NLL is in nats."""

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
    """Mean of |accuracy - confidence| over bins (0, 1/b], (1/b, 2/b], ..., weighted by their size
    (Guo et al., 2017).
    """
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def score(
    logits: Floats, labels: Ints, groups: Ints | None, metric: Metric = "accuracy", skipped: int = 0
) -> SplitMetrics:
    """All metrics of one classifier on one split.

    Args:
        logits: (N, C).
        labels: (N,).
        groups: (N,) or None; negative numbers are in no group.
        metric: which of them is the split's `score`.

    Raises:
        Diverged: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise Diverged(
            "the classifier gives logits that are not finite",
            fix="its training went astray: lower the learning rate",
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
    """All metrics from what was said about single images.

    Args:
        labels, groups, metric, skipped: as of `score`.
        predicted: (N,) classes.
        nll: (N,) of the labels.
        confidence: (N,) probability of the predicted class.
        brier: mean over the images.

    Raises:
        ValueError: the metric is that of the worst group, and there are no groups.
    """
    found = shares(labels, groups, predicted)
    chosen = found[metric]
    if chosen is None:
        raise ValueError("the card asks for the worst group, and the split has no groups")
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
    """The metrics that predicted classes (N,) alone determine, by their names in `SplitMetrics`;
    None: there are no groups.
    """
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
    """NLL, Brier score and confidence of every image, (N,) each; a chunk at a time, since 50,000 x
    1000 doubles are 400 MB.
    """
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
    """100 times the mean over families of (sum of errors over the family's shifts) / (the same sum
    of the reference).

    Empty if the card names no reference, or a shift of one of its families has no result.
    """
    if card.relative is None:
        return {}
    ratios = []
    for family, reference in card.relative.reference.items():
        shifts = [shift.name for shift in card.shifts if shift.family == family]
        if not shifts or any(name not in record.metrics for name in shifts):
            return {}
        ratios.append(np.mean([1 - record.metrics[name].accuracy for name in shifts]) / reference)
    return {card.relative.name: 100 * float(np.mean(ratios))}


def nll_at(
    temperature: float, logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> float:
    """Mean negative log-likelihood of softmax(logits / temperature), nats.

    Args:
        logits: (N, C).
        labels: (N,).
    """
    scaled = logits.astype(np.float64) / temperature
    return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())


def fitted_temperature(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> float:
    """The T for which softmax(logits / T) has the least NLL (Guo et al., 2017); between 1/50 and
    50.

    Args:
        logits: (N, C) of id-val; selection and fitting see id-val only.
        labels: (N,).
    """
    found = minimize_scalar(
        lambda log_t: nll_at(float(np.exp(log_t)), logits, labels),
        bounds=(-np.log(50), np.log(50)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def project(logits: NDArray[np.float32], projection: Projection) -> NDArray[np.float32]:
    """Logits (N, K) of the projected classes: of each, the maximum over the classes that it stands
    for.

    A softmax over the result are the probabilities renormalised over the kept classes (after the
    maximum), which is what NLL and calibration are measured on. With the maximum, the best
    projected class is the one that the best kept class belongs to; a mean or a sum of probabilities
    would prefer classes that stand for many.

    Args:
        logits: (N, C) over the suite's classes.
    """
    if projection.identity:
        return logits
    flat = np.array([label for members in projection.members for label in members])
    starts = np.cumsum([0, *(len(members) for members in projection.members[:-1])])
    projected: NDArray[np.float32] = np.maximum.reduceat(logits[:, flat], starts, axis=1)
    return projected


def matched(
    labels: NDArray[np.int64], projection: Projection
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images whose class the shift has too: their rows, and their labels among the projected
    classes.

    Args:
        labels: (N,) over the suite's classes.
    """
    lookup = np.full(
        max([*projection.class_of, int(labels.max(initial=0))]) + 1, -1, dtype=np.int64
    )
    lookup[list(projection.class_of)] = list(projection.class_of.values())
    projected = lookup[labels]
    rows = np.flatnonzero(projected >= 0).astype(np.int64)
    return rows, projected[rows]
