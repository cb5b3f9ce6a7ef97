"""The eight styles of the mini world, which turn the layers of a scene into an image.

A style paints k scenes at once from the object's signed distance field and the background's value
field. It knows nothing about classes or splits. To add a style, decorate a function from `Layers`
to (k, 3, 48, 48) with `@style`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .backgrounds import SIZE, normal, pixel_grid, smooth_noise

if TYPE_CHECKING:
    from .scenes import Scenes


@dataclass
class Layers:
    """The layers of k scenes that a style paints from.

    Attributes:
        scenes: parameters of the scenes.
        distance: (k, 1, 48, 48), distance to the object's edge in pixels, negative inside.
        field: (k, 1, 48, 48) in [0, 1], from the background's first colour to its second.
        texture: (k, 1, 48, 48), factor on the object's colour.
        rng: random stream for grain and noise.
    """

    scenes: Scenes
    distance: Tensor
    field: Tensor
    texture: Tensor
    rng: np.random.Generator

    def __len__(self) -> int:
        return self.distance.shape[0]

    @cached_property
    def coverage(self) -> Tensor:
        """Share of each pixel that the object covers, (k, 1, 48, 48)."""
        # Half a pixel outside the edge none is covered, half a pixel inside all: anti-aliasing
        # without rendering at a higher resolution.
        return (0.5 - self.distance).clamp(0, 1)

    @cached_property
    def background(self) -> Tensor:
        """The background in colour, (k, 3, 48, 48)."""
        return torch.lerp(
            column(self.scenes.ground_rgb), column(self.scenes.ground_rgb_2), self.field
        )

    @cached_property
    def object(self) -> Tensor:
        """The object's colour with its texture, (k, 3, 48, 48)."""
        return column(self.scenes.paint_rgb) * self.texture

    def place(self, background: Tensor, fill: Tensor) -> Tensor:
        """Return the object's fill over a background."""
        return torch.lerp(background, fill, self.coverage)

    def bevel(self, strength: float) -> Tensor:
        """Return a factor for light on a rounded rim, (k, 1, 48, 48)."""
        # The gradient of the distance points away from the object. Where it faces the light, the
        # rim is bright, and the effect fades within a few pixels of the edge.
        padded = F.pad(self.distance, (1, 1, 1, 1), mode="replicate")
        slope_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        slope_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        toward = slope_x * torch.cos(column(self.scenes.light)) + slope_y * torch.sin(
            column(self.scenes.light)
        )
        return 1 + (0.5 * strength) * toward * torch.exp(self.distance.square() * (-1 / 12))


def column(values: Tensor) -> Tensor:
    """Reshape (k,) or (k, 3) to (k, c, 1, 1), to multiply images with."""
    return values.view(len(values), -1, 1, 1)


@dataclass(frozen=True)
class Style:
    """A style's painter and what the renderer does before and after it.

    Attributes:
        paint: layers -> image (k, 3, 48, 48), or (k, 1, 48, 48) without colour.
        warp: amplitude of a smooth displacement of the object's outline, in half canvases.
        camera: whether exposure, focus and sensor noise are applied to the image.
    """

    paint: Callable[[Layers], Tensor]
    warp: float = 0.0
    camera: bool = False


#: Styles by name. The order of the functions below is the index in `Scenes.style`.
STYLES: dict[str, Style] = {}

Painter = Callable[[Layers], Tensor]


def style(*, warp: float = 0.0, camera: bool = False) -> Callable[[Painter], Painter]:
    """Register a painter as a style under its function's name; see `Style` for the arguments."""

    def register(paint: Painter) -> Painter:
        STYLES[paint.__name__] = Style(paint, warp, camera)
        return paint

    return register


