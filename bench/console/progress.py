"""Show progress on stderr: a bar on a terminal, one line per event on a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..plain import plain
from ..stopping import Reporter
from ..tables.table import stderr_console
from .signals import StopHandler, handled_by

if TYPE_CHECKING:
    from ..results.record import RunRecord
    from ..sweeps.job import Job, JobResult


class StderrReporter(Reporter):
    """A reporter that prints events and stops on Ctrl-C.

    The first Ctrl-C or SIGTERM requests a stop, which saves the state; the second ends the process.
    Use it as a context manager: signal handlers and the terminal are restored at the end. A
    subclass has a method `_KIND` for each kind of event that it shows.
    """

    #: Printed at the first signal.
    _stopping = "stopping: saving the state (press Ctrl-C again to stop at once)"
    #: Called at the second signal, instead of ending the process.
    _hurry: Callable[[], None] | None = None

    def __init__(self) -> None:
        self._console: Console = stderr_console()
        self._display: Progress | Live | None = None
        self._printed: set[str] = set()
        self._signals = contextlib.ExitStack()

    def _make_display(self) -> Progress | Live:
        """Return what a terminal shows below the lines."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        # Signals before the display: a Ctrl-C while it starts must restore the cursor too.
        self._signals.enter_context(
            handled_by(
                StopHandler(
                    self._line, self._close, self._request_stop, self._hurry, self._stopping
                )
            )
        )
        # Only a terminal can redraw; in a log file or a pipe, every refresh would be a line.
        if self._console.is_terminal:
            self._display = self._make_display()
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._signals.close()

    def _request_stop(self, number: int) -> None:
        self.stop = number

    def _close(self) -> None:
        if self._display is not None:
            self._display.stop()

    def event(self, kind: str, **fields: Any) -> None:
        """Show an event; unknown kinds are not shown."""
        show = getattr(self, f"_{kind.replace('-', '_')}", None)
        if show is not None:
            show(**fields)

    def _line(self, text: str) -> None:
        # Soft wrap leaves long lines to the terminal, so that paths and commands can be copied.
        self._console.print(Text(plain(text, strip=False)), soft_wrap=True)

    def _once(self, text: str) -> None:
        # Trials of one sweep repeat each other's warnings.
        if text not in self._printed:
            self._printed.add(text)
            self._line(text)

    def _warning(self, text: str, **_: object) -> None:
        self._once(f"note: {text}")


class ConsoleReporter(StderrReporter):
    """A reporter for one activity at a time, with a bar that shows each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self._task: TaskID | None = None
        self._method = ""

    def _make_display(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self._console, transient=True)

    def _advance(self, description: str, done: int, of: int, note: str = "") -> None:
        if not isinstance(self._display, Progress):
            return
        bar = self._display
        # Names come from cards and plug-ins; Rich would read their square brackets as markup.
        description, note = escape(plain(description)), escape(plain(note))
        # Another description is another activity. It gets a new task, so that the time left is not
        # estimated from the speed of the one before.
        if self._task is None or bar.tasks[0].description != description:
            if self._task is not None:
                bar.remove_task(self._task)
            self._task = bar.add_task(description, total=of, note="")
        bar.update(self._task, completed=done, total=of, note=note)

    def _data(self, what: str, done: int, of: int, unit: str = "images", **_: object) -> None:
        amount: Callable[[int], str] = decimal if unit == "bytes" else str
        self._advance(what, done, of, f"{amount(done)}/{amount(of)}")
        # Without a bar, one line when the step is finished.
        if self._display is None and done == of:
            self._line(
                f"data: {what}"
                + (f", {amount(of)} {unit}".removesuffix(" bytes") if of > 1 and unit else "")
            )

    def _fit(self, method: str, fit_id: str, seed: int, **_: object) -> None:
        self._method = method
        self._line(f"fit {fit_id[:8]}: {method}, seed {seed}")

    def _reused(self, method: str, fit_id: str, **_: object) -> None:
        self._line(f"fit {fit_id[:8]}: {method}, already trained")

    def _started(self, job: Job, **_: object) -> None:
        if job.trial is not None:
            self._line(f"search: {job.label}, trial {job.trial}")

    def _resumed(self, step: int, total: int, **_: object) -> None:
        self._line(f"continuing at step {step} of {total}")

    def _waiting(self, pid: int | None = None, host: str | None = None, **_: object) -> None:
        self._once(
            f"note: waiting for process {pid} on {host}, which works on the same fit or run; if it"
            " dies, this process takes over"
        )

    def _step(self, step: int, total: int, loss: float, **_: object) -> None:
        self._advance(
            f"training {self._method}", step, total, f"step {step}/{total}  loss {loss:.3f}"
        )

    def _epoch(self, epoch: int, epochs: int, loss: float, id_val: float, **_: object) -> None:
        self._line(f"  epoch {epoch}/{epochs}: loss {loss:.4f}, id-val {100 * id_val:.1f}")

    def _evaluate(self, split: str, done: int, of: int, **_: object) -> None:
        self._advance(f"evaluating {split}", done, of, f"{done}/{of}")

    def _run(self, record: RunRecord, path: object, **_: object) -> None:
        if record.status == "failed":
            self._line(f"FAILED {record.label}, seed {record.seed}: {record.error}")
            return
        ood = "none" if record.ood is None else f"{100 * record.ood:.1f}"
        split = "id-test" if "id-test" in record.metrics else "id-val"
        self._line(
            f"done: {record.label}, seed {record.seed}: {split}"
            f" {100 * record.metrics[split].score:.1f}, OOD {ood} -> {path}"
        )

    def _settled(self, job: Job, outcome: JobResult) -> None:
        # A job that failed has a record, which `_run` shows; only a lost one has none.
        if outcome.status == "lost":
            self._line(f"FAILED {job.title}: {outcome.error}")

    def _done_before(self, record: RunRecord, path: object, **_: object) -> None:
        merged = f", merged from {record.origin['pack']}" if record.origin else ""
        self._line(f"already done{merged}: {record.label}, seed {record.seed} -> {path}")
