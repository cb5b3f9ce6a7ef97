"""What a packed run said about every image: whether its columns contradict each other, and the
metrics that follow from them.
"""

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

#: Logits are kept in half precision: 11 bits, so that a value is off by at most one part in 2048.
_HALF = 2.0**-11


@dataclass(frozen=True)
class Said:
    """What one run said about the N images of one split.

    Attributes:
        labels, groups, predicted: (N,) integers; a negative group is none.
        label_logit, maximum, log_sum_exp: (N,) of the logits in full precision.
        logits: (N, C) in half precision, or None.
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


def contradiction(said: Said) -> str:
    """In what the columns contradict each other; empty if they do not."""
    kept = (said.logits, said.scaled)
    columns = [
        said.label_logit,
        said.maximum,
        said.log_sum_exp,
        *(column for column in kept if column is not None),
    ]
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


def derived(said: Said, stated: SplitMetrics) -> SplitMetrics:
    """The metrics of predictions, by the functions of a run; the Brier score needs all
    probabilities, and stays as stated.

    Raises:
        ValueError: there is no such metric, or it needs groups and there are none.
    """
    if stated.metric not in get_args(Metric):
        raise ValueError(f"there is no metric {stated.metric[:80]!r}")
    confidence = np.minimum(np.exp(said.maximum - said.log_sum_exp), 1.0)
    nll = said.log_sum_exp - said.label_logit
    return scored(
        said.labels, said.groups, said.predicted, nll, confidence, stated.brier, stated.metric,  # type: ignore[arg-type]
        stated.skipped_unreadable
    )  # fmt: skip


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
