"""A suite of tiny generated shapes: the same classes in photographs, inverted and noisy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("square", "disc", "cross")

CARD = """
name = "tiny"
title = "Tiny generated shapes"
licence = "CC0-1.0"
classes = ["square", "disc", "cross"]
templates = ["a photo of a {}."]
backbone = "timm:test_vit@random?size=32"
[source]
kind = "folder"
root = "./images"
[id]
path = "photo"
val_fraction = 0.25
test_fraction = 0.25
[[shifts]]
name = "inverted"
path = "inverted"
factors = { style = "changed" }
[[shifts]]
name = "noisy"
path = "noisy"
in_average = false
[recipe]
batch_size = 8
epochs = 2
lr = 1e-3
warmup = 0.1
schedule = "warmup-cosine"
augment = "flip"
weight = 6.0
weight_unit = "teacher_ms"
linear-probe = { grid = 5 }
"""


def shape(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A 40x40 image of a bright shape on a dark, coloured background."""
    y, x = np.mgrid[:40, :40]
    cx, cy, r = rng.uniform(14, 26), rng.uniform(14, 26), rng.uniform(7, 11)
    dx, dy = np.abs(x - cx), np.abs(y - cy)
    mask = {
        "square": np.maximum(dx, dy) < r,
        "disc": np.hypot(dx, dy) < r,
        "cross": (np.minimum(dx, dy) < r / 3) & (np.maximum(dx, dy) < r),
    }[kind]
    image = np.where(mask[..., None], rng.uniform(150, 255, 3), rng.uniform(0, 90, 3)) + rng.normal(
        0, 6, (40, 40, 3)
    )
    return image.clip(0, 255).astype(np.uint8)


def make_suite(folder: Path, per_class: int = 24) -> Path:
    """Write the card and its images; returns the card's path."""
    rng = np.random.default_rng(0)
    for split in ("photo", "inverted", "noisy"):
        for kind in CLASSES:
            place = folder / "images" / split / kind
            place.mkdir(parents=True)
            for i in range(per_class if split == "photo" else 6):
                image = shape(kind, rng)
                if split == "inverted":
                    image = 255 - image
                if split == "noisy":
                    image = (image + rng.normal(0, 40, image.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(place / f"{i:03d}.png")
    card = folder / "tiny.toml"
    card.write_text(CARD, encoding="utf-8")
    return card


#: A method of which a search draws a value that trains, or one that raises.
RAISES = """
from torch.nn.functional import cross_entropy
from bench import FineTuner, Space, searched
class Raises(FineTuner):
    name = "raises"
    bad: bool = searched(False, Space(choices=(False, True)))
    def loss(self, batch, student, teacher, constants):
        if self.bad:
            raise RuntimeError("a bug of the plug-in")
        return cross_entropy(student(batch.images), batch.labels)
"""
