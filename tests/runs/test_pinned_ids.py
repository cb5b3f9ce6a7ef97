"""Identities of existing suites never move: a change here makes every stored result of every user incomparable."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.data.pixels import Pixels
from bench.data.suite import open_suite
from bench.identity import digest
from bench.method import Traits
from bench.plugins import build_method, find_card
from bench.runs.execute import _record
from bench.runs.experiment import Experiment
from bench.runs.store import Store
from bench.training.engine import Engine

CARD = """
name = "pinned"
title = "Pinned"
licence = "CC0-1.0"
classes = ["b", "a"]
[source]
kind = "folder"
root = "./images"
groups = ["x", "y"]
[id]
path = "photo"
[[shifts]]
name = "one"
path = "one"
[[shifts]]
name = "two"
path = "two"
metric = "worst_group"
in_average = false
"""


def write_suite(folder: Path) -> Path:
    """BMP files, whose bytes no library version changes."""
    number = 0
    for part, count in (("photo", 10), ("one", 2), ("two", 2)):
        for name in ("a", "b"):
            for group in ("x", "y"):
                place = folder / "images" / part / name / group
                place.mkdir(parents=True)
                for _ in range(count):
                    pixels = (np.arange(8 * 8 * 3) * (number + 1) % 251).astype(np.uint8).reshape(8, 8, 3)
                    Image.fromarray(pixels).save(place / f"{number}.bmp")
                    number += 1
    card = folder / "pinned.toml"
    card.write_text(CARD, encoding="utf-8")
    return card


def experiment(card_path: str, tmp_path: Path) -> Experiment:
    card, path = find_card(card_path)
    backbone: Any = SimpleNamespace(
        name="stub",
        weights_sha256="0" * 64,
        pixels=Pixels(size=8, resize=8),
        layout="vit",
        has_text=True,
        native_head=lambda classes: None,
        seen="unknown",
        seen_suites=(),
    )
    silent: Any = SimpleNamespace(stop=0, event=lambda *args, **fields: None)
    suite = open_suite(card, card_path=path)
    return Experiment(
        backbone=backbone, suite=suite, seed=0, store=Store(tmp_path), engine=Engine(threads=1), reporter=silent, cache=tmp_path
    )


def test_ids_of_a_folder_suite(tmp_path: Path) -> None:
    one = experiment(str(write_suite(tmp_path)), tmp_path)
    assert one.traits == Traits(text=True, native=False, layout="vit")
    method = build_method("full-finetune", {}, one.suite.card.recipe).resolved(one.traits)
    identity = one.identity(method) | {"method": "", "probe": ""}  # methods have versions of their own
    record = _record(one, {"name": "m"}, "m", identity, limit=None, phase="final")
    found = {name: value[:16] for name, value in record.data.items()}
    assert found == {
        "id-val": "7a7d2aab24dbdf74",
        "id-test": "22675697a247b968",
        "one": "26cd9b40a5d3eb61",
        "two": "4cfb2764e5104cee",
    }
    assert digest(identity)[:24] == "f19fcfc35ab93c1eb55756c5"
    assert record.fit_id == digest(identity)[:24]
    measured = record.identity["evaluation"]
    assert record.eval_id == digest({"fit": record.fit_id, **measured})[:24]
    assert digest({"fit": "f" * 24, **measured})[:24] == "2e316f90d92142cbcc04d79d"


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("mini-shifts", "49b1c313af913ed2"),
        ("mini-shifts-bias0", "fc7e2bc0ff8f5d4b"),
        ("mini-shifts-bias60", "46fbad443d82b127"),
        ("mini-shifts-bias75", "d0773fa1f1c2078e"),
        ("pacs", "3386cf2e1cced6a7"),
        ("pacs-subset", "551ebd1ec944a465"),
    ],
)
def test_what_cards_put_into_ids(name: str, pinned: str) -> None:
    card, _ = find_card(name)
    source = card.source.model_dump(exclude={"root"}) if card.source is not None else {}
    splits = [card.id.path, card.id.train, card.id.val, card.id.test, card.id.val_fraction, card.id.test_fraction]
    shifts = [[shift.name, shift.path, shift.metric, shift.in_average, shift.factors, shift.count] for shift in card.shifts]
    content = [list(card.classes), list(card.templates), card.metric, source, splits, card.id.split_seed, shifts, card.recipe]
    assert digest([content, card.backbone, card.id.count])[:16] == pinned
