"""Report the trials of a sweep to TensorBoard, MLflow or Weights & Biases while it runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingPrerequisite, UsageError
from ..results.store import Store
from ..stopping import PassedOn, Reporter, foreign
from .job import Job, JobResult


class Tracker(Protocol):
    """A service to which trials are reported.

    If a method raises, the sweep warns once and continues without the tracker.
    """

    # All methods run in the driver and get what the events contain, so a tracker works with every
    # runner, needs no network on the nodes, and never slows down a training step.

    def begin(self, job: Job) -> None:
        """Begin a trial, or continue it if it was reported before."""

    def log(self, job: Job, values: dict[str, float], epoch: int) -> None:
        """Log values after an epoch; epoch 0 stands for the scores of the finished run."""

    def end(self, job: Job, outcome: JobResult) -> None:
        """End an attempt at a trial."""

    def close(self) -> None:
        """End the sweep, with all trials that are still running."""


@contextlib.contextmanager
def tracked(reporter: Reporter, kinds: Sequence[str], store: Path) -> Iterator[Reporter]:
    """Wrap a reporter such that every trial is also reported to trackers.

    Args:
        reporter: receives all events too.
        kinds: names of trackers: `tensorboard`, `mlflow`, `wandb`.
        store: root of the store.

    Raises:
        UsageError: there is no such tracker.
        MissingPrerequisite: its package is not installed.
    """
    trackers = {kind: _tracker(kind, store) for kind in dict.fromkeys(kinds)}
    if not trackers:
        yield reporter
        return
    wrapped = _Tracked(reporter, trackers, Store(store))
    try:
        yield wrapped
    finally:
        wrapped.close()


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise the errors of `tracked`, for use before a sweep is planned.

    Raises:
        UsageError: there is no such tracker.
        MissingPrerequisite: its package is not installed.
    """
    for kind in kinds:
        if kind not in _KINDS:
            raise UsageError(
                f"there is no tracker `{kind}`",
                where="--track",
                fix=f"use one of {', '.join(_KINDS)}",
            )
        # Without importing it, which would take seconds.
        package, _ = _KINDS[kind]
        if find_spec(package) is None:
            raise MissingPrerequisite(
                f"the tracker {kind} needs a package that is not installed",
                where=f"--track {kind}",
                fix=f"pip install 'shiftbench[{kind}]'",
            )


def _tracker(kind: str, store: Path) -> Tracker:
    check_kinds([kind])
    made: Tracker = _KINDS[kind][1](store)
    return made


class _Tracked(PassedOn):
    """A reporter that passes every event on, and reports those of trials to trackers."""

    def __init__(self, to: Reporter, trackers: dict[str, Tracker], store: Store) -> None:
        super().__init__(to)
        self._trackers, self._store = trackers, store

    def event(self, kind: str, **fields: Any) -> None:
        super().event(kind, **fields)
        # Events without a job concern the whole sweep.
        job: Job | None = fields.get("job")
        if job is None:
            return
        if kind == "started":
            self._each("begin", job)
        elif kind == "epoch":
            self._each(
                "log", job, {"loss": fields["loss"], "id-val": fields["id_val"]}, fields["epoch"]
            )
        elif kind == "settled":
            if fields["outcome"].status == "done" and job.is_run:
                self._each("log", job, self._scores(job), 0)
            self._each("end", job, fields["outcome"])

    def close(self) -> None:
        self._each("close")

    def _scores(self, job: Job) -> dict[str, float]:
        """Return the scores of a finished run, from its record."""
        # The events of a run have no scores: the store is the only source of results.
        scores: dict[str, float] = {}
        for path in self._store.runs_dir.glob(f"*/*/*/{job.id.removeprefix('run-')}/record.json"):
            record = self._store.read_run(path)
            scores = {f"score/{split}": metrics.score for split, metrics in record.metrics.items()}
            if record.ood is not None:
                scores["score/OOD"] = record.ood
        return scores

    def _each(self, method: str, *arguments: Any) -> None:
        for kind, tracker in list(self._trackers.items()):
            try:
                with foreign():
                    getattr(tracker, method)(*arguments)
            # Of any type, since each library has errors of its own: an unreachable server must not
            # end a sweep.
            except Exception as error:
                del self._trackers[kind]
                text = f"{kind} is disabled for this sweep: {type(error).__name__}: {error}"
                self.to.event("warning", text=text)


