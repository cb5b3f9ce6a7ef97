"""Re-evaluate a subset under common misconfigurations to find the cause of a wrong accuracy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..backbones.backbone import Head, TextTower
from ..classifier import Classifier
from ..data.cards.labels import Projection
from ..data.pixels.cache import prepared
from ..data.pixels.decoder import Pixels
from ..data.split import Split
from ..engine import Engine
from ..identity import numpy_stream
from .metrics import project

Tower = TypeVar("Tower", bound=nn.Module)

#: Images of the subset: enough to tell a gain of a few points from chance, and seconds of work.
SAMPLE = 512

#: The means and standard deviations in use, by what uses them.
STATISTICS = {
    "OpenAI CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5 and 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none (pixels from 0 to 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Variant:
    """The result of one changed setting.

    Attributes:
        cause: the mistake that the change would undo.
        change: the change, as the beginning of a sentence.
        before: (n,) whether each image of the subset is classified correctly without the change.
        right: (n,) the same with the change.
    """

    cause: str
    change: str
    before: NDArray[np.bool_]
    right: NDArray[np.bool_]

    @property
    def gain(self) -> float:
        """Gain in accuracy, between -1 and 1."""
        return float(self.right.mean() - self.before.mean())

    @property
    def beyond_chance(self) -> bool:
        """Whether the gain exceeds two standard deviations (McNemar's test)."""
        # Only images whose result changed count. Without an effect, each is as likely to change
        # to correct as to wrong, so that the difference has the variance of their number.
        better, worse = (
            int((self.right & ~self.before).sum()),
            int((self.before & ~self.right).sum()),
        )
        return better - worse > 2 * math.sqrt(better + worse)


def variants(
    classifier: Classifier,
    split: Split,
    pixels: Pixels,
    projection: Projection | None,
    engine: Engine,
    text: TextTower | None,
    quick_head: Callable[[TextTower], Head],
) -> Iterator[Variant]:
    """Yield the results of other preprocessing and of the other activation, one change at a time.

    Args:
        classifier: the classifier with the wrong accuracy.
        split: its split.
        pixels: preprocessing of the split.
        projection: from the suite's classes to those of the split, or None.
        engine: device.
        text: the classifier's text tower, if its head comes from one.
        quick_head: builds a head from a text tower, with few prompts.
    """
    # The stream depends on the split alone, so that the same mistake gives the same message.
    rows = np.sort(numpy_stream("guard", split.fingerprint).permutation(len(split))[:SAMPLE])
    labels, images = split.labels[rows], split.take(rows)

    def right(model: Classifier, shown: NDArray[np.uint8]) -> NDArray[np.bool_]:
        logits = _logits(model, shown, engine)
        result: NDArray[np.bool_] = (
            logits if projection is None else project(logits, projection)
        ).argmax(axis=1) == labels
        return result

    # Each phase below is one kind of mistake, the cheapest first: exchanging channels needs
    # neither decoding nor a copy of the model.
    before = right(classifier, images)
    wrong = "wrong preprocessing"
    yield Variant(
        wrong,
        "with blue and red exchanged",
        before,
        right(classifier, np.ascontiguousarray(images[..., ::-1])),
    )
    mean, std = getattr(classifier.tower, "mean", None), getattr(classifier.tower, "std", None)
    if isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor):
        for name, (other_mean, other_std) in STATISTICS.items():
            if not np.allclose(mean.flatten().tolist(), other_mean, atol=1e-3):
                other: Any = copy.deepcopy(classifier.tower)
                other.mean, other.std = (
                    torch.tensor(value).view(3, 1, 1) for value in (other_mean, other_std)
                )
                after = right(Classifier(other, classifier.head), images)
                yield Variant(wrong, f"with the mean and standard deviation {name}", before, after)
    # Resized to the input's size (CLIP), or larger and then cropped to 87.5 % (ImageNet's habit).
    for resize in sorted({pixels.size, round(pixels.size / 0.875)}):
        for interpolation in ("bicubic", "bilinear"):
            other_pixels = pixels.model_copy(
                update={"resize": resize, "interpolation": interpolation}
            )
            if other_pixels != pixels:
                shown = np.stack([prepared(split.original(int(row)), other_pixels) for row in rows])
                yield Variant(
                    wrong, f"with the pixels {other_pixels.name}", before, right(classifier, shown)
                )
    # Both towers of a CLIP have the same activation, so that a zero-shot head has to be built again
    # too. With few prompts, for speed; hence the comparison is with such a head as well.
    tower = with_other_activation(classifier.tower)
    if tower is not None and text is not None:
        other_text = with_other_activation(text)
        plain = right(Classifier(classifier.tower, quick_head(text)), images)
        after = right(
            Classifier(tower, quick_head(text if other_text is None else other_text)), images
        )
        yield Variant("QuickGELU and GELU are confused", "with the other activation", plain, after)
    elif tower is not None:
        after = right(Classifier(tower, classifier.head), images)
        yield Variant("QuickGELU and GELU are confused", "with the other activation", before, after)


def _logits(model: Classifier, images: NDArray[np.uint8], engine: Engine) -> NDArray[np.float32]:
    # Moved before inference mode, as in `forward`.
    model = model.to(engine.device).eval()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(images), 64):
            batch = (
                torch.from_numpy(images[first : first + 64])
                .to(engine.device)
                .permute(0, 3, 1, 2)
                .float()
                / 255
            )
            parts.append(model(batch).float().cpu().numpy())
    return np.concatenate(parts)


class _QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation_of(module: nn.Module) -> str:
    """Return `QuickGELU` or `GELU` if only one of the two occurs in a module, else ""."""
    # By name: every library has a class of its own for QuickGELU, ours included.
    kinds = {type(part).__name__.lstrip("_") for part in module.modules()} & {"QuickGELU", "GELU"}
    return kinds.pop() if len(kinds) == 1 else ""


def with_other_activation(tower: Tower) -> Tower | None:
    """Return a copy with GELU for QuickGELU or the reverse; None if `activation_of` is ""."""
    kind = activation_of(tower)
    if not kind:
        return None
    other = copy.deepcopy(tower)
    for parent in list(other.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.lstrip("_") == kind:
                setattr(parent, name, _QuickGELU() if kind == "GELU" else nn.GELU())
    return other
