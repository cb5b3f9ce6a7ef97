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

import pytest

import bench
from bench.engine import Engine
from bench.errors import BenchError, Interrupted, UsageError
from bench.results.store import Store
from bench.run_spec import Settings, run_spec
from bench.runs.execute import execute
from bench.runs.experiment import Experiment
from bench.stopping import Reporter
from bench.sweeps.sweep import run_sweep
from bench.training.devices import DeviceLost

from support.runs import NAN, Listener, run, weights


def test_wise_ft_after_full_finetune_trains_nothing(tiny_suite: Path, tmp_path: Path) -> None:
    # From the probe's head, which is where wise-ft starts on a backbone without a text tower.
    run("full-finetune", suite=tiny_suite, store=tmp_path, set={"head_init": "probe"})
    _, listener = run("wise-ft", suite=tiny_suite, store=tmp_path)
    assert listener.trained() == ["wise-ft"]
    assert not [kind for kind, _ in listener.events if kind == "step"]


@pytest.mark.slow
def test_a_done_run_is_not_done_again(tiny_suite: Path, tmp_path: Path) -> None:
    (first,), _ = run("full-finetune", suite=tiny_suite, store=tmp_path)
    (second,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path)
    assert second == first
    assert listener.trained() == []
    (fresh,), listener = run("full-finetune", suite=tiny_suite, store=tmp_path, fresh=True)
    assert listener.trained() == ["full-finetune"]
    assert fresh.metrics == first.metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["full-finetune", "lp-ft", "feature-distillation", "masked-counterfactual"]
)
def test_stop_and_continue_gives_the_same_bits(
    method: str, tiny_suite: Path, tmp_path: Path
) -> None:
    (whole,), _ = run(method, suite=tiny_suite, store=tmp_path / "whole")
    for stop_at in (2, 4, 7):  # in mid-epoch, at its end (4 steps), and in the second epoch
        store = tmp_path / f"stopped{stop_at}"
        with pytest.raises(Interrupted):
            run(method, suite=tiny_suite, store=store, stop_at=stop_at)
        (cancelled,) = [record for _, record in Store(store).records()]
        assert cancelled.status == "cancelled"
        (continued,), listener = run(
            method, suite=tiny_suite, store=store, engine=Engine(threads=1, workers=2)
        )
        assert [fields["step"] for kind, fields in listener.events if kind == "resumed"] == [
            stop_at
        ]
        assert continued.metrics == whole.metrics
        assert weights(store, continued) == weights(tmp_path / "whole", whole)
        assert not list((Store(store).fit_dir(continued.fit_id) / "checkpoint").glob("*")), (
            "a finished fit keeps no checkpoint"
        )


@pytest.mark.slow
def test_failed_is_a_row_and_the_rest_goes_on(tiny_suite: Path, tmp_path: Path) -> None:
    records, _ = run("full-finetune", "linear-probe", suite=tiny_suite, store=tmp_path, set={})
    assert [record.status for record in records] == ["done", "done"]
    (broken,), _ = run(
        "full-finetune", suite=tiny_suite, store=tmp_path, set={"lr": 1e30, "clip": 0}
    )
    assert broken.status == "failed"
    assert "loss" in broken.error
    assert "lr" in broken.error, "the diagnosis names what to turn"
    assert Store(tmp_path).fit(broken.fit_id) is None, "a failure is never a result"


def test_a_run_that_lost_a_device_is_a_row_and_continues(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(experiment: Experiment, method: Any) -> Any:
        raise DeviceLost("a process was killed", fix="run it again")

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "fit", lost)
        spec = run_spec({"methods": ["linear-probe"], "suite": str(tiny_suite)})
        (entry,) = run_sweep(
            spec, store=tmp_path, settings=Settings(threads=1), reporter=Reporter()
        ).queue
        with pytest.raises(DeviceLost):
            execute(entry.planned.experiment, entry.planned.method)
        ((_, record),) = Store(tmp_path).records()
        assert (record.status, "a process was killed" in record.error) == (
            "cancelled",
            True,
        ), "a sweep starts it again"
        records, listener = run("linear-probe", "full-finetune", suite=tiny_suite, store=tmp_path)
    assert [record.status for record in records] == [
        "failed",
        "failed",
    ], "the second was begun, too"
    assert [fields["outcome"].status for kind, fields in listener.events if kind == "settled"] == [
        "lost",
        "lost",
    ]
    assert all("a process was killed" in record.error for _, record in Store(tmp_path).records())
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    assert record.status == "done"


