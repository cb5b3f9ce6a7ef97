"""How often a training saves its state: by the clock, and never for most of the time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bench
from bench.engine import Engine
from bench.training import loop
from bench.training.loop import Checkpoints
from bench.training.step import TrainState


@pytest.mark.parametrize(
    ("seconds_of_a_save", "at"), [(0.5, [6, 11, 16, 21, 26, 31, 36]), (1.5, [6, 35])]
)
def test_a_save_that_takes_seconds_is_made_less_often(
    seconds_of_a_save: float,
    at: list[int],
    tiny_suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, steps, saved = [0.0], [0], []
    take = TrainState.step

    def step(self: TrainState, *args: Any) -> Any:
        now[0] += 1
        steps[0] += 1
        return take(self, *args)

    def save(self: Checkpoints, *args: Any) -> None:
        now[0] += seconds_of_a_save
        saved.append(steps[0])

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(TrainState, "step", step)
    monkeypatch.setattr(Checkpoints, "save", save)
    engine = Engine(threads=1, checkpoint_seconds=5.0)
    (record,) = bench.run(
        "full-finetune", suite=str(tiny_suite), store=tmp_path, engine=engine, set={"epochs": 10}
    )
    assert record.status == "done"
    assert [step for step in saved if step <= at[-1]] == at
