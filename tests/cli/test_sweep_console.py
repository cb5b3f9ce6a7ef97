"""The live picture of a sweep on terminals of several widths."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.cli.sweep_console import SweepConsole
from bench.sweeps.job import Job


@pytest.mark.parametrize(("width", "whole"), [(60, False), (140, True)])
def test_how_far_a_trial_is_can_be_read_at_every_width(width: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("bench.cli.sweep_console.stderr_console", lambda: Console(width=width, file=out))
    queue: Any = SimpleNamespace(seconds_left=100.0, count=lambda *states: 3, to_come=2)
    console, label = SweepConsole(queue), "full-finetune (lr=0.000448, epochs=100, head_init=probe)"
    trial = Job("run-0", "final", {"name": "full-finetune", "parameters": {}}, label, "tiny", "vit", seed=17, fit_id="f")
    console.started(trial, "node-7, process 12345")
    console.progress(trial, "epoch", {"epoch": 10, "epochs": 100, "loss": 1.2345, "id_val": 0.4567})
    out.truncate(out.seek(0))
    console._console.print(console._picture())
    head, names, line = (text.split() for text in out.getvalue().splitlines() if text.strip())
    assert head[-1] == "left"
    assert names[:5] == ["method", "seed", "epoch", "loss", "id-val"]
    assert [word for word in line if word in ("17", "10/100", "1.234", "45.7")] == ["17", "10/100", "1.234", "45.7"]
    assert ("12345" in line) is whole
