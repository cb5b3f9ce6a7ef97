"""The ten background families of the mini world: patterns between two colours.

A family is a function from a `Canvas` of k images to a value field (k, 48, 48), 0 for the
background's first colour and 1 for its second; the renderer clamps it to [0, 1]. To add a family,
decorate such a function with `@family`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Side of an image in pixels.
SIZE = 48


def pixel_grid() -> tuple[Tensor, Tensor]:
    """Return x (1, 1, 48) and y (1, 48, 1) of the pixel centres in [-1, 1], y pointing down."""
    centres = (torch.arange(SIZE, dtype=torch.float64) + 0.5) * (2 / SIZE) - 1
    return centres.view(1, 1, SIZE), centres.view(1, SIZE, 1)


@dataclass
class Canvas:
    """The parameters of k images that a family may use; tensors are (k, 1, 1).
    Attributes:
        angle: direction of the pattern in radians.
        frequency: factor on the pattern's pitch, about 1.
        phase_x: in [0, 2 pi].
        phase_y: in [0, 2 pi].
        rng: random stream, for families made of noise.
    """

    angle: Tensor
    frequency: Tensor
    phase_x: Tensor
    phase_y: Tensor
    rng: np.random.Generator

    def __len__(self) -> int:
        return self.angle.shape[0]

    def along(self, turn: float = 0.0) -> Tensor:
        """Return the coordinate along the pattern's angle plus `turn` radians, (k, 48, 48)."""
        x, y = pixel_grid()
        return x * torch.cos(self.angle + turn) + y * torch.sin(self.angle + turn)

    def noise(self, rows: int, columns: int) -> Tensor:
        """Return smooth noise of unit variance at (rows, columns) grid points, (k, 48, 48)."""
        return smooth_noise(self.rng, len(self), rows, columns)


def normal(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Return standard normal samples in float64."""
    # Sampled in float32, since NumPy gives other numbers for float64: the world was frozen with
    # these, before the arithmetic went to double precision.
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)).double()


def smooth_noise(rng: np.random.Generator, count: int, rows: int, columns: int) -> Tensor:
    """Sample normal noise on a (rows, columns) grid, and interpolate it to (count, 48, 48)."""
    # Unequal rows and columns stretch the noise: grass has blades, brush strokes a direction.
    grid = normal(rng, (count, 1, rows, columns))
    return F.interpolate(grid, (SIZE, SIZE), mode="bicubic", align_corners=True).squeeze(1)


Family = Callable[[Canvas], Tensor]

#: Families by name, in the order of this file: class i has family i modulo 10 as its own (see
#: `scenes.Home`), and `plain` has to be the first (see `SceneRecipe.plain`).
FAMILIES: dict[str, Family] = {}


def family(paint: Family) -> Family:
    """Register a background family under its function's name."""
    FAMILIES[paint.__name__] = paint
    return paint


def _edge(wave: Tensor, sharpness: float) -> Tensor:
    # A soft threshold: hard edges would alias at 48 pixels.
    return torch.sigmoid(wave * sharpness)


@family
def plain(canvas: Canvas) -> Tensor:
    return 0.25 + 0.2 * canvas.along()


@family
def stripes(canvas: Canvas) -> Tensor:
    return _edge(torch.sin(canvas.along() * 13 * canvas.frequency + canvas.phase_x), 4.0)


@family
def checks(canvas: Canvas) -> Tensor:
    pitch = 9 * canvas.frequency
    across = torch.sin(canvas.along() * pitch + canvas.phase_x)
    down = torch.sin(canvas.along(torch.pi / 2) * pitch + canvas.phase_y)
    return _edge(across * down, 9.0)


@family
def dots(canvas: Canvas) -> Tensor:
    pitch = 12 * canvas.frequency
    across = torch.cos(canvas.along() * pitch + canvas.phase_x)
    down = torch.cos(canvas.along(torch.pi / 2) * pitch + canvas.phase_y)
    return _edge(across + down - 0.8, 5.0)


@family
def waves(canvas: Canvas) -> Tensor:
    bend = 1.6 * torch.sin(canvas.along(torch.pi / 2) * 7 + canvas.phase_y)
    return _edge(torch.sin(canvas.along() * 13 * canvas.frequency + canvas.phase_x + bend), 4.0)


@family
def bricks(canvas: Canvas) -> Tensor:
    """Level courses, every other one shifted by half a brick; the second colour is the mortar."""
    # The grid instead of `along`: courses are level whatever the scene's angle.
    x, y = pixel_grid()
    row = y * 3.8 * canvas.frequency + canvas.phase_y
    column = x * 2.0 * canvas.frequency + canvas.phase_x + 0.5 * (torch.floor(row) % 2)
    # Distances to the nearest joints, scaled such that the mortar has the same width both ways.
    to_joint = torch.minimum(
        (row % 1 - 0.5).abs().sub(0.5).abs() * 2, (column % 1 - 0.5).abs().sub(0.5).abs() * 3.8
    )
    return _edge(0.24 - to_joint, 18.0)


@family
def rings(canvas: Canvas) -> Tensor:
    x, y = pixel_grid()
    radius = torch.sqrt(
        (x - 0.5 * torch.sin(canvas.phase_x)) ** 2 + (y - 0.5 * torch.sin(canvas.phase_y)) ** 2
    )
    return _edge(torch.sin(radius * 17 * canvas.frequency + canvas.phase_x), 4.0)


@family
def grass(canvas: Canvas) -> Tensor:
    return _edge(canvas.noise(5, 26), 2.2)


@family
def sand(canvas: Canvas) -> Tensor:
    return _edge(canvas.noise(40, 40), 1.6)


@family
def fog(canvas: Canvas) -> Tensor:
    return _edge(canvas.noise(4, 4), 2.5)
