"""The ten background families of the mini world: each fills the canvas with a pattern between two
colours.

A family is a function from a `Canvas` of k images to a value field (k, 48, 48) in [0, 1], 0 for the
background's first colour and 1 for its second. To add one, write such a function under `@family`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 48
"""Side of an image in pixels."""


def pixel_grid() -> tuple[Tensor, Tensor]:
    """x and y of the pixel centres, (1, 1, 48) and (1, 48, 1), in [-1, 1] with y pointing down."""
    centres = (torch.arange(SIZE, dtype=torch.float64) + 0.5) * (2 / SIZE) - 1
    return centres.view(1, 1, SIZE), centres.view(1, SIZE, 1)


@dataclass
class Canvas:
    """What a family may use for k images; every tensor is (k, 1, 1) and drawn per image.

    Attributes:
        angle: direction of the pattern, radians.
        frequency: about 1, spread of the pattern's pitch.
        phase_x, phase_y: in [0, 2 pi].
        rng: for families made of noise.
    """

    angle: Tensor
    frequency: Tensor
    phase_x: Tensor
    phase_y: Tensor
    rng: np.random.Generator

    def __len__(self) -> int:
        return self.angle.shape[0]

    def along(self, turn: float = 0.0) -> Tensor:
        """The coordinate along the pattern's direction, turned by `turn` radians, (k, 48, 48)."""
        x, y = pixel_grid()
        return x * torch.cos(self.angle + turn) + y * torch.sin(self.angle + turn)

    def noise(self, rows: int, columns: int) -> Tensor:
        """Smooth noise of unit variance at its (rows, columns) grid points, (k, 48, 48)."""
        return smooth_noise(self.rng, len(self), rows, columns)


def normal(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal draws of single precision, as float64."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)).double()


def smooth_noise(rng: np.random.Generator, count: int, rows: int, columns: int) -> Tensor:
    """Normal noise on a (rows, columns) grid, brought to (count, 48, 48) by bicubic
    interpolation.
    """
    grid = normal(rng, (count, 1, rows, columns))
    return F.interpolate(grid, (SIZE, SIZE), mode="bicubic", align_corners=True).squeeze(1)


Family = Callable[[Canvas], Tensor]
FAMILIES: dict[str, Family] = {}
"""Families by name, in the order in which classes take them as home."""


def family(paint: Family) -> Family:
    """Registers a background family under its function's name."""
    FAMILIES[paint.__name__] = paint
    return paint


def _edge(wave: Tensor, sharpness: float) -> Tensor:
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
    """Level courses, every other one shifted by half a brick; the mortar is the second colour."""
    x, y = pixel_grid()
    row = y * 3.8 * canvas.frequency + canvas.phase_y
    column = x * 2.0 * canvas.frequency + canvas.phase_x + 0.5 * (torch.floor(row) % 2)
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
