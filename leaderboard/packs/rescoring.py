"""Check the predictions of a packed run for contradictions, and recompute its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bench.data.cards.suite_card import Metric
from bench.evaluation.metrics import scored
from bench.results.record import SplitMetrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Logits are saved in half precision (11 significant bits): a value is off by at most 1 in 2048.
_HALF = 2.0**-11


@dataclass(frozen=True)
class ImageScores:
    """The predictions of one run on the N images of one split.

    Attributes:
        labels: (N,) class numbers.
        groups: (N,) group numbers; negative for no group.
        predicted: (N,) class numbers.
        label_logit: (N,) logit of the label, from logits in full precision.
        maximum: (N,) largest logit, likewise.
        log_sum_exp: (N,) log-sum-exp of the logits, likewise.
        logits: (N, C) logits in half precision, or None.
        scaled: (N,) log-sum-exp at the run's temperature, or None.
    """

    labels: Ints
    groups: Ints
    predicted: Ints
    label_logit: Floats
    maximum: Floats
    log_sum_exp: Floats
    logits: Floats | None = None
    scaled: Floats | None = None


def contradiction(found: ImageScores) -> str:
    """Return how the columns contradict each other, as a sentence; "" if they do not.

    Metrics are computed from the columns. An edited one would change a metric, but not without
    leaving the inequalities between the columns or, where there are logits, their values.
    """
    optional = (found.logits, found.scaled)
    columns = [
        found.label_logit,
        found.maximum,
        found.log_sum_exp,
        *(column for column in optional if column is not None),
    ]
    # First of all, since every comparison with NaN below would be False, and so pass.
    if not all(np.isfinite(column).all() for column in columns):
        return "a logit is not finite"
    if (found.labels < 0).any() or (found.predicted < 0).any():
        return "a class has a negative number"
    # Without logits: label logit <= maximum <= log-sum-exp, with equality on correct predictions.
    # Packs without logits have log-sum-exps in single precision, hence the tolerance.
    size = np.abs(found.maximum) + 1
    if (found.label_logit > found.maximum).any():
        return "a label's logit exceeds the largest one"
    if (found.log_sum_exp < found.maximum - 1e-6 * size).any():
        return "a log-sum-exp is below the largest logit"
    right = found.predicted == found.labels
    if (right & (found.label_logit < found.maximum)).any():
        return "a prediction is not the class of the largest logit"
    if found.logits is None:
        return ""
    # With logits, every column follows from them, up to the rounding to half precision: of the
    # largest logit, for columns over all classes, on both sides of a difference.
    rows, classes = np.arange(len(found.labels)), found.logits.shape[1]
    if max(found.labels.max(), found.predicted.max()) >= classes:
        return f"a class has a number beyond the {classes} logits"
    near = 2 * _HALF * (np.abs(found.logits).max(axis=1) + 1)
    if (np.abs(found.logits.max(axis=1) - found.maximum) > near).any():
        return "a largest logit is not that of the logits"
    if (found.logits[rows, found.predicted] < found.maximum - near).any():
        return "a prediction is not the class of the largest logit"
    if (np.abs(found.logits[rows, found.labels] - found.label_logit) > near).any():
        return "a label's logit is not that of the logits"
    if (np.abs(logsumexp(found.logits, axis=1) - found.log_sum_exp) > near).any():
        return "a log-sum-exp is not that of the logits"
    return ""


def derived(found: ImageScores, stated: SplitMetrics) -> SplitMetrics:
    """Compute the metrics of predictions, with the functions that a run uses.

    The Brier score needs the probabilities of all classes, and stays as stated.

    Args:
        found: the predictions.
        stated: the metrics that the record states: its metric's name, Brier score and number of
            unreadable images are used.

    Raises:
        ValueError: the metric does not exist, or needs groups and there are none.
    """
    # `scored` takes a `Metric`, and this name comes from the pack.
    if stated.metric not in get_args(Metric):
        raise ValueError(f"there is no metric {stated.metric[:80]!r}")
    confidence = np.minimum(np.exp(found.maximum - found.log_sum_exp), 1.0)
    nll = found.log_sum_exp - found.label_logit
    return scored(
        found.labels,
        found.groups,
        found.predicted,
        nll,
        confidence,
        stated.brier,
        stated.metric,  # type: ignore[arg-type]
        stated.skipped_unreadable,
    )


def image_scores(images: dict[str, NDArray[Any]], outcomes: dict[str, NDArray[Any]]) -> ImageScores:
    """Return the predictions from the columns of a pack's two tables.

    Args:
        images: columns `key`, `label` and `group`, (N,) each.
        outcomes: columns of the predictions; a `label_logit` of NaN stands for the maximum.
    """
    top = outcomes["maximum"].astype(np.float64)
    label = outcomes["label_logit"].astype(np.float64)
    logits, scaled = outcomes.get("logits"), outcomes.get("log_sum_exp_scaled")
    return ImageScores(
        labels=images["label"].astype(np.int64),
        groups=images["group"].astype(np.int64),
        predicted=outcomes["prediction"].astype(np.int64),
        label_logit=np.where(np.isnan(label), top, label),
        maximum=top,
        log_sum_exp=outcomes["log_sum_exp"].astype(np.float64),
        logits=None if logits is None else logits.astype(np.float64),
        scaled=None if scaled is None else scaled.astype(np.float64),
    )
