"""The mini world: which scenes each split of the suite shows.

The splits cross three factors. *Style* is a photo or something else; *context* says whether the
background goes with the class as it does in training; *geometry* says whether size and pose do.
Splits that are compared with each other share their scenes: `sketch` and `sketch-in-context` show
the same objects in the same poses, and differ in the background alone, so that their difference is
the effect of context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .render import CHUNK, CORRUPTIONS, paint_chunks, paint_scenes
from .scenes import Recipe, Scenes, draw_scenes
from .silhouettes import CLASSES, stream
from .styles import STYLES

PAINT_BIAS = 0.6
"""How often, relative to the background, the object's colour goes with the context too."""

GroupKind = Literal["context", "style", "corruption"]


@dataclass(frozen=True)
class Split:
    """A split's recipe and what it has in common with others.

    Attributes:
        recipe: distributions of its scenes.
        scenes: name of the split whose scenes it shows again, changed only where the recipes
            differ.
        groups: what its group number means: 0/1 for a background that is not / is the class's own,
            or an index into `STYLES` or `CORRUPTIONS`.
    """

    recipe: Recipe
    scenes: str
    groups: GroupKind = "context"


# ObjectNet's poses, some with something in the way.
_MOVED = Recipe(rotation=0.8, deform=0.18, scale=(0.34, 0.76), centred=0.0, occluder=0.25)
_RENDITIONS = ("painting", "cartoon", "embroidery", "mosaic")

SPLITS: dict[str, Split] = {
    "train": Split(Recipe(), "train"),
    "id-val": Split(Recipe(), "id-val"),
    "id-test": Split(Recipe(), "id-test"),
    # The five roles of the ImageNet shifts.
    "v2": Split(Recipe(home_share=0.7, noise=0.075, clutter=0.5, texture=0.7, deform=0.12), "v2"),
    "sketch": Split(Recipe(("sketch",), context="random"), "sketch"),
    "rendition": Split(Recipe(_RENDITIONS, context="random"), "rendition", "style"),
    "objectnet": Split(replace(_MOVED, context="random"), "objectnet"),
    "adversarial": Split(Recipe(context="another"), "id-test"),
    # The same scenes with one factor put back.
    "sketch-in-context": Split(Recipe(("sketch",)), "sketch"),
    "rendition-in-context": Split(Recipe(_RENDITIONS), "rendition", "style"),
    "viewpoint": Split(_MOVED, "objectnet"),
    "corrupted": Split(Recipe(corrupted=True), "id-test", "corruption"),
}


@dataclass(frozen=True)
class Rendered:
    """The images of a split.

    Attributes:
        pixels: (N, 48, 48, 3) uint8, RGB.
        labels: (N,) int64, index into the world's classes; image i has class i modulo 20.
        groups: (N,) int64, index into `group_names`.
        group_names: what the groups are.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    group_names: tuple[str, ...]


class MiniWorld:
    """A rendered world in which photos of a class tend to have that class's background.

    Image i of a split is a function of (seed, bias, split, i): a larger split begins with the
    images of a smaller one.

    Args:
        bias: probability that a photo of the training distribution shows its class's own
            background.
        train_size: images in `train`.
        val_size: images in `id-val`.
        test_size: images in every test split.
        seed: which world; styles, classes and homes are the same in every one.
    """

    classes: tuple[str, ...] = CLASSES
    splits: tuple[str, ...] = tuple(SPLITS)

    def __init__(
        self,
        *,
        bias: float = 0.9,
        train_size: int = 2000,
        val_size: int = 1000,
        test_size: int = 1500,
        seed: int = 0,
    ) -> None:
        if not 0 <= bias <= 1:
            raise UsageError(
                f"the mini world's bias is a probability, not {bias}", fix="give a bias from 0 to 1"
            )
        for name, size in (
            ("train_size", train_size),
            ("val_size", val_size),
            ("test_size", test_size),
        ):
            if size < 1:
                raise UsageError(
                    f"the mini world's {name} is {size}", fix=f"give a {name} of at least 1"
                )
        self.bias, self.seed = bias, seed
        self._sizes = {"train": train_size, "id-val": val_size}
        self._test_size = test_size

    def size(self, split: str) -> int:
        """Images in a split."""
        return self._sizes.get(split, self._test_size)

    def scenes(self, split: str, chunk: int) -> Scenes:
        """Parameters of images [chunk * CHUNK, (chunk + 1) * CHUNK) of a split, without painting
        them.

        Raises:
            UsageError: there is no such split.
        """
        which = self._split(split)
        labels = (np.arange(CHUNK) + chunk * CHUNK) % len(CLASSES)
        return draw_scenes(
            which.recipe,
            labels,
            lambda purpose: stream("mini", self.seed, which.scenes, purpose, chunk),
            bias=self.bias,
            paint_bias=PAINT_BIAS * self.bias,
        )

    def render(self, split: str) -> Rendered:
        """Paint a split; the same bits for every number of threads.

        Raises:
            UsageError: there is no such split.
        """
        which, count = self._split(split), self.size(split)
        groups = np.empty(-(-count // CHUNK) * CHUNK, dtype=np.int64)

        def paint(chunk: int) -> NDArray[np.uint8]:
            scenes = self.scenes(split, chunk)
            group = {
                "context": scenes.at_home,
                "style": scenes.style,
                "corruption": scenes.corruption,
            }[which.groups]
            groups[chunk * CHUNK : (chunk + 1) * CHUNK] = group.numpy()
            return paint_scenes(
                scenes,
                lambda purpose: stream("mini", self.seed, which.scenes, purpose, chunk, "paint"),
            )

        pixels = paint_chunks(count, paint)
        names = {
            "context": ("elsewhere", "at home"),
            "style": tuple(STYLES),
            "corruption": tuple(CORRUPTIONS),
        }
        return Rendered(
            pixels, np.arange(count) % len(CLASSES), groups[:count], names[which.groups]
        )

    @staticmethod
    def _split(name: str) -> Split:
        try:
            return SPLITS[name]
        except KeyError:
            raise UsageError(
                f"the mini world has no split {name!r}", fix=f"name one of: {', '.join(SPLITS)}"
            ) from None
