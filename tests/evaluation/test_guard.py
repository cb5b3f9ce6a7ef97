"""A zero-shot classifier that misses its published accuracy stops the run, and the message names the cause."""

from __future__ import annotations

import numpy as np
import pytest

from bench.data.card import Known
from bench.data.labels import ClassList, projection
from bench.errors import BenchError
from bench.evaluation.guard import check_known

RNG = np.random.default_rng(0)
CLASSES = 30
LABELS = RNG.integers(0, CLASSES, 3000)
KNOWN = Known(backbones=("clip",), source="a paper", accuracy={"id-test": 0.6, "some": 0.9}, tolerance=0.03)


def logits(labels: np.ndarray, accuracy: float, classes: int = CLASSES) -> np.ndarray:
    """Right on this share of the images, wrong by the next class on the others."""
    predicted = np.where(RNG.random(len(labels)) < accuracy, labels, (labels + 1) % classes)
    return np.eye(classes, dtype=np.float32)[predicted] * 5


def test_within_its_range_and_on_unknown_splits_nothing_happens() -> None:
    check_known(KNOWN, "id-test", logits(LABELS, 0.6), LABELS, None)
    check_known(KNOWN, "another", logits(LABELS, 0.1), LABELS, None)


@pytest.mark.parametrize(
    ("accuracy", "cause"), [(0.45, "QuickGELU"), (0.05, "near chance"), (0.9, "too high: not all images are there")]
)
def test_causes_by_how_far_it_is_off(accuracy: float, cause: str) -> None:
    with pytest.raises(BenchError, match=rf"60.0 % is published \(a paper\): .*{cause}"):
        check_known(KNOWN, "id-test", logits(LABELS, accuracy), LABELS, None)


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
    with pytest.raises(BenchError, match=r"compares the 15 classes alone \(projection `masked`\)"):
        check_known(KNOWN.model_copy(update={"accuracy": {"some": 1.0}}), "some", z, labels, full)
