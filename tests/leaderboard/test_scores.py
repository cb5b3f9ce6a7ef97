"""Calibration, detection and parts, re-scored from kept predictions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.errors import NothingMatched, UsageError
from bench.evaluation.metrics import fitted_temperature, score
from bench.leaderboard.statistics import predictions
from bench.leaderboard.statistics.calibration import (
    adaptive_calibration_error,
    calibration,
    detected,
    reliability,
    scaled,
)
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import RunRecord
from bench.results.store import Store

Make = Callable[..., RunRecord]
Predict = Callable[..., None]


def sampled(t: float, images: int = 20_000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too large by `t`: labels are drawn from softmax(logits / t)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (images, classes))
    p = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    return t * logits, (p.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)


def test_the_temperature_that_spoiled_the_logits_is_found() -> None:
    logits, labels = sampled(3.0)
    t = fitted_temperature(logits, labels)
    assert t == pytest.approx(3.0, rel=0.03)
    before, after = calibration(logits, labels), calibration(logits, labels, t)
    assert before.ece > 0.1
    assert after.ece < 0.02
    assert after.ece_adaptive < 0.02
    assert after.nll < before.nll
    assert before.brier is not None
    assert after.brier is not None
    assert after.brier < before.brier


def test_calibration_is_what_the_record_says() -> None:
    logits, labels = sampled(2.0, 500)
    found, stated = calibration(logits, labels), score(logits, labels, None)
    assert (found.nll, found.ece, found.brier) == pytest.approx(
        (stated.nll, stated.ece, stated.brier)
    )


def test_the_adaptive_error_by_hand() -> None:
    confidence = np.array([0.9, 0.6, 0.8, 0.7])
    correct = np.array([True, False, True, False])
    # Sorted, in two bins of two: |(.6 + .7) - 0| and |(.8 + .9) - 2|.
    assert adaptive_calibration_error(confidence, correct, 2) == pytest.approx((1.3 + 0.3) / 4)


def test_a_diagram_has_every_image_and_keeps_empty_bins() -> None:
    bins = reliability(np.array([0.05, 0.95, 1.0]), np.array([True, True, False]), 10)
    assert [b.images for b in bins] == [1, *[0] * 8, 2]
    assert (bins[-1].confidence, bins[-1].accuracy) == (pytest.approx(0.975), 0.5)
    assert bins[4].accuracy is None


def test_detection_by_hand() -> None:
    found = detected(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.5, 0.65]))
    assert found.auroc == pytest.approx(7 / 8)
    # All four ID images pass at .6, and with them one of two.
    assert found.fpr95 == pytest.approx(0.5)
    assert detected(np.zeros(10), np.zeros(10)).auroc == 0.5


def test_without_logits_what_the_maxima_say_is_saved_and_the_rest_is_missing(
    make: Make, predict: Predict, store: Store
) -> None:
    record = make()
    for split in ("id-val", "sketch"):
        predict(record, split, [True, False] * 20)
    whole = scaled(record, "sketch", Predictions(store))
    predict(record, "sketch", [True, False] * 20, logits=None)
    part = scaled(record, "sketch", Predictions(store))
    assert whole.before
    assert part.before
    assert (part.before.nll, part.before.ece) == pytest.approx(
        (whole.before.nll, whole.before.ece), abs=1e-6
    )
    assert (part.before.brier, part.after) == (record.metrics["sketch"].brier, None)
    assert "--keep-logits adds them" in part.missing


def test_log_sum_exps_at_the_temperature_stand_in_for_logits(
    make: Make, predict: Predict, store: Store
) -> None:
    right = np.random.default_rng(0).random(200) < 0.8
    record = make(temperature=1.7)
    for split in ("id-val", "sketch"):
        predict(record, split, right.tolist())
    whole = scaled(record, "sketch", Predictions(store))
    logits = np.stack(
        pd.read_parquet(store.run_dir(record) / "predictions" / "sketch.parquet")["logits"].tolist()
    )
    predict(
        record,
        "sketch",
        right.tolist(),
        logits=None,
        log_sum_exp_scaled=logsumexp(logits.astype(float) / 1.7, axis=1),
    )
    part = scaled(record, "sketch", Predictions(store))
    assert whole.after
    assert part.after
    assert (whole.temperature, part.temperature) == (
        1.7,
        1.7,
    ), "what was fitted on id-val in full precision"
    for key in ("nll", "ece", "ece_adaptive"):
        assert getattr(part.after, key) == pytest.approx(getattr(whole.after, key), abs=1e-6)
    assert part.after.brier is None
    assert part.missing.startswith("Brier score at T: ")
    assert "--keep-logits" in part.missing


def test_a_temperature_that_was_not_recorded_is_fitted_once_for_all_splits(
    make: Make, predict: Predict, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, fitted, known = make(), [], Predictions(store)
    for split in ("id-val", "cartoon", "sketch"):
        predict(record, split, [True, True, True, False] * 10)
    monkeypatch.setattr(
        predictions,
        "fitted_temperature",
        lambda *given: fitted.append(1) or fitted_temperature(*given),
    )
    found = {scaled(record, split, known).temperature for split in ("cartoon", "sketch", "cartoon")}
    assert len(fitted) == len(found) == 1
    assert None not in found


def scores(store: Store, *options: str) -> Result:
    return CliRunner().invoke(build_app(), ["scores", *options, "--store", str(store.root)])


@pytest.fixture
def filled(make: Make, predict: Predict, store: Store) -> Store:
    for seed in range(2):
        record = make("a", seed)
        for number, split in enumerate(("id-val", "id-test", "cartoon", "sketch")):
            right = np.random.default_rng([seed, number]).random(60) < 0.8
            predict(record, split, right.tolist(), group=np.arange(60) % 3 - 1)
    return store


@pytest.mark.parametrize("what", ["calibration", "reliability", "detection", "classes", "groups"])
def test_every_kind_of_score_has_rows(filled: Store, what: str) -> None:
    (table,) = json.loads(scores(filled, what, "--format", "json").stdout)["tables"]
    assert table["rows"]
    assert {row["method"] for row in table["rows"]} == {"a"}


def test_a_reason_is_reported_once_with_its_rows_and_splits(
    make: Make, predict: Predict, store: Store
) -> None:
    for method in ("a", "b"):
        for seed in range(3):
            record = make(method, seed)
            for split in ("id-val", "id-test", "cartoon", "sketch"):
                predict(record, split, [True, False] * 30, logits=None)
    (table,) = json.loads(scores(store, "calibration", "--format", "json").stdout)["tables"]
    (note,) = table["notes"][1:]
    assert note.startswith("temperature scaling: ")
    assert "--keep-logits" in note
    assert note.endswith("(a, b; id-test, cartoon, sketch).")


def test_parts_say_how_many_images_are_behind_them(filled: Store) -> None:
    rows = list(
        csv.DictReader(
            io.StringIO(scores(filled, "groups", "--split", "sketch", "--format", "csv").stdout)
        )
    )
    assert [(row["split"], row["images"]) for row in rows] == [
        ("sketch", "20")
    ] * 2  # group -1 is no group
    assert float(rows[0]["low"]) < float(rows[0]["accuracy"]) < float(rows[0]["high"])
    assert float(rows[0]["accuracy"]) <= float(rows[1]["accuracy"])


def test_no_predictions_and_wrong_names_are_reported(make: Make, store: Store) -> None:
    store.save_run(make())

    def failed(result: Result, kind: type[Any]) -> Any:
        assert isinstance(result.exception, kind), result.output
        return result.exception

    assert failed(scores(store, "calibration", "--split", "beauty"), UsageError).exit_code == 2
    assert failed(scores(store, "classes"), NothingMatched).exit_code == 5
    assert failed(scores(store, "classes", "--method", "b"), NothingMatched).exit_code == 5


@pytest.mark.parametrize(
    ("what", "options", "why"),
    [
        ("groups", (), "none of these splits has groups"),
        ("detection", ("--split", "id-test"), "what shifts are compared with"),
    ],
)
def test_nothing_to_score_says_why(
    make: Make, predict: Predict, store: Store, what: str, options: tuple[str, ...], why: str
) -> None:
    record = make("a")
    for split in ("id-test", "cartoon", "sketch"):
        predict(record, split, [True, False, True])
    shown = CliRunner().invoke(build_app(), ["scores", what, *options, "--store", str(store.root)])
    assert isinstance(shown.exception, NothingMatched)
    assert why in shown.exception.what
    assert "--split" in shown.exception.fix
