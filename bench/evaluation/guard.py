"""Check zero-shot accuracies against published ones, and name the likely cause of a difference.

A wrong order of the classes or a wrong mean of the pixels raises no error. It gives plausible
numbers that are too low, and every comparison on them is wrong. So a run stops if a pre-trained
classifier misses its published accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..data.cards.labels import Projection
from ..data.cards.suite_card import Known
from ..errors import BenchError
from .metrics import project
from .variants import Variant

Ints = NDArray[np.int64]


def check_known(
    known: Known,
    split: str,
    logits: NDArray[np.float32],
    labels: Ints,
    projection: Projection | None,
    variants: Callable[[], Iterable[Variant]] = tuple,
) -> None:
    """Compare the accuracy of an untouched zero-shot classifier with the published one.

    Args:
        known: published accuracies and their tolerance.
        split: name of the split; nothing is checked if it has no published accuracy.
        logits: (N, C) over the suite's classes.
        labels: (N,) of the split, projected if there is a projection.
        projection: from the suite's classes to those of the split, or None.
        variants: evaluates a subset with one thing changed at a time. Called only if the accuracy
            is too low and the logits do not explain it, since it computes for seconds to minutes.

    Raises:
        BenchError: the accuracy is outside the stated range; the message names the likely cause.
    """
    if split not in known.accuracy:
        return
    expected = known.accuracy[split]
    found = _accuracy(logits if projection is None else project(logits, projection), labels)
    if abs(found - expected) <= known.tolerance:
        return
    # In the order of their costs: the logits are there, variants have to be computed.
    cause = _cause_in_logits(known, expected, found, logits, labels, projection)
    if not cause and found > expected:
        cause = (
            "too high: images are missing, the prompts differ, or the weights are not those of the"
            " name"
        )
    raise BenchError(
        f"zero-shot {known.backbones[0]} reaches {100 * found:.1f} % on {split}, but"
        f" {100 * expected:.1f} % is published ({known.source}):"
        f" {cause or _cause_in_variants(expected - found, variants())}",
        where=f"split {split}, {len(labels)} images",
        fix=(
            "fix the cause; `bench data verify` checks the images. To run without this check, use a"
            " card of your own without `known`"
        ),
    )


def _cause_in_logits(
    known: Known,
    expected: float,
    found: float,
    logits: NDArray[np.float32],
    labels: Ints,
    projection: Projection | None,
) -> str:
    """Return the change of projection or class order that gives the published accuracy, or ""."""

    def fits(accuracy: float) -> bool:
        return abs(accuracy - expected) <= known.tolerance

    classes = logits.shape[1]
    # Papers report datasets with a part of ImageNet's classes under two protocols: these classes
    # compete among themselves, or with all classes of the suite.
    if projection is not None:
        everyone = Projection("full", _with_rivals(projection, classes), projection.num_classes)
        if fits(_accuracy(project(logits, everyone), labels)):
            return f"the published number lets all {classes} classes compete (projection `full`)"
        own = sorted(projection.class_of)
        restricted = np.full_like(logits, -np.inf)
        restricted[:, own] = logits[:, own]
        if projection.name.startswith("full") and fits(
            _accuracy(project(restricted, projection), labels)
        ):
            return (
                f"the published number compares only the {projection.num_classes} classes of the"
                " split (projection `masked`)"
            )
        logits = project(logits, projection)
    # The most common wrong order: torchvision's ImageFolder sorts folder names as text.
    text_order = np.array(sorted(range(logits.shape[1]), key=str))
    if fits(_accuracy(logits, text_order[labels])) or fits(
        _accuracy(logits[:, text_order], labels)
    ):
        return (
            "the classes are in text order (0, 1, 10, 100, ...), but the numbered folders were read"
            " in the order of their numbers"
        )
    # The best renaming is correct on at least as many images as none, so that it explains an
    # accuracy that is too low and never one that is too high. It has to close half of the gap,
    # since the best of so many closes a little of any gap.
    return (
        _renamed(logits, labels, max(expected - known.tolerance, (found + expected) / 2))
        if found < expected
        else ""
    )


def _renamed(logits: NDArray[np.float32], labels: Ints, least: float) -> str:
    """Return which one-to-one renaming of the classes reaches the accuracy `least`, or ""."""
    # There are C! renamings; the best one is a linear assignment on the confusion matrix.
    classes = logits.shape[1]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    labelled, recognised = linear_sum_assignment(confusion, maximize=True)
    reached = confusion[labelled, recognised].sum() / len(labels)
    moved = [
        f"{label} are recognised as {other}" for label, other in zip(labelled, recognised,
        strict=True) if label != other
        and confusion[label, other] > confusion[label, label]
    ]  # fmt: skip
    if reached < least or not moved:
        return ""
    return (
        f"the class order is wrong: {100 * reached:.1f} % are correct after a one-to-one renaming"
        " of the classes; images labelled "
        + ", ".join(moved[:3])
        + (f", and so on for {len(moved)} classes" if len(moved) > 3 else "")
    )


def _cause_in_variants(gap: float, variants: Iterable[Variant]) -> str:
    """Return the variant that closes most of the gap: at least half, and more than by chance."""
    # Half of the gap, since the rest may have a cause of its own; and beyond chance, since the best
    # of several variants gains a little by chance alone.
    tried = list(variants)
    closing = [one for one in tried if one.gain >= gap / 2 and one.beyond_chance]
    if closing:
        best = max(closing, key=lambda one: one.gain)
        return (
            f"{best.cause}: {best.change}, {100 * best.right.mean():.1f} % of {len(best.right)}"
            f" images are correct instead of {100 * best.before.mean():.1f} %"
        )
    causes = ", ".join(dict.fromkeys(["class order", "projection", *(one.cause for one in tried)]))
    return (
        f"too low, and no usual cause explains it ({causes}): the weights are not those of the"
        " name, or images are damaged"
    )


def _with_rivals(projection: Projection, classes: int) -> tuple[tuple[int, ...], ...]:
    """Return the split's classes, and every other class of the suite as one of its own."""
    own = projection.members[: projection.num_classes]
    return own + tuple((label,) for label in range(classes) if label not in projection.class_of)


def _accuracy(logits: NDArray[np.float32], labels: Ints) -> float:
    return float((logits.argmax(axis=1) == labels).mean())
