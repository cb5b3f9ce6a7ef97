"""A guard: a pre-trained classifier whose accuracy is published has to reach it, or something is wrong on our side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.card import Known
from ..data.labels import Projection
from ..errors import BenchError
from .projection import Floats, project

Ints = NDArray[np.int64]


def check_known(known: Known, split: str, logits: Floats, labels: Ints, projection: Projection | None) -> None:
    """Compare the accuracy of an untouched zero-shot classifier with the published one.

    Args:
        logits: (N, C) over the suite's classes. labels: (N,) of the split, projected where there is a projection.

    Raises:
        BenchError: it lies outside the stated range; the message names the usual cause that fits.
    """
    if split not in known.accuracy:
        return
    expected = known.accuracy[split]
    found = _accuracy(logits if projection is None else project(logits, projection), labels)
    if abs(found - expected) <= known.tolerance:
        return
    raise BenchError(
        f"zero-shot {known.backbones[0]} reaches {100 * found:.1f} % on {split}, and {100 * expected:.1f} % is published "
        f"({known.source}): {_cause(known, expected, found, logits, labels, projection)}",
        where=f"split {split}, {len(labels)} images",
        fix="mend the cause; `bench data verify` checks the images. A card of your own without `known` runs all the same",
    )


def _cause(known: Known, expected: float, found: float, logits: Floats, labels: Ints, projection: Projection | None) -> str:
    def fits(accuracy: float) -> bool:
        return abs(accuracy - expected) <= known.tolerance

    classes = logits.shape[1]
    if projection is None:
        text_order = np.array(sorted(range(classes), key=str))
        if fits(_accuracy(logits, text_order[labels])) or fits(_accuracy(logits[:, text_order], labels)):
            return "its classes are in text order (0, 1, 10, 100, ...), and numbered folders were read by rank"
    else:
        everyone = Projection("full", _with_rivals(projection, classes), projection.kept)
        if fits(_accuracy(project(logits, everyone), labels)):
            return f"the published number lets all {classes} classes compete (projection `full`)"
        kept = sorted(projection.class_of)
        restricted = np.full_like(logits, -np.inf)
        restricted[:, kept] = logits[:, kept]
        if projection.name.startswith("full") and fits(_accuracy(project(restricted, projection), labels)):
            return f"the published number compares the {projection.kept} classes alone (projection `masked`)"
    if found < expected / 4:
        return "near chance: class order or class names of another list, or weights that were not loaded"
    if found < expected:
        return "too low: wrong preprocessing (size, resampling, mean and std), or GELU where the weights want QuickGELU"
    return "too high: not all images are there, other prompts, or other weights than the name says"


def _with_rivals(projection: Projection, classes: int) -> tuple[tuple[int, ...], ...]:
    """The data set's classes, and every other class of the suite as one of its own."""
    own = projection.members[: projection.kept]
    return own + tuple((label,) for label in range(classes) if label not in projection.class_of)


def _accuracy(logits: Floats, labels: Ints) -> float:
    return float((logits.argmax(axis=1) == labels).mean())
