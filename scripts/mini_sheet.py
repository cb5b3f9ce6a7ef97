"""Write a contact sheet of the mini world: one column per class, one row per split.

python scripts/mini_sheet.py -o sheet.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw

from bench.datasets.mini.world import MiniWorld

#: The splits in the order of docs/mini.md, each next to the same scenes in another context.
SPLITS = (
    "train", "v2", "sketch", "sketch-in-context", "rendition", "rendition-in-context", "objectnet",
    "viewpoint", "adversarial", "corrupted",
)  # fmt: skip
#: Margins for the names of splits and classes, in pixels.
_LEFT, _TOP = 150, 16


def contact_sheet(
    world: MiniWorld, *, splits: tuple[str, ...] = SPLITS, per_class: int = 1
) -> Image.Image:
    """Return an image of every class of every split, enlarged 1.5 times.

    Args:
        world: World to render.
        splits: Names of its splits.
        per_class: Images of each class, below each other.
    """
    side = 72
    sheet = Image.new(
        "RGB", (_LEFT + side * len(world.classes), _TOP + side * per_class * len(splits)), "white"
    )
    canvas = ImageDraw.Draw(sheet)
    for column, name in enumerate(world.classes):
        canvas.text((_LEFT + side * column + 4, 2), name, fill="black")
    for number, split in enumerate(splits):
        rendered = world.render(split)
        canvas.text((4, _TOP + side * per_class * number + 4), split, fill="black")
        for column in range(len(world.classes)):
            for repeat, row in enumerate(np.flatnonzero(rendered.labels == column)[:per_class]):
                image = Image.fromarray(rendered.pixels[row]).resize(
                    (side, side), Image.Resampling.BICUBIC
                )
                sheet.paste(
                    image, (_LEFT + side * column, _TOP + side * (per_class * number + repeat))
                )
    return sheet


def main(
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("sheet.png"),
    seed: Annotated[int, typer.Option(help="seed of the world; mini-shifts has 2024")] = 2024,
) -> None:
    """Write the contact sheet."""
    # Small splits render quickly, and one image of each class is enough.
    contact_sheet(MiniWorld(seed=seed, train_size=200, val_size=100, test_size=200)).save(output)


if __name__ == "__main__":
    typer.run(main)
