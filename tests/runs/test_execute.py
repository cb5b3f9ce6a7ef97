"""Runs as a user meets them: reuse, resume, identity, failure, and what is on disk afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bench
from bench.errors import BenchError, Interrupted, UsageError
from bench.plugins import build_method
from bench.runs.opening import experiments
from bench.runs.record import RunRecord
from bench.runs.store import Store
from bench.spec import RunSpec
from bench.training.engine import Engine


class Listener:
    """Keeps the events; asks to stop at a given step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_at = stop_at

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))
        if kind == "step" and fields["step"] == self._stop_at:
            self.stop = signal.SIGTERM

    def trained(self) -> list[str]:
        return [fields["method"] for kind, fields in self.events if kind == "fit"]


def run(
    *methods: str, suite: Path, store: Path, stop_at: int | None = None, engine: Engine | None = None, **fields: Any
) -> tuple[list[RunRecord], Listener]:
    listener = Listener(stop_at)
    return bench.run(
        *methods, suite=str(suite), store=store, reporter=listener, engine=engine or Engine(threads=1), **fields
    ), listener


def weights(store: Path, record: RunRecord) -> str:
    fit = Store(store).fit(record.fit_id)
    assert fit is not None
    return fit.weights_sha256


def test_wise_ft_after_full_finetune_trains_nothing(tiny_suite: Path, tmp_path: Path) -> None:
    # From the probe's head, which is where wise-ft starts on a backbone without a text tower.
    run("full-finetune", suite=tiny_suite, store=tmp_path, set={"head_init": "probe"})
    _, listener = run("wise-ft", suite=tiny_suite, store=tmp_path)
    assert listener.trained() == ["wise-ft"]
    assert not [kind for kind, _ in listener.events if kind == "step"]


def test_a_done_run_is_not_done_again(tiny_suite: Path, tmp_path: Path) -> None:
    (first,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path)
    (second,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path)
    assert second == first
    assert listener.trained() == []
    (fresh,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, fresh=True)
    assert listener.trained() == ["full-finetune"]
    assert fresh.metrics == first.metrics


