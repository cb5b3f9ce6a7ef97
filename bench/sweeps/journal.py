"""`sweep.jsonl` of a store: one line per change of state, for other tools; nothing of ShiftBench reads it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from .job import Job, Outcome
from .runner import Watch


class Journal:
    """A watch that writes the lines and passes everything on.

    A line is `{"time": unix seconds, "sweep": id, "event": "planned" | "started" | "epoch" | "settled" | "ended", ...}`. Several
    sweeps may write to one file: a line is appended in one piece.
    """

    def __init__(self, watch: Watch, path: Path, sweep: str) -> None:
        self._watch, self._path, self._sweep = watch, path, sweep
        self._broken = False

    @property
    def stop(self) -> int:
        """As the watch's."""
        return self._watch.stop

    @property
    def now(self) -> bool:
        """As the watch's."""
        return self._watch.now

    def write(self, event: str, **fields: Any) -> None:
        """Append a line. A full disk ends the journal, told once, and not the sweep."""
        if self._broken:
            return
        line = json.dumps({"time": round(time.time(), 3), "sweep": self._sweep, "event": event, **fields}) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._broken = True
            self._watch.note(f"{self._path} cannot be written ({error.strerror}); the sweep goes on without it")

    def started(self, job: Job, where: str) -> None:
        """See `Watch`."""
        self.write("started", where=where, **_named(job))
        self._watch.started(job, where)

    def progress(self, job: Job, kind: str, fields: dict[str, Any]) -> None:
        """See `Watch`; of a trial's progress only its epochs are written."""
        if kind == "epoch":
            self.write("epoch", job=job.id, **fields)
        self._watch.progress(job, kind, fields)

    def settled(self, job: Job, outcome: Outcome) -> None:
        """See `Watch`."""
        self.write("settled", status=outcome.status, error=outcome.error, seconds=round(outcome.seconds, 3), **_named(job))
        self._watch.settled(job, outcome)

    def note(self, text: str) -> None:
        """See `Watch`."""
        self.write("note", text=text)
        self._watch.note(text)


def _named(job: Job) -> dict[str, Any]:
    keys = ("phase", "label", "suite", "backbone", "seed", "trial", "fit_id")
    return {"job": job.id, "method": job.method["name"], **{key: getattr(job, key) for key in keys}}
