"""Scores relative to a reference classifier's, such as the mean corruption error (Hendrycks & Dietterich, 2019)."""

from __future__ import annotations

import numpy as np

from ..data.cards.suite_card import SuiteCard
from ..results.record import RunRecord


def relative_scores(card: SuiteCard, record: RunRecord) -> dict[str, float]:
    """100 times the mean over families of (sum of errors over the family's shifts) / (the same sum of the reference).

    Empty if the card names no reference, or a shift of one of its families has no result.
    """
    if card.relative is None:
        return {}
    ratios = []
    for family, reference in card.relative.reference.items():
        shifts = [shift.name for shift in card.shifts if shift.family == family]
        if not shifts or any(name not in record.metrics for name in shifts):
            return {}
        ratios.append(np.mean([1 - record.metrics[name].accuracy for name in shifts]) / reference)
    return {card.relative.name: 100 * float(np.mean(ratios))}
