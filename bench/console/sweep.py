"""A sweep on stderr: a live table of the running trials on a terminal, one line per change of state on a pipe."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..plain import plain
from ..spec import SEARCH_SEED
from ..tables.table import duration, stderr_console
from .stops import Ear, heard_by

if TYPE_CHECKING:
    from ..sweeps.job import Job, Outcome
    from ..sweeps.queue import Queue


#: Of the table of running trials; where there is little room, the method's name is cut first.
_COLUMNS = ("method", "seed", "epoch", "loss", "id-val", "doing", "where", "time")
#: Seconds of training that tell how long a step takes.
_TELLING = 2.0
#: Columns of a terminal below which a trial's line leaves out what it is doing, and where.
_NARROW = 100


@dataclass
class _Pace:
    """How quickly a training goes, by the steps that this process has seen of it.

    Attributes:
        goal: step at which the job ends. total: of the whole schedule.
    """

    first: tuple[int, float]
    last: tuple[int, float]
    goal: float
    total: int

    @property
    def seconds_per_step(self) -> float | None:
        """None while what was seen is too short to tell."""
        steps, seconds = self.last[0] - self.first[0], self.last[1] - self.first[1]
        return seconds / steps if steps > 0 and seconds >= _TELLING else None

    def left(self, now: float) -> float:
        """Seconds to the goal."""
        return (self.goal - self.last[0]) * (self.seconds_per_step or 0.0) - (now - self.last[1])


@dataclass
class _Trial:
    """What is known of a running trial."""

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
        """Seconds, by its own steps or else by earlier jobs of its kind; None if nothing tells, or that time is over."""
        if self.pace is not None and self.pace.seconds_per_step is not None:
            left = self.pace.left(now) + (self.evaluation or 0.0)
        elif self.expected is not None:
            left = self.expected - (now - self.since)
        else:
            return None
        return left if left > 0 else None


class SweepConsole:
    """Tells how a sweep goes, and turns Ctrl-C or SIGTERM into a stop: the first saves the state, the second does not wait.

    Use as a context manager: signal handlers and the terminal are put back at the end.

    Args:
        patient: whether the runner looks at `now`; one that trains in this process cannot, and is ended with it.
    """

    def __init__(self, queue: Queue, *, patient: bool = True) -> None:
        self.stop = 0
        self.now = False
        self._queue, self._patient = queue, patient
        self._console: Console = stderr_console()
        self._live: Live | None = None
        self._trials: dict[str, _Trial] = {}
        self._ahead = queue.ahead()
        self._told: set[str] = set()
        self._hearing = contextlib.ExitStack()

    def __enter__(self) -> SweepConsole:
        stopping = "stopping: running trials save their state (once more to stop at once)"
        hurry = self._hurry if self._patient else None
        self._hearing.enter_context(heard_by(Ear(self._line, self._close, self._ask, hurry, stopping)))
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        todo, done = self._queue.count("to do"), self._queue.count("done")
        to_come = f", {self._queue.to_come} to come" if self._queue.to_come else ""
        self._line(f"sweep: {done} jobs done before, {todo} to do{to_come}")
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._hearing.close()

    def _ask(self, number: int) -> None:
        self.stop = number

    def _hurry(self) -> None:
        self.now = True

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job, where: str) -> None:
        """See `Watch`."""
        expected = self._ahead.seconds.pop(job.id, None)
        self._trials[job.id] = _Trial(job, where, expected=expected, evaluation=self._queue.evaluation(job))
        self._line(f"started: {job.title} on {where}")

    def progress(self, job: Job, kind: str, fields: dict[str, Any]) -> None:
        """See `Watch`."""
        trial = self._trials.get(job.id)
        if trial is None:
            return
        if kind == "step":
            trial.doing, trial.loss = f"step {fields['step']}/{fields['total']}", fields["loss"]
            trial.share = fields["step"] / max(1, fields["total"])
            self._pace(trial, fields["step"], fields["total"])
        elif kind == "fit":
            trial.elsewhere, trial.pace = fields["fit_id"] != job.fit_id, None
        elif kind == "epoch":
            trial.epoch = f"{fields['epoch']}/{fields['epochs']}"
            trial.loss, trial.id_val = fields["loss"], fields["id_val"]
        elif kind == "evaluate":
            trial.doing, trial.share = f"evaluating {fields['split']}", 1.0
        elif kind == "data":
            trial.doing = f"data: {fields['what']} {fields['done']}/{fields['of']}"
        elif kind == "waiting":
            trial.doing = f"waiting for process {fields['pid']} on {fields['host']}"
            self._once(f"{job.title} waits for process {fields['pid']} on {fields['host']}, which works on the same fit")
        elif kind == "resumed":
            self._line(f"continued: {job.title}, at step {fields['step']} of {fields['total']}")
        elif kind == "warning":
            self._once(f"note: {fields['text']}")

    def settled(self, job: Job, outcome: Outcome) -> None:
        """See `Watch`."""
        self._trials.pop(job.id, None)
        self._ahead = self._queue.ahead()
        done, total = self._count()
        told = {"done": "done", "failed": "FAILED", "cancelled": "stopped", "lost": "lost"}[outcome.status]
        error = f": {outcome.error}" if outcome.error else ""
        self._line(f"{told}: {job.title}, {duration(outcome.seconds)}{error}  [{done} of {total}]")

    def _pace(self, trial: _Trial, step: int, total: int) -> None:
        """Learn from a step, of a fit that is the job's own, how long it and others of its kind will take."""
        if trial.elsewhere:
            return
        now, job = time.monotonic(), trial.job
        if trial.pace is None:
            share = 1.0 if job.epoch is None else job.epoch / float(job.method["parameters"]["epochs"])
            trial.pace = _Pace((step, now), (step, now), total * share, total)
        trial.pace.last = (step, now)
        per_step = trial.pace.seconds_per_step
        if per_step is not None and self._queue.observe(job, per_step * total):
            self._ahead = self._queue.ahead()

    def note(self, text: str) -> None:
        """See `Watch`."""
        self._line(f"note: {text}")

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._line(text)

    def _line(self, text: str) -> None:
        self._console.print(Text(plain(text)), soft_wrap=True)

    def _count(self) -> tuple[int, int]:
        queue = self._queue
        return queue.count("done", "failed"), queue.count("done", "failed", "to do", "running", "stopped") + queue.to_come

    def _picture(self) -> Group:
        queue = self._queue
        done, total = self._count()
        parts = done + sum(trial.share for trial in list(self._trials.values()))
        counts = f"{done}/{total}  running {len(self._trials)}  failed {queue.count('failed')}"
        narrow = self._console.width < _NARROW
        bar = Table.grid(padding=(0, 2))
        bar.add_row("sweep", ProgressBar(total=max(total, 1), completed=parts, width=6 if narrow else 30), counts, self._eta())
        running = [self._cells(trial) for trial in list(self._trials.values())]
        trials = Table.grid(padding=(0, 2))
        shown = [name for name in _COLUMNS if not (narrow and name in ("doing", "where"))]
        for name in shown:
            trials.add_column(name, no_wrap=name != "method")
        if running:
            trials.add_row(*(Text("" if name in ("doing", "where", "time") else name, style="dim") for name in shown))
        for cells in running:
            trials.add_row(*(Text(plain(cells[name]), no_wrap=True, overflow="ellipsis") for name in shown))
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
        """Shared by as many trials as run now; at least as long as the longest of them. Nothing where nothing is known."""
        now = time.monotonic()
        running = [(trial.left(now), trial.evaluation is None) for trial in list(self._trials.values())]
        known = [left for left, _ in running if left is not None]
        unknown = self._ahead.unknown or any(left is None or partly for left, partly in running)
        left = max((self._ahead.total + sum(known)) / max(1, len(running)), *known, 0.0)
        if not left:
            return ""
        return f"{'over' if unknown else 'about'} {duration(left)} left"
