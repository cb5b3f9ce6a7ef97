"""Every metric against scikit-learn, a plain loop or a hand calculation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from bench.evaluation.metrics import expected_calibration_error, score


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = rng.normal(size=(400, 5)).astype(np.float32)
    logits[np.arange(400), labels] += 1.2
    return logits, labels, rng.integers(-1, 3, 400)


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


def test_against_scikit_learn(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, labels, groups = sample
    got, p, predicted = score(logits, labels, groups), probabilities(logits), logits.argmax(1)
    assert got.accuracy == pytest.approx((predicted == labels).mean())
    assert got.class_mean == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert got.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert got.nll == pytest.approx(log_loss(labels, p))
    assert got.brier == pytest.approx(
        np.mean([((p[i] - np.eye(5)[labels[i]]) ** 2).sum() for i in range(len(labels))])
    )


def test_worst_group_ignores_images_without_a_group(
    sample: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    logits, labels, groups = sample
    by_hand = min((logits.argmax(1) == labels)[groups == g].mean() for g in (0, 1, 2))
    assert score(logits, labels, groups, "worst_group").score == pytest.approx(by_hand)


def test_calibration_error_by_hand() -> None:
    # Two bins of width 1/2: (0, .5] holds .5 right and .4 wrong; (.5, 1] holds .9 right, .8 right
    # and .7 wrong.
    confidence = np.array([0.5, 0.4, 0.9, 0.8, 0.7])
    correct = np.array([True, False, True, True, False])
    by_hand = 2 / 5 * abs(0.5 - 0.45) + 3 / 5 * abs(2 / 3 - 0.8)
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(by_hand)


def test_perfect_and_hopeless() -> None:
    labels = np.arange(4)
    right = score(np.eye(4, dtype=np.float32) * 100, labels, None)
    wrong = score(np.roll(np.eye(4, dtype=np.float32), 1, axis=1) * 100, labels, None)
    assert (right.accuracy, right.nll, right.brier, right.ece) == pytest.approx(
        (1, 0, 0, 0), abs=1e-12
    )
    assert (wrong.accuracy, wrong.brier, wrong.ece) == pytest.approx((0, 2, 1))
    assert wrong.nll == pytest.approx(100)


def test_a_class_without_images_does_not_count_against_the_mean() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 0]] * 5
    assert score(logits, np.array([0, 1, 1]), None).class_mean == pytest.approx((1 + 0.5) / 2)


def test_worst_group_without_groups_is_an_error() -> None:
    with pytest.raises(ValueError, match="no groups"):
        score(np.eye(2, dtype=np.float32), np.array([0, 1]), None, "worst_group")
