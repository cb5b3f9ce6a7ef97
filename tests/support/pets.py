"""A small dataset by its card: what it is called, and how it is unpacked and opened."""

from __future__ import annotations

from pathlib import Path

from bench.data.cards.locations import DataRoot
from bench.data.readers.located import Opened, open_dataset
from bench.data.readers.parts import open_part

IDS = ("n01", "n02", "n03")

CARD = """
name = "pets"
title = "Pets"
licence = "CC0"
folders = ["pets"]
classes = ["n01", "n02", "n03"]
identity = "{identity}"
[parts.test]
layouts = [{layout}]
"""


def opened(root: Path, layout: str, identity: str = "content") -> Opened:
    card = root.parent / "pets.toml"
    card.write_text(CARD.format(identity=identity, layout=layout), encoding="utf-8")
    dataset = open_dataset(str(card), [DataRoot(root, "test")])
    return open_part(dataset, "test", [0, 1, 2], cache=root.parent / "index")


def unpacked(root: Path, photos: dict[str, bytes]) -> None:
    for name, data in photos.items():
        (root / "pets" / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pets" / "test" / name).write_bytes(data)
