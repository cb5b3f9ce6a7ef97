"""Metrics computed anew from what a run said about every image, to be held against the metrics that its record states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bench.evaluation.temperature import fitted_temperature, nll_at
from bench.results.record import SplitMetrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Logits are kept in half precision: 11 bits, so that a value is off by at most one part in 2048.
_HALF = 2.0**-11


@dataclass(frozen=True)
class Said:
    """What one run said about the N images of one split.

    Attributes:
        labels, groups, predicted: (N,) integers; a negative group is none.
        label_logit, maximum, log_sum_exp: (N,) of the logits in full precision. logits: (N, C) in half precision, or None.
    """

    labels: Ints
    groups: Ints
    predicted: Ints
    label_logit: Floats
    maximum: Floats
    log_sum_exp: Floats
    logits: Floats | None = None
    scaled: Floats | None = None


def contradiction(said: Said) -> str:
    """In what the columns contradict each other; empty if they do not."""
    kept = (said.logits, said.scaled)
    columns = [said.label_logit, said.maximum, said.log_sum_exp, *(column for column in kept if column is not None)]
    if not all(np.isfinite(column).all() for column in columns):
        return "a logit is not finite"
    if (said.labels < 0).any() or (said.predicted < 0).any():
        return "a class has a negative number"
    size = np.abs(said.maximum) + 1
    if (said.label_logit > said.maximum).any():
        return "a label's logit exceeds the largest one"
    if (said.log_sum_exp < said.maximum - 1e-6 * size).any():
        return "a log-sum-exp is below the largest logit"
    right = said.predicted == said.labels
    if (right & (said.label_logit < said.maximum)).any():
        return "a prediction is not the class of the largest logit"
    if said.logits is None:
        return ""
    rows, classes = np.arange(len(said.labels)), said.logits.shape[1]
    if max(said.labels.max(), said.predicted.max()) >= classes:
        return f"a class has a number beyond the {classes} logits"
    near = 2 * _HALF * (np.abs(said.logits).max(axis=1) + 1)
    if (np.abs(said.logits.max(axis=1) - said.maximum) > near).any():
        return "a largest logit is not that of the logits"
    if (said.logits[rows, said.predicted] < said.maximum - near).any():
        return "a prediction is not the class of the largest logit"
    if (np.abs(said.logits[rows, said.labels] - said.label_logit) > near).any():
        return "a label's logit is not that of the logits"
    if (np.abs(logsumexp(said.logits, axis=1) - said.log_sum_exp) > near).any():
        return "a log-sum-exp is not that of the logits"
    return ""


def disagreement(stated: SplitMetrics, said: Said) -> str:
    """Which stated metric is not that of the predictions, with both values; empty if all are.

    What follows from predictions and full-precision columns has to agree to rounding. The Brier score needs all probabilities:
    it is computed from the half-precision logits, and without those only held within what the other columns allow.
    """
    if stated.images != len(said.labels):
        return f"images: {stated.images} stated, {len(said.labels)} predicted"
    found = rescored(said)
    # Condensed columns are in single precision: an image at the edge of a calibration bin may fall into its neighbour.
    near = {"nll": 1e-5 * (1 + stated.nll), "ece": 1e-6 + 2 / stated.images}
    for name, value in found.items():
        own = getattr(stated, name)
        if own is None or value is None:
            if own is not value:
                return f"{name}: {_shown(own)} stated, {_shown(value)} by the predictions"
        elif not abs(own - value) <= near.get(name, 1e-9):
            return f"{name}: {_shown(own)} stated, {_shown(value)} by the predictions"
    low, high = brier_bounds(said)
    if not low <= stated.brier <= high:
        return f"brier: {_shown(stated.brier)} stated, between {_shown(low)} and {_shown(high)} by the predictions"
    chosen = found.get(stated.metric)
    if chosen is None or abs(chosen - stated.score) > 1e-9:
        return f"score: {_shown(stated.score)} stated, {stated.metric} is {_shown(chosen)} by the predictions"
    return ""


def wrong_temperature(stated: float | None, said: Said, *, fitted_here: bool) -> str:
    """In what a run's temperature and what it said contradict each other; empty if in nothing, or if too little was kept to tell.

    Args:
        fitted_here: `said` is about id-val, where the temperature has the least NLL. Half-precision logits move it a little: it
            is the loss there that is held against the least.
    """
    if stated is None:
        return "" if said.scaled is None else "there are log-sum-exps at a temperature, and none is stated"
    if not 0 < stated < np.inf:
        return f"{stated:g}"
    if said.scaled is not None and (said.scaled < said.maximum / stated - 1e-6 * (np.abs(said.maximum / stated) + 1)).any():
        return f"a log-sum-exp at {stated:.4g} is below the largest logit"
    if fitted_here and said.logits is not None:
        least = fitted_temperature(said.logits, said.labels)
        loss, best = (nll_at(t, said.logits, said.labels) for t in (stated, least))
        return f"{stated:.4g} stated, {least:.4g} fitted on id-val" if loss > best + 1e-4 * (1 + best) else ""
    return ""


def off_curve(stated: float, metric: str, predicted: Ints, said: Said) -> str:
    """In what a point's stated score is not that of its predictions; empty if it is.

    Args:
        predicted: (N,) by the point. said: by the run itself, about the same images.
    """
    if (predicted < 0).any():
        return "a class has a negative number"
    found = _shares(said.labels, said.groups, predicted).get(metric)
    if found is None or abs(found - stated) > 1e-9:
        return f"{metric} {_shown(stated)} stated, {_shown(found)} by the predictions"
    return ""


def rescored(said: Said) -> dict[str, float | None]:
    """Metrics by their names in `SplitMetrics`, but for the Brier score."""
    from bench.evaluation.metrics import expected_calibration_error

    correct = said.predicted == said.labels
    return {
        **_shares(said.labels, said.groups, said.predicted),
        "nll": float((said.log_sum_exp - said.label_logit).mean()),
        "ece": expected_calibration_error(np.minimum(np.exp(said.maximum - said.log_sum_exp), 1.0), correct),
    }


def _shares(labels: Ints, groups: Ints, predicted: Ints) -> dict[str, float | None]:
    """The metrics that predicted classes alone determine, by their names in `SplitMetrics`."""
    from sklearn.metrics import f1_score

    correct = predicted == labels
    classes, named = np.unique(labels), np.unique(groups[groups >= 0])
    return {
        "accuracy": float(correct.mean()),
        "class_mean": float(np.mean([correct[labels == c].mean() for c in classes])),
        "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        "worst_group": float(min(correct[groups == g].mean() for g in named)) if len(named) else None,
    }


def brier_bounds(said: Said) -> tuple[float, float]:
    """Between which values the Brier score lies: tight with logits, else by the largest and the label's probability."""
    label = np.exp(said.label_logit - said.log_sum_exp)
    top = np.exp(said.maximum - said.log_sum_exp)
    if said.logits is not None:
        squares = np.exp(2 * (said.logits - logsumexp(said.logits, axis=1, keepdims=True))).sum(axis=1)
        brier = float((squares - 2 * label + 1).mean())
        # A logit off by d changes a probability by at most d / 2, here for every class of every image at once.
        room = float((2 * _HALF * (np.abs(said.logits).max(axis=1) + 1)).mean())
        return brier - room, brier + room
    rest = np.maximum(1 - top, 0)
    low, high = top**2 - 2 * label + 1, top**2 + rest * np.minimum(top, rest) - 2 * label + 1
    return float(low.mean()) - 1e-5, float(high.mean()) + 1e-5


def said_by(images: dict[str, NDArray[Any]], outcomes: dict[str, NDArray[Any]]) -> Said:
    """From the columns of a pack's two tables; an empty `label_logit` (NaN) is the maximum."""
    top = outcomes["maximum"].astype(np.float64)
    label = outcomes["label_logit"].astype(np.float64)
    logits, scaled = outcomes.get("logits"), outcomes.get("log_sum_exp_scaled")
    return Said(
        labels=images["label"].astype(np.int64),
        groups=images["group"].astype(np.int64),
        predicted=outcomes["prediction"].astype(np.int64),
        label_logit=np.where(np.isnan(label), top, label),
        maximum=top,
        log_sum_exp=outcomes["log_sum_exp"].astype(np.float64),
        logits=None if logits is None else logits.astype(np.float64),
        scaled=None if scaled is None else scaled.astype(np.float64),
    )


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
