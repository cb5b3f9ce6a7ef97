"""The live picture of a sweep on terminals of several widths."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.console.sweep import SweepConsole
from bench.sweeps.estimate import Ahead
from bench.sweeps.job import Job, JobResult


class Line:
    """What the picture asks a queue."""

    to_come = 2

    def __init__(self, *aheads: Ahead, evaluation: float | None = 0.0) -> None:
        self.aheads, self._evaluation = list(aheads), evaluation
        self.observed: list[tuple[str, float]] = []

    def ahead(self) -> Ahead:
        return self.aheads.pop(0) if len(self.aheads) > 1 else self.aheads[0]

    def evaluation(self, job: Job) -> float | None:
        return self._evaluation

    def observe(self, job: Job, seconds: float) -> bool:
        self.observed.append((job.id, seconds))
        return len(self.observed) == 1

    def count(self, *states: str) -> int:
        return 3


@pytest.mark.parametrize(("width", "whole"), [(60, False), (140, True)])
def test_how_far_a_trial_is_can_be_read_at_every_width(
    width: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        "bench.console.progress.stderr_console", lambda: Console(width=width, file=out)
    )
    queue: Any = Line(Ahead({}, [100.0], 0))
    console, label = SweepConsole(queue), "full-finetune (lr=0.000448, epochs=100, head_init=probe)"
    trial = Job(
        "run-0",
        "final",
        {"name": "full-finetune", "parameters": {}},
        label,
        "tiny",
        "vit",
        seed=17,
        fit_id="f",
    )
    console.event("started", job=trial, where="node-7, process 12345")
    console.event("epoch", job=trial, epoch=10, epochs=100, loss=1.2345, id_val=0.4567)
    out.truncate(out.seek(0))
    console._console.print(console._rows())
    head, names, line = (text.split() for text in out.getvalue().splitlines() if text.strip())
    assert head[-1] == "left"
    assert names[:5] == ["method", "seed", "epoch", "loss", "id-val"]
    assert [word for word in line if word in ("17", "10/100", "1.234", "45.7")] == [
        "17",
        "10/100",
        "1.234",
        "45.7",
    ]
    assert ("12345" in line) is whole


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("bench.console.sweep.time", SimpleNamespace(monotonic=lambda: self.now))


def trial(number: int, *, epoch: int | None = None) -> Job:
    method = {"name": "full-finetune", "parameters": {"epochs": 9}}
    return Job(
        f"run-{number}",
        "final",
        method,
        "ft",
        "tiny",
        "vit",
        seed=number,
        fit_id=f"f{number}",
        epoch=epoch,
    )


def test_on_a_fresh_store_no_time_is_reported_from_other_kinds_of_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    queue: Any = Line(Ahead({"run-0": None, "probe": None}, [None], 0))
    console = SweepConsole(queue)
    assert console._eta() == ""
    console.event("started", job=trial(0), where="here")
    clock.now += 1600
    assert console._eta() == ""
    queue = Line(Ahead({"probe": 1.0, "run-0": None}, [None], 1), evaluation=None)
    known = SweepConsole(queue)
    assert known._eta() == "over 1.0 s left"
    known.event("started", job=trial(0), where="here")
    clock.now += 1600
    assert known._eta() == "over 1.0 s left"


def test_a_running_trial_tells_by_its_own_steps_and_so_for_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    # Before it is known how long a step takes, and after: the other job of the kind takes all of
    # 100 steps at 4 s.
    before, after = Ahead({"run-0": None, "run-1": None}, [], 0), Ahead({"run-1": 400.0}, [], 0)
    queue: Any = Line(before, after, Ahead({}, [], 0), evaluation=20.0)
    console, job = SweepConsole(queue), trial(0)
    console.event("started", job=job, where="here")
    console.event("fit", job=job, method="ft", fit_id="f0", seed=0)
    # Resumed: what came before says nothing.
    console.event("step", job=job, step=10, total=100, loss=1.0)
    clock.now += 1.0
    console.event("step", job=job, step=11, total=100, loss=1.0)
    assert (queue.observed, console._eta()) == ([], ""), "a second is too short"
    clock.now += 7.0
    console.event("step", job=job, step=12, total=100, loss=1.0)
    assert queue.observed == [("run-0", 400.0)]
    assert console._eta() == "about 12.9 min left"  # 88 steps of 4 s, 20 s to evaluate, and 400 s
    clock.now += 60.0
    assert console._eta() == "about 11.9 min left"
    console.event("settled", job=trial(1), outcome=JobResult("done"))
    assert console._eta() == "about 5.2 min left"  # 352 + 20 - 60 s
    clock.now += 400.0
    assert console._eta() == "", "it takes longer than it told"


def test_steps_of_another_fit_and_of_a_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    queue: Any = Line(Ahead({}, [], 0))
    console, job = SweepConsole(queue), trial(0, epoch=3)
    console.event("started", job=job, where="here")
    console.event("fit", job=job, method="probe", fit_id="other", seed=0)
    for step in (1, 2):
        clock.now += 10
        console.event("step", job=job, step=step, total=2, loss=1.0)
    assert queue.observed == []
    console.event("fit", job=job, method="ft", fit_id="f0", seed=0)
    for step in (1, 2):
        clock.now += 10
        console.event("step", job=job, step=step, total=90, loss=1.0)
    assert queue.observed == [("run-0", 900.0)]
    assert console._eta() == "about 4.7 min left", "28 steps of 10 s: to the third of 9 epochs"


def test_trials_at_once_share_the_time_but_none_ends_before_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    queue: Any = Line(Ahead({"run-0": 600.0, "run-1": 60.0, "run-2": 60.0}, [], 0))
    console = SweepConsole(queue)
    for number in (0, 1):
        console.event("started", job=trial(number), where="here")
    clock.now += 30
    assert console._eta() == "about 9.5 min left"
