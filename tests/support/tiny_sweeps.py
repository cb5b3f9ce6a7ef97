"""A sweep on the tiny suite in this process, and a reporter that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.results.record import RunRecord
from bench.run_spec import Settings
from bench.stopping import Reporter
from bench.sweeps.job import Job, JobResult
from bench.sweeps.sweep import Sweep
from bench.sweeps.sweep_spec import sweep_spec


class Listener(Reporter):
    """Keeps what it is told; asks to stop when `stop_at` (kind, n-th time) has happened."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.starts: list[Job] = []
        self.ends: list[tuple[Job, JobResult]] = []
        self.events: list[tuple[Job, str, dict[str, Any]]] = []
        self.notes: list[str] = []
        self._stop_at = stop_at

    def _count(self, kind: str) -> None:
        if self._stop_at is not None and self._stop_at[0] == kind:
            self._stop_at = (kind, self._stop_at[1] - 1)
            if self._stop_at[1] == 0:
                self.stop = 15

    def event(self, kind: str, **fields: Any) -> None:
        job: Job | None = fields.pop("job", None)
        if job is None:
            self.notes += [fields["text"]] if kind == "warning" else []
        elif kind == "started":
            self.starts.append(job)
        elif kind == "settled":
            self.ends.append((job, fields["outcome"]))
        else:
            self.events.append((job, kind, fields))
        self._count(kind)

    def trained(self) -> list[str]:
        """fit_ids of the trainings that were begun, in order."""
        return [fields["fit_id"] for _, kind, fields in self.events if kind == "fit"]


def plan(
    suite: Path,
    store: Path,
    *methods: str,
    shard: tuple[int, int] = (1, 1),
    every: float = 60,
    **fields: Any,
) -> Sweep:
    """A sweep over the tiny suite, in this process unless told otherwise."""
    spec = sweep_spec(
        {"methods": methods, "suites": (str(suite),), "seeds": (0, 1), "runner": "inline", **fields}
    )
    return Sweep(
        spec,
        store=store,
        settings=Settings(checkpoint_seconds=every),
        reporter=Reporter(),
        shard=shard,
    )


def sweep(
    suite: Path, store: Path, *methods: str, **fields: Any
) -> tuple[list[RunRecord], Listener]:
    """Plan and run."""
    planned, listener = plan(suite, store, *methods, **fields), Listener()
    planned.run(listener)
    return planned.records(), listener


METHODS = ("full-finetune", "wise-ft", "lp-ft", "linear-probe")
