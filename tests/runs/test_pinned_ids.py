"""Identities of existing suites never move: a change here makes every stored result of every user
incomparable.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.configure import build_method
from bench.data.cards.suite_card import find_card
from bench.data.pixels.decoder import Pixels
from bench.data.suite import open_suite
from bench.engine import Engine
from bench.fit_setup import Setup
from bench.identity import digest
from bench.method import Traits
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.run_spec import run_spec
from bench.runs.execute import _record, planned_record
from bench.runs.experiment import Experiment, experiments

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
                    pixels = (
                        (np.arange(8 * 8 * 3) * (number + 1) % 251)
                        .astype(np.uint8)
                        .reshape(8, 8, 3)
                    )
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
        Setup(backbone, suite, 0, Engine(threads=1), silent, tmp_path), Store(tmp_path)
    )


def test_ids_of_a_folder_suite(tmp_path: Path) -> None:
    one = experiment(str(write_suite(tmp_path)), tmp_path)
    assert one.setup.traits == Traits(text=True, native=False, layout="vit")
    method = build_method("full-finetune", {}, one.setup.suite.card.recipe).bind(one.setup.traits)
    identity = one.identity(method) | {
        "method": "",
        "probe": "",
    }  # methods have versions of their own
    record = _record(one.setup, {"name": "m"}, "m", identity, limit=None, phase="final")
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
    splits = [
        card.id.path,
        card.id.train,
        card.id.val,
        card.id.test,
        card.id.val_fraction,
        card.id.test_fraction,
    ]
    shifts = [
        [shift.name, shift.path, shift.metric, shift.in_average, shift.factors, shift.count]
        for shift in card.shifts
    ]
    content = [
        list(card.classes),
        list(card.templates),
        card.metric,
        source,
        splits,
        card.id.split_seed,
        shifts,
        card.recipe,
    ]
    assert digest([content, card.backbone, card.id.count])[:16] == pinned


#: fit_id and eval_id of the methods on mini-shifts with mini-clip and seed 0, as the committed
#: board has them.
METHODS = {
    "zero-shot": ("fa13455cd23dfe3e25884183", "733df1aec4002da94d926d8a"),
    "linear-probe": ("e26b56c8bf0011f2ffb1acc4", "c329b2feca9ab0730294ae3d"),
    "full-finetune": ("97a543634c78e798c0b7d753", "f353251a302f67b33828701f"),
    "lp-ft": ("d091db66f5e8e9490a58d404", "e5f8065ce0d0676d13e829e5"),
    "wise-ft": ("21ae4125faa6a8c1439b5bfd", "d67571e2b8d7a61e22fb6f25"),
    "feature-distillation": ("2717c069704d524689865d75", "ebb50cbc2f5afe9918ba2584"),
}


@pytest.fixture(scope="module")
def board() -> list[RunRecord]:
    """The runs of the committed board with seed 0."""
    from bench.leaderboard.packs.pack import open_pack

    with open_pack(Path(__file__).parents[2] / "leaderboard/boards/mini-shifts.shiftpack") as pack:
        return [record for record in map(pack.record, pack.manifest.runs) if record.seed == 0]


def test_every_run_of_the_committed_board_keeps_its_ids(
    board: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that is added to a method stays out of its identity while it has the value that means
    "as before".
    """
    one = experiments(
        run_spec({"methods": ("zero-shot",), "suite": "mini-shifts"}), store=tmp_path
    )[0]
    # What the data are is pinned by tests/datasets/test_mini.py; rendering them takes a minute.
    monkeypatch.setattr(type(one.setup.suite), "duplicates", lambda *ignored: {})
    monkeypatch.setattr(type(one.setup.suite), "ignored", lambda *ignored: 0)
    seen = set()
    for record in board:
        known = record.data | {"train": record.identity["fit"]["train"]}
        monkeypatch.setattr(Setup, "fingerprint", lambda self, split, known=known: known[split])
        method = build_method(record.method["name"], record.method["parameters"], {})
        assert method.identity() == record.method
        planned = planned_record(one, method, limit=None)
        assert (planned.fit_id, planned.eval_id) == (record.fit_id, record.eval_id), record.label
        if record.label in METHODS:
            usual = planned_record(
                one, build_method(record.label, {}, one.setup.suite.card.recipe), limit=None
            )
            assert (
                (usual.fit_id, usual.eval_id)
                == METHODS[record.label]
                == (record.fit_id, record.eval_id)
            )
        seen.add(record.method["name"])
    assert seen == {*METHODS, "masked-counterfactual"}
