"""One number that makes a classifier's confidence fit its accuracy: the softmax temperature with the least loss on id-val."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def nll_at(temperature: float, logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Mean negative log-likelihood of softmax(logits / temperature), nats.

    Args:
        logits: (N, C). labels: (N,).
    """
    scaled = logits.astype(np.float64) / temperature
    return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())


def fitted_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """The T for which softmax(logits / T) has the least NLL (Guo et al., 2017); between 1/50 and 50.

    Args:
        logits: (N, C) of id-val; selection and fitting see id-val only. labels: (N,).
    """
    found = minimize_scalar(
        lambda log_t: nll_at(float(np.exp(log_t)), logits, labels),
        bounds=(-np.log(50), np.log(50)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))
