"""What one trial's process does with one job; whatever dispatches it, the fit store and the run
folder tell how it went.
"""

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
from ..runs.experiment import Experiment
from ..spec import RunSpec
from ..stopping import PassedOn, Reporter, foreign
from ..training.devices import DeviceLost
from .job import Job, Outcome


@dataclass
class Work:
    """The settings that all trials of a sweep share; picklable, and made once per process.

    Args:
        spec: where data are and what is left out; methods, suite, backbone and seeds come from the
            job.
        store: absolute path of the store.
        engine: settings of a trial's process.
        device: as `--device`; None takes the best that the trial's process sees.
        timeout: seconds of one attempt at a job; then its state is saved, and it has failed.
        grace: seconds that a trial gets to save its state when it is told to stop, before its
            process is ended.
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
    _relay: _Relay = field(default_factory=lambda: _Relay(), init=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}, "_relay": _Relay()}

    @property
    def patience(self) -> float | None:
        """Seconds after which an attempt hangs: it did not stop when its time was up."""
        return None if self.timeout is None else self.timeout + self.grace

    @property
    def hung(self) -> str:
        """What is told of such an attempt."""
        return f"not done within {self.timeout:g} s, nor stopped when it was told to"

    def do(self, job: Job, reporter: Reporter) -> Outcome:
        """Fit, or fit and measure, and say how it ended; only a bug of ShiftBench's own raises, or
        Ctrl-C.

        A job of the search phase looks at id-val and at nothing else.
        """
        start = time.monotonic()
        self._relay.begin(
            reporter, until=None if self.timeout is None else start + self.timeout, epoch=job.epoch
        )
        try:
            with foreign():
                error = self._do(job)
        except DeviceLost as lost:  # as if this process itself had been killed
            return Outcome("lost", lost.what, time.monotonic() - start)
        except Interrupted:
            if self._relay.there:
                return Outcome("done", seconds=time.monotonic() - start)
            if reporter.stop or not self._relay.late:
                return Outcome("cancelled", seconds=time.monotonic() - start)
            error = (
                f"not done within {self.timeout:g} s; the same command continues it, with a greater"
                " --timeout"
            )
        except BenchError as failure:
            error = _in_one_line(str(failure))
        # A plug-in may raise anything: this trial is a failed row, and the others go on
        except Exception as failure:
            if os.environ.get("BENCH_DEBUG"):
                traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
        finally:
            # For the trials that share its GPU: this process may wait for its next job.
            if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
                release_memory()
        return Outcome("failed" if error else "done", error, time.monotonic() - start)

    def _do(self, job: Job) -> str:
        """The error of a failed run, or nothing."""
        from ..runs.execute import execute

        trust([job.method["name"], job.method["parameters"]])  # the driver has asked
        method = build_method(job.method["name"], job.method["parameters"])
        experiment = self._experiment(job, training=method.trains or job.phase == "search")
        found = experiment.fit_id(method)
        if found != job.fit_id:
            raise BenchError(
                f"this process would train fit {found} where the plan says {job.fit_id}: "
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
        """The job's backbone and suite, opened once per process (anew if training images are needed
        that were not opened).
        """
        from ..runs.experiment import experiments

        place, training = (
            (job.suite, job.backbone),
            training
            or (
                job.suite,
                job.backbone,
                True,
            )
            in self._open,
        )
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
    """What is wrong (where); what to do. A traceback is left to the record."""
    what, *rest = error.splitlines()
    for line in rest:
        name, _, text = line.strip().partition(": ")
        what += f" ({text})" if name == "where" else f"; {text}" if name == "to mend" else ""
    return what


class _Relay(PassedOn):
    """Stands for the reporter of the job at hand wherever one is kept, and asks to stop where the
    job's time or epochs end.
    """

    def __init__(self) -> None:
        super().__init__(Reporter())
        self._until: float | None = None
        self._epoch: int | None = None
        #: Whether training has come to the epoch as far as which the job goes.
        self.there = False

    def begin(self, to: Reporter, *, until: float | None, epoch: int | None) -> None:
        """With a job: up to this moment of the monotonic clock, and as far as this epoch."""
        self.to, self._until, self._epoch, self.there = to, until, epoch, False

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self._until is not None and time.monotonic() > self._until

    @property
    def stop(self) -> int:  # type: ignore[override]
        """As the reporter's, or SIGTERM when the job is to end."""
        return self.to.stop or (signal.SIGTERM if self.late or self.there else 0)

    def event(self, kind: str, **fields: Any) -> None:
        """Pass on."""
        if kind == "epoch" and self._epoch is not None and fields["epoch"] >= self._epoch:
            self.there = True
        super().event(kind, **fields)
