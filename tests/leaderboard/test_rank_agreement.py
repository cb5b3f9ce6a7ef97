"""Published rows keep their source, and agreement is Spearman's."""

from __future__ import annotations

import math

import pytest

from rank_agreement import agreement, reported


def test_every_published_row_names_its_source_and_certainty() -> None:
    rows = reported("imagenet-shifts")
    assert len(rows) > 20
    assert all(row.source and row.certainty for row in rows)
    assert all(
        0 < row.ood < row.id < 100 for row in rows if row.ood is not None and row.id is not None
    )


def test_agreement_by_hand() -> None:
    # Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * (1 + 1) / (4 * 15).
    one = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "only": 9.0}
    other = {"a": 10.0, "b": 20.0, "c": 40.0, "d": 30.0}
    assert agreement(one, other) == (pytest.approx(0.8), 4)
    assert math.isnan(agreement({"a": 1.0}, other)[0])
