"""Runs whose records and predictions add up, and packs that were tampered with in one place."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import logsumexp

from bench.data.split import Split
from bench.evaluation.metrics import fitted_temperature, score
from bench.identity import digest
from bench.results.predictions import write_curve
from bench.results.record import CurvePoint, RunRecord
from bench.results.store import Store

SPLITS = ("id-val", "id-test", "art", "sketch")
CLASSES = 4


def stored_run(
    store: Store,
    method: str = "wise-ft",
    seed: int = 0,
    *,
    images: int = 60,
    skill: float = 2.0,
    curve: bool = False,
    **fields: Any,
) -> RunRecord:
    """A done run in the store, as `bench run` leaves one: predictions by a classifier of some
    skill, metrics of just those.

    Args:
        curve: with an interpolation curve of three points, of which the last one is the run itself.
    """
    parameters = {"alpha": 0.5, "lr": 0.1}
    identity = {"name": method, "version": 1, "source": "", "parameters": parameters}
    data = {split: hashlib.sha256(split.encode()).hexdigest() for split in SPLITS}
    fit = {"protocol": 1, "method": identity, "backbone": "b" * 64, "pixels": "pil-bicubic-36-32",
    "train": "t" * 64,
           "id_val": data["id-val"], "seed": seed}  # fmt: skip
    evaluation = {
        "data": data,
        "projection": "identity",
        "pixels": "pil-bicubic-36-32",
        "metrics": {"": "accuracy"},
    }
    fit_id = digest(fit)[:24]
    record = RunRecord.model_validate(
        {
            "status": "done",
            "method": identity,
            "label": method,
            "backbone": "tiny",
            "backbone_sha256": "b" * 64,
            "suite": "pets",
            "seed": seed,
            "fit_id": fit_id,
            "eval_id": digest({"fit": fit_id, **evaluation})[:24],
            "pixels": "pil-bicubic-36-32",
            "data": data,
            "shifts": ["art", "sketch"],
            "averaged": ["art", "sketch"],
            "identity": {"fit": fit, "evaluation": evaluation},
            "fit_seconds": 60.0,
            "started": f"2026-01-01T00:00:{seed:02d}",
            "finished": f"2026-01-01T01:00:{seed:02d}",
            **fields,
        }
    )
    for number, split in enumerate(SPLITS):
        truth = np.random.default_rng(number)
        labels, groups = truth.integers(0, CLASSES, images), truth.integers(-1, 2, images)
        # The method's name is in the draw, so that two methods differ.
        sample = np.random.default_rng([number, seed, *method.encode()])
        logits = sample.normal(size=(images, CLASSES)).astype(np.float32)
        logits[np.arange(images), labels] += np.float32(skill / (1 + number / 2))
        if split == "id-val":
            record.temperature = fitted_temperature(logits, labels)
        if curve:
            start = sample.normal(size=(images, CLASSES)) + (number > 1) * np.eye(CLASSES)[labels]
            line = {
                alpha: ((1 - alpha) * start + alpha * logits).argmax(axis=1)
                for alpha in (0.0, 0.5, 1.0)
            }
            write_curve(
                store.run_dir(record) / "curve" / f"{split}.parquet",
                _split(split, labels, groups),
                line,
            )
            for alpha, stated in line.items():
                point = next((p for p in record.curve if p.alpha == alpha), None)
                if point is None:
                    record.curve.append(point := CurvePoint(alpha=alpha, scores={}, ood=None))
                point.scores[split] = float((stated == labels).mean())
        record.metrics[split] = score(logits, labels, groups)
        write_predictions(
            store.run_dir(record) / "predictions" / f"{split}.parquet",
            split,
            logits,
            labels,
            groups,
        )
    record.ood = float(np.mean([record.metrics[split].score for split in record.averaged]))
    for point in record.curve:
        point.ood = float(np.mean([point.scores[split] for split in record.averaged]))
    store.save_run(record)
    return record


def _split(name: str, labels: Any, groups: Any) -> Split:
    keys = np.array([f"{name}/{i:03d}.png" for i in range(len(labels))])
    return cast(Split, SimpleNamespace(keys=keys, labels=labels, groups=groups))


def write_predictions(path: Path, split: str, logits: Any, labels: Any, groups: Any) -> None:
    """In the store's format."""
    ordered = np.sort(logits, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "key": pa.array([f"{split}/{i:03d}.png" for i in range(len(labels))]),
        "label": pa.array(labels),
        "group": pa.array(groups),
        "prediction": pa.array(logits.argmax(axis=1)),
        "label_logit": pa.array(logits[np.arange(len(labels)), labels]),
        "maximum": pa.array(ordered[:, -1]),
        "runner_up": pa.array(ordered[:, -2]),
        "log_sum_exp": pa.array(logsumexp(logits.astype(np.float64), axis=1)),
        "logits": pa.FixedSizeListArray.from_arrays(
            pa.array(logits.astype(np.float16).reshape(-1)), logits.shape[1]
        ),
    }
    pq.write_table(pa.table(columns), path)


