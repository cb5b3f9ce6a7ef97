"""The sentence on a board: what leads, what cannot be told from it, and what that costs in ID."""

from __future__ import annotations

import numpy as np

from bench.leaderboard.board.tables import View, boards
from bench.leaderboard.board.typesetting import in_words
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import RunRecord
from bench.results.store import Store

from .conftest import Make, Predict
from support.messages import states


def of(
    make: Make, scores: dict[str, tuple[float, float, float]], ties: str | None = "method"
) -> str:
    """The summary of rows with (ID, OOD, step of the OOD from seed to seed), over four seeds."""
    records: list[RunRecord] = [
        make(
            name, seed, {"id-test": at_home, "cartoon": away + step * (seed - 1.5), "sketch": away}
        )
        for name, (at_home, away, step) in scores.items()
        for seed in range(4)
    ]
    (board,) = boards(records, View(ties=ties)).boards  # type: ignore[arg-type]
    return in_words(board)


def test_a_row_that_leads_alone_and_what_it_costs(make: Make) -> None:
    stated = of(make, {"a": (0.8, 0.7, 0.001), "b": (0.9, 0.5, 0.002)})
    assert states(stated, "a", "highest OOD", "70.0 %", "over seeds", "no other row ties")
    assert states(stated, "10.0 points less ID than b (90.0 %)")


def test_rows_that_cannot_be_distinguished_from_the_best_are_named_and_many_are_counted(
    make: Make,
) -> None:
    noise = {"a": (0.9, 0.7, 0.05), "b": (0.8, 0.695, -0.05), "c": (0.8, 0.2, 0.01)}
    assert "it ties with b. It has the highest ID as well." in of(make, noise)
    many = {name: (0.8, 0.7 - i / 1000, 0.05 * (-1) ** i) for i, name in enumerate("abcdef")}
    assert "5 other rows tie with it." in of(make, many)


def test_what_was_not_tested_is_reported(make: Make) -> None:
    rows = {"a": (0.8, 0.7, 0.001), "b": (0.9, 0.5, 0.002)}
    assert "tie with it was not tested. It has" in of(make, rows, ties=None)
    # No predictions are kept.
    assert "tie with it was not tested. It has" in of(make, rows, ties="models")


def test_a_leader_that_was_not_tested_is_reported_to_tie_with_nothing(make: Make) -> None:
    rows = {
        "a": (1, 0.8, 0.0),
        "b": (3, 0.6, 0.001),
        "c": (3, 0.4, -0.001),
    }  # seeds, level, step from seed to seed
    records = [
        make(name, seed, {"id-test": 0.9, "cartoon": level + step * seed, "sketch": level})
        for name, (seeds, level, step) in rows.items()
        for seed in range(seeds)
    ]
    (board,) = boards(records, View(ties="method")).boards
    assert {row.name: row.tie for row in board.rows} == {"a": None, "b": "best", "c": ""}
    assert in_words(board).startswith(
        "a has the highest OOD average, 80.0 %; whether other rows tie with it was not tested."
    )


def on_images(
    make: Make, predict: Predict, store: Store, *, seeds: dict[str, int], saved: str
) -> str:
    """The summary under `--ties models`: `a` is right on 80 % of 400 images of each shift, `b` on
    50 %, `c` on 20 %.
    """
    records = [make(name, seed, {"id-test": 0.9}) for name in seeds for seed in range(seeds[name])]
    for record in records:
        for number, split in enumerate(record.shifts):
            share = {"a": 0.8, "b": 0.5, "c": 0.2}[record.label]
            right = (
                np.random.default_rng([number, record.seed, *record.label.encode()]).random(400)
                < share
            )
            predict(record, split, right.tolist())
            if record.label not in saved:
                (store.run_dir(record) / "predictions" / f"{split}.parquet").unlink()
    (board,) = boards(records, View(ties="models"), Predictions(store)).boards
    return in_words(board)


def test_both_questions_are_answered_of_rows_that_have_predictions_and_seeds(
    make: Make, predict: Predict, store: Store
) -> None:
    stated = on_images(make, predict, store, seeds={"a": 4, "b": 4, "c": 4}, saved="abc")
    assert states(stated, "test images", "no other row ties", "other seeds", "likewise")


def test_a_row_that_was_not_tested_over_seeds_is_not_likewise(
    make: Make, predict: Predict, store: Store
) -> None:
    stated = on_images(make, predict, store, seeds={"a": 4, "b": 1, "c": 4}, saved="abc")
    assert states(stated, "test images", "no other row ties", "other seeds", "no other row ties")
    assert states(stated, "other seeds", "(1 row not tested)")
    alone = on_images(make, predict, store, seeds={"a": 1, "b": 4, "c": 4}, saved="abc")
    assert states(alone, "no other row ties", "training again", "not tested")


def test_a_leader_without_predictions_was_not_tested_on_images(
    make: Make, predict: Predict, store: Store
) -> None:
    stated = on_images(make, predict, store, seeds={"a": 4, "b": 4, "c": 4}, saved="bc")
    assert "tie with it was not tested." in stated


def test_one_row_alone_says_nothing(make: Make) -> None:
    assert of(make, {"a": (0.8, 0.7, 0.001)}) == ""
