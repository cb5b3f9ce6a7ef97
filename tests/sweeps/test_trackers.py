"""Trackers show what a sweep does, go on where an earlier start left off, and never end a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import MissingPrerequisite, UsageError
from bench.results.record import RunRecord, SplitMetrics
from bench.results.store import Store
from bench.run_spec import SEARCH_SEED
from bench.stopping import Reporter
from bench.sweeps import trackers
from bench.sweeps.job import Job, JobResult
from bench.sweeps.trackers import check_kinds, tracked

from support.messages import states

PARAMETERS = {"alpha": 0.5, "of": {"name": "full-finetune", "lr": 0.001}}
JOB = Job(
    "run-abcdef",
    "final",
    {"name": "wise-ft", "parameters": PARAMETERS},
    "wise-ft",
    "tiny",
    "mini-clip",
    seed=1,
    fit_id="f" * 24,
)


class Reports(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def event(self, kind: str, **fields: Any) -> None:
        job: Job | None = fields.get("job")
        if job is None:
            self.lines.append(("note", fields["text"]))
        elif kind == "started":
            self.lines.append((kind, job.id, fields["where"]))
        else:
            self.lines.append((fields["outcome"].status if kind == "settled" else kind, job.id))


def interrupted_and_continued(kind: str, store: Path) -> Reports:
    """Epoch 1, a stop, epoch 2, done; with a record of the result in the store."""
    shown = Reports()
    with tracked(shown, [kind], store) as reporter:
        reporter.event("started", job=JOB, where="here")
        reporter.event("epoch", job=JOB, epoch=1, epochs=2, loss=0.75, id_val=0.5)
        reporter.event("settled", job=JOB, outcome=JobResult("cancelled"))
    save_record(store)
    with tracked(shown, [kind], store) as reporter:
        reporter.event("started", job=JOB, where="there")
        reporter.event("step", job=JOB, step=3, total=4, loss=0.5)
        reporter.event("epoch", job=JOB, epoch=2, epochs=2, loss=0.25, id_val=0.625)
        reporter.event("settled", job=JOB, outcome=JobResult("done"))
    return shown


def save_record(store: Path) -> None:
    metrics = SplitMetrics(
        images=8,
        score=0.375,
        accuracy=0.375,
        class_mean=0.375,
        macro_f1=0.3,
        nll=1.0,
        ece=0.1,
        brier=0.5,
    )
    record = RunRecord(
        status="done",
        method={"name": "wise-ft"},
        label="wise-ft",
        backbone="mini-clip",
        backbone_sha256="",
        suite="tiny",
        seed=1,
        fit_id="f" * 24,
        eval_id="abcdef",
        metrics={"sketch": metrics},
        ood=0.375,
    )
    Store(store).save_run(record)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard's event files below a folder hold: name -> step -> value."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.rglob("events.out.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length (8 bytes), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


EPOCHS = {"loss": {1: 0.75, 2: 0.25}, "id-val": {1: 0.5, 2: 0.625}}
SCORES = {"score/sketch": {0: 0.375}, "score/OOD": {0: 0.375}}


def test_without_trackers_the_watch_stays_what_it_is(tmp_path: Path) -> None:
    shown = Reports()
    with tracked(shown, [], tmp_path) as reporter:
        assert reporter is shown


def test_tensorboard_gets_epochs_and_scores_of_both_starts_in_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    shown = interrupted_and_continued("tensorboard", tmp_path)
    (trial,) = (tmp_path / "tensorboard").glob("*/*")
    assert scalars(trial) == {**EPOCHS, **SCORES}
    assert [line[0] for line in shown.lines] == [
        "started",
        "epoch",
        "cancelled",
        "started",
        "step",
        "epoch",
        "done",
    ]


def test_rungs_and_trials_and_runs_of_a_method_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trial = replace(JOB, id="run-ab", phase="search", seed=SEARCH_SEED, trial=3)
    rung = replace(trial, id="rung-ab-1", phase="rung", epoch=1)
    with tracked(Reports(), ["mlflow"], tmp_path) as reporter:
        for job in (JOB, trial, rung):
            reporter.event("started", job=job, where="here")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert {run.info.run_name for run in runs} == {
        "run wise-ft, seed 1",
        "trial 3 wise-ft",
        "trial 3 wise-ft to epoch 1",
    }


def test_mlflow_continues_the_run_that_an_earlier_start_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shown = interrupted_and_continued("mlflow", tmp_path)
    assert not [line for line in shown.lines if line[0] == "note"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["of.lr"] == "0.001"
    history = {
        name: {
            point.step: point.value for point in client.get_metric_history(run.info.run_id, name)
        }
        for name in run.data.metrics
    }
    assert history == {**EPOCHS, **SCORES}


def test_wandb_writes_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    shown = interrupted_and_continued("wandb", tmp_path)
    assert not [line for line in shown.lines if line[0] == "note"]
    assert len(list((tmp_path / "wandb").glob("offline-run-*-run-abcdef/*.wandb"))) == 2


def test_a_tracker_that_fails_is_reported_once_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def __init__(self, store: Path) -> None:
            self.requested = 0

        def begin(self, job: Job) -> None:
            raise ConnectionError("the server is away")

    monkeypatch.setitem(trackers._KINDS, "mlflow", ("json", Away))
    shown = interrupted_and_continued("mlflow", tmp_path)
    notes = [line[1] for line in shown.lines if line[0] == "note"]
    # Once per start.
    assert len(notes) == 2
    assert all(states(note, "mlflow", "ConnectionError: the server is away") for note in notes)
    assert shown.lines[-1] == ("done", JOB.id)


def test_wrong_and_missing_trackers_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="no tracker `neptune`"):
        check_kinds(["neptune"])
    monkeypatch.setitem(trackers._KINDS, "wandb", ("no_such_package", None))
    with pytest.raises(MissingPrerequisite) as missing:
        check_kinds(["wandb"])
    assert missing.value.fix == "pip install 'shiftbench[wandb]'"
