"""Marks of ties: who is shown to be worse, who cannot be told from the best, and between which
ranks each row lies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from bench.leaderboard.board.tables import View, boards, tables
from bench.leaderboard.statistics.pairs import holm, the_method, these_models
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import RunRecord
from bench.results.store import Store

Make = Callable[..., RunRecord]
Predict = Callable[..., None]


def outcomes(rates: list[float], images: int = 2000) -> np.ndarray:
    """(images, rows) right or wrong."""
    return np.random.default_rng(0).random((images, len(rates))) < np.array(rates)


def test_clear_differences_are_reported_and_close_rows_tie() -> None:
    pairs = these_models([outcomes([0.8, 0.79, 0.6, 0.4]) / 2000])
    assert pairs.tied_with_best.tolist() == [True, True, False, False]
    assert pairs.ranks == [(1, 2), (1, 2), (3, 3), (4, 4)]


def test_rows_that_err_on_the_same_images_are_distinguished_by_fewer_of_them() -> None:
    first, second = np.arange(2000) < 1600, np.arange(2000) < 1570
    apart = np.random.default_rng(0).permutation(second)
    assert these_models([np.stack([first, apart], axis=1) / 2000]).tied_with_best.tolist() == [
        True,
        True,
    ]
    assert these_models([np.stack([first, second], axis=1) / 2000]).tied_with_best.tolist() == [
        True,
        False,
    ]


def test_identical_rows_tie() -> None:
    one = outcomes([0.8])
    pairs = these_models([np.hstack([one, one]) / 2000])
    assert pairs.ranks == [(1, 2), (1, 2)]


def test_the_same_outcomes_give_the_same_marks() -> None:
    x = outcomes([0.8, 0.78, 0.77])
    assert (these_models([x / 2000]).worse == these_models([x / 2000]).worse).all()


def test_few_seeds_leave_close_rows_tied() -> None:
    a, b, c = [0.67, 0.66, 0.68], [0.65, 0.65, 0.65], [0.20, 0.19, 0.21]
    three = np.array([a, b, c]).T
    assert the_method(three, [False] * 3).tied_with_best.tolist() == [True, True, False]
    assert the_method(np.vstack([three, three]), [False] * 3).tied_with_best.tolist() == [
        True,
        False,
        False,
    ]


def test_rows_without_any_spread_differ_for_certain_and_coincidences_tell_nothing() -> None:
    equal = np.array([[0.6, 0.5], [0.6, 0.5]])
    assert the_method(equal, [True, True]).tied_with_best.tolist() == [True, False]
    assert the_method(equal, [False, True]).tied_with_best.tolist() == [True, True]
    assert the_method(
        np.array([[0.60, 0.5], [0.61, 0.51]]), [False, False]
    ).tied_with_best.tolist() == [True, True]


@pytest.mark.parametrize("p", [[], [0.04], [0.01, 0.04, 0.03, 0.005], [0.9, 0.5, 0.5]])
def test_holm_is_statsmodels(p: list[float]) -> None:
    expected = multipletests(p, method="holm")[1] if p else []
    assert holm(p) == pytest.approx(np.asarray(expected))


def saved(make: Make, predict: Predict) -> list[RunRecord]:
    made = []
    for name, rate in (("a", 0.9), ("b", 0.9), ("c", 0.6)):
        for seed in range(2):
            record = make(name, seed)
            for number, split in enumerate(("id-test", "cartoon", "sketch")):
                difficulty = np.random.default_rng(number).random(400)
                noise = np.random.default_rng([seed, number, ord(name)]).normal(0, 0.1, 400)
                predict(record, split, (difficulty + noise < rate).tolist())
            made.append(record)
    return made


def test_a_board_marks_ties_from_predictions_and_says_what_they_are_about(
    make: Make, predict: Predict, store: Store
) -> None:
    (table,) = tables(saved(make, predict), View(ties="models"), Predictions(store))
    assert [row["tie"] for row in table.rows] == ["best", "tie", ""]
    assert table.rows[2]["method"] == "c"
    assert [(row["rank_low"], row["rank_high"]) for row in table.rows] == [(1, 2), (1, 2), (3, 3)]
    assert any("best OOD" in note and "these trained models" in note for note in table.notes)


def test_marks_are_about_the_column_that_the_board_is_sorted_by(
    make: Make, predict: Predict, store: Store
) -> None:
    (board,) = boards(
        saved(make, predict), View(ties="models", sort="sketch"), Predictions(store)
    ).boards
    assert board.ties_about == "sketch"
    (board,) = boards(
        saved(make, predict), View(ties="models", sort="cost"), Predictions(store)
    ).boards
    assert board.ties_about == "ood"


def test_missing_predictions_are_a_reason_and_no_mark(make: Make, store: Store) -> None:
    (table,) = tables([make("a"), make("b")], View(ties="models"), Predictions(store))
    assert [row["tie"] for row in table.rows] == [None, None]
    assert any("cartoon: no predictions are saved for a" in note for note in table.notes)


def test_a_run_on_other_images_cannot_be_paired(make: Make, predict: Predict, store: Store) -> None:
    records = saved(make, predict)
    predict(records[0], "sketch", [True] * 400, key=[f"another/{i}" for i in range(400)])
    (board,) = boards(records, View(ties="models"), Predictions(store)).boards
    assert board.ties_untested.keys() == {"a"}
    assert "sketch" in board.ties_untested["a"]
    assert "different images" in board.ties_untested["a"]


def test_a_damaged_file_costs_its_row_the_mark_and_not_the_board(
    make: Make, predict: Predict, store: Store
) -> None:
    records = saved(make, predict)
    (store.run_dir(records[0]) / "predictions" / "sketch.parquet").write_bytes(b"PAR1")
    (board,) = boards(records, View(ties="models"), Predictions(store)).boards
    assert "cannot be read" in board.ties_untested["a"]
    assert {row.name: row.tie for row in board.rows} == {"a": None, "b": "best", "c": ""}


def test_rows_share_seeds_pair_by_pair() -> None:
    nan = np.nan
    a, b, c = [0.67, 0.66, 0.68, nan], [0.20, 0.195, 0.21, 0.2], [nan, nan, nan, 0.1]
    pairs = the_method(np.array([a, b, c]).T, [False] * 3)
    assert pairs.worse[1, 0]
    assert not pairs.worse[2].any()  # one seed tells nothing


def test_a_row_with_one_seed_is_left_out_and_reported(make: Make) -> None:
    levels = (("a", 0.7, 4), ("b", 0.5, 4), ("c", 0.6, 1))
    records = [
        make(
            name,
            seed,
            scores={
                "id-test": 0.9,
                "cartoon": level + 0.001 * seed**2,
                "sketch": level + 0.002 * seed * (name == "a"),
            },
        )
        for name, level, seeds in levels
        for seed in range(seeds)
    ]
    (table,) = tables(records, View(ties="method"))
    assert {row["method"]: row["tie"] for row in table.rows} == {"a": "best", "b": "", "c": None}
    assert "c is not tested: fewer than two seeds." in table.notes


@pytest.mark.parametrize("question", ["models", "method"])
def test_a_single_row_has_nobody_to_tie_with(make: Make, store: Store, question: str) -> None:
    view = View(ties=question)  # type: ignore[arg-type]
    (board,) = boards([make("a")], view, Predictions(store)).boards
    assert board.ties_missing == "there are not two rows with a value"


def test_ties_of_the_method_need_no_predictions(make: Make) -> None:
    records = [
        make(
            name,
            seed,
            scores={
                "id-test": 0.9,
                "cartoon": level + 0.001 * seed,
                "sketch": level - 0.002 * seed * (name == "a"),
            },
        )
        for name, level in (("a", 0.7), ("b", 0.5))
        for seed in range(5)
    ]
    (board,) = boards(records, View(ties="method")).boards
    assert [(row.name, row.tie) for row in board.rows] == [("a", "best"), ("b", "")]