class Forger:
    """A pack taken apart, to be put together again with hashes that hold: only what was changed is
    wrong.

    Attributes:
        manifest: of the pack. blobs: SHA-256 -> content. members: files written besides, as (name
            or entry, content).
    """

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.manifest = json.loads(archive.read("manifest.json"))
            self.blobs = {
                n.removeprefix("blobs/"): archive.read(n)
                for n in archive.namelist()
                if n != "manifest.json"
            }
        self.members: list[tuple[str | zipfile.ZipInfo, bytes]] = []
        self.compression = zipfile.ZIP_STORED
        self.rehash = True

    def put(self, content: bytes) -> str:
        """A blob under its own hash."""
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha

    def record(self, change: Callable[[dict[str, Any]], Any], run: int = 0) -> None:
        """Change the record of a run."""
        packed = self.manifest["runs"][run]
        content = json.loads(self.blobs[packed["record"]])
        change(content)
        packed["record"] = self.put(json.dumps(content).encode())

    def reidentified(self, change: Callable[[dict[str, Any]], Any], run: int = 0) -> None:
        """Change the record of a run and let its ids follow, as somebody would who knows how they
        are made.
        """

        def with_ids(content: dict[str, Any]) -> None:
            change(content)
            content["fit_id"] = digest(content["identity"]["fit"])[:24]
            content["eval_id"] = digest(
                {"fit": content["fit_id"], **content["identity"]["evaluation"]}
            )[:24]
            self.manifest["runs"][run]["eval_id"] = content["eval_id"]

        self.record(with_ids, run)

    def table(
        self, kind: str, change: Callable[[dict[str, Any]], Any], split: str = "art", run: int = 0
    ) -> None:
        """Change the columns (as lists) of the `images`, `outcomes` or `curve` of a run's split."""
        packed = self.manifest["runs"][run]
        table = pq.read_table(io.BytesIO(self.blobs[packed[kind][split]]))
        columns = {name: table[name].to_pylist() for name in table.column_names}
        change(columns)
        types = {field.name: field.type for field in table.schema}
        buffer = io.BytesIO()
        made = pa.table({n: pa.array(v, types.get(n)) for n, v in columns.items()})
        pq.write_table(made, buffer, use_dictionary=[name for name in columns if name != "key"])
        packed[kind][split] = self.put(buffer.getvalue())

    def write(self, path: Path) -> Path:
        """Put the pack together."""
        if self.rehash:
            self.manifest["digest"] = digest(
                {key: value for key, value in self.manifest.items() if key != "digest"}
            )
            runs = self.manifest["runs"]
            kinds = ("images", "outcomes", "curve")
            named = {
                sha
                for run in runs
                for sha in (run["record"], *(sha for kind in kinds for sha in run[kind].values()))
            }
            self.blobs = {sha: content for sha, content in self.blobs.items() if sha in named}
        with zipfile.ZipFile(path, "w", self.compression) as archive:
            for sha, content in self.blobs.items():
                archive.writestr(f"blobs/{sha}", content)
            for member, content in self.members:
                archive.writestr(member, content)
            archive.writestr("manifest.json", json.dumps(self.manifest))
        return path
