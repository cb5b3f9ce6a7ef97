"""A store of made-up runs, as large as one likes: `python tests/support/synthetic_store.py FOLDER
--runs 10000`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

SHIFTS = ("v2", "sketch", "rendition", "objectnet", "adversarial", "viewpoint", "corrupted")


def record(
    number: int, rng: np.random.Generator, *, suites: int = 4, seeds: int = 5
) -> dict[str, Any]:
    """The content of one `record.json`; `seeds` consecutive numbers are one row."""
    row, seed = divmod(number, seeds)
    name = f"method-{row % 7}"
    parameters = {
        "lr": 1e-5 * (1 + row),
        "epochs": 10,
        "batch_size": 512,
        "head_init": "zero-shot",
        "weight_decay": 0.1,
    }

    def metrics(score: float) -> dict[str, Any]:
        score = float(np.clip(score + rng.normal(0, 0.01), 0.01, 0.99))
        shares = dict.fromkeys(("score", "accuracy", "class_mean", "macro_f1"), score)
        return {
            "images": 1500,
            "metric": "accuracy",
            **shares,
            "nll": 2 - 2 * score,
            "ece": 0.1,
            "brier": 1 - score,
        }

    level = rng.uniform(0.4, 0.8)
    splits = ("id-val", "id-test", *SHIFTS)
    scores = {split: metrics(level + 0.1 - 0.05 * place) for place, split in enumerate(splits)}
    return {
        "record_schema": 1,
        "status": "done",
        "method": {"name": name, "version": 1, "source": "", "parameters": parameters},
        "label": f"{name} (lr={parameters['lr']:.4g})",
        "backbone": "mini-clip",
        "backbone_sha256": "9" * 64,
        "suite": f"suite-{row % suites}",
        "seed": seed,
        "fit_id": f"{number:024x}",
        "eval_id": f"{number + 7:024x}",
        "pixels": "pil-bicubic-48-48",
        "data": {split: f"{i:064x}" for i, split in enumerate(scores)},
        "metrics": scores,
        "shifts": list(SHIFTS),
        "averaged": list(SHIFTS[:5]),
        "ood": float(np.mean([scores[shift]["score"] for shift in SHIFTS[:5]])),
        "factors": {
            shift: {"style": "kept", "context": "broken", "geometry": "kept"} for shift in SHIFTS
        },
        "fit_seconds": 60.0 + seed,
        "eval_seconds": 20.0,
        "peak_memory_mb": 1300.0,
        "started": f"2026-01-01T00:{row % 60:02d}:{seed:02d}+00:00",
        "finished": f"2026-01-01T01:{row % 60:02d}:{seed:02d}+00:00",
        "provenance": {
            "versions": {f"package-{i}": f"{i}.{i + 1}.{i + 2}" for i in range(12)},
            "source_sha256": "5" * 64,
            "git_commit": "a" * 40,
            "git_dirty": False,
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "cpu": "an imagined processor at 2.4 GHz",
            "threads": 1,
            "device": "cpu",
            "host": f"host-{number % 16}",
        },
    }


def write_store(root: Path, runs: int) -> None:
    """Run folders with a record each, and no predictions."""
    rng = np.random.default_rng(0)
    for number in range(runs):
        made = record(number, rng)
        folder = (
            root
            / "runs"
            / made["suite"]
            / made["backbone"]
            / made["method"]["name"]
            / made["eval_id"]
        )
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    given = parser.parse_args()
    write_store(given.folder, given.runs)
