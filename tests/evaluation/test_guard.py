"""A zero-shot classifier that misses its published accuracy stops the run, and the message names
the cause.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from bench.data.cards.labels import ClassList, projection
from bench.data.cards.suite_card import Known
from bench.errors import BenchError
from bench.evaluation.guard import check_known
from bench.evaluation.variants import Variant

RNG = np.random.default_rng(0)
CLASSES = 30
LABELS = RNG.integers(0, CLASSES, 3000)
KNOWN = Known(
    backbones=("clip",), source="a paper", accuracy={"id-test": 0.6, "some": 0.9}, tolerance=0.03
)


def logits(labels: np.ndarray, accuracy: float, classes: int = CLASSES) -> np.ndarray:
    """Right on this share of the images, wrong by the next class on the others."""
    predicted = np.where(RNG.random(len(labels)) < accuracy, labels, (labels + 1) % classes)
    return np.eye(classes, dtype=np.float32)[predicted] * 5


def test_within_its_range_and_on_unknown_splits_nothing_happens() -> None:
    check_known(KNOWN, "id-test", logits(LABELS, 0.6), LABELS, None)
    check_known(KNOWN, "another", logits(LABELS, 0.1), LABELS, None)


@pytest.mark.parametrize(
    ("accuracy", "cause"),
    [(0.4, "too low, and no usual cause explains it"), (0.9, "too high: images are missing")],
)
def test_without_a_cause_none_is_named(accuracy: float, cause: str) -> None:
    with pytest.raises(BenchError, match=rf"60.0 % is published \(a paper\): .*{cause}"):
        check_known(KNOWN, "id-test", spread(LABELS, accuracy), LABELS, None)


def spread(labels: np.ndarray, accuracy: float) -> np.ndarray:
    """Right on this share of the images, wrong by any class on the others."""
    predicted = np.where(
        RNG.random(len(labels)) < accuracy, labels, RNG.integers(0, CLASSES, len(labels))
    )
    return np.eye(CLASSES, dtype=np.float32)[predicted]


def variant(cause: str, before: float, after: float) -> Variant:
    return Variant(
        cause, f"with another {cause}", RNG.random(500) < before, RNG.random(500) < after
    )


def test_the_change_that_closes_most_of_the_gap_is_the_cause() -> None:
    """The gap is 0.2: a change that gains less than half of it, or by chance, is none."""
    tried = [variant("shoe", 0.4, 0.45), variant("hat", 0.4, 0.6), variant("coat", 0.4, 0.52)]
    with pytest.raises(
        BenchError,
        match=r": hat: with another hat, \d\d\.\d % of 500 images are correct instead of ",
    ):
        check_known(KNOWN, "id-test", spread(LABELS, 0.38), LABELS, None, lambda: tried)
    with pytest.raises(
        BenchError, match=r"no usual cause explains it \(class order, projection, shoe\)"
    ):
        check_known(KNOWN, "id-test", spread(LABELS, 0.38), LABELS, None, lambda: tried[:1])


def test_any_other_order_of_the_classes_is_recognised_and_named() -> None:
    order = RNG.permutation(CLASSES)
    with pytest.raises(BenchError, match="the class order is wrong: 6") as caught:
        check_known(KNOWN, "id-test", spread(LABELS, 0.6), order[LABELS], None)
    moved = {
        f"{order[label]} are recognised as {label}"
        for label in range(CLASSES)
        if order[label] != label
    }
    assert sum(one in caught.value.what for one in moved) == 3, caught.value.what


@pytest.mark.parametrize(
    ("accuracy", "published", "tolerance", "cause"),
    [
        (0.96, 0.6, 0.01, "too high: images are missing"),
        (
            0.96,
            0.96,
            0.015,
            (
                "the class order is wrong: 9.* images labelled 0 are recognised as 1, 1 are"
                " recognised as 0$"
            ),
        ),
        # Within the range, but a third of the gap.
        (
            0.85,
            0.95,
            0.11,
            "too low, and no usual cause explains it",
        ),
    ],
)
def test_a_swapped_pair_explains_what_is_too_low_and_closes_most_of_the_gap(
    accuracy: float, published: float, tolerance: float, cause: str
) -> None:
    """A fifteenth of the images are of the two classes."""
    swapped = np.array([1, 0, *range(2, CLASSES)])[LABELS]
    known = KNOWN.model_copy(update={"accuracy": {"id-test": published}, "tolerance": tolerance})
    with pytest.raises(BenchError) as caught:
        check_known(known, "id-test", spread(LABELS, accuracy), swapped, None)
    assert re.search(cause, caught.value.what), caught.value.what


def test_classes_in_text_order_are_recognised() -> None:
    by_rank = np.array(sorted(range(CLASSES), key=str))
    rank_of = np.argsort(by_rank)
    with pytest.raises(BenchError, match="text order"):
        check_known(KNOWN, "id-test", logits(LABELS, 0.6), rank_of[LABELS], None)


def test_a_number_of_the_other_protocol_is_recognised() -> None:
    some = ClassList.plain([str(label) for label in range(0, CLASSES, 2)])
    space = [str(label) for label in range(CLASSES)]
    masked, _ = projection(space, some)
    full, _ = projection(space, some, "full")
    labels = RNG.integers(0, len(some), 3000)
    z = logits(2 * labels, 1.0)
    tempted = RNG.random(3000) < 0.4
    z[tempted, 1] = 9  # a class that the shift does not have
    known = KNOWN.model_copy(update={"accuracy": {"some": 0.6}})
    with pytest.raises(BenchError, match=r"lets all 30 classes compete \(projection `full`\)"):
        check_known(known, "some", z, labels, masked)
    with pytest.raises(BenchError, match=r"compares only the 15 classes .*\(projection `masked`\)"):
        check_known(KNOWN.model_copy(update={"accuracy": {"some": 1.0}}), "some", z, labels, full)
