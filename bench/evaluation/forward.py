"""One pass over a split for any number of classifiers, and frozen features through a cache keyed by all that shapes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from ..backbones.backbone import Backbone
from ..classifier import Classifier
from ..data.split import Split
from ..identity import PROTOCOL_VERSION, digest
from ..runs.atomic import write_with
from ..training.engine import Engine

Floats = NDArray[np.float32]

#: Packages that decode images or compute features.
LIBRARIES = ("torch", "timm", "open_clip_torch", "pillow", "shiftbench")


def _batches(split: Split, engine: Engine) -> Iterator[tuple[int, torch.Tensor]]:
    for first in range(0, len(split), engine.eval_batch):
        rows = np.arange(first, min(first + engine.eval_batch, len(split)))
        yield first, torch.from_numpy(split.take(rows)).to(engine.device).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def logits_of(
    classifiers: Mapping[str, Classifier],
    split: Split,
    engine: Engine,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Floats]:
    """Logits (N, C) of every classifier, reading each image once.

    Classifiers are moved to the device and put into eval mode; all are resident at a time.
    """
    if not classifiers:
        return {}
    models = {name: classifier.to(engine.device).eval() for name, classifier in classifiers.items()}
    parts: dict[str, list[Floats]] = {name: [] for name in models}
    for first, images in _batches(split, engine):
        for name, model in models.items():
            parts[name].append(model(images).float().cpu().numpy())
        progress(first + len(images), len(split))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def frozen_features(
    backbone: Backbone, split: Split, engine: Engine, cache: Path, between: Callable[[], None] = lambda: None
) -> Floats:
    """Features (N, D) of the pre-trained tower, computed once and memory-mapped from the cache afterwards.

    The key covers the weights, the pixels, the images, the libraries that decode and compute, and what changes the last bits
    (threads, device, batch size).

    Args:
        between: called between two batches; may raise to stop.
    """
    key = digest(
        {
            "weights": backbone.weights_sha256,
            "backbone": backbone.name,
            "pixels": backbone.pixels.name,
            "images": split.fingerprint,
            "order": digest(list(map(str, split.keys))),
            "arithmetic": [engine.device_type, engine.threads, engine.eval_batch],
            "libraries": [version(name) for name in LIBRARIES],
            "protocol": PROTOCOL_VERSION,
        }
    )
    path = cache / "features" / f"{key[:32]}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            tower, rows = backbone.image_tower().to(engine.device).eval(), []
            with torch.inference_mode():
                for _, images in _batches(split, engine):
                    between()
                    rows.append(tower(images).float().cpu().numpy())
            write_with(path, lambda temporary: _save(temporary, np.concatenate(rows)))
        stored: Floats = np.load(path, mmap_mode="r")
    return stored


def _save(path: Path, array: Floats) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
