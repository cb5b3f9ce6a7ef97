"""What the corruptions are built from: blur kernels, zooms, fractal fog, pixel shuffles, edges. Plain NumPy and SciPy."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]
Border = Literal["nearest", "reflect", "mirror"]


def smoothed(image: Floats, sigma: float, *, mode: Border = "nearest", truncate: float = 4.0) -> Floats:
    """Gaussian blur of the first two axes."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, *[0] * (image.ndim - 2)), mode=mode, truncate=truncate))


@lru_cache
def disk(radius: int, softness: float) -> Floats:
    """A disk of sum 1 (1.01 at radius 8: its rim is mirrored, as published), softened by a Gaussian of `softness` pixels."""
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    flat = (x**2 + y**2 <= radius**2).astype(np.float64)
    edge = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * softness**2))
    edge /= edge.sum()
    return np.asarray(ndimage.convolve(flat / flat.sum(), np.outer(edge, edge), mode="mirror"))


def convolved(image: Floats, kernel: Floats) -> Floats:
    """Every channel convolved with an odd, symmetric kernel, the border mirrored without its edge."""
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return np.asarray(signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def motion_blurred(image: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """One-sided Gaussian trail of 2 * `radius` + 1 pixels, as ImageMagick defines motion blur; the border is repeated.

    Args:
        image: (H, W) or (H, W, C).
        angle: degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    right = np.ceil(steps * math.cos(turn) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(turn) - 0.5).astype(int)
    height, width = image.shape[:2]
    reach = 2 * radius + 1
    padded = np.pad(image, [(reach, reach), (reach, reach), *[(0, 0)] * (image.ndim - 2)], mode="edge")
    blurred = np.zeros(image.shape, dtype=np.float64)
    for weight, dx, dy in zip(weights, right, down, strict=True):
        blurred += weight * padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    return blurred


@lru_cache(maxsize=256)
def _zoom_taps(side: int, factor: float) -> tuple[NDArray[np.int64], Floats]:
    """For every pixel of a zoomed axis the source pixel before it and the weight of the one behind."""
    cut = math.ceil(side / factor)
    zoomed = round(cut * factor)
    place = (np.arange(side) + (zoomed - side) // 2) * ((cut - 1) / (zoomed - 1))
    before = np.minimum(place.astype(np.int64), cut - 2)
    return before + (side - cut) // 2, place - before


def zoomed(image: Floats, factor: float) -> Floats:
    """The centre of a square image (S, S) or (S, S, C), enlarged by `factor` >= 1, bilinear."""
    before, weight = _zoom_taps(len(image), factor)
    across = weight.reshape(-1, *[1] * (image.ndim - 2)).astype(image.dtype)
    down = across[:, None]
    rows = image[before] * (1 - down) + image[before + 1] * down
    return np.asarray(rows[:, before] * (1 - across) + rows[:, before + 1] * across)


def plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """A fractal height map in [0, 1] by the diamond-square algorithm on a torus.

    Args:
        side: a power of two.
        decay: by how much the roughness falls at every halving of the grid.
    """
    field = np.zeros((side, side))
    step, rough = side, 100.0

    def middle(total: Floats) -> Floats:
        return total / 4 + rough * rng.uniform(-rough, rough, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        across = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = middle(across + np.roll(across, -1, axis=1))
        centres = field[half::step, half::step]
        field[::step, half::step] = middle(centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1))
        field[half::step, ::step] = middle(centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0))
        step, rough = half, rough / decay
    field -= field.min()
    return np.asarray(field / field.max())


def scattered(image: Bytes, reach: int, rng: np.random.Generator) -> Bytes:
    """Every pixel replaced by one at most `reach` away, from the lower right corner on, replaced pixels being taken again.

    The published code means to swap, but its NumPy assignment copies; the official images are made by the copy. Following
    the chain of copies by pointer doubling gives the same pixels as the loop, a thousand times faster.
    """
    height, width = image.shape[:2]
    rows, cols = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + cols).ravel()
    moves = rng.integers(-reach, reach, size=(len(here), 2))
    target = here + moves[:, 1] * width + moves[:, 0]
    source = np.arange(height * width)
    turn = np.full(height * width, len(here))
    turn[here] = np.arange(len(here))
    source[here] = target
    # A pixel whose turn comes later is still itself when it is copied: the chain ends there.
    ends = turn[target] >= np.arange(len(here))
    following = np.arange(height * width)
    following[here[~ends]] = target[~ends]
    while True:
        further = following[following]
        if np.array_equal(further, following):
            break
        following = further
    return np.asarray(image.reshape(height * width, -1)[source[following]].reshape(image.shape))


def edges(image: Bytes, low: int, high: int) -> NDArray[np.bool_]:
    """Canny's edges (Canny 1986) of a grey image: Sobel gradients, L1 magnitude, thresholds in their units."""
    grey = image.astype(np.int64)
    dx = ndimage.sobel(grey, axis=1, mode="nearest")
    dy = ndimage.sobel(grey, axis=0, mode="nearest")
    size = np.abs(dx) + np.abs(dy)
    padded = np.pad(size, 1)

    def beside(down: int, right: int) -> NDArray[np.int64]:
        return padded[1 + down : 1 + down + len(size), 1 + right : 1 + right + size.shape[1]]

    steep = np.abs(dy) / np.maximum(np.abs(dx), 1e-9)
    flat, upright, falling = steep < math.tan(math.pi / 8), steep > math.tan(3 * math.pi / 8), (dx < 0) == (dy < 0)
    before = np.select([flat, upright, falling], [beside(0, -1), beside(-1, 0), beside(-1, -1)], beside(-1, 1))
    behind = np.select([flat, upright, falling], [beside(0, 1), beside(1, 0), beside(1, 1)], beside(1, -1))
    diagonal = ~flat & ~upright
    ridge = (size > low) & (size > before) & np.where(diagonal, size > behind, size >= behind)
    connected, count = ndimage.label(ridge, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[connected[ridge & (size > high)]] = True
    strong[0] = False
    return np.asarray(strong[connected])


def equalised(image: Bytes) -> Bytes:
    """Grey values spread so that their histogram is even, the lowest becoming 0."""
    counts = np.bincount(image.ravel(), minlength=256)
    lowest = int(np.flatnonzero(counts)[0])
    rest = image.size - counts[lowest]
    if rest == 0:
        return image
    counts[lowest] = 0
    table = np.rint(np.cumsum(counts) * (255 / rest)).clip(0, 255).astype(np.uint8)
    return np.asarray(table[image])
