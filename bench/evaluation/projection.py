"""Logits over a suite's classes as logits over the classes of a shift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.cards.labels import Projection

Floats = NDArray[np.float32]


def project(logits: Floats, projection: Projection) -> Floats:
    """Logits (N, K) of the projected classes: of each, the maximum over the classes that it stands for.

    A softmax over the result are the probabilities renormalised over the kept classes (after the maximum), which is what
    NLL and calibration are measured on. With the maximum, the best projected class is the one that the best kept class
    belongs to; a mean or a sum of probabilities would prefer classes that stand for many.

    Args:
        logits: (N, C) over the suite's classes.
    """
    if projection.identity:
        return logits
    flat = np.array([label for members in projection.members for label in members])
    starts = np.cumsum([0, *(len(members) for members in projection.members[:-1])])
    projected: Floats = np.maximum.reduceat(logits[:, flat], starts, axis=1)
    return projected


def matched(labels: NDArray[np.int64], projection: Projection) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images whose class the shift has too: their rows, and their labels among the projected classes.

    Args:
        labels: (N,) over the suite's classes.
    """
    lookup = np.full(max([*projection.class_of, int(labels.max(initial=0))]) + 1, -1, dtype=np.int64)
    lookup[list(projection.class_of)] = list(projection.class_of.values())
    projected = lookup[labels]
    rows = np.flatnonzero(projected >= 0).astype(np.int64)
    return rows, projected[rows]
