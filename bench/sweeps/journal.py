"""`sweep.jsonl` of a store: one line per change of state, for other tools; nothing of ShiftBench reads it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ..stopping import PassedOn, Reporter
from .job import Job, Outcome


class Journal(PassedOn):
    """A reporter that writes the lines and passes everything on.

    A line is `{"time": unix seconds, "sweep": id, "event": "planned" | "started" | "epoch" | "settled" | "ended", ...}`. Several
    sweeps may write to one file: a line is appended in one piece.
    """

    def __init__(self, to: Reporter, path: Path, sweep: str) -> None:
        super().__init__(to)
        self._path, self._sweep, self._broken = path, sweep, False

    def event(self, kind: str, **fields: Any) -> None:
        """Write what changes the state of a job, its epochs, and notes on the whole sweep; pass everything on."""
        job: Job | None = fields.get("job")
        if kind == "warning" and job is None:
            self.write("note", text=fields["text"])
        elif kind == "started" and job is not None:
            self.write(kind, where=fields["where"], **_named(job))
        elif kind == "epoch" and job is not None:
            self.write(kind, **{**fields, "job": job.id})
        elif kind == "settled" and job is not None:
            ended: Outcome = fields["outcome"]
            self.write(kind, status=ended.status, error=ended.error, seconds=round(ended.seconds, 3), **_named(job))
        super().event(kind, **fields)

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
            text = f"{self._path} cannot be written ({error.strerror}); the sweep goes on without it"
            self.to.event("warning", text=text)


def _named(job: Job) -> dict[str, Any]:
    keys = ("phase", "label", "suite", "backbone", "seed", "trial", "fit_id")
    return {"job": job.id, "method": job.method["name"], **{key: getattr(job, key) for key in keys}}
