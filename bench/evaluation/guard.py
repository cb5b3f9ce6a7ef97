"""A guard: a pre-trained classifier whose accuracy is published has to reach it, or something is
wrong on our side.
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
        logits: (N, C) over the suite's classes.
        labels: (N,) of the split, projected where there is a projection.
        variants: computes a sample anew with one thing changed at a time; asked only if the
            accuracy is too low and the logits alone do not say why.

    Raises:
        BenchError: it lies outside the stated range; the message names the usual cause that fits.
    """
    if split not in known.accuracy:
        return
    expected = known.accuracy[split]
    found = _accuracy(logits if projection is None else project(logits, projection), labels)
    if abs(found - expected) <= known.tolerance:
        return
    cause = _cause_in_logits(known, expected, found, logits, labels, projection)
    if not cause and found > expected:
        cause = (
            "too high: not all images are there, other prompts, or other weights than the name says"
        )
    raise BenchError(
        f"zero-shot {known.backbones[0]} reaches {100 * found:.1f} % on {split}, and"
        f" {100 * expected:.1f} % is published ({known.source}):"
        f" {cause or _cause_in_variants(expected - found, variants())}",
        where=f"split {split}, {len(labels)} images",
        fix=(
            "mend the cause; `bench data verify` checks the images. A card of your own without"
            " `known` runs all the same"
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
    """Another projection or another order of the classes, if that brings the published accuracy;
    else nothing.
    """

    def fits(accuracy: float) -> bool:
        return abs(accuracy - expected) <= known.tolerance

    classes = logits.shape[1]
    if projection is not None:
        everyone = Projection("full", _with_rivals(projection, classes), projection.kept)
        if fits(_accuracy(project(logits, everyone), labels)):
            return f"the published number lets all {classes} classes compete (projection `full`)"
        kept = sorted(projection.class_of)
        restricted = np.full_like(logits, -np.inf)
        restricted[:, kept] = logits[:, kept]
        if projection.name.startswith("full") and fits(
            _accuracy(project(restricted, projection), labels)
        ):
            return (
                f"the published number compares the {projection.kept} classes alone (projection"
                " `masked`)"
            )
        logits = project(logits, projection)
    text_order = np.array(sorted(range(logits.shape[1]), key=str))
    if fits(_accuracy(logits, text_order[labels])) or fits(
        _accuracy(logits[:, text_order], labels)
    ):
        return (
            "its classes are in text order (0, 1, 10, 100, ...), and numbered folders were read by"
            " rank"
        )
    # The best renaming is right on at least as many images as none: it explains what is too low,
    # and never what is too high.
    return (
        _renamed(logits, labels, max(expected - known.tolerance, (found + expected) / 2))
        if found < expected
        else ""
    )


def _renamed(logits: NDArray[np.float32], labels: Ints, least: float) -> str:
    """Whether some one-to-one renaming of the classes reaches an accuracy; the best one is found by
    assignment.
    """
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
        f"the class order is another: {100 * reached:.1f} % are right once classes are renamed one"
        " to one; images labelled "
        + ", ".join(moved[:3])
        + (f", and so on for {len(moved)} classes" if len(moved) > 3 else "")
    )


def _cause_in_variants(gap: float, variants: Iterable[Variant]) -> str:
    """The variant that closes most of the gap, if one closes at least half of it beyond chance."""
    tried = list(variants)
    closing = [one for one in tried if one.gain >= gap / 2 and one.beyond_chance]
    if closing:
        best = max(closing, key=lambda one: one.gain)
        return (
            f"{best.cause}: {best.change}, {100 * best.right.mean():.1f} % of {len(best.right)}"
            f" images are right instead of {100 * best.before.mean():.1f} %"
        )
    looked = ", ".join(dict.fromkeys(["class order", "projection", *(one.cause for one in tried)]))
    return (
        f"too low, and no usual cause explains it ({looked}): other weights than the name says, or"
        " damaged images"
    )


def _with_rivals(projection: Projection, classes: int) -> tuple[tuple[int, ...], ...]:
    """The data set's classes, and every other class of the suite as one of its own."""
    own = projection.members[: projection.kept]
    return own + tuple((label,) for label in range(classes) if label not in projection.class_of)


def _accuracy(logits: NDArray[np.float32], labels: Ints) -> float:
    return float((logits.argmax(axis=1) == labels).mean())
