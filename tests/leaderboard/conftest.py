"""Records that no training made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.runs.record import RunRecord, SplitMetrics
from bench.runs.store import Store

Make = Callable[..., RunRecord]


def _metrics(score: float) -> SplitMetrics:
    return SplitMetrics(
        images=100, score=score, accuracy=score, class_mean=score, macro_f1=score, nll=1 - score, ece=0.1, brier=1 - score
    )


@pytest.fixture
def make() -> Make:
    """`make("wise-ft", 0, {"id-test": .9, "sketch": .5})`: a done run, its fields replaced by keyword."""

    def record(method: str = "wise-ft", seed: int = 0, scores: Mapping[str, float] | None = None, **fields: Any) -> RunRecord:
        scores = scores if scores is not None else {"id-test": 0.9, "cartoon": 0.6, "sketch": 0.5}
        shifts = fields.get("shifts", ["cartoon", "sketch"])
        made = {
            "status": "done",
            "method": {"name": method, "version": 1, "source": "", "parameters": {"lr": 0.1}},
            "label": method,
            "backbone": "tiny",
            "backbone_sha256": "b" * 64,
            "suite": "pets",
            "seed": seed,
            "fit_id": f"fit-{method}-{seed}",
            "eval_id": f"eval-{method}-{seed}",
            "pixels": "pil-bicubic-36-32",
            "data": {split: f"data-of-{split}" for split in scores},
            "metrics": {split: _metrics(score) for split, score in scores.items()},
            "shifts": shifts,
            "averaged": shifts,
            "fit_seconds": 60.0,
            "started": f"2026-01-01T00:00:{seed:02d}",
            "finished": f"2026-01-01T01:00:{seed:02d}",
        }
        return RunRecord.model_validate(made | fields)

    return record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")
