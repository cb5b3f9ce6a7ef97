"""The mini world and its splits.

The splits cross three factors: *style* (a photo or something else), *context* (whether the
background goes with the class as in training) and *geometry* (whether size and pose do). Splits
that are compared with each other share their scenes. For example, `sketch` and `sketch-in-context`
show the same objects in the same poses and differ only in the background, so the difference of
their accuracies is the effect of context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .render import CHUNK, CORRUPTIONS, paint_chunks, paint_scenes
from .scenes import SceneRecipe, Scenes, sample_scenes
from .silhouettes import CLASSES, stream
from .styles import STYLES

#: Probability that the object's colour goes with the context, relative to that of the background.
#: Below 1, so that the background is the better of the two cues.
PAINT_BIAS = 0.6

GroupKind = Literal["context", "style", "corruption"]


@dataclass(frozen=True)
class RenderedSplit:
    """The definition of a split.

    Attributes:
        recipe: distributions of its scenes.
        scenes: name of the split whose scenes it shows, changed only where the recipes differ; its
            own name if it does not share them.
        groups: meaning of the group numbers: 0 or 1 for a background that is not or is the class's
            own, or an index into `STYLES` or `CORRUPTIONS`.
    """

    recipe: SceneRecipe
    scenes: str
    groups: GroupKind = "context"


# The role of ObjectNet: unusual poses and sizes, and sometimes a bar that hides a part.
_MOVED = SceneRecipe(rotation=0.8, deform=0.18, scale=(0.34, 0.76), centred=0.0, occluder=0.25)
_RENDITIONS = ("painting", "cartoon", "embroidery", "mosaic")

SPLITS: dict[str, RenderedSplit] = {
    "train": RenderedSplit(SceneRecipe(), "train"),
    "id-val": RenderedSplit(SceneRecipe(), "id-val"),
    "id-test": RenderedSplit(SceneRecipe(), "id-test"),
    # The five roles of the ImageNet shifts: V2, Sketch, R, ObjectNet and A. `adversarial` shows the
    # scenes of id-test against the backgrounds of other classes.
    "v2": RenderedSplit(
        SceneRecipe(home_share=0.7, noise=0.075, clutter=0.5, texture=0.7, deform=0.12), "v2"
    ),
    "sketch": RenderedSplit(SceneRecipe(("sketch",), context="random"), "sketch"),
    "rendition": RenderedSplit(SceneRecipe(_RENDITIONS, context="random"), "rendition", "style"),
    "objectnet": RenderedSplit(replace(_MOVED, context="random"), "objectnet"),
    "adversarial": RenderedSplit(SceneRecipe(context="another"), "id-test"),
    # The same scenes with one factor as in training: what each is compared with.
    "sketch-in-context": RenderedSplit(SceneRecipe(("sketch",)), "sketch"),
    "rendition-in-context": RenderedSplit(SceneRecipe(_RENDITIONS), "rendition", "style"),
    "viewpoint": RenderedSplit(_MOVED, "objectnet"),
    "corrupted": RenderedSplit(SceneRecipe(corrupted=True), "id-test", "corruption"),
}


@dataclass(frozen=True)
class Rendered:
    """The images of a split.

    Attributes:
        pixels: (N, 48, 48, 3) uint8, RGB.
        labels: (N,) int64, index into the world's classes; image i has class i modulo 20.
        groups: (N,) int64, index into `group_names`.
        group_names: names of the groups.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    group_names: tuple[str, ...]


class MiniWorld:
    """A rendered world in which photos of a class tend to have that class's background.

    Image i of a split depends on (seed, bias, split, i) alone, so a larger split begins with the
    images of a smaller one.

    Args:
        bias: probability that a photo of the training distribution shows its class's own
            background.
        train_size: number of images in `train`.
        val_size: number of images in `id-val`.
        test_size: number of images in every test split.
        seed: seed of the world; styles, classes and homes are the same for every seed.

    Raises:
        UsageError: the bias is not a probability, or a size is below 1.
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
                f"the mini world's bias is {bias}, which is not a probability",
                fix="give a bias from 0 to 1",
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
        """Return the number of images in a split."""
        return self._sizes.get(split, self._test_size)

    def scenes(self, split: str, chunk: int) -> Scenes:
        """Return the parameters of images [chunk * CHUNK, (chunk + 1) * CHUNK) of a split.

        Raises:
            UsageError: there is no such split.
        """
        # Always a whole chunk, even if the split ends before it: random numbers are sampled for all
        # images of a chunk at once, and must not depend on where a split ends. Classes take turns,
        # so every split is balanced.
        which = self._split(split)
        labels = (np.arange(CHUNK) + chunk * CHUNK) % len(CLASSES)
        return sample_scenes(
            which.recipe,
            labels,
            lambda purpose: stream("mini", self.seed, which.scenes, purpose, chunk),
            bias=self.bias,
            paint_bias=PAINT_BIAS * self.bias,
        )

    def render(self, split: str) -> Rendered:
        """Render a split; the pixels are the same bits for any number of threads.

        Raises:
            UsageError: there is no such split.
        """
        which, count = self._split(split), self.size(split)
        # Filled by `paint` from several threads, each in the rows of its chunk; the last chunk may
        # reach beyond the split.
        groups = np.empty(-(-count // CHUNK) * CHUNK, dtype=np.int64)

        def paint(chunk: int) -> NDArray[np.uint8]:
            scenes = self.scenes(split, chunk)
            group = {
                "context": scenes.at_home,
                "style": scenes.style,
                "corruption": scenes.corruption,
            }[which.groups]
            groups[chunk * CHUNK : (chunk + 1) * CHUNK] = group.numpy()
            # "paint" keeps these streams apart from those of the parameters, whatever purposes
            # either of them names.
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
    def _split(name: str) -> RenderedSplit:
        try:
            return SPLITS[name]
        except KeyError:
            raise UsageError(
                f"the mini world has no split {name!r}", fix=f"name one of: {', '.join(SPLITS)}"
            ) from None
