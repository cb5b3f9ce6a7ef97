"""Logits of many classifiers in one pass over a split, and cached features of frozen towers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..backbones.backbone import Backbone
from ..classifier import Classifier
from ..data.split import Split
from ..engine import Engine, ran_out_of_memory, release_memory
from ..errors import BenchError
from ..identity import PROTOCOL_VERSION, digest
from ..storage.atomic import locked, mapped, write_with

Result = TypeVar("Result")
#: Without a handler, Python prints warnings on stderr, where a note of this rare kind belongs.
_log = logging.getLogger(__name__)
Floats = NDArray[np.float32]

#: Packages that decode images or compute features. Their versions are part of a cache key, since
#: another version may give other last bits.
LIBRARIES = ("torch", "timm", "open_clip_torch", "pillow", "shiftbench")


def _batches(split: Split, engine: Engine) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first row and the images (n, 3, S, S) in [0, 1] of every batch."""
    # One thread reads or decodes the next batch while the device computes. More would hold more
    # batches in memory, and decoding uses all cores by itself.
    starts = list(range(0, len(split), engine.images_at_once))

    def read(first: int) -> NDArray[np.uint8]:
        return split.take(np.arange(first, min(first + engine.images_at_once, len(split))))

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as ahead:
        coming = ahead.submit(read, starts[0])
        for first, following in zip(starts, [*starts[1:], None], strict=True):
            images = coming.result()
            if following is not None:
                coming = ahead.submit(read, following)
            yield (
                first,
                torch.from_numpy(images).to(engine.device).permute(0, 3, 1, 2).float() / 255,
            )


def _in_batches_that_fit(compute: Callable[[Engine], Result], engine: Engine) -> Result:
    """Call `compute`, and again with half the batch size whenever memory runs out.

    Raises:
        BenchError: not even one image at a time fits into memory.
    """
    while True:
        try:
            return compute(engine)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if engine.images_at_once == 1:
                fix = "use a device with more memory, or a smaller backbone"
                raise BenchError("not even one image at a time fits into memory", fix=fix) from None
        # Outside of the handler: while it runs, the exception references the frames that hold the
        # failed batch, and memory cannot be released.
        half = engine.images_at_once // 2
        _log.warning(
            "note: out of memory evaluating %d images at a time; trying again with %d",
            engine.images_at_once,
            half,
        )
        engine = replace(engine, eval_batch=half)
        release_memory()


def logits_of(
    classifiers: Mapping[str, Classifier],
    split: Split,
    engine: Engine,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Floats]:
    """Return the logits (N, C) of every classifier, in a single pass over the images.

    The pass starts over if memory runs out. The classifiers are moved to the device and put into
    eval mode, all at the same time.

    Args:
        classifiers: by name.
        split: the images.
        engine: device and batch size.
        progress: called after each batch with the images done and all images; may raise to stop.

    Raises:
        BenchError: not even one image at a time fits into memory.
    """
    return (
        _in_batches_that_fit(lambda engine: _pass(classifiers, split, engine, progress), engine)
        if classifiers
        else {}
    )


def _pass(
    modules: Mapping[str, nn.Module],
    split: Split,
    engine: Engine,
    progress: Callable[[int, int], None],
) -> dict[str, Floats]:
    # Moved before inference mode begins. Weights that are moved inside of it become inference
    # tensors, which could never be trained again, and nothing would report it.
    models = {name: module.to(engine.device).eval() for name, module in modules.items()}
    parts: dict[str, list[Floats]] = {name: [] for name in models}
    with torch.inference_mode():
        for first, images in _batches(split, engine):
            for name, model in models.items():
                parts[name].append(model(images).float().cpu().numpy())
            progress(first + len(images), len(split))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def frozen_features(
    backbone: Backbone,
    split: Split,
    engine: Engine,
    cache: Path,
    between: Callable[[], None] = lambda: None,
) -> Floats:
    """Return features (N, D) of the pre-trained tower, computed once and then memory-mapped.

    Args:
        backbone: the pre-trained model.
        split: the images.
        engine: device, threads and batch size.
        cache: folder of the cache.
        between: called between two batches, and while another process computes the same features;
            may raise to stop.

    Raises:
        BenchError: not even one image at a time fits into memory.
    """
    return _in_batches_that_fit(
        lambda engine: _cached_features(backbone, split, engine, cache, between), engine
    )


def _cached_features(
    backbone: Backbone, split: Split, engine: Engine, cache: Path, between: Callable[[], None]
) -> Floats:
    # The key covers what is computed (weights, pixels, images and their order) and what changes the
    # last bits (device, threads, batch size, libraries). A probe on the features is then the same
    # whether they came from the cache or not.
    key = digest(
        {
            "weights": backbone.weights_sha256,
            "backbone": backbone.name,
            "pixels": split.pixels,
            "images": split.cached_as,
            "order": digest(list(map(str, split.keys))),
            "arithmetic": [engine.device_type, engine.threads, engine.images_at_once],
            "libraries": [
                version(name)
                for name in (
                    *LIBRARIES,
                    *(["torchvision"] if split.decoder == "torchvision" else []),
                )
            ],
            "protocol": PROTOCOL_VERSION,
        }
    )
    path = cache / "features" / f"{key[:32]}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Locked, since a sweep starts many trials that all need the same features first.
    with locked(path, between):
        if not path.exists():
            found = _pass(
                {"tower": backbone.image_tower()}, split, engine, lambda done, of: between()
            )
            if not np.isfinite(found["tower"]).all():
                raise BenchError(
                    f"features of {split.name} are not finite: the weights of {backbone.name} are"
                    " damaged, or overflow",
                    fix="download the weights again, or compute in fp32",
                )
            write_with(path, lambda temporary: _save(temporary, found["tower"]))
        features: Floats = mapped(path)
    return features


def _save(path: Path, array: Floats) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