def blur(image: Tensor, sigma: float) -> Tensor:
    """Blur images (k, c, 48, 48) with a Gaussian of `sigma` pixels; borders are replicated."""
    # Separable, and as a sum of shifted images rather than a convolution, whose order of additions
    # depends on the library that torch picks: pixels have to be the same bits everywhere.
    radius = max(1, round(2.5 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = [float(tap) for tap in taps / taps.sum()]
    wide = F.pad(image, (radius, radius, 0, 0), mode="replicate")
    across = wide[..., radius : radius + SIZE] * weights[radius]
    for offset in range(1, radius + 1):
        pair = (
            wide[..., radius - offset : radius - offset + SIZE]
            + wide[..., radius + offset : radius + offset + SIZE]
        )
        across.add_(pair, alpha=weights[radius + offset])
    tall = F.pad(across, (0, 0, radius, radius), mode="replicate")
    down = tall[..., radius : radius + SIZE, :] * weights[radius]
    for offset in range(1, radius + 1):
        pair = (
            tall[..., radius - offset : radius - offset + SIZE, :]
            + tall[..., radius + offset : radius + offset + SIZE, :]
        )
        down.add_(pair, alpha=weights[radius + offset])
    return down


def _pixels() -> tuple[Tensor, Tensor]:
    """Return column and row numbers, (1, 1, 1, 48) and (1, 1, 48, 1)."""
    steps = torch.arange(SIZE, dtype=torch.float64)
    return steps.view(1, 1, 1, SIZE), steps.view(1, 1, SIZE, 1)


@style(camera=True)
def photo(layers: Layers) -> Tensor:
    """A lit object with a drop shadow, on a background with clutter, under uneven light."""
    scenes = layers.scenes
    blobs = torch.sigmoid((smooth_noise(layers.rng, len(layers), 7, 7).unsqueeze(1) - 1.35) * 8)
    # Light falls from the upper left, so the shadow is the outline two pixels to the lower right.
    fallen = F.pad(layers.distance, (2, 0, 2, 0), mode="replicate")[:, :, :SIZE, :SIZE]
    shadow = (0.5 - fallen * 0.33).clamp(0, 1)
    dimmed = (1 - 0.45 * shadow) * (1 - 0.65 * blobs * column(scenes.clutter))
    image = layers.place(layers.background * dimmed, layers.object * layers.bevel(0.5))
    x, y = pixel_grid()
    ramp = 0.2 * (
        x * torch.cos(scenes.ramp.view(-1, 1, 1)) + y * torch.sin(scenes.ramp.view(-1, 1, 1))
    )
    return image * ((1 + ramp) * (1 - 0.14 * (x.square() + y.square()))).unsqueeze(1)


@style()
def sketch(layers: Layers) -> Tensor:
    """Pencil on paper: outline, hatching inside, thinner lines in the background. No colour."""
    # A pattern's edges are where its field is a half.
    across, down = _pixels()
    outline = torch.exp(-(layers.distance * 1.25).square())
    edges = 0.45 * torch.exp(-((layers.field - 0.5) * 7).square()) * (1 - layers.coverage)
    hatching = 0.3 * torch.sigmoid((torch.sin((across + down) * 1.25) - 0.5) * 5) * layers.coverage
    grain = normal(layers.rng, (len(layers), 1, SIZE, SIZE))
    ink = torch.maximum(outline, edges + hatching)
    return 0.92 - 0.82 * ink + 0.05 * grain


@style(warp=0.05)
def painting(layers: Layers) -> Tensor:
    """A wavering outline, brush streaks, few tones."""
    streaks = 0.08 * smooth_noise(layers.rng, len(layers), 10, 40).unsqueeze(1)
    image = layers.place(layers.background, layers.object * layers.bevel(0.35)) + streaks
    # Five steps of brightness; the blur softens their edges like wet paint.
    return blur((image * 5).round() / 5, 0.6)


@style()
def cartoon(layers: Layers) -> Tensor:
    """Flat saturated colours and a black outline."""
    scenes = layers.scenes
    # A steep sigmoid leaves two flat colours of the field, with smooth edges between them.
    flat = torch.lerp(
        column(scenes.ground_rgb),
        column(scenes.ground_rgb_2),
        torch.sigmoid((layers.field - 0.5) * 20),
    )
    vivid = ((column(scenes.paint_rgb) - 0.5) * 1.5 + 0.5).clamp(0, 1)
    line = (1.8 - layers.distance.abs()).clamp(0, 1)
    return layers.place(flat, vivid) * (1 - 0.95 * line)


@style(camera=True)
def negative(layers: Layers) -> Tensor:
    """A photo with every tone inverted."""
    return 1 - photo(layers)


@style()
def embroidery(layers: Layers) -> Tensor:
    """Threads: one diagonal on the cloth, the other one on the object, and a dark seam."""
    across, down = _pixels()
    cloth, stitch = torch.sin((across - down) * 1.9), torch.sin((across + down) * 1.9)
    seam = torch.exp(-layers.distance.square())
    image = layers.place(
        layers.background * (0.85 + 0.22 * cloth), layers.object * (0.85 + 0.28 * stitch)
    )
    return image * (1 - 0.6 * seam)


@style()
def mosaic(layers: Layers) -> Tensor:
    """Small tiles of one colour each, with dark grout every second tile."""
    across, down = _pixels()
    tiles = F.avg_pool2d(layers.place(layers.background, layers.object), 2)
    image = tiles.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    grout = torch.maximum(across % 4 == 0, down % 4 == 0).double()
    return image * (1 - 0.5 * grout)


@style()
def silhouette(layers: Layers) -> Tensor:
    """A black object before a washed-out background."""
    return layers.place(0.68 + 0.3 * layers.background, torch.full_like(layers.background, 0.05))
