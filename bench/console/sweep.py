"""Show a sweep on stderr: a live table of running trials, or one line per event on a pipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..plain import plain
from ..run_spec import SEARCH_SEED
from ..tables.table import duration
from .progress import StderrReporter

if TYPE_CHECKING:
    from ..sweeps.job import Job, JobResult
    from ..sweeps.queue import Queue


#: Columns of the table of running trials. Where the terminal is too narrow, only the method's name
#: is cut: the numbers are what a user looks for.
_COLUMNS = ("method", "seed", "epoch", "loss", "id-val", "doing", "where", "time")
#: Seconds of training after which the time per step is used: the first steps are not typical.
_TELLING = 2.0
#: Width of a terminal below which the columns `doing` and `where` are left out.
_NARROW = 100


@dataclass
class _Pace:
    """The speed of a training, measured on the steps since it was started or resumed.

    Attributes:
        first: Step and time of the first report.
        last: Step and time of the latest report.
        goal: Step at which the job ends; at a rung of ASHA, before the end of the schedule.
        total: Steps of the whole schedule.
    """

    first: tuple[int, float]
    last: tuple[int, float]
    goal: float
    total: int

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds per step; None until enough of them are measured."""
        steps, seconds = self.last[0] - self.first[0], self.last[1] - self.first[1]
        return seconds / steps if steps > 0 and seconds >= _TELLING else None

    def left(self, now: float) -> float:
        """Return the seconds from `now` to the goal."""
        return (self.goal - self.last[0]) * (self.seconds_per_step or 0.0) - (now - self.last[1])


@dataclass
class _Trial:
    """The state of a running trial.

    Attributes:
        share: Share of the work that is done, for the bar of the sweep.
        expected: Seconds of the whole job by earlier jobs of its kind; None if there are none.
        evaluation: Seconds of the evaluation after training; None if unknown.
        elsewhere: Whether the trial trains another fit than its own, on which its own is built.
    """

    job: Job
    where: str
    since: float = field(default_factory=lambda: time.monotonic())
    epoch: str = ""
    loss: float | None = None
    id_val: float | None = None
    doing: str = "starting"
    share: float = 0.0
    expected: float | None = None
    evaluation: float | None = 0.0
    pace: _Pace | None = None
    elsewhere: bool = False

    def left(self, now: float) -> float | None:
        """Return the estimated seconds to the end of the trial; None if unknown.

        The estimate is by the trial's own steps, or else by earlier jobs of its kind.
        """
        if self.pace is not None and self.pace.seconds_per_step is not None:
            left = self.pace.left(now) + (self.evaluation or 0.0)
        elif self.expected is not None:
            left = self.expected - (now - self.since)
        else:
            return None
        # A trial that takes longer than estimated has proved the estimate wrong.
        return left if left > 0 else None


