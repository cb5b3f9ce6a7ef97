"""The sentence on a board: what leads, what cannot be told from it, and what that costs in ID."""

from __future__ import annotations

from bench.leaderboard.headline import in_words
from bench.leaderboard.tables import View, boards
from bench.runs.record import RunRecord

from .conftest import Make


def of(make: Make, scores: dict[str, tuple[float, float, float]], ties: str | None = "method") -> str:
    """The headline of rows with (ID, OOD, step of the OOD from seed to seed), over four seeds."""
    records: list[RunRecord] = [
        make(name, seed, {"id-test": at_home, "cartoon": away + step * (seed - 1.5), "sketch": away})
        for name, (at_home, away, step) in scores.items()
        for seed in range(4)
    ]
    (board,) = boards(records, View(ties=ties)).boards  # type: ignore[arg-type]
    return in_words(board)


def test_a_row_that_leads_alone_and_what_it_costs(make: Make) -> None:
    said = of(make, {"a": (0.8, 0.7, 0.001), "b": (0.9, 0.5, 0.002)})
    assert said == (
        "a has the highest OOD average, 70.0 %, and as methods over seeds no other row ties with it. "
        "It has 10.0 points less ID than b (90.0 %), the highest."
    )


def test_rows_that_cannot_be_told_from_the_best_are_named_and_many_are_counted(make: Make) -> None:
    noise = {"a": (0.9, 0.7, 0.05), "b": (0.8, 0.695, -0.05), "c": (0.8, 0.2, 0.01)}
    assert "it cannot be told from b. It has the highest ID as well." in of(make, noise)
    many = {name: (0.8, 0.7 - i / 1000, 0.05 * (-1) ** i) for i, name in enumerate("abcdef")}
    assert "5 other rows cannot be told from it." in of(make, many)


def test_what_was_not_tested_is_said(make: Make) -> None:
    rows = {"a": (0.8, 0.7, 0.001), "b": (0.9, 0.5, 0.002)}
    assert "; which rows cannot be told from it was not tested. It has" in of(make, rows, ties=None)
    assert "; which rows cannot be told from it was not tested. It has" in of(
        make, rows, ties="models"
    )  # no predictions are kept


def test_one_row_alone_says_nothing(make: Make) -> None:
    assert of(make, {"a": (0.8, 0.7, 0.001)}) == ""
