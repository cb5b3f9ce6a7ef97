"""What a run leaves on disk: records, predictions, curves, logits, of this version and of earlier
ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bench
from bench.errors import BenchError
from bench.results.store import Store

from support.runs import run


def test_record_and_predictions_agree(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    folder = Store(tmp_path).run_dir(record)
    for split, metrics in record.metrics.items():
        table = pd.read_parquet(folder / "predictions" / f"{split}.parquet")
        assert len(table) == metrics.images
        assert (table["prediction"] == table["label"]).mean() == pytest.approx(metrics.accuracy)
        nll = (table["log_sum_exp"] - table["label_logit"]).mean()
        assert nll == pytest.approx(metrics.nll, rel=1e-5)
    assert record.ood == record.metrics["inverted"].score, (
        "noisy is outside the average by its card"
    )
    assert bench.load_runs(tmp_path)["score.id-test"].tolist() == [record.metrics["id-test"].score]


@pytest.mark.slow
def test_curve_ends_are_the_start_and_the_fit(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run(
        "full-finetune", suite=tiny_suite, store=tmp_path, curve=True, set={"head_init": "probe"}
    )
    (probe,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    assert [point.alpha for point in record.curve] == pytest.approx([i / 10 for i in range(11)])
    for split, metrics in record.metrics.items():
        assert record.curve[-1].scores[split] == metrics.score
        assert record.curve[0].scores[split] == probe.metrics[split].score


def test_old_and_newer_records(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    ((path, _),) = Store(tmp_path).records()
    content = json.loads(path.read_text())
    del content["search_trials"]
    content["a_field_of_the_past"] = 1
    path.write_text(json.dumps(content))
    assert Store(tmp_path).read_run(path).metrics == record.metrics
    content["record_schema"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(BenchError, match="schema 99"):
        Store(tmp_path).read_run(path)


def test_a_damaged_record_does_not_hide_the_others(
    tiny_suite: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("linear-probe", suite=tiny_suite, store=tmp_path)
    (path,) = [path for path, _ in Store(tmp_path).records()]
    (path.parent.parent / "torn").mkdir()
    (path.parent.parent / "torn" / "record.json").write_text('{"status": "do')
    assert [found for found, _ in Store(tmp_path).records()] == [path]
    assert "damaged" in caplog.text


@pytest.mark.slow
def test_a_curve_is_added_to_a_done_run_without_touching_it(
    tiny_suite: Path, tmp_path: Path
) -> None:
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, trials=1)
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    assert listener.trained() == []
    assert (after.metrics, after.search_trials) == (before.metrics, 1)
    assert len(after.curve) == 11


@pytest.mark.slow
def test_a_curve_keeps_what_its_points_predict(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    folder = Store(tmp_path).run_dir(record)
    for split in record.metrics:
        saved, own = (
            pd.read_parquet(folder / name / f"{split}.parquet") for name in ("curve", "predictions")
        )
        assert saved[["key", "label", "group"]].equals(own[["key", "label", "group"]])
        assert list(saved.columns[3:]) == [
            "0",
            "0.1",
            "0.2",
            "0.3",
            "0.4",
            "0.5",
            "0.6",
            "0.7",
            "0.8",
            "0.9",
            "1",
        ]
        assert saved["1"].tolist() == own["prediction"].tolist()
        for point in record.curve:
            assert (saved[f"{point.alpha:g}"] == saved["label"]).mean() == pytest.approx(
                point.scores[split], abs=1e-12
            )


@pytest.mark.slow
def test_a_curve_of_an_earlier_version_gets_its_predictions_where_the_weights_are(
    tiny_suite: Path, tmp_path: Path
) -> None:
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    store = Store(tmp_path)
    shutil.rmtree(store.run_dir(before) / "curve")
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    assert (after, listener.trained()) == (before, [])
    assert (store.run_dir(before) / "curve" / "id-test.parquet").exists()
    shutil.rmtree(store.run_dir(before) / "curve")
    shutil.rmtree(store.fits_dir)
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    assert (after, listener.trained()) == (
        before,
        [],
    ), "a run from elsewhere is not trained again for it"
    (warning,) = (fields["text"] for kind, fields in listener.events if kind == "warning")
    assert all(fact in warning for fact in ("full-finetune, seed 0", "curve", "--fresh"))


def test_too_many_logits_are_saved_when_requested(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.results.predictions.MOST_LOGITS", 20)
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path)
    path = Store(tmp_path).run_dir(before) / "predictions" / "id-test.parquet"
    condensed = pd.read_parquet(path)
    assert "logits" not in condensed
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, keep_logits=True)
    assert (after.fit_id, after.eval_id) == (
        before.fit_id,
        before.eval_id,
    ), "the switch is in no identity"
    assert (after.metrics, listener.trained()) == (
        before.metrics,
        [],
    ), "it is evaluated again, and not trained"
    saved = pd.read_parquet(path)
    assert "log_sum_exp_scaled" not in saved
    logits = np.stack(saved["logits"].tolist()).astype(float)
    assert before.temperature is not None
    scaled = np.log(np.exp(logits / before.temperature).sum(axis=1))
    assert condensed["log_sum_exp_scaled"].to_numpy() == pytest.approx(
        scaled, abs=5e-3 / before.temperature
    )


@pytest.mark.slow
def test_a_new_curve_brings_the_logits_along_where_the_fits_were_freed(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.results.predictions.MOST_LOGITS", 20)
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path)
    shutil.rmtree(Store(tmp_path).fits_dir)
    (after,), listener = run(
        "full-finetune", suite=tiny_suite, store=tmp_path, curve=True, keep_logits=True
    )
    assert (after.metrics, len(after.curve), listener.trained()) == (
        before.metrics,
        11,
        ["full-finetune"],
    )
    assert "logits" in pd.read_parquet(
        Store(tmp_path).run_dir(before) / "predictions" / "id-test.parquet"
    )
