"""Jobs that train nothing, a queue of them, and a reporter that keeps what it is told: what the
tests of runners dispatch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.stopping import Reporter
from bench.sweeps.job import Job, JobResult


def job(name: str, **what: Any) -> Job:
    """A job that `Pretend` does as `what` says."""
    return Job(
        name,
        "final",
        {"name": "pretend", "parameters": what},
        name,
        "mini-shifts",
        "mini-clip",
        seed=0,
        fit_id=name,
    )


@dataclass
class Pretend:
    """In the place of `Work`. Each attempt leaves a file `<job>.<process>.json` that says where it
    ran.

    A job's parameters: `together=N` waits until N jobs run at once; `until=FILE` waits until there
    is that file, or for a stop; `die` kills the process at the first attempt; `hang` never ends;
    `fail` is the error to end with, and `bug` one to raise. A job hangs only once there is the file
    `impatient`: however slow the machine, the jobs before it take no time.
    """

    store: Path
    spec: Any = field(default_factory=lambda: SimpleNamespace(data_root=None))
    device: str | None = "cpu"
    timeout: float | None = None
    grace: float = 60.0
    hung: str = "it hangs"

    @property
    def patience(self) -> float | None:
        if self.timeout is None or not (self.store / "impatient").exists():
            return None
        return self.timeout + self.grace

    def do(self, job: Job, reporter: Any) -> JobResult:
        what, done = job.method["parameters"], self.store / f"{job.id}.done"
        if done.exists():  # as a store would know, when a process dies after its last word
            return JobResult("done")
        seen = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "node": _node()}
        first = not list(self.store.glob(f"{job.id}.*"))
        mine = self.store / f"{job.id}.{os.getpid()}.json"
        mine.write_text(json.dumps(seen), encoding="utf-8")
        reporter.event("epoch", epoch=1, epochs=1, loss=0.5, id_val=0.25)
        if what.get("die") and first:
            os.kill(os.getpid(), signal.SIGKILL)
        while len(list(self.store.glob("*.json"))) < what.get("together", 0):
            time.sleep(0.05)
        while what.get("hang"):
            time.sleep(0.05)
        while "until" in what and not (self.store / what["until"]).exists():
            if reporter.stop:
                return JobResult("cancelled")
            time.sleep(0.05)
        if "bug" in what:
            raise RuntimeError(what["bug"])
        done.touch(exist_ok=False)
        return JobResult("failed", what["fail"]) if "fail" in what else JobResult("done")


def impatient_after(name: str, store: Path) -> Callable[[Reports], None]:
    """For a `Reports`: once that job has settled, a job may hang."""

    def when(shown: Reports) -> None:
        if name in dict(shown.of("settled")):
            (store / "impatient").touch()

    return when


def _node() -> str:
    """Where this runs, on Ray or not."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray else ""


class Line:
    """In the place of `Queue`: jobs one after another, a lost one again; `needs` are ids that must
    have settled well.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self.state = {one.id: "to do" for one in jobs}
        self.jobs = {one.id: one for one in jobs}
        self.lost: list[str] = []

    def __iter__(self) -> Any:
        return iter(
            SimpleNamespace(job=one, state=self.state[name]) for name, one in self.jobs.items()
        )

    def take(self) -> Job | None:
        for name, one in self.jobs.items():
            if self.state[name] == "to do" and all(
                self.state[other] == "done" for other in one.needs
            ):
                self.state[name] = "running"
                return one
        return None

    def settle(self, job_id: str, outcome: JobResult) -> None:
        if outcome.status == "lost":
            self.lost.append(job_id)
        self.state[job_id] = "to do" if outcome.status == "lost" else outcome.status

    @property
    def over(self) -> bool:
        return not any(state in ("to do", "running") for state in self.state.values())


class Reports(Reporter):
    """A reporter. `when` is called with it whenever it is told something, for a test to act in the
    midst of a sweep.
    """

    def __init__(self, when: Callable[[Reports], None] = lambda shown: None) -> None:
        self.lines: list[tuple[str, str, Any]] = []
        self._when = when

    def event(self, kind: str, **fields: Any) -> None:
        job: Job | None = fields.pop("job", None)
        what = fields.get(
            {"started": "where", "settled": "outcome", "warning": "text"}.get(kind, ""), fields
        )
        self._add("note" if job is None else kind, "" if job is None else job.id, what)

    def of(self, kind: str) -> list[tuple[str, Any]]:
        return [(name, what) for shown, name, what in self.lines if shown == kind]

    def _add(self, kind: str, name: str, what: Any) -> None:
        self.lines.append((kind, name, what))
        self._when(self)
