"""Progress on stderr: a bar on a terminal, one line per event on a pipe; and the two-step stop on
Ctrl-C.
"""

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
from .stops import Ear, heard_by

if TYPE_CHECKING:
    from ..results.record import RunRecord
    from ..sweeps.job import Job, Outcome


class StderrReporter(Reporter):
    """Tells what happens, and turns the first Ctrl-C or SIGTERM into a request to stop; the second
    ends the process.

    Use as a context manager: signal handlers and the terminal are put back at the end. A subclass
    has a method `_KIND` for each kind of event that it shows.
    """

    _stopping = "stopping: saving the state (once more to stop at once)"
    #: Told of the second signal instead of the process being ended.
    _hurry: Callable[[], None] | None = None

    def __init__(self) -> None:
        self._console: Console = stderr_console()
        self._painting: Progress | Live | None = None
        self._said: set[str] = set()
        self._hearing = contextlib.ExitStack()

    def _picture(self) -> Progress | Live:
        """What a terminal shows all the while."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._hearing.enter_context(
            heard_by(Ear(self._line, self._close, self._ask, self._hurry, self._stopping))
        )
        if self._console.is_terminal:
            self._painting = self._picture()
            self._painting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._hearing.close()

    def _ask(self, number: int) -> None:
        self.stop = number

    def _close(self) -> None:
        if self._painting is not None:
            self._painting.stop()

    def event(self, kind: str, **fields: Any) -> None:
        """Show an event; unknown kinds are not shown."""
        shown = getattr(self, f"_{kind.replace('-', '_')}", None)
        if shown is not None:
            shown(**fields)

    def _line(self, text: str) -> None:
        self._console.print(Text(plain(text, strip=False)), soft_wrap=True)

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._line(text)

    def _warning(self, text: str, **_: object) -> None:
        self._once(f"note: {text}")


class ConsoleReporter(StderrReporter):
    """Tells of one thing at a time, each step of it."""

    def __init__(self) -> None:
        super().__init__()
        self._task: TaskID | None = None
        self._method = ""

    def _picture(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self._console, transient=True)

    def _advance(self, description: str, done: int, of: int, note: str = "") -> None:
        if not isinstance(self._painting, Progress):
            return
        bar = self._painting
        description, note = escape(plain(description)), escape(plain(note))
        if self._task is None or bar.tasks[0].description != description:
            if self._task is not None:
                bar.remove_task(self._task)
            self._task = bar.add_task(description, total=of, note="")
        bar.update(self._task, completed=done, total=of, note=note)

    def _data(self, what: str, done: int, of: int, unit: str = "images", **_: object) -> None:
        shown: Callable[[int], str] = decimal if unit == "bytes" else str
        self._advance(what, done, of, f"{shown(done)}/{shown(of)}")
        if self._painting is None and done == of:
            self._line(
                f"data: {what}"
                + (f", {shown(of)} {unit}".removesuffix(" bytes") if of > 1 and unit else "")
            )

    def _fit(self, method: str, fit_id: str, seed: int, **_: object) -> None:
        self._method = method
        self._line(f"fit {fit_id[:8]}: {method}, seed {seed}")

    def _reused(self, method: str, fit_id: str, **_: object) -> None:
        self._line(f"fit {fit_id[:8]}: {method}, trained before")

    def _started(self, job: Job, **_: object) -> None:
        if job.trial is not None:
            self._line(f"search: {job.label}, trial {job.trial}")

    def _resumed(self, step: int, total: int, **_: object) -> None:
        self._line(f"continuing at step {step} of {total}")

    def _waiting(self, pid: int | None = None, host: str | None = None, **_: object) -> None:
        self._once(
            f"note: waiting for process {pid} on {host}, which works on the same; it is taken over"
            " if it dies"
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

    def _settled(self, job: Job, outcome: Outcome) -> None:
        if outcome.status == "lost":
            self._line(f"FAILED {job.title}: {outcome.error}")

    def _done_before(self, record: RunRecord, path: object, **_: object) -> None:
        came = f", merged from {record.origin['pack']}" if record.origin else ""
        self._line(f"done before{came}: {record.label}, seed {record.seed} -> {path}")
