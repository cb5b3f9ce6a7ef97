"""What the guard classifies anew differs from the run in the one thing that it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.backbones.backbone import Head
from bench.classifier import Classifier
from bench.data.pixels.cache import prepared
from bench.data.pixels.decoder import Decoder, Pixels
from bench.engine import Engine
from bench.evaluation.variants import variants


class Photographs:
    """Two images that are not square, at these pixels."""

    fingerprint = "two"
    labels = np.array([0, 1])

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return 2

    def original(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 256, (40, 60, 3), dtype=np.uint8)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([prepared(self.original(int(row)), self.pixels) for row in rows])


class Mean(nn.Module):
    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize("decoder", ["pil", "torchvision"])
def test_another_resize_is_by_the_decoder_of_the_split(decoder: Decoder) -> None:
    pixels = Pixels(size=28, resize=32, interpolation="bicubic", decoder=decoder)
    split: Any = Photographs(pixels)
    tower: Any = Mean()
    classifier = Classifier(tower, Head(torch.eye(3)[:2], normalize=False))
    made = variants(
        classifier,
        split,
        pixels,
        None,
        Engine(threads=1),
        None,
        lambda text: pytest.fail("there is no text tower"),
    )
    assert [one.change for one in made][1:] == [
        f"with the pixels {decoder}-bicubic-28-28",
        f"with the pixels {decoder}-bilinear-28-28",
        f"with the pixels {decoder}-bilinear-32-28",
    ]