def test_record_and_predictions_agree(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    folder = Store(tmp_path).run_dir(record)
    for split, metrics in record.metrics.items():
        table = pd.read_parquet(folder / "predictions" / f"{split}.parquet")
        assert len(table) == metrics.images
        assert (table["prediction"] == table["label"]).mean() == pytest.approx(metrics.accuracy)
        nll = (table["log_sum_exp"] - table["label_logit"]).mean()
        assert nll == pytest.approx(metrics.nll, rel=1e-5)
    assert record.ood == record.metrics["inverted"].score, "noisy is outside the average by its card"
    assert bench.load_runs(tmp_path)["score.id-test"].tolist() == [record.metrics["id-test"].score]


@pytest.mark.parametrize("method", ["full-finetune", "lp-ft", "feature-distillation", "masked-counterfactual"])
def test_stop_and_continue_gives_the_same_bits(method: str, tiny_suite: Path, tmp_path: Path) -> None:
    (whole,), _ = run(method, suite=tiny_suite, store=tmp_path / "whole")
    for stop_at in (2, 4, 7):  # in mid-epoch, at its end (4 steps), and in the second epoch
        store = tmp_path / f"stopped{stop_at}"
        with pytest.raises(Interrupted):
            run(method, suite=tiny_suite, store=store, stop_at=stop_at)
        (cancelled,) = [record for _, record in Store(store).records()]
        assert cancelled.status == "cancelled"
        (continued,), listener = run(method, suite=tiny_suite, store=store, engine=Engine(threads=1, workers=2))
        assert [fields["step"] for kind, fields in listener.events if kind == "resumed"] == [stop_at]
        assert continued.metrics == whole.metrics
        assert weights(store, continued) == weights(tmp_path / "whole", whole)
        assert not list((Store(store).fit_dir(continued.fit_id) / "checkpoint").glob("*")), "a finished fit keeps no checkpoint"


def test_a_new_shift_trains_nothing(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    card = suite / "tiny.toml"
    (before,), _ = run("full-finetune", suite=card, store=tmp_path / "store")
    shutil.copytree(suite / "images" / "noisy", suite / "images" / "again")
    card.write_text(card.read_text().replace("[recipe]", '[[shifts]]\nname = "again"\npath = "again"\n[recipe]'))
    (after,), listener = run("full-finetune", suite=card, store=tmp_path / "store")
    assert listener.trained() == []
    assert after.fit_id == before.fit_id
    assert after.eval_id != before.eval_id
    assert after.metrics["again"].score == after.metrics["noisy"].score


def test_a_changed_training_image_is_another_fit(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    (before,), _ = run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store")
    moved = tmp_path / "elsewhere"
    suite.rename(moved)
    (same,), listener = run("linear-probe", suite=moved / "tiny.toml", store=tmp_path / "store")
    assert (same.fit_id, listener.trained()) == (before.fit_id, []), "another path is not another fit"
    first, second = sorted((moved / "images" / "photo" / "disc").glob("*.png"))[:2]
    shutil.copy(second, first)
    (after,), _ = run("linear-probe", suite=moved / "tiny.toml", store=tmp_path / "store")
    assert after.fit_id != before.fit_id


def test_identity_covers_what_it_should(tiny_suite: Path, tmp_path: Path) -> None:
    def fit_id(*, seed: int = 0, backbone: str | None = None, name: str = "full-finetune", **values: Any) -> str:
        spec = RunSpec(methods=(name,), suite=str(tiny_suite), backbone=backbone, seeds=(seed,))
        (experiment,) = experiments(spec, store=tmp_path, engine=Engine(threads=1))
        return experiment.fit_id(build_method(name, values, experiment.suite.card.recipe))

    usual = fit_id()
    others = [
        fit_id(seed=1),
        fit_id(lr=1e-4),
        fit_id(head_init="probe"),
        fit_id(backbone="timm:test_vit@random-7?size=32"),
        fit_id(name="wise-ft"),
        fit_id(name="wise-ft", **{"of.lr": 1e-4}),
    ]
    assert len({usual, *others}) == 1 + len(others)
    assert fit_id(lr=1e-3) == usual, "the recipe's value, said again, changes nothing"


def test_failed_is_a_row_and_the_rest_goes_on(tiny_suite: Path, tmp_path: Path) -> None:
    records, _ = run("full-finetune", "linear-probe", suite=tiny_suite, store=tmp_path, set={})
    assert [record.status for record in records] == ["done", "done"]
    (broken,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, set={"lr": 1e30, "clip": 0})
    assert broken.status == "failed"
    assert "loss" in broken.error
    assert "lr" in broken.error, "the diagnosis names what to turn"
    assert Store(tmp_path).fit(broken.fit_id) is None, "a failure is never a result"


def test_micro_batches_equal_the_large_batch(tiny_suite: Path, tmp_path: Path) -> None:
    for method in ("full-finetune", "masked-counterfactual"):
        (whole,), _ = run(method, suite=tiny_suite, store=tmp_path / "whole")
        (parts,), _ = run(method, suite=tiny_suite, store=tmp_path / "parts", engine=Engine(threads=1, micro_batch=3))
        assert whole.fit_id == parts.fit_id
        for split, metrics in whole.metrics.items():
            assert parts.metrics[split].nll == pytest.approx(metrics.nll, rel=1e-3)


def test_curve_ends_are_the_start_and_the_fit(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True, set={"head_init": "probe"})
    (probe,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    assert [point.alpha for point in record.curve] == pytest.approx([i / 10 for i in range(11)])
    for split, metrics in record.metrics.items():
        assert record.curve[-1].scores[split] == metrics.score
        assert record.curve[0].scores[split] == probe.metrics[split].score


def test_bf16_autocast_trains_to_finite_weights(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("masked-counterfactual", suite=tiny_suite, store=tmp_path, set={"precision": "bf16"})
    assert record.status == "done", record.error


def test_damaged_weights_are_noticed(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    folder = Store(tmp_path).fit_dir(record.fit_id)
    (file,) = folder.glob("weights-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    shutil.rmtree(Store(tmp_path).runs_dir)
    (again,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    assert again.status == "failed"
    assert "not those that were recorded" in again.error


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


def test_search_opens_no_shift(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    # An unreadable image in the shift: opening it would fail the run loudly.
    (suite / "images" / "inverted" / "disc" / "000.png").write_bytes(b"not an image")
    (searched,), _ = run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store", search=True)
    assert (searched.status, searched.phase, list(searched.metrics)) == ("done", "search", ["id-val"])
    with pytest.raises(BenchError, match="disc"):
        run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store")
    (skipped,), _ = run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store", skip_unreadable=1)
    assert skipped.metrics["inverted"].skipped_unreadable == 1


def test_trials_are_equal_and_shared_stages_are_trained_once(tiny_suite: Path, tmp_path: Path) -> None:
    records, listener = run("lp-ft", "wise-ft", suite=tiny_suite, store=tmp_path, trials=2, of=None)
    assert [record.search_trials for record in records] == [2, 2]
    trained = listener.trained()
    # wise-ft: two trials of its end, two interpolations, and the chosen one again with the final seed.
    assert trained.count("wise-ft") == 3
    assert trained.count("full-finetune") == 3
    assert all(record.seed != 0 for _, record in Store(tmp_path).records() if record.phase == "search")


def test_unknown_parameter_names_the_nearest(tiny_suite: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="epochs"):
        run("full-finetune", suite=tiny_suite, store=tmp_path, set={"epoch": 3})


KILL = """
import sys
from pathlib import Path
import bench
from bench.training.engine import Engine
engine = Engine(threads=1, checkpoint_seconds=0.0, workers=1)
bench.run("masked-counterfactual", suite=sys.argv[1], store=Path(sys.argv[2]), engine=engine)
"""


def test_kill_9_and_continue_gives_the_same_bits(tiny_suite: Path, tmp_path: Path) -> None:
    (whole,), _ = run("masked-counterfactual", suite=tiny_suite, store=tmp_path / "whole")
    store = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILL, str(tiny_suite), str(store)], env=os.environ)
    while process.poll() is None and not list(store.glob("fits/*/checkpoint/*.safetensors")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    (continued,), _ = run("masked-counterfactual", suite=tiny_suite, store=store)
    assert continued.metrics == whole.metrics
    assert weights(store, continued) == weights(tmp_path / "whole", whole)


def test_two_processes_share_one_fit(tiny_suite: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL, str(tiny_suite), str(tmp_path)]
    both = [subprocess.Popen(command, env=os.environ) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    records = [record for _, record in Store(tmp_path).records()]
    assert [record.status for record in records] == ["done"]
    fits = list((tmp_path / "fits").glob("*/fit.json"))
    assert len(fits) == 2, "the probe and the method, each trained once"


def test_the_probe_is_part_of_what_starts_from_it(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    (one,), _ = run("lp-ft", suite=suite / "tiny.toml", store=tmp_path / "store")
    card = suite / "tiny.toml"
    card.write_text(card.read_text().replace("grid = 5", "grid = 2"))
    (other,), _ = run("lp-ft", suite=card, store=tmp_path / "store")
    assert one.fit_id != other.fit_id


NAN = """
import torch
from bench import FineTuner
class Nan(FineTuner):
    name = "nan-at-the-end"
    def loss(self, batch, student, teacher, constants):
        loss = student(batch.images).square().mean()
        if batch.step == 7:  # the last step: no later loss looks at the weights
            student.head.bias.register_hook(lambda gradient: gradient * float("nan"))
        return loss
"""


def test_weights_that_are_not_finite_are_no_result(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text(NAN)
    (record,), _ = run(str(tmp_path / "nan.py"), suite=tiny_suite, store=tmp_path / "store")
    assert record.status == "failed"
    assert "finite" in record.error


def test_a_damaged_record_does_not_hide_the_others(tiny_suite: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("linear-probe", suite=tiny_suite, store=tmp_path)
    (path,) = [path for path, _ in Store(tmp_path).records()]
    (path.parent.parent / "torn").mkdir()
    (path.parent.parent / "torn" / "record.json").write_text('{"status": "do')
    assert [found for found, _ in Store(tmp_path).records()] == [path]
    assert "damaged" in caplog.text


RAISES = """
from bench import FineTuner
class Raises(FineTuner):
    name = "raises"
    def loss(self, batch, student, teacher, constants):
        raise RuntimeError("a bug of the plug-in")
"""


def test_a_methods_bug_is_a_row_with_its_traceback_and_the_rest_goes_on(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    records, _ = run(str(tmp_path / "raises.py"), "linear-probe", suite=tiny_suite, store=tmp_path / "store")
    assert [record.status for record in records] == ["failed", "done"]
    assert "raises.py" in records[0].traceback


def test_a_file_that_is_rewritten_at_once_is_read_anew(tmp_path: Path) -> None:
    from bench.plugins import load_method

    path = tmp_path / "mine.py"
    for value in ("0.1", "0.2"):
        path.write_text(NAN.replace('float("nan")', value).replace("nan-at-the-end", "mine"))
        method = load_method(str(path))
        assert value in Path(method.loss.__code__.co_filename).read_text()
        assert float(value) in [
            c for code in method.loss.__code__.co_consts if hasattr(code, "co_consts") for c in code.co_consts
        ]


def test_a_file_may_not_take_an_installed_name(tmp_path: Path) -> None:
    from bench.plugins import load_method

    (tmp_path / "copy.py").write_text(NAN.replace("nan-at-the-end", "full-finetune"))
    with pytest.raises(UsageError, match="installed"):
        load_method(str(tmp_path / "copy.py"))


def test_a_curve_is_added_to_a_done_run_without_touching_it(tiny_suite: Path, tmp_path: Path) -> None:
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, trials=1)
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    assert listener.trained() == []
    assert (after.metrics, after.search_trials) == (before.metrics, 1)
    assert len(after.curve) == 11


def test_a_limit_that_cuts_nothing_is_none(tiny_suite: Path, tmp_path: Path) -> None:
    (whole,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path, limit=5000)
    (part,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path, limit=9)
    assert (whole.limit, part.limit) == (None, 9)


def test_a_card_that_changes_its_average_changes_old_runs_without_measuring(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    card = suite / "tiny.toml"
    (before,), _ = run("linear-probe", suite=card, store=tmp_path / "store")
    card.write_text(card.read_text().replace("in_average = false", "in_average = true"))
    (after,), _ = run("linear-probe", suite=card, store=tmp_path / "store")
    both = [before.metrics[name].score for name in ("inverted", "noisy")]
    assert after.eval_id == before.eval_id
    assert after.ood == pytest.approx(sum(both) / 2)


def test_whole_numbers_and_floats_are_the_same_parameter() -> None:
    from bench.identity import digest

    ids = {digest(build_method("full-finetune", values).identity()) for values in ({}, {"warmup": 500}, {"warmup": 500.0})}
    assert len(ids) == 1


def test_methods_without_a_search_space_count_one_trial(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path, trials=3)
    assert record.search_trials == 1


def test_trained_batch_statistics_refuse_micro_batches(tiny_suite: Path, tmp_path: Path) -> None:
    backbone = "timm:test_resnet@random?size=32"
    (record,), _ = run(
        "full-finetune",
        suite=tiny_suite,
        store=tmp_path,
        backbone=backbone,
        set={"norm": "train"},
        engine=Engine(threads=1, micro_batch=3),
    )
    assert "micro-batch" in record.error


@pytest.mark.parametrize("kind", ["data", "waiting"])
def test_a_stop_is_obeyed_outside_training_too(kind: str, tiny_suite: Path, tmp_path: Path) -> None:
    class Stops(Listener):
        def event(self, name: str, **fields: Any) -> None:
            super().event(name, **fields)
            if name == kind:
                self.stop = signal.SIGINT

    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)  # nothing of it is in the cache yet
    for image in (suite / "images").rglob("*.png"):
        image.write_bytes(image.read_bytes() + b"\n")
    if kind == "waiting":
        (record,), _ = run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store")
        claim = next((tmp_path / "store" / "fits" / record.fit_id / "lease").glob("*.json"))
        shutil.rmtree(tmp_path / "store" / "runs")
        (tmp_path / "store" / "fits" / record.fit_id / "fit.json").unlink()
        claim.write_text(json.dumps({"host": "elsewhere", "released": False}))
    with pytest.raises(Interrupted):
        bench.run(
            "linear-probe", suite=str(suite / "tiny.toml"), store=tmp_path / "store", reporter=Stops(), engine=Engine(threads=1)
        )


def test_a_curve_keeps_what_its_points_predict(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    folder = Store(tmp_path).run_dir(record)
    for split in record.metrics:
        kept, own = (pd.read_parquet(folder / name / f"{split}.parquet") for name in ("curve", "predictions"))
        assert kept[["key", "label", "group"]].equals(own[["key", "label", "group"]])
        assert list(kept.columns[3:]) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
        assert kept["1"].tolist() == own["prediction"].tolist()
        for point in record.curve:
            assert (kept[f"{point.alpha:g}"] == kept["label"]).mean() == pytest.approx(point.scores[split], abs=1e-12)


def test_a_curve_of_an_earlier_version_gets_its_predictions_where_the_weights_are(tiny_suite: Path, tmp_path: Path) -> None:
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    store = Store(tmp_path)
    shutil.rmtree(store.run_dir(before) / "curve")
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    assert (after, listener.trained()) == (before, [])
    assert (store.run_dir(before) / "curve" / "id-test.parquet").exists()
    shutil.rmtree(store.run_dir(before) / "curve")
    shutil.rmtree(store.fits_dir)
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, curve=True)
    assert (after, listener.trained()) == (before, []), "a run from elsewhere is not trained again for it"
    assert [fields["text"] for kind, fields in listener.events if kind == "warning"] == [
        "full-finetune, seed 0: what its curve's points predict was not kept, and its weights are not in this store; "
        "--fresh trains it again"
    ]


def test_too_many_logits_are_kept_when_asked_for(tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runs.predictions.MOST_LOGITS", 20)
    (before,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path)
    path = Store(tmp_path).run_dir(before) / "predictions" / "id-test.parquet"
    condensed = pd.read_parquet(path)
    assert "logits" not in condensed
    (after,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, keep_logits=True)
    assert (after.fit_id, after.eval_id) == (before.fit_id, before.eval_id), "the switch is in no identity"
    assert (after.metrics, listener.trained()) == (before.metrics, []), "it is evaluated again, and not trained"
    kept = pd.read_parquet(path)
    assert "log_sum_exp_scaled" not in kept
    logits = np.stack(kept["logits"].tolist()).astype(float)
    assert before.temperature is not None
    scaled = np.log(np.exp(logits / before.temperature).sum(axis=1))
    assert condensed["log_sum_exp_scaled"].to_numpy() == pytest.approx(scaled, abs=5e-3 / before.temperature)
