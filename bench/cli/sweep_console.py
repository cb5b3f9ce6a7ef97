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

from ..spec import SEARCH_SEED
from .output import duration, plain, stderr_console
from .stops import Ear, heard_by

if TYPE_CHECKING:
    from ..sweeps.job import Job, Outcome
    from ..sweeps.queue import Queue


#: Of the table of running trials; where there is little room, the method's name is cut first.
_COLUMNS = ("method", "seed", "epoch", "loss", "id-val", "doing", "where", "time")
#: Columns of a terminal below which a trial's line leaves out what it is doing, and where.
_NARROW = 100


@dataclass
class _Trial:
    """What is known of a running trial."""

    job: Job
    where: str
    since: float = field(default_factory=time.monotonic)
    epoch: str = ""
    loss: float | None = None
    id_val: float | None = None
    doing: str = "starting"
    share: float = 0.0


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
        self._left, self._left_at = queue.seconds_left, time.monotonic()
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
        self._trials[job.id] = _Trial(job, where)
        self._line(f"started: {job.title} on {where}")

    def progress(self, job: Job, kind: str, fields: dict[str, Any]) -> None:
        """See `Watch`."""
        trial = self._trials.get(job.id)
        if trial is None:
            return
        if kind == "step":
            trial.doing, trial.loss = f"step {fields['step']}/{fields['total']}", fields["loss"]
            trial.share = fields["step"] / max(1, fields["total"])
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
        self._left, self._left_at = self._queue.seconds_left, time.monotonic()
        done, total = self._count()
        told = {"done": "done", "failed": "FAILED", "cancelled": "stopped", "lost": "lost"}[outcome.status]
        error = f": {outcome.error}" if outcome.error else ""
        self._line(f"{told}: {job.title}, {duration(outcome.seconds)}{error}  [{done} of {total}]")

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
        """By what earlier jobs of each kind took, as of the last end of a trial, shared by as many as run now."""
        if self._left is None:
            return ""
        left = self._left / max(1, len(self._trials)) - (time.monotonic() - self._left_at)
        return f"about {duration(max(left, 1.0))} left"
