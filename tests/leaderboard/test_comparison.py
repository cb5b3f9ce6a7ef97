"""Comparisons by hand and against scipy, for the two questions that they answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, f1_score
from statsmodels.stats.contingency_tables import mcnemar

from bench.leaderboard.board.comparison import compare
from bench.leaderboard.board.tables import View, boards
from bench.leaderboard.statistics.predictions import Outcomes, Predictions
from bench.leaderboard.statistics.resampling import resampled_sums, score_of_resamples
from bench.results.record import RunRecord
from bench.results.store import Store

Make = Callable[..., RunRecord]
Predict = Callable[..., None]
SPLITS = ("id-test", "cartoon", "sketch")


@pytest.fixture
def rows(make: Make, predict: Predict) -> tuple[list[RunRecord], list[RunRecord]]:
    """Two rows of three seeds; A is much better on sketch, alike elsewhere."""
    found: tuple[list[RunRecord], list[RunRecord]] = ([], [])
    for seed in range(3):
        for number, (runs, name) in enumerate(zip(found, "ab", strict=True)):
            record = make(name, seed)
            for place, split in enumerate(SPLITS):
                difficulty = np.random.default_rng(place).random(600)
                noise = np.random.default_rng([number, seed, place]).normal(0, 0.05, 600)
                level = 0.7 + (0.1 if split == "sketch" and name == "a" else 0)
                predict(record, split, (difficulty + noise < level).tolist())
            runs.append(record)
    return found


def test_the_models_differ_where_they_do(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    found = compare(*rows, Predictions(store))
    verdicts = {d.about: d.verdict for d in found.models}
    assert verdicts == {"id-test": "tie", "cartoon": "tie", "sketch": "better", "OOD": "better"}
    by_hand = np.mean([r.metrics["sketch"].score for r in rows[0]]) - np.mean(
        [r.metrics["sketch"].score for r in rows[1]]
    )
    sketch = next(d for d in found.models if d.about == "sketch")
    assert sketch.value == pytest.approx(by_hand)
    assert sketch.interval
    assert sketch.interval.low < by_hand < sketch.interval.high
    assert sketch.p is not None
    # Three datasets; the mean is not among them.
    assert sketch.p_holm == pytest.approx(3 * sketch.p)
    words, _ = found.verdict
    assert words.startswith("better on 1 of 2 shifts, tie on 1; ID: tie; mean difference +")
    assert words.endswith("for these models: better")


def test_swapping_the_rows_swaps_the_answer(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    one, other = compare(*rows, Predictions(store)), compare(*rows[::-1], Predictions(store))
    for here, there in zip(one.models, other.models, strict=True):
        assert here.value == pytest.approx(-(there.value or 0))
        assert {here.verdict, there.verdict} in ({"tie"}, {"better", "worse"})


def test_the_method_is_scipys_paired_t_test(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    found = next(d for d in compare(*rows, Predictions(store)).method if d.about == "sketch")
    a, b = ([r.metrics["sketch"].score for r in runs] for runs in rows)
    test = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval
    assert (found.interval.low, found.interval.high) == pytest.approx(test.confidence_interval())
    assert found.units == 3


def test_mcnemar_and_kappa_are_statsmodels_and_sklearns(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    predictions = Predictions(store)
    found = compare(*rows, predictions)
    test = next(t for t in found.tests if (t.about, t.seed) == ("sketch", 1))
    outcomes = [predictions.outcomes(runs[1], "sketch") for runs in rows]
    x, y = (o.correct for o in outcomes if o)
    table = [[(x & y).sum(), (x & ~y).sum()], [(~x & y).sum(), (~x & ~y).sum()]]
    assert (test.only_a, test.only_b) == (table[0][1], table[1][0])
    assert test.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    single = compare([rows[0][1]], [rows[1][1]], predictions)
    alike = next(a for a in single.alike if a.about == "sketch")
    assert alike.kappa == pytest.approx(cohen_kappa_score(x, y))
    assert alike.both_right + alike.only_a + alike.only_b + alike.both_wrong == pytest.approx(1)
    assert alike.overlap == pytest.approx((~x & ~y).sum() / (~x | ~y).sum())


def test_one_seed_answers_only_about_the_models(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    found = compare(rows[0][:1], rows[1][:1], Predictions(store))
    assert all(
        d.verdict == "unknown" and "at least two are needed" in d.missing for d in found.method
    )
    assert found.verdict[1].startswith("unknown: 1 shared seed")
    assert any(d.verdict == "better" for d in found.models)


def test_without_predictions_the_method_is_still_compared(
    rows: tuple[list[RunRecord], list[RunRecord]],
) -> None:
    found = compare(*rows, None)
    assert all("no predictions" in d.missing for d in found.models)
    assert next(d for d in found.method if d.about == "sketch").verdict == "better"


def test_seeds_do_not_pass_for_more_images() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 0.0, 1.0], 500, p=[0.1, 0.75, 0.15]) / 500
    spread = resampled_sums(x, 4000, rng).std()
    assert spread == pytest.approx(x.std() * np.sqrt(500), rel=0.05)
    assert resampled_sums(x, 4000, rng).mean() == pytest.approx(x.sum(), abs=0.003)


def test_scores_that_are_no_means_are_scored_anew_in_every_resample() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 4, 300), rng.integers(-1, 3, 300)
    stated = np.where(rng.random(300) < 0.6, labels, rng.integers(0, 4, 300))
    of = Outcomes(np.array([str(i) for i in range(300)]), labels, stated, groups)
    sampled = rng.integers(0, 300, 300)
    times = np.bincount(sampled, minlength=300)[None].astype(np.float32)
    f1 = f1_score(labels[sampled], stated[sampled], average="macro")
    assert score_of_resamples(of, times, "macro_f1") == pytest.approx([f1], abs=1e-6)
    worst = min((labels[sampled] == stated[sampled])[groups[sampled] == g].mean() for g in range(3))
    assert score_of_resamples(of, times, "worst_group") == pytest.approx([worst], abs=1e-6)


def test_macro_f1_is_compared_too(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    for runs in rows:
        for record in runs:
            record.metrics["sketch"] = record.metrics["sketch"].model_copy(
                update={"metric": "macro_f1"}
            )
    found = compare(*rows, Predictions(store))
    assert next(d for d in found.models if d.about == "sketch").verdict == "better"
    assert next(d for d in found.models if d.about == "OOD").interval is not None


def test_equal_accuracies_at_every_seed_are_a_coincidence_unless_nothing_else_differs(
    make: Make,
) -> None:
    a, b = (
        [make(name, seed, dict.fromkeys(SPLITS, score)) for seed in range(3)]
        for name, score in (("a", 0.7), ("b", 0.6))
    )
    assert {d.verdict for d in compare(a, b, None).method} == {
        "better"
    }  # all that was measured is the same at every seed
    for seed, record in enumerate(a):
        # Three models that get as many images right, not one model.
        record.metrics["sketch"].nll += 0.001 * seed
    found = compare(a, b, None)
    assert {d.verdict for d in found.method} == {"unknown"}
    assert found.verdict[1].startswith("unknown: the differences of all seeds happen to be equal")
    (board,) = boards([*a, *b], View(ties="method")).boards
    assert {row.name: row.tie for row in board.rows} == {"a": "best", "b": "tie"}


def test_a_shift_that_could_not_be_tested_is_counted_in_the_verdict(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    for record in rows[0]:
        (store.run_dir(record) / "predictions" / "cartoon.parquet").unlink()
    words, _ = compare(*rows, Predictions(store)).verdict
    assert words.startswith("better on 1 of 2 shifts, unknown on 1")


def test_agreement_is_the_mean_over_seeds_of_each_number(
    rows: tuple[list[RunRecord], list[RunRecord]], store: Store
) -> None:
    predictions = Predictions(store)
    right = [[o.correct for r in runs if (o := predictions.outcomes(r, "sketch"))] for runs in rows]
    alike = next(a for a in compare(*rows, predictions).alike if a.about == "sketch")
    assert alike.kappa == pytest.approx(
        np.mean([cohen_kappa_score(x, y) for x, y in zip(*right, strict=True)]), abs=1e-12
    )
    assert alike.overlap == pytest.approx(
        np.mean([(~x & ~y).sum() / (~x | ~y).sum() for x, y in zip(*right, strict=True)])
    )
