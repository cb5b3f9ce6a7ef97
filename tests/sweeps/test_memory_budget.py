"""No more trials start at once than there is memory for, and a plan says how much each takes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.stopping import Reporter
from bench.sweeps import local, memory_budget
from bench.sweeps.job import Resources
from bench.sweeps.ray import runner as ray_runner

GIB = 2**30


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.texts.append(fields["text"])


@pytest.mark.parametrize(("free", "count"), [(100, 4), (12, 4), (11, 3), (6, 2), (1, 1)])
def test_a_local_sweep_starts_as_many_as_fit(
    monkeypatch: pytest.MonkeyPatch, free: int, count: int
) -> None:
    monkeypatch.setattr(local, "peak_of_a_trial", lambda queue: 3 * GIB)
    monkeypatch.setattr(memory_budget, "available", lambda: free * GIB)
    instructed = Notes()
    runner = local.LocalRunner(Resources(gpus=0, most=4))
    slots = runner._slots(None, instructed)  # type: ignore[arg-type]
    assert len(slots) == count
    assert len(instructed.texts) == (count < 4)
    for text in instructed.texts:
        assert "3.2 GB" in text
        assert f"{count} at once instead of 4" in text


def test_ray_learns_what_a_trial_takes() -> None:
    nodes = [
        {"NodeID": name, "Resources": {"CPU": 8.0, "memory": gib * GIB}}
        for name, gib in (("a", 7.0), ("b", 2.0))
    ]
    resources = Resources(gpus=0, cpus=1, memory=3 * GIB)
    assert resources.bundle == {"CPU": 1, "memory": 3 * GIB}
    assert ray_runner._slots(resources, nodes) == {"a": 2, "b": 0}
    with pytest.raises(
        BenchError, match=r"no node is large enough for a trial of 1 CPU, 8\.6 GB memory"
    ) as caught:
        ray_runner._slots(Resources(gpus=0, cpus=1, memory=8 * GIB), nodes)
    assert "7.5 GB memory" in caught.value.where
    assert Resources(gpus=1, cpus=2).bundle == {"CPU": 2, "GPU": 1}


def test_a_dry_run_states_the_expected_peak(
    tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--suite",
        str(tiny_suite),
        "--store",
        str(tmp_path),
        "--dry-run",
        "--device",
        "cpu",
        "--format",
        "json",
    ]
    with contextlib.suppress(SystemExit):
        main(["run", "linear-probe", "full-finetune", *common])
    shown = capsys.readouterr()
    assert shown.out, shown.err
    rows = json.loads(shown.out)["tables"][0]["rows"]
    none, tuned = (row["memory"] for row in rows if row["phase"] == "final")
    assert none > 100 * 2**20, "what the process holds already"
    assert 128 * 2**20 < tuned - none < 2**30
    with contextlib.suppress(SystemExit):
        main(["sweep", "full-finetune", *common])
    assert any(
        note.startswith("A trial takes up to ")
        for note in json.loads(capsys.readouterr().out)["tables"][0]["notes"]
    )