class SweepConsole(StderrReporter):
    """A reporter for a sweep. At the second signal it ends the running trials, then the process.

    Args:
        queue: The queue of the sweep, for counts and estimates.
        patient: Whether the runner ends its trials when `now` is set. The inline runner trains in
            this process, so it cannot, and the process is ended at once.
    """

    _stopping = "stopping: running trials save their state (press Ctrl-C again to stop at once)"

    def __init__(self, queue: Queue, *, patient: bool = True) -> None:
        super().__init__()
        self._queue = queue
        self._hurry = self._stop_now if patient else None
        self._trials: dict[str, _Trial] = {}
        # Estimating all jobs takes a while, so the result is cached until a job settles or the
        # speed of a kind of job becomes known; the display is redrawn four times a second.
        self._ahead = queue.ahead()

    def __enter__(self) -> Self:
        super().__enter__()
        todo, done = self._queue.count("to do"), self._queue.count("done")
        to_come = f", {self._queue.to_come} to come" if self._queue.to_come else ""
        self._line(f"sweep: {done} jobs already done, {todo} to do{to_come}")
        return self

    def _stop_now(self) -> None:
        self.now = True

    def _make_display(self) -> Live:
        return Live(
            get_renderable=self._rows, console=self._console, refresh_per_second=4, transient=True
        )

    def event(self, kind: str, **fields: Any) -> None:
        """Show an event of the sweep or of one of its running trials."""
        # Events of a job that has settled may still arrive from its process; they are dropped.
        if "job" not in fields or kind in ("started", "settled", "warning"):
            super().event(kind, **fields)
        elif (trial := self._trials.get(fields["job"].id)) is not None:
            super().event(kind, **fields, trial=trial)

    def _started(self, job: Job, where: str) -> None:
        expected = self._ahead.seconds.pop(job.id, None)
        self._trials[job.id] = _Trial(
            job, where, expected=expected, evaluation=self._queue.evaluation(job)
        )
        self._line(f"started: {job.title} on {where}")

    def _step(self, trial: _Trial, step: int, total: int, loss: float, **_: object) -> None:
        trial.doing, trial.loss, trial.share = f"step {step}/{total}", loss, step / max(1, total)
        self._pace(trial, step, total)

    def _fit(self, trial: _Trial, fit_id: str, **_: object) -> None:
        # A trial may first train what its fit is built on. Another fit has another speed.
        trial.elsewhere, trial.pace = fit_id != trial.job.fit_id, None

    def _epoch(
        self, trial: _Trial, epoch: int, epochs: int, loss: float, id_val: float, **_: object
    ) -> None:
        trial.epoch, trial.loss, trial.id_val = f"{epoch}/{epochs}", loss, id_val

    def _evaluate(self, trial: _Trial, split: str, **_: object) -> None:
        trial.doing, trial.share = f"evaluating {split}", 1.0

    def _data(self, trial: _Trial, what: str, done: int, of: int, **_: object) -> None:
        trial.doing = f"data: {what} {done}/{of}"

    def _waiting(self, trial: _Trial, pid: int | None, host: str | None, **_: object) -> None:
        trial.doing = f"waiting for process {pid} on {host}"
        self._once(
            f"{trial.job.title} waits for process {pid} on {host}, which works on the same fit"
        )

    def _resumed(self, trial: _Trial, step: int, total: int, **_: object) -> None:
        self._line(f"continued: {trial.job.title}, at step {step} of {total}")

    def _settled(self, job: Job, outcome: JobResult) -> None:
        self._trials.pop(job.id, None)
        self._ahead = self._queue.ahead()
        done, total = self._count()
        status = {"done": "done", "failed": "FAILED", "cancelled": "stopped", "lost": "lost"}[
            outcome.status
        ]
        error = f": {outcome.error}" if outcome.error else ""
        self._line(
            f"{status}: {job.title}, {duration(outcome.seconds)}{error}  [{done} of {total}]"
        )

    def _pace(self, trial: _Trial, step: int, total: int) -> None:
        """Estimate from a step how long the trial and others of its kind will take."""
        if trial.elsewhere:
            return
        now, job = time.monotonic(), trial.job
        if trial.pace is None:
            # The first step that is seen may be far from 0: a resumed trial continues its schedule.
            share = (
                1.0 if job.epoch is None else job.epoch / float(job.method["parameters"]["epochs"])
            )
            trial.pace = _Pace((step, now), (step, now), total * share, total)
        trial.pace.last = (step, now)
        per_step = trial.pace.seconds_per_step
        if per_step is not None and self._queue.observe(job, per_step * total):
            self._ahead = self._queue.ahead()

    def _count(self) -> tuple[int, int]:
        """Return the number of settled jobs and of all jobs, those not planned yet included."""
        queue = self._queue
        return (
            queue.count("done", "failed"),
            queue.count("done", "failed", "to do", "running", "stopped") + queue.to_come,
        )

    def _rows(self) -> Group:
        # Called by the thread of Rich's display. The dictionary is copied before each iteration,
        # since trials start and settle in the main thread at the same time.
        queue = self._queue
        done, total = self._count()
        parts = done + sum(trial.share for trial in list(self._trials.values()))
        counts = f"{done}/{total}  running {len(self._trials)}  failed {queue.count('failed')}"
        narrow = self._console.width < _NARROW
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            "sweep",
            ProgressBar(total=max(total, 1), completed=parts, width=6 if narrow else 30),
            counts,
            self._eta(),
        )
        running = [self._cells(trial) for trial in list(self._trials.values())]
        trials = Table.grid(padding=(0, 2))
        shown = [name for name in _COLUMNS if not (narrow and name in ("doing", "where"))]
        for name in shown:
            trials.add_column(name, no_wrap=name != "method")
        if running:
            trials.add_row(
                *(
                    Text("" if name in ("doing", "where", "time") else name, style="dim")
                    for name in shown
                )
            )
        for cells in running:
            trials.add_row(
                *(Text(plain(cells[name]), no_wrap=True, overflow="ellipsis") for name in shown)
            )
        return Group(bar, trials)

    @staticmethod
    def _cells(trial: _Trial) -> dict[str, str]:
        cells = (
            trial.job.name,
            str(trial.job.seed) if trial.job.seed != SEARCH_SEED else "search",
            trial.epoch,
            "" if trial.loss is None else f"{trial.loss:.3f}",
            "" if trial.id_val is None else f"{100 * trial.id_val:.1f}",
            trial.doing,
            trial.where,
            duration(time.monotonic() - trial.since),
        )
        return dict(zip(_COLUMNS, cells, strict=True))

    def _eta(self) -> str:
        """Return the estimated time left as text; empty if nothing is known."""
        # The work is divided by the trials that run now, as the number of slots is the runner's
        # and may change on a cluster. The sweep ends no earlier than its longest running trial.
        now = time.monotonic()
        running = [
            (trial.left(now), trial.evaluation is None) for trial in list(self._trials.values())
        ]
        known = [left for left, _ in running if left is not None]
        unknown = self._ahead.unknown or any(left is None or partly for left, partly in running)
        left = max((self._ahead.total + sum(known)) / max(1, len(running)), *known, 0.0)
        if not left:
            return ""
        # "over": jobs whose time is unknown come on top.
        return f"{'over' if unknown else 'about'} {duration(left)} left"