@pytest.mark.slow
def test_an_epoch_is_readable_behind_a_line_that_was_cut_short(
    tiny_suite: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run("full-finetune", suite=tiny_suite, store=tmp_path, stop_at=2)
    (folder,) = Store(tmp_path).fits_dir.iterdir()
    log = folder / "log.jsonl"
    # Its writer was killed there, before it saved anything.
    log.write_text('{"time": 1, "event": "epo')
    shutil.rmtree(folder / "checkpoint")
    with pytest.raises(Interrupted):
        run("full-finetune", suite=tiny_suite, store=tmp_path, stop_at=6)
    assert [one["epoch"] for one in Store(tmp_path).epochs(folder.name)] == [1]


@pytest.mark.slow
def test_micro_batches_equal_the_large_batch(tiny_suite: Path, tmp_path: Path) -> None:
    for method in ("full-finetune", "masked-counterfactual"):
        (whole,), _ = run(method, suite=tiny_suite, store=tmp_path / "whole")
        (parts,), _ = run(
            method,
            suite=tiny_suite,
            store=tmp_path / "parts",
            engine=Engine(threads=1, micro_batch=3),
        )
        assert whole.fit_id == parts.fit_id
        for split, metrics in whole.metrics.items():
            assert parts.metrics[split].nll == pytest.approx(metrics.nll, rel=1e-3)


def test_bf16_autocast_trains_to_finite_weights(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run(
        "masked-counterfactual", suite=tiny_suite, store=tmp_path, set={"precision": "bf16"}
    )
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
    assert "weights of a fit differ" in again.error


@pytest.mark.slow
def test_search_opens_no_shift(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    # An unreadable image in the shift: opening it would fail the run loudly.
    (suite / "images" / "inverted" / "disc" / "000.png").write_bytes(b"not an image")
    (searched,), _ = run(
        "linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store", search=True
    )
    assert (searched.status, searched.phase, list(searched.metrics)) == (
        "done",
        "search",
        ["id-val"],
    )
    with pytest.raises(BenchError, match="disc"):
        run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store")
    (skipped,), _ = run(
        "linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store", skip_unreadable=1
    )
    assert skipped.metrics["inverted"].skipped_unreadable == 1


@pytest.mark.slow
def test_trials_are_equal_and_shared_dependencies_are_trained_once(
    tiny_suite: Path, tmp_path: Path
) -> None:
    records, listener = run("lp-ft", "wise-ft", suite=tiny_suite, store=tmp_path, trials=2, of=None)
    assert [record.search_trials for record in records] == [2, 2]
    trained = listener.trained()
    # wise-ft: two trials of its end, two interpolations, and the chosen one again with the final
    # seed.
    assert trained.count("wise-ft") == 3
    assert trained.count("full-finetune") == 3
    assert all(
        record.seed != 0 for _, record in Store(tmp_path).records() if record.phase == "search"
    )


def test_unknown_parameter_names_the_nearest(tiny_suite: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="epochs"):
        run("full-finetune", suite=tiny_suite, store=tmp_path, set={"epoch": 3})


KILL = """
import sys
from pathlib import Path
import bench
from bench.engine import Engine
engine = Engine(threads=1, checkpoint_seconds=0.0, workers=1)
bench.run("masked-counterfactual", suite=sys.argv[1], store=Path(sys.argv[2]), engine=engine)
"""


@pytest.mark.waits
def test_kill_9_and_continue_gives_the_same_bits(tiny_suite: Path, tmp_path: Path) -> None:
    (whole,), _ = run("masked-counterfactual", suite=tiny_suite, store=tmp_path / "whole")
    store = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILL, str(tiny_suite), str(store)], env=os.environ
    )
    while process.poll() is None and not list(store.glob("fits/*/checkpoint/*.safetensors")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    (continued,), _ = run("masked-counterfactual", suite=tiny_suite, store=store)
    assert continued.metrics == whole.metrics
    assert weights(store, continued) == weights(tmp_path / "whole", whole)


@pytest.mark.waits
def test_two_processes_share_one_fit(tiny_suite: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL, str(tiny_suite), str(tmp_path)]
    both = [subprocess.Popen(command, env=os.environ) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    records = [record for _, record in Store(tmp_path).records()]
    assert [record.status for record in records] == ["done"]
    fits = list((tmp_path / "fits").glob("*/fit.json"))
    assert len(fits) == 2, "the probe and the method, each trained once"


def test_weights_that_are_not_finite_are_no_result(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text(NAN)
    (record,), _ = run(str(tmp_path / "nan.py"), suite=tiny_suite, store=tmp_path / "store")
    assert record.status == "failed"
    assert "finite" in record.error


RAISES = """
from bench import FineTuner
class Raises(FineTuner):
    name = "raises"
    def loss(self, batch, student, teacher, constants):
        raise RuntimeError("a bug of the plug-in")
"""


def test_a_methods_bug_is_a_row_with_its_traceback_and_the_rest_goes_on(
    tiny_suite: Path, tmp_path: Path
) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    records, _ = run(
        str(tmp_path / "raises.py"), "linear-probe", suite=tiny_suite, store=tmp_path / "store"
    )
    assert [record.status for record in records] == ["failed", "done"]
    assert "raises.py" in records[0].traceback


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


@pytest.mark.waits
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
            "linear-probe",
            suite=str(suite / "tiny.toml"),
            store=tmp_path / "store",
            reporter=Stops(),
            engine=Engine(threads=1),
        )


def test_no_curve_is_plotted_through_trained_batch_statistics_and_that_is_found_out_before_training(
    tiny_suite: Path, tmp_path: Path
) -> None:
    (record,), listener = run(
        "full-finetune", suite=tiny_suite, store=tmp_path, set={"norm": "train"}, curve=True
    )
    assert record.status == "failed"
    assert "cannot be interpolated" in record.error
    assert listener.trained() == []


def test_what_was_left_out_is_counted_in_the_record(tiny_suite: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_suite.parent / "images", tmp_path / "images")
    card = tmp_path / "tiny.toml"
    card.write_text(tiny_suite.read_text())
    some = min((tmp_path / "images/photo").glob("*/*.png"))
    (some.parent / "notes.txt").write_text("nothing")
    (some.parent / ".DS_Store").write_text("nothing")
    shutil.copy(some, tmp_path / "images/photo/stray.png")
    (record,), _ = run("linear-probe", suite=card, store=tmp_path / "store")
    assert record.ignored == {"train": 2, "id-val": 2, "id-test": 2}
    (plain,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path / "store")
    assert plain.ignored == {}
    assert plain.eval_id == record.eval_id
