"""A cache that somebody empties in the middle of a run costs a sentence, and the next run makes
anew what is missing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.engine import Engine

from support.runs import Listener


class Empties(Listener):
    """Removes the cache when something happens for the first time."""

    def __init__(self, when: str, cache: Path) -> None:
        super().__init__()
        self.when, self.cache = when, cache

    def event(self, kind: str, **fields: Any) -> None:
        super().event(kind, **fields)
        if kind == self.when:
            self.when = ""
            shutil.rmtree(self.cache)


@pytest.mark.parametrize("when", ["fit", "step", "epoch", "evaluate"])
@pytest.mark.parametrize("method", ["linear-probe", "full-finetune"])
def test_in_the_middle_of_a_run(
    method: str, when: str, tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    fields: dict[str, Any] = {
        "suite": str(tiny_suite),
        "store": tmp_path / "store",
        "engine": Engine(threads=1),
    }
    (record,) = bench.run(method, reporter=Empties(when, tmp_path / "cache"), **fields)
    assert record.status == "done" or "the cache was emptied while it was in use" in record.error, (
        record.error
    )
    (again,) = bench.run(method, **fields)
    assert again.status == "done", again.error
