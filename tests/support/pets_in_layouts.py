"""A dataset of three classes and a suite on it, in whatever layout a test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.data.cards.suite_card import read_card
from bench.data.pixels.decoder import Pixels
from bench.data.suite import Suite, open_suite

CLASSES = ("cat", "dog", "newt")
PIXELS = Pixels(size=8, resize=8)
SUITE = """
name = "pets"
title = "Pets"
licence = "CC0"
classes = ["cat", "dog", "newt"]
[id]
data = "./set.toml"
{id_data}
{shifts}
"""
SHIFT = '[[shifts]]\nname = "{name}"\ndata = "./set.toml"\npart = "{name}"\n'
LIST = (
    '{{ kind = "table", path = "{name}.txt", header = false, separator = " ", file = "0", label ='
    ' "1" }}'
)
READY = 'train = "train"\nval = "val"\ntest = "test"'


class Pets:
    """A dataset of three classes below `data/pets`, written in any layout, and a suite on it."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.root, self.identity = folder, folder / "data" / "pets", identity
        self.root.mkdir(parents=True)

    def image(self, name: str, seed: int, size: int = 6) -> Path:
        """A file with an image that no other seed gives."""
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P6 %d %d 255\n" % (size, size) + pixels.tobytes())
        return file

    def images(self, part: str, seed: int, count: int = 8) -> list[str]:
        """Class folders below `part`, and a line `path label` for every image."""
        lines = []
        for label, name in enumerate(CLASSES):
            for number in range(count):
                self.image(f"{part}/{name}/{number}.ppm", seed + 100 * label + number)
                lines.append(f"{part}/{name}/{number}.ppm {label}")
        return lines

    def suite(
        self,
        layouts: dict[str, str],
        id_data: str = READY,
        shifts: tuple[str, ...] = (),
        **opened: Any,
    ) -> Suite:
        """The suite on parts in these layouts."""
        parts = "".join(
            f"[parts.{name}]\nlayouts = [{layout}]\n" for name, layout in layouts.items()
        )
        head = (
            'name = "set"\ntitle = "Pets"\nlicence = "CC0"\nfolders = ["pets"]\nidentity ='
            f' "{self.identity}"\n'
        )
        (self.folder / "set.toml").write_text(f"{head}classes = {list(CLASSES)}\n{parts}")
        shown = "".join(SHIFT.format(name=name) for name in shifts)
        card = self.folder / "suite.toml"
        text = SUITE.format(id_data=id_data, shifts=shown)
        card.write_text(text if shifts else text.replace("[id]", "shifts = []\n[id]"))
        suite = open_suite(
            read_card(card), card_path=card, data_root=self.folder / "data", **opened
        )
        for split in suite.split_names:
            suite.fingerprint(split, PIXELS)
        return suite

    def lists(self, **lines: list[str]) -> dict[str, str]:
        """Lists of these names, written, and the layouts that read them."""
        for name, some in lines.items():
            (self.root / f"{name}.txt").write_text("\n".join(some) + "\n")
        return {name: LIST.format(name=name) for name in lines}