class _TensorBoard:
    """A tracker that writes event files to `<store>/tensorboard`, one folder per trial."""

    def __init__(self, store: Path) -> None:
        self._root = store / "tensorboard"
        self._writers: dict[str, Any] = {}

    def begin(self, job: Job) -> None:
        from tensorboardX import SummaryWriter

        place = self._root / job.method["name"] / f"{job.phase}-seed{job.seed}-{job.fit_id[:8]}"
        # tensorboardX names files by the second, in which two attempts may start.
        self._writers[job.id] = SummaryWriter(
            str(place), filename_suffix=f".{uuid.uuid4().hex[:8]}"
        )
        self._writers[job.id].add_text("job", f"```\n{json.dumps(job.as_json(), indent=1)}\n```")

    def log(self, job: Job, values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writers[job.id].add_scalar(name, value, epoch)
        # An epoch may take hours, and the writer alone flushes only every two minutes.
        self._writers[job.id].flush()

    def end(self, job: Job, outcome: JobResult) -> None:
        self._writers.pop(job.id).close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _MLflow:
    """A tracker that logs to MLflow, with an experiment per suite and a run per trial.

    It uses the server at MLFLOW_TRACKING_URI, or the file `<store>/mlflow.db`.
    """

    def __init__(self, store: Path) -> None:
        self._store = store.absolute()
        self._runs: dict[str, str] = {}

    @cached_property
    def _client(self) -> Any:
        # A client per store instead of MLflow's global state, which belongs to the user's program.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._store.mkdir(parents=True, exist_ok=True)
        return MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._store / 'mlflow.db'}"
        )

    def begin(self, job: Job) -> None:
        known = self._client.get_experiment_by_name(_suite(job))
        experiment = known.experiment_id if known else self._client.create_experiment(_suite(job))
        # The id of a job is the same at every start, so a tag finds the run of an earlier attempt.
        earlier = self._client.search_runs(
            [experiment], f"tags.`shiftbench.job` = '{job.id}'", max_results=1
        )
        if earlier:
            self._runs[job.id] = earlier[0].info.run_id
            self._client.update_run(self._runs[job.id], status="RUNNING")
            return
        run = self._client.create_run(
            experiment, tags={"shiftbench.job": job.id, "phase": job.phase}, run_name=job.title
        )
        self._runs[job.id] = run.info.run_id
        for key, value in _parameters(job).items():
            self._client.log_param(run.info.run_id, key, value)

    def log(self, job: Job, values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._runs[job.id], name, value, step=epoch)

    def end(self, job: Job, outcome: JobResult) -> None:
        status = {"done": "FINISHED", "cancelled": "KILLED"}.get(outcome.status, "FAILED")
        self._client.set_terminated(self._runs.pop(job.id), status)

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")


class _WandB:
    """A tracker that logs to Weights & Biases, with a run per trial.

    It uses the project WANDB_PROJECT (default `shiftbench`). With WANDB_MODE=offline it writes only
    below the store.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._runs: dict[str, Any] = {}

    def begin(self, job: Job) -> None:
        import wandb

        self._runs[job.id] = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "shiftbench"),
            id=job.id,
            name=job.title,
            group=f"{_suite(job)}/{job.backbone}",
            job_type=job.phase,
            config=_parameters(job),
            dir=str(self._store),
            # The id of a job is the same at every start, so an interrupted run is continued.
            resume="allow",
            # Trials run in parallel, and each has a run in this one process.
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        # The library's own step may only grow, but a trial that continues from its checkpoint may
        # repeat an epoch.
        self._runs[job.id].define_metric("*", step_metric="epoch")

    def log(self, job: Job, values: dict[str, float], epoch: int) -> None:
        # Final scores are no time series: the summary is what tables of runs show.
        if epoch:
            self._runs[job.id].log({**values, "epoch": epoch})
        else:
            self._runs[job.id].summary.update(values)

    def end(self, job: Job, outcome: JobResult) -> None:
        self._runs.pop(job.id).finish(exit_code=0 if outcome.status == "done" else 1)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish(exit_code=1)


#: Name of a tracker, which is also that of the optional dependency -> package to look for, class.
_KINDS: dict[str, tuple[str, Any]] = {
    "tensorboard": ("tensorboardX", _TensorBoard),
    "mlflow": ("mlflow", _MLflow),
    "wandb": ("wandb", _WandB),
}


def _suite(job: Job) -> str:
    return Path(job.suite).stem if job.suite.endswith(".toml") else job.suite


def _parameters(job: Job) -> dict[str, Any]:
    """Return the parameters of a trial in a flat dictionary, nested methods by dotted names."""
    flat: dict[str, Any] = {
        "method": job.method["name"],
        "backbone": job.backbone,
        "suite": _suite(job),
        "seed": job.seed,
    }

    def add(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and "name" in value:
                flat[prefix + key] = value["name"]
                add({k: v for k, v in value.items() if k != "name"}, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    add(job.method["parameters"], "")
    return flat
