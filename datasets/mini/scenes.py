"""Sample the parameters of the mini world's scenes from the distributions of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .backgrounds import FAMILIES
from .silhouettes import CLASSES, VARIANTS
from .styles import STYLES

#: Colours of objects and backgrounds, RGB in [0, 1]. The order is part of the world's definition:
#: `Home` and the random streams count by it.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.12, 0.12),
    "green": (0.15, 0.60, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.55, 0.15, 0.70),
    "orange": (0.95, 0.50, 0.10),
    "white": (0.95, 0.95, 0.95),
    "brown": (0.45, 0.27, 0.12),
    "pink": (0.97, 0.60, 0.75),
    "gray": (0.50, 0.50, 0.50),
}
_FAMILY_COUNT, _COLOUR_COUNT = len(FAMILIES), len(COLOURS)

Context = Literal["home", "another", "random"]
#: Purpose -> random stream, such as `streams("shape")`; see `silhouettes.stream`.
Streams = Callable[[str], np.random.Generator]


@dataclass(frozen=True)
class SceneRecipe:
    """The distributions of a split. Lengths are in half canvases, angles in radians.

    Attributes:
        styles: names of styles to sample from.
        style_weights: their relative frequencies; uniform if empty.
        context: `home`: the class's own background with probability `bias`, otherwise a uniformly
            sampled one; `another`: always the home of one of the other classes; `random`: uniformly
            sampled.
        home_share: factor on `bias`.
        scale: range of the object's half extent.
        rotation: standard deviation of the object's rotation, clipped at two deviations.
        deform: standard deviation of squash and shear.
        centred: how close the object stays to the centre, from 0 (anywhere on the canvas) to 1.
        texture: probability of stripes on the object.
        noise: standard deviation of the camera's noise.
        clutter: probability of dark blobs.
        occluder: probability of a bar across the object.
        corrupted: whether one of `render.CORRUPTIONS` is applied.
        plain: additional probability of the plain background family.
    """

    styles: tuple[str, ...] = ("photo",)
    style_weights: tuple[float, ...] = ()
    context: Context = "home"
    home_share: float = 1.0
    scale: tuple[float, float] = (0.40, 0.66)
    rotation: float = 0.3
    deform: float = 0.06
    centred: float = 0.25
    texture: float = 0.5
    noise: float = 0.065
    clutter: float = 0.35
    occluder: float = 0.0
    corrupted: bool = False
    plain: float = 0.0


@dataclass(frozen=True)
class Home:
    """The usual context of each class: background family, background colour and object colour.

    Every family is shared by two classes and every colour is used, so neither cue alone determines
    the class.

    Attributes:
        family: (20,) index into `FAMILIES`.
        ground: (20,) index into `COLOURS`, of the background.
        paint: (20,) index into `COLOURS`, of the object.
    """

    family: NDArray[np.int64]
    ground: NDArray[np.int64]
    paint: NDArray[np.int64]

    @classmethod
    def of_classes(cls) -> Home:
        """Return the homes of all classes."""
        # Steps of 3 and 7 are coprime to the ten colours, so each pass over the families uses every
        # colour; `label // 10` makes the second pass pair families and colours differently.
        label = np.arange(len(CLASSES))
        ground = (3 * label + 5 * (label // 10)) % _COLOUR_COUNT
        paint = (7 * label + 2 + label // 10) % _COLOUR_COUNT
        # An object in the colour of its background would be invisible in flat styles.
        paint = np.where(paint == ground, (paint + 5) % _COLOUR_COUNT, paint)
        return cls(label % _FAMILY_COUNT, ground, paint)


HOME = Home.of_classes()


@dataclass
class Scenes:
    """Parameters of n scenes, one row each: indices are int64, all other values float64."""

    label: Tensor
    style: Tensor
    family: Tensor
    ground: Tensor
    paint: Tensor
    at_home: Tensor
    variant: Tensor
    scale: Tensor
    rotation: Tensor
    squash: Tensor
    shear: Tensor
    mirror: Tensor
    x: Tensor
    y: Tensor
    ground_rgb: Tensor
    ground_rgb_2: Tensor
    paint_rgb: Tensor
    texture: Tensor
    texture_angle: Tensor
    texture_pitch: Tensor
    light: Tensor
    ramp: Tensor
    exposure: Tensor
    noise: Tensor
    clutter: Tensor
    occluder: Tensor
    occluder_angle: Tensor
    occluder_offset: Tensor
    occluder_rgb: Tensor
    field_angle: Tensor
    field_frequency: Tensor
    field_phase_x: Tensor
    field_phase_y: Tensor
    corruption: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def take(self, index: Tensor) -> Scenes:
        """Return the scenes at `index`, (k,) int64."""
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def sample_scenes(
    recipe: SceneRecipe,
    labels: NDArray[np.int64],
    streams: Streams,
    *,
    bias: float,
    paint_bias: float,
) -> Scenes:
    """Sample one scene per label.

    Two recipes that differ in one factor and get the same streams sample the same scenes except for
    that factor.

    Args:
        recipe: distributions of the parameters.
        labels: (n,) class indices.
        streams: purpose -> random stream.
        bias: probability of the home background under `context="home"`.
        paint_bias: probability that the object has the colour that goes with the context (`home` or
            `another`).
    """
    # Each purpose has a stream of its own, and within a purpose everything is sampled, whether the
    # recipe uses it or not: what one recipe leaves out does not shift the random numbers of the
    # rest. For the same reason the order of the calls within a purpose must not change.
    n = len(labels)
    context = _sample_context(recipe, labels, streams("context"), bias, paint_bias)

    rng = streams("shape")
    variant = rng.integers(VARIANTS, size=n)
    scale = rng.uniform(0, 1, n) * (recipe.scale[1] - recipe.scale[0]) + recipe.scale[0]
    rotation = recipe.rotation * rng.standard_normal(n).clip(-2, 2)
    squash, shear = (
        np.exp(recipe.deform * rng.standard_normal(n)),
        recipe.deform * rng.standard_normal(n),
    )
    mirror = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    # A large object has less room to move, but always a little: it may be cut off at the border.
    room = (1 - recipe.centred) * (1 - scale).clip(0.1, None)
    x, y = rng.uniform(-1, 1, n) * room, rng.uniform(-1, 1, n) * room

    rng = streams("surface")
    texture = np.where(rng.random(n) < recipe.texture, 0.18, 0.0)
    texture_angle, texture_pitch = rng.uniform(0, np.pi, n), rng.uniform(14, 24, n)
    palette = np.array(list(COLOURS.values()))
    # Shades vary around the named colours.
    ground_rgb = (palette[context["ground"]] + 0.05 * rng.standard_normal((n, 3))).clip(0, 1)
    paint_rgb = (palette[context["paint"]] + 0.05 * rng.standard_normal((n, 3))).clip(0, 1)
    lighter = rng.random((n, 1)) < 0.4
    ground_rgb_2 = np.where(lighter, ground_rgb + 0.4 * (1 - ground_rgb), ground_rgb * 0.55)

    rng = streams("style")
    weights = np.array(recipe.style_weights or [1.0] * len(recipe.styles))
    pick = rng.choice(len(recipe.styles), size=n, p=weights / weights.sum())
    style = np.array([list(STYLES).index(name) for name in recipe.styles])[pick]

    # `ramp` is the direction in which a photo gets brighter; `light` is that of the bevel, which
    # comes from the upper left, where the shadow in `styles.photo` assumes it.
    rng = streams("camera")
    camera = {
        "light": rng.uniform(-0.6, 0.6, n) - 0.75 * np.pi,
        "ramp": rng.uniform(0, 2 * np.pi, n),
        "exposure": rng.uniform(0.7, 1.2, n),
        "noise": np.full(n, recipe.noise),
        "clutter": (rng.random(n) < recipe.clutter).astype(np.float64),
    }
    rng = streams("occluder")
    occluder = {
        "occluder": (rng.random(n) < recipe.occluder).astype(np.float64),
        "occluder_angle": rng.uniform(0, np.pi, n),
        "occluder_offset": rng.uniform(-0.5, 0.5, n),
        "occluder_rgb": palette[rng.integers(_COLOUR_COUNT, size=n)],
    }
    rng = streams("field")
    field = {
        "field_angle": rng.uniform(0, np.pi, n),
        "field_frequency": rng.uniform(0.8, 1.25, n),
        "field_phase_x": rng.uniform(0, 2 * np.pi, n),
        "field_phase_y": rng.uniform(0, 2 * np.pi, n),
    }
    # -1, no corruption, is the index that no entry of `render.CORRUPTIONS` has.
    corruption = streams("corruption").integers(4, size=n) if recipe.corrupted else np.full(n, -1)

    whole = {
        "label": labels,
        "style": style,
        "variant": variant,
        "corruption": corruption,
        **context,
    }
    real = {
        "scale": scale, "rotation": rotation, "squash": squash, "shear": shear, "mirror": mirror,
        "x": x, "y": y,
        "ground_rgb": ground_rgb, "ground_rgb_2": ground_rgb_2, "paint_rgb": paint_rgb,
        "texture": texture, "texture_angle": texture_angle, "texture_pitch": texture_pitch,
        **camera, **occluder, **field,
    }  # fmt: skip
    return Scenes(
        **{
            name: torch.from_numpy(np.asarray(value, dtype=np.int64))
            for name, value in whole.items()
        },
        **{
            name: torch.from_numpy(np.asarray(value, dtype=np.float64))
            for name, value in real.items()
        },
    )


def _sample_context(
    recipe: SceneRecipe,
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    bias: float,
    paint_bias: float,
) -> dict[str, NDArray[np.int64]]:
    """Sample the background's family and colour, and an object colour that differs from it."""
    # All random numbers first, in one order for every recipe (see `sample_scenes`). Family and
    # colour of the background share a coin: they are one cue, the home of a class.
    n = len(labels)
    family, ground = rng.integers(_FAMILY_COUNT, size=n), rng.integers(_COLOUR_COUNT, size=n)
    paint = rng.integers(_COLOUR_COUNT, size=n)
    background_coin, paint_coin = rng.random(n), rng.random(n)
    # Adding 1 to 19 modulo 20 gives each of the other classes alike, and never the class itself.
    other = (labels + rng.integers(1, len(CLASSES), size=n)) % len(CLASSES)
    plain_coin = rng.random(n)

    if recipe.context == "another":
        host, placed, painted = other, np.ones(n, dtype=bool), paint_coin < paint_bias
    else:
        in_context = recipe.context == "home"
        host = labels
        placed = (background_coin < bias * recipe.home_share) & in_context
        painted = (paint_coin < paint_bias * recipe.home_share) & in_context
    family, ground = (
        np.where(placed, HOME.family[host], family),
        np.where(placed, HOME.ground[host], ground),
    )
    paint = np.where(painted, HOME.paint[host], paint)
    family = np.where(plain_coin < recipe.plain, 0, family)
    paint = np.where(paint == ground, (paint + 5) % _COLOUR_COUNT, paint)
    # Of the scene as it is: a random background may happen to be the class's own.
    at_home = (family == HOME.family[labels]) & (ground == HOME.ground[labels])
    return {"family": family, "ground": ground, "paint": paint, "at_home": at_home.astype(np.int64)}
