"""Damaged and hostile files of every kind that people exchange: an error that says so, in bounded
memory and time, and no bug.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from support import mutants

WARM = (
    "bench.api", "bench.cli", "bench.backbones.timm_backbone", "bench.testing.suite_contract",
    "bench.leaderboard.commands.compare",
    "bench.leaderboard.packs.merge", "bench.leaderboard.page.source",
    "bench.leaderboard.commands.scores", "bench.runs.external",
    "rich.progress", "sklearn.linear_model",
)  # fmt: skip
pytestmark = pytest.mark.perf  # on demand: they take minutes
Random = random.Random


@pytest.fixture(scope="module")
def good(tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of four runs, and the pack of it."""
    if "vl_convert" in sys.modules:
        pytest.skip(
            "charts were drawn in this process, whose copies could draw none: run tests/fuzz alone"
        )
    folder = tmp_path_factory.mktemp("good")
    for command in (
        [
            "run",
            "linear-probe",
            "full-finetune",
            "--suite",
            str(tiny_suite),
            "--seeds",
            "2",
            "--store",
            "store",
            "--keep-logits",
        ],
        ["pack", "-o", "all.shiftpack", "--store", "store"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bench.cli", *command],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    # What commands import when they are called: every mutant is read in a copy of this process.
    for module in WARM:
        importlib.import_module(module)
    torch.set_num_threads(1)
    return folder


def a_card(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    table = tomllib.loads(suite.read_text())
    table["source"]["root"] = str(suite.parent / "images")
    text = mutants.toml(mutants.within(table, rng)) if rng.random() < 0.85 else None
    damaged = (
        text.encode(errors="surrogatepass")
        if text
        else mutants.bytes_within(mutants.toml(table).encode(), rng)
    )
    (place / "card.toml").write_bytes(damaged)
    verbs = [
        ["suites", "show"],
        ["check"],
        ["run", "linear-probe", "--dry-run", "--store", "s", "--suite"],
    ]
    return [*rng.choice(verbs), "./card.toml"]


def _copied(good: Path, place: Path) -> Path:
    shutil.copytree(good / "store" / "runs", place / "s" / "runs")
    return place / "s"


READERS = [
    ["leaderboard"], ["leaderboard", "--format", "json"], ["leaderboard", "--html", "o.html"],
    ["compare"], ["report", "-o", "r"],
    ["show", "linear-probe", "--seed", "0"], ["pack", "-o", "x.shiftpack"], ["scores",
    "calibration"], ["scores", "detection"],
    ["scores", "classes"],
]  # fmt: skip


def a_record(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    file = rng.choice(sorted(_copied(good, place).glob("runs/**/record.json")))
    change = mutants.json_within if rng.random() < 0.85 else mutants.bytes_within
    file.write_bytes(change(file.read_bytes(), rng))
    return [*rng.choice(READERS), "--store", "s"]


def a_pack(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    if rng.random() < 0.85:
        mutants.zip_within(good / "all.shiftpack", place / "x.shiftpack", rng)
    else:
        (place / "x.shiftpack").write_bytes(
            mutants.bytes_within((good / "all.shiftpack").read_bytes(), rng)
        )
    return ["merge", "x.shiftpack", "--store", "s"]


def predictions(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    file = rng.choice(sorted(_copied(good, place).glob("runs/**/*.parquet")))
    if rng.random() < 0.5:
        file.write_bytes(mutants.bytes_within(file.read_bytes(), rng))
    else:
        columns = {
            name: pq.read_table(file)[name].to_pylist() for name in pq.read_schema(file).names
        }
        name, length = rng.choice(list(columns)), len(columns["key"])
        odd = rng.choice((None, "text", -5.5, [1], 2**62, True))
        changes: list[dict[str, Any]] = [
            {name: [odd] * length},
            {"key": [columns["key"][0]] * length},
            {"": [odd] * length},
        ]
        columns |= rng.choice(changes)
        if rng.random() < 0.3:
            columns.pop(name)
        if rng.random() < 0.3:
            columns = {key: values[: length // 2] for key, values in columns.items()}
        pq.write_table(pa.table(columns), file)
    return [*rng.choice(READERS), "--store", "s"]


def a_checkpoint(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    file = rng.choice(sorted((good / "store" / "fits").glob("*/weights*.safetensors")))
    state: dict[str, Any] = load_file(file)
    name = rng.choice(list(state))
    whole = state[name]
    odd = (
        None, 3, "x", [1], {}, torch.zeros(0), whole.long(), whole.double(), whole.half(),
        whole.to(torch.complex64), whole[:1],
        torch.full_like(whole, float("nan")), whole.to_sparse() if whole.dim() else 1,
        torch.empty(whole.shape, device="meta"),
        whole.to(torch.float8_e4m3fn),
    )  # fmt: skip
    how = rng.randrange(4)
    if how == 0:
        made = place / "x.safetensors"
        made.write_bytes(mutants.bytes_within(file.read_bytes(), rng))
    elif how == 1:
        made = place / "x.pkl"
        made.write_bytes(
            mutants.bytes_within(
                pickle.dumps({"state_dict": {k: v.numpy() for k, v in state.items()}}), rng
            )
        )
    else:
        made = place / "x.pt"
        if how == 2:
            state[name] = rng.choice(odd)
        torch.save(
            rng.choice(
                (
                    {"state_dict": state},
                    state,
                    {"model": state},
                    [state],
                    {"a": {"state_dict": state}},
                )
            ),
            made,
        )
        if how == 3:
            made.write_bytes(mutants.bytes_within(made.read_bytes(), rng))
    return ["evaluate", made.name, "--suite", str(suite), "--store", "s"]


def arrays(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    folder = place / "d"
    folder.mkdir()
    pixels, labels = (
        np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8),
        np.arange(30) % 3,
    )
    odd_pixels = (
        pixels[..., 0], pixels.transpose(0, 3, 1, 2), pixels / 255, pixels.astype(np.int64),
        pixels[:0], pixels[0], pixels[:, :0],
        np.zeros(5), pixels.astype(object), np.array(3),
    )  # fmt: skip
    odd_labels = (
        labels[:, None], np.eye(3)[labels], labels.astype(float), labels.astype(str), labels - 5,
        labels + 100, labels[:5],
        labels.astype(object), np.array(3), labels.astype(complex),
    )  # fmt: skip
    how = rng.randrange(4)
    np.save(folder / "x.npy", rng.choice(odd_pixels) if how == 0 else pixels, allow_pickle=True)
    np.save(folder / "y.npy", rng.choice(odd_labels) if how == 1 else labels, allow_pickle=True)
    if how > 1:
        file = folder / rng.choice(("x.npy", "y.npy"))
        file.write_bytes(mutants.bytes_within(file.read_bytes(), rng))
    card = {
        "name": "ds", "title": "x", "licence": "CC0", "folders": ["d"], "classes": ["a", "b", "c"],
        "parts": {"test": {"layouts": [{"kind": "arrays", "path": "x.npy", "labels": "y.npy"}]}},
    }  # fmt: skip
    (place / "ds.toml").write_text(mutants.toml(json.loads(json.dumps(card))))
    return ["data", "verify", "./ds.toml", "--data-root", "."]


def a_tar(place: Path, rng: Random, good: Path, suite: Path) -> list[str]:
    folder = place / "d"
    folder.mkdir()
    photos = sorted((suite.parent / "images/photo").glob("*/*.png"))[::6]
    names = [f"{photo.parent.name}/{photo.name}" for photo in photos]
    if rng.random() < 0.4:
        odd = (
            "caf\udce9.png",
            "a/../../b.png",
            "/etc/passwd",
            "",
            "x" * 300 + ".png",
            "a\x1b[31m.png",
            "in.tar",
            names[0],
        )
        names[rng.randrange(len(names))] = rng.choice(odd)
    kinds = (
        tarfile.REGTYPE,
        tarfile.SYMTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        b"\xff",
    )
    with tarfile.open(
        folder / "a.tar", rng.choice(("w", "w", "w", "w:gz")), format=tarfile.PAX_FORMAT
    ) as archive:
        for photo, name in zip(photos, names, strict=True):
            info = tarfile.TarInfo(name)
            info.size = photo.stat().st_size
            if rng.random() < 0.05:
                info.type = rng.choice(kinds)
            archive.addfile(info, io.BytesIO(photo.read_bytes()))
    if rng.random() < 0.6:
        (folder / "a.tar").write_bytes(mutants.bytes_within((folder / "a.tar").read_bytes(), rng))
    card = {
        "name": "ds", "title": "x", "licence": "CC0", "folders": ["d"], "classes": ["square",
        "disc", "cross"],
        "identity": rng.choice(("content", "listing")),
        "parts": {"test": {"layouts": [{"kind": "tar", "path": "*.tar"}]}},
    }  # fmt: skip
    (place / "ds.toml").write_text(mutants.toml(card))
    return ["data", "verify", "./ds.toml", "--data-root", "."]


KINDS = [a_card, a_record, a_pack, predictions, a_checkpoint, arrays, a_tar]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "number",
    [8, pytest.param(100, marks=pytest.mark.perf), pytest.param(1000, marks=pytest.mark.perf)],
)
def test_a_mutant_is_reported_as_what_it_is(
    kind: Callable[..., list[str]], number: int, good: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    found = mutants.try_mutants(
        lambda place, rng: kind(place, rng, good, tiny_suite), number, tmp_path
    )
    print(f"{kind.__name__}, {number} mutants: {found}")
    assert found.faults == []
