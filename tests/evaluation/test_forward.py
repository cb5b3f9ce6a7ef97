"""A pass over a split reads the next batch while it computes, and every image once."""

from __future__ import annotations

import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from bench.engine import Engine
from bench.evaluation.forward import frozen_features, logits_of


class Photos:
    """Seven images whose pixels are their row."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.second = threading.Event()

    def __len__(self) -> int:
        return 7

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.taken += rows.tolist()
        if len(self.taken) > 3:
            self.second.set()
        return np.broadcast_to(
            rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 3)
        ).copy()


class Mean(nn.Module):
    """Computes only once the second batch was asked for."""

    def __init__(self, photos: Photos) -> None:
        super().__init__()
        self.photos = photos

    def forward(self, images: Tensor) -> Tensor:
        assert self.photos.second.wait(240)
        return images.mean(dim=(1, 2, 3))[:, None] * 255


@pytest.mark.waits
def test_the_next_batch_is_read_while_one_is_computed_on() -> None:
    photos: Any = Photos()
    models: Any = {"it": Mean(photos)}
    shown: list[tuple[int, int]] = []
    logits = logits_of(
        models, photos, Engine(eval_batch=3), lambda done, of: shown.append((done, of))
    )
    assert torch.from_numpy(logits["it"]).flatten().round().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert photos.taken == [0, 1, 2, 3, 4, 5, 6]
    assert shown == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(("decoder", "files"), [("pil", 1), ("torchvision", 2)])
def test_features_are_computed_anew_when_what_decoded_their_images_is_another(
    decoder: str, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split: Any = Photos()
    split.second.set()
    vars(split).update(
        decoder=decoder,
        pixels=f"{decoder}-bicubic-2-2",
        cached_as="seven",
        keys=np.arange(7).astype(str),
    )
    backbone: Any = SimpleNamespace(
        name="mean", weights_sha256="0", image_tower=lambda: Mean(split)
    )
    for torchvision in ("0.1", "0.2"):
        monkeypatch.setattr(
            "bench.evaluation.forward.version",
            lambda name, its=torchvision: its if name == "torchvision" else metadata.version(name),
        )
        features = frozen_features(backbone, split, Engine(), tmp_path)
        assert features.flatten().round().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "features").glob("*.npy"))) == files


class Moving(nn.Linear):
    """Gets new weights when it is moved, as every module that goes from the CPU to a GPU."""

    def __init__(self) -> None:
        super().__init__(12, 2)

    def to(self, *args: Any, **kwargs: Any) -> Moving:  # type: ignore[override]
        return super().to(torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1).double())


def test_what_was_scored_on_another_device_can_still_be_trained() -> None:
    photos: Any = Photos()
    model = Moving()
    logits_of({"it": model}, photos, Engine())  # type: ignore[dict-item]
    # Weights of the inference mode would get no gradient, without a word.
    model(torch.rand(2, 3, 2, 2)).sum().backward()
    assert model.weight.grad is not None


def test_a_stop_is_heard_while_another_process_computes_the_features(tmp_path: Path) -> None:
    split: Any = Photos()
    split.second.set()
    vars(split).update(
        decoder="pil", pixels="pil-bicubic-2-2", cached_as="seven", keys=np.arange(7).astype(str)
    )
    backbone: Any = SimpleNamespace(
        name="mean", weights_sha256="0", image_tower=lambda: Mean(split)
    )
    frozen_features(backbone, split, Engine(), tmp_path)
    (stored,) = (tmp_path / "features").glob("*.npy")

    def stop() -> None:
        raise KeyboardInterrupt

    with FileLock(f"{stored}.lock", is_singleton=False), pytest.raises(KeyboardInterrupt):
        frozen_features(backbone, split, Engine(), tmp_path, stop)
    assert len(frozen_features(backbone, split, Engine(), tmp_path, stop)) == 7
