"""The interval over images of the distance above the curve: against a plain loop, and where there
is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.board.above_curve import interval, over_images
from bench.leaderboard.board.tables import View, tables
from bench.leaderboard.statistics.intervals import Interval
from bench.leaderboard.statistics.predictions import Outcomes, Predictions
from bench.leaderboard.statistics.tradeoff import above_curve, references
from bench.results.record import RunRecord
from bench.results.store import Store

from support.packs import stored_run

SHIFTS = ["art", "sketch"]


def distance(run: RunRecord, curve: RunRecord) -> float:
    found = above_curve(run, curve, SHIFTS)
    assert found is not None
    return found


@pytest.fixture
def runs(store: Store) -> tuple[list[RunRecord], dict[int, RunRecord]]:
    """Two seeds of a method and of the yardstick, 60 images a split."""
    curves = [stored_run(store, "full-finetune", seed, skill=4.0, curve=True) for seed in (0, 1)]
    return [stored_run(store, seed=seed, skill=1.5) for seed in (0, 1)], references(curves)


def test_images_are_sampled_for_method_and_curve_together(
    store: Store, runs: tuple[list[RunRecord], dict[int, RunRecord]]
) -> None:
    mine, curves = runs
    predictions = Predictions(store)
    estimate = float(np.mean([distance(run, curves[run.seed]) for run in mine]))
    (found,) = over_images([mine], [estimate], curves, SHIFTS, predictions)
    assert isinstance(found, Interval)
    splits = ("id-test", *SHIFTS)
    stated = {
        (run.seed, split): predictions.outcomes(run, split) for run in mine for split in splits
    }
    along = {
        (seed, split): predictions.curve(curve, split)
        for seed, curve in curves.items()
        for split in splits
    }
    rng, sampled = np.random.default_rng(1), []
    for _ in range(
        1000
        # As one would write it down: scores of the drawn images, through the definition
    ):
        rows = {split: rng.integers(0, 60, 60) for split in splits}
        values = []
        for run in mine:
            curve = curves[run.seed]
            for split, at in rows.items():
                own, points = stated[run.seed, split], along[run.seed, split]
                assert own is not None
                assert points is not None
                run.metrics[split].score = float(own.correct[at].mean())
                for point in curve.curve:
                    point.scores[split] = float(points[point.alpha].correct[at].mean())
            values.append(above_curve(run, curve, SHIFTS))
        sampled.append(
            np.nan if None in values else np.mean([value for value in values if value is not None])
        )
    low = 2 * estimate - np.quantile(np.nan_to_num(sampled, nan=np.inf), 0.975, method="higher")
    high = 2 * estimate - np.quantile(np.nan_to_num(sampled, nan=-np.inf), 0.025, method="lower")
    assert found.over == "images"
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_a_point_of_the_curve_itself_is_on_it_in_every_resample(store: Store) -> None:
    curve = stored_run(store, "full-finetune", skill=4.0, curve=True)
    (found,) = over_images([[curve]], [0.0], {0: curve}, SHIFTS, Predictions(store))
    assert isinstance(found, Interval)
    assert (found.low, found.high) == (0.0, 0.0)


def test_draws_outside_the_range_count_beyond_both_ends() -> None:
    samples = np.linspace(-0.1, 0.1, 1001)
    whole, few, many = (
        interval(0.0, np.append(samples, [np.nan] * outside)) for outside in (0, 10, 30)
    )
    assert isinstance(whole, Interval)
    assert isinstance(few, Interval)
    assert (whole.low, whole.high) == pytest.approx((-0.095, 0.095), abs=1e-3)
    assert (few.low, few.high) == pytest.approx((-0.097, 0.097), abs=1e-3)
    assert isinstance(many, str)
    assert "the end of the curve's range" in many
    assert "3 %" in many


def test_the_board_has_the_interval_or_says_why_not(
    store: Store, runs: tuple[list[RunRecord], dict[int, RunRecord]]
) -> None:
    mine, curves = runs
    everyone = [*mine, *curves.values()]
    (table,) = tables(everyone, View(spread="images"), Predictions(store))
    (row,) = [row for row in table.rows if row["method"] == "wise-ft"]
    low, value, high = (
        row[key] for key in ("above_curve_images_low", "above_curve", "above_curve_images_high")
    )
    assert isinstance(value, float)
    assert low < value < high  # type: ignore[operator]
    for path in store.root.glob("runs/*/*/full-finetune/*/curve/sketch.parquet"):
        path.unlink()  # as runs of earlier versions
    (table,) = tables(everyone, View(spread="images"), Predictions(store))
    (row,) = [row for row in table.rows if row["method"] == "wise-ft"]
    assert row["above_curve"] == value
    assert "above_curve_images_low" not in row
    assert any(
        "no interval over images for full-finetune, wise-ft: " in note
        and "again with --curve" in note
        for note in table.notes
    )
    assert not any(
        "no interval over images" in note
        for note in tables(everyone, View(), Predictions(store))[0].notes
    )


def macro_f1(stated: Outcomes, at: np.ndarray) -> float:
    label, predicted = stated.labels[at], stated.predicted[at]
    return float(
        np.mean(
            [
                2
                * ((label == c) & (predicted == c)).sum()
                / ((label == c).sum() + (predicted == c).sum())
                for c in range(4)
            ]
        )
    )


def worst_group(stated: Outcomes, at: np.ndarray) -> float:
    return min(float(stated.correct[at][stated.groups[at] == g].mean()) for g in (0, 1))


@pytest.mark.parametrize("metric", [macro_f1, worst_group])
def test_other_metrics_are_scored_anew_in_every_resample(
    store: Store, metric: Callable[[Outcomes, np.ndarray], float]
) -> None:
    splits = ("id-test", *SHIFTS)
    curve = stored_run(store, "full-finetune", skill=4.0, curve=True, images=300)
    run = stored_run(store, skill=1.5, images=300)
    # One class is never said, and a group lacks another: far from the accuracy.
    for split in SHIFTS:
        path = store.run_dir(run) / "predictions" / f"{split}.parquet"
        table = pd.read_parquet(path)
        table.loc[table["prediction"] == 3, "prediction"] = 0
        table.loc[(table["group"] == 1) & (table["label"] == 1), "prediction"] = 2
        table.to_parquet(path)
    for record in (curve, run):
        for split in splits:
            record.metrics[split].metric = metric.__name__  # type: ignore[assignment]
    predictions = Predictions(store)
    stated = {split: predictions.outcomes(run, split) for split in splits}
    along = {split: predictions.curve(curve, split) for split in splits}
    rng, every = np.random.default_rng(1), np.arange(300)

    def scored(rows: dict[str, np.ndarray]) -> float | None:
        for split, at in rows.items():
            own, points = stated[split], along[split]
            assert own is not None
            assert points is not None
            run.metrics[split].score = metric(own, at)
            for point in curve.curve:
                point.scores[split] = metric(points[point.alpha], at)
        return above_curve(run, curve, SHIFTS)

    sampled = [scored({split: rng.integers(0, 300, 300) for split in splits}) for _ in range(400)]
    estimate = scored(dict.fromkeys(splits, every))
    assert estimate is not None
    assert None not in sampled
    (found,) = over_images([[run]], [estimate], {0: curve}, SHIFTS, predictions)
    assert isinstance(found, Interval)
    low, high = 2 * estimate - np.quantile(np.array(sampled, dtype=float), [0.975, 0.025])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)


def test_a_damaged_curve_costs_its_row_the_interval(
    store: Store,
    runs: tuple[list[RunRecord], dict[int, RunRecord]],
    overwrite: Callable[[Path], None],
) -> None:
    mine, curves = runs
    overwrite(store.run_dir(curves[0]) / "curve" / "art.parquet")
    (found,) = over_images([mine], [0.0], curves, SHIFTS, Predictions(store))
    assert isinstance(found, str)
    assert found.startswith("predictions cannot be read")


@pytest.fixture
def overwrite() -> Callable[[Path], None]:
    """Fill a file with nonsense."""
    return lambda path: path.write_bytes(b"no parquet") and None
