"""Records that no training made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.results.record import RunRecord, SplitMetrics
from bench.results.store import Store

Make = Callable[..., RunRecord]
Predict = Callable[..., None]


def metrics_of(score: float, images: int = 100) -> SplitMetrics:
    """Metrics of a split on which everything is `score`."""
    return SplitMetrics(
        images=images,
        score=score,
        accuracy=score,
        class_mean=score,
        macro_f1=score,
        nll=1 - score,
        ece=0.1,
        brier=1 - score,
    )


@pytest.fixture
def make() -> Make:
    """`make("wise-ft", 0, {"id-test": .9, "sketch": .5})`: a done run, its fields replaced by
    keyword.
    """

    def record(
        method: str = "wise-ft",
        seed: int = 0,
        scores: Mapping[str, float] | None = None,
        **fields: Any,
    ) -> RunRecord:
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
            "metrics": {split: metrics_of(score) for split, score in scores.items()},
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


@pytest.fixture
def predict(store: Store) -> Predict:
    """`predict(record, "sketch", right)`: keep predictions in the store, right or wrong per image,
    of classes 0 and 1.
    """

    def write(record: RunRecord, split: str, right: Sequence[bool], **columns: Any) -> None:
        images = len(right)
        labels = np.arange(images) % 2
        logits = np.where(np.array(right)[:, None] == (labels[:, None] == np.arange(2)), 2.0, 0.0)
        saved = {
            "key": [f"{split}/{i:05d}" for i in range(images)],
            "label": labels,
            "group": np.full(images, -1),
            "prediction": logits.argmax(axis=1),
            "label_logit": logits[np.arange(images), labels],
            "maximum": logits.max(axis=1),
            "log_sum_exp": np.log(np.exp(logits).sum(axis=1)),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(logits.astype(np.float16).ravel()), 2
            ),
            **columns,
        }
        record.metrics[split] = metrics_of(float(np.mean(right)), images)
        path = store.run_dir(record) / "predictions" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.table({name: values for name, values in saved.items() if values is not None}), path
        )
        store.save_run(record)

    return write
