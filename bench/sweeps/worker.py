"""Execute one job of a sweep in a trial's process, and return how it ended."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..configure import build_method
from ..engine import Engine, default_device, release_memory
from ..errors import BenchError, Interrupted
from ..plugins import trust
from ..run_spec import RunSpec
from ..runs.experiment import Experiment
from ..stopping import PassedOn, Reporter, foreign
from ..training.devices import DeviceLost
from .job import Job, JobResult


@dataclass
class Work:
    """The settings that all trials of a sweep share, sent once to each process.

    Args:
        spec: location and limits of the data; methods, suite, backbone and seeds come from the job.
        store: absolute path of the store.
        engine: settings of a trial's process.
        device: value of `--device`; None: the best device that the trial's process sees.
        timeout: seconds after which an attempt at a job saves its state and fails.
        grace: seconds in which a trial that has to stop can save its state, before its process is
            killed.
    """

    spec: RunSpec
    store: Path
    engine: Engine
    device: str | None = None
    timeout: float | None = None
    grace: float = 60.0
    _open: dict[tuple[str, str, bool], Experiment] = field(
        default_factory=dict, init=False, repr=False
    )
    # Opened suites and backbones stay open for the next job of the process, and refer to a
    # reporter. So they are opened with this one, which forwards to the reporter of the job at hand.
    _relay: _Relay = field(default_factory=lambda: _Relay(), init=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        # Open datasets and reporters belong to a process.
        return {**self.__dict__, "_open": {}, "_relay": _Relay()}

    @property
    def patience(self) -> float | None:
        """Seconds after which an attempt counts as hanging, since its timeout did not stop it."""
        return None if self.timeout is None else self.timeout + self.grace

    @property
    def hung(self) -> str:
        """The error of an attempt that hangs."""
        return f"not done within {self.timeout:g} s, and did not stop when requested"

    def do(self, job: Job, reporter: Reporter) -> JobResult:
        """Execute a job in this process; errors of the trial are returned and not raised.

        Args:
            job: the job; one of phase `search` evaluates id-val alone.
            reporter: receives the trial's events; its `stop` ends the trial.

        Returns:
            How the attempt ended.
        """
        start = time.monotonic()
        self._relay.begin(
            reporter, until=None if self.timeout is None else start + self.timeout, epoch=job.epoch
        )
        try:
            with foreign():
                error = self._do(job)
        # The process of another device of this trial died: the same as if this one had been killed.
        except DeviceLost as lost:
            return JobResult("lost", lost.what, time.monotonic() - start)
        # Three things stop a trial in the same way: a rung's last epoch, a stop that the user
        # requested, and the timeout. A stop takes precedence over a timeout.
        except Interrupted:
            if self._relay.there:
                return JobResult("done", seconds=time.monotonic() - start)
            if reporter.stop or not self._relay.late:
                return JobResult("cancelled", seconds=time.monotonic() - start)
            error = (
                f"not done within {self.timeout:g} s; the same command with a greater --timeout"
                " continues it"
            )
        except BenchError as failure:
            error = _in_one_line(str(failure))
        # A plug-in may raise anything: this trial fails, and the others continue.
        except Exception as failure:
            if os.environ.get("BENCH_DEBUG"):
                traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
        finally:
            # This process may wait long for its next job, while others share its GPU. A process
            # that has not imported torch is not made to.
            if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
                release_memory()
        return JobResult("failed" if error else "done", error, time.monotonic() - start)

    def _do(self, job: Job) -> str:
        """Execute a job, and return the error of a failed run; "" otherwise."""
        from ..runs.execute import execute

        # The driver has already checked that the user named these files of code.
        trust([job.method["name"], job.method["parameters"]])
        method = build_method(job.method["name"], job.method["parameters"])
        experiment = self._experiment(job, training=method.trains or job.phase == "search")
        # The id is a hash of everything that a fit depends on, so this check alone rules out that a
        # node with other data or another version contributes to the results.
        found = experiment.fit_id(method)
        if found != job.fit_id:
            raise BenchError(
                f"this process would train fit {found}, but the plan expects {job.fit_id}: "
                "its data, weights, files or version differ from the driver's"
            )
        if not job.is_run:
            experiment.fit(method)
            return ""
        record = execute(
            experiment,
            method,
            limit=self.spec.limit,
            search=job.phase == "search",
            curve=job.curve,
            keep_logits=self.spec.keep_logits,
            **job.chosen,
        )
        return _in_one_line(record.error) if record.status == "failed" else ""

    def _experiment(self, job: Job, *, training: bool) -> Experiment:
        """Return the job's backbone and suite, opened once per process."""
        from ..runs.experiment import experiments

        # A suite that was opened with its training images serves jobs that need none, too; the
        # reverse case opens it again.
        place = (job.suite, job.backbone)
        training = training or (*place, True) in self._open
        if (*place, training) not in self._open:
            spec = self.spec.model_copy(
                update={"suite": job.suite, "backbone": job.backbone, "seeds": (job.seed,)}
            )
            engine = replace(self.engine, device=self.device or default_device())
            (opened,) = experiments(
                spec, store=self.store, engine=engine, reporter=self._relay, training=training
            )
            self._open[*place, training] = opened
        opened = self._open[*place, training]
        opened.setup.engine.apply()
        return opened.with_seed(job.seed)


def _in_one_line(error: str) -> str:
    """Return an error as "what (where); fix", without a traceback, which the record has."""
    what, *rest = error.splitlines()
    for line in rest:
        name, _, text = line.strip().partition(": ")
        what += f" ({text})" if name == "where" else f"; {text}" if name == "fix" else ""
    return what


class _Relay(PassedOn):
    """A reporter that forwards to that of the current job, and stops it at its time or epoch."""

    def __init__(self) -> None:
        super().__init__(Reporter())
        self._until: float | None = None
        self._epoch: int | None = None
        #: Whether training has reached the last epoch of the job.
        self.there = False

    def begin(self, to: Reporter, *, until: float | None, epoch: int | None) -> None:
        """Begin a job.

        Args:
            to: the reporter of the job.
            until: time on the monotonic clock at which it has to stop; None: never.
            epoch: epoch after which it has to stop; None: the method's last one.
        """
        self.to, self._until, self._epoch, self.there = to, until, epoch, False

    @property
    def late(self) -> bool:
        """Whether the time of the job is up."""
        return self._until is not None and time.monotonic() > self._until

    @property
    def stop(self) -> int:  # type: ignore[override]
        """The number of the signal that requested a stop, SIGTERM at the end of time or epochs."""
        # The engine knows one way to stop, which saves the state; a rung and a timeout use it too.
        return self.to.stop or (signal.SIGTERM if self.late or self.there else 0)

    def event(self, kind: str, **fields: Any) -> None:
        """Pass an event on, and notice the last epoch of the job."""
        if kind == "epoch" and self._epoch is not None and fields["epoch"] >= self._epoch:
            self.there = True
        super().event(kind, **fields)
