"""Generate the corruptions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261).

Definitions and parameters are the published ones, on NumPy and SciPy instead of OpenCV, Wand and
scikit-image. Random numbers come from a stream keyed by seed, image, corruption and severity, so an
image is corrupted in the same way wherever and in whatever order that happens. Scores differ from
those on the official files, which have other random numbers and are JPEGs of quality 85. Frost
needs photographs, which are not part of ShiftBench.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

from ...errors import BenchError, UsageError
from ...identity import numpy_stream

#: Part of fingerprints and stream keys; increase it when a corruption gives other pixels.
VERSION = 1

#: The 15 corruptions of the benchmark, which mCE averages over: noise, blur, weather, digital.
BENCHMARK: Final = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
#: The 4 corruptions for development.
EXTRA: Final = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES: Final = (1, 2, 3, 4, 5)

#: Number of published photographs of frost. The published code samples from the first five.
FROST_PHOTOGRAPHS: Final = 6

#: Added to whole grey levels, so that a rounding error does not turn one into the next lower level
#: when `corrupted` rounds down.
_WHOLE = 0.25
_GREY = np.array([0.299, 0.587, 0.114])

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]
#: Image in [0, 1], index of the severity (0 to 4) and random stream -> image, not yet clipped.
Corruption = Callable[[Floats, int, np.random.Generator], Floats]
Border = Literal["nearest", "reflect", "mirror"]


def corrupted(
    image: Bytes,
    corruption: str,
    severity: int,
    *,
    key: str,
    seed: int = 0,
    photographs: Sequence[Bytes] = (),
) -> Bytes:
    """Corrupt one image.

    Args:
        image: (S, S, 3) uint8 RGB, resized and cropped. The parameters are meant for 224 pixels.
        corruption: a name in `BENCHMARK` or `EXTRA`.
        severity: 1 to 5.
        key: identity of the image, such as its SHA-256; part of the random stream's key.
        seed: part of the random stream's key.
        photographs: at least five for frost, (H, W, 3) uint8 RGB each, larger than the image.

    Returns:
        (S, S, 3) uint8.

    Raises:
        UsageError: unknown corruption or severity, or not a square RGB image.
        BenchError: there are too few photographs of frost, or they are too small.
    """
    if corruption not in BENCHMARK + EXTRA:
        names = ", ".join(BENCHMARK + EXTRA)
        raise UsageError(f"unknown corruption {corruption!r}", fix=f"use one of {names}")
    if severity not in SEVERITIES:
        raise UsageError(f"unknown severity {severity}", fix="use 1 to 5")
    side = image.shape[:1]
    if image.shape != (*side, *side, 3) or image.dtype != np.uint8:
        raise UsageError(
            f"corruptions need square uint8 RGB images, not {image.dtype} {image.shape}"
        )
    rng = numpy_stream("corruption", VERSION, seed, key, corruption, severity)
    made: Floats
    if corruption == "frost":
        made = _frost(image, severity - 1, rng, photographs) / 255
    else:
        made = _CORRUPTIONS[corruption](image / 255.0, severity - 1, rng)
    # Rounded down, as the official images were.
    return np.asarray((made.clip(0, 1) * 255).astype(np.uint8))


def _gaussian_noise(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    return image + rng.normal(scale=(0.08, 0.12, 0.18, 0.26, 0.38)[level], size=image.shape)


def _shot_noise(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(image * photons) / photons


def _impulse_noise(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    hit, salt = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, salt, image)


def _speckle_noise(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    return image * (1 + rng.normal(scale=(0.15, 0.2, 0.35, 0.45, 0.6)[level], size=image.shape))


def _gaussian_blur(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    return smoothed(image, (1, 2, 3, 4, 6)[level])


def _defocus_blur(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    return convolved(image, disk(*((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]))


def _glass_blur(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    # Shuffled as bytes, as published: the blur before is rounded down.
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    shuffled = (smoothed(image, sigma) * 255).astype(np.uint8)
    for _ in range(rounds):
        shuffled = scattered(shuffled, reach, rng)
    return smoothed(shuffled / 255.0, sigma)


def _motion_blur(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    blurred = motion_blurred(image, radius, sigma, rng.uniform(-45, 45))
    return (np.rint(blurred * 255) + _WHOLE) / 255


def _zoom_blur(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    # Single precision, as in the published code.
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    factors = np.arange(1, last, step)
    exact = image.astype(np.float32)
    total = exact.copy()
    for factor in factors:
        total += zoomed(exact, float(factor))
    return total / (len(factors) + 1)


def _snow(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    mean, spread, zoom, least, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    # The published code blurs the flakes as a grey image of 8 bits, so they have its levels
    # before and after.
    flakes = zoomed(rng.normal(mean, spread, image.shape[:2]), zoom)
    flakes = np.floor(np.where(flakes < least, 0, flakes).clip(0, 1) * 255) / 255
    fallen = np.rint(motion_blurred(flakes, radius, sigma, rng.uniform(-135, -45)) * 255) / 255
    whitened = np.maximum(image, (image @ _GREY)[..., None] * 1.5 + 0.5)
    fallen = (fallen + np.rot90(fallen, 2))[..., None]
    return np.asarray(keep * image + (1 - keep) * whitened + fallen)


def _frost(
    image: Bytes, level: int, rng: np.random.Generator, photographs: Sequence[Bytes]
) -> Floats:
    """Return the image in grey levels, 1e-6 higher for the reason given at `_WHOLE`."""
    # The published code never samples the last photograph.
    side, count = len(image), FROST_PHOTOGRAPHS - 1
    if len(photographs) < count or min(min(one.shape[:2]) for one in photographs[:count]) <= side:
        raise BenchError(
            f"frost needs {count} photographs of more than {side} pixels",
            fix="use the published ones: `bench data fetch imagenet-c-frost`",
        )
    keep, cover = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    photograph = photographs[int(rng.integers(count))]
    top, left = (int(rng.integers(length - side)) for length in photograph.shape[:2])
    pasted = photograph[top : top + side, left : left + side]
    return np.asarray(keep * image.astype(np.float64) + cover * pasted + 1e-6)


def _fog(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    side, brightest = len(image), image.max()
    # The map is square with a side of a power of two, 256 as published unless the image is larger.
    haze = plasma(1 << max(8, (side - 1).bit_length()), decay, rng)[:side, :side]
    return np.asarray((image + strength * haze[..., None]) * brightest / (brightest + strength))


def _brightness(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    # Brighter in HSV: scaling the channels alike changes the value, and neither hue nor saturation.
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return np.asarray(np.where(value > 0, image * raised / np.maximum(value, 1e-9), raised))


def _saturate(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    factor, offset = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[level]
    value = image.max(axis=2, keepdims=True)
    saturation = 1 - image.min(axis=2, keepdims=True) / np.maximum(value, 1e-9)
    saturation[value == 0] = 0
    wanted = (saturation * factor + offset).clip(0, 1)
    coloured = value - (value - image) * wanted / np.maximum(saturation, 1e-9)
    # Grey has no hue; by convention its hue is red.
    reddened = value * np.concatenate([np.ones_like(wanted), 1 - wanted, 1 - wanted], axis=2)
    return np.asarray(np.where(saturation > 0, coloured, reddened))


def _contrast(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean)


def _elastic_transform(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    # Multiples of 244 pixels, not of 224: a slip of the published code, by which the official
    # images were made.
    strength, sigma, shake = (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    )[level]
    side = len(image)
    far, near = side // 2 + side // 3, side // 2 - side // 3
    # Three points (x, y) before and after a shake define the affine map of the published code.
    corners = np.array([[far, far], [far, near], [near, near]], dtype=np.float64)
    moved = corners + rng.uniform(-shake, shake, corners.shape)
    # From (x, y, 1) in the result to (x, y) in the image, since `map_coordinates` looks up sources.
    to_source = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    y, x = np.mgrid[:side, :side].astype(np.float64)
    source = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_source
    tilted = _sampled(image, source[..., 1], source[..., 0], "mirror")
    right, down = (
        smoothed(rng.uniform(-1, 1, (side, side)), sigma, mode="reflect", truncate=3) * strength
        for _ in range(2)
    )
    return _sampled(tilted, y + down, x + right, "reflect")


def _sampled(image: Floats, rows: Floats, cols: Floats, mode: Border) -> Floats:
    channels = [
        ndimage.map_coordinates(image[..., channel], (rows, cols), order=1, mode=mode)
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


def _pixelate(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    side, share = len(image), (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    small = _pil(image).resize((int(side * share),) * 2, Image.Resampling.BOX)
    return _values(small.resize((side, side), Image.Resampling.BOX))


def _jpeg_compression(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    file = io.BytesIO()
    _pil(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return _values(Image.open(file))


def _pil(image: Floats) -> Image.Image:
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _values(image: Image.Image) -> Floats:
    return (np.asarray(image) + _WHOLE) / 255.0


def _spatter(image: Floats, level: int, rng: np.random.Generator) -> Floats:
    mean, spread, sigma, least, amount = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[level]
    liquid = smoothed(rng.normal(mean, spread, image.shape[:2]), sigma)
    liquid[liquid < least] = 0
    if level < 3:
        drops = _water(liquid) * amount
        return image + drops[..., None] * (np.array([175, 238, 238]) / 255)
    mud = smoothed((liquid > least).astype(np.float64), amount)
    mud[mud < 0.8] = 0
    return image * (1 - mud[..., None]) + mud[..., None] * (np.array([63, 42, 20]) / 255)


def _water(liquid: Floats) -> Floats:
    """Return transparent drops, lit from one side, in [0, 1]."""
    # The steps of the published code, which stacks OpenCV's filters on 8-bit images. The exact
    # distance transform in place of OpenCV's approximate one is the only difference that shows.
    grey = (liquid * 255).astype(np.uint8)
    away = ndimage.distance_transform_edt(~edges(grey, 50, 150))
    relief = equalised(_box(np.minimum(away, 20)).astype(np.uint8))
    lit = ndimage.correlate(
        relief.astype(np.int64), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror"
    )
    drops = grey * np.rint(_box(lit.clip(0, 255)))
    return np.asarray(drops / max(drops.max(), 1e-9))


def _box(image: NDArray[Any]) -> Floats:
    return np.asarray(ndimage.uniform_filter(image.astype(np.float64), 3, mode="mirror"))


#: All corruptions by name, except frost, which takes photographs and bytes.
_CORRUPTIONS: Final[dict[str, Corruption]] = {
    function.__name__[1:]: function
    for function in (
        *(_gaussian_noise, _shot_noise, _impulse_noise, _speckle_noise),
        *(_defocus_blur, _glass_blur, _motion_blur, _zoom_blur, _gaussian_blur),
        *(_snow, _fog, _spatter, _brightness, _saturate, _contrast),
        *(_elastic_transform, _pixelate, _jpeg_compression),
    )
}


def smoothed(
    image: Floats, sigma: float, *, mode: Border = "nearest", truncate: float = 4.0
) -> Floats:
    """Blur the first two axes with a Gaussian of `sigma` pixels."""
    sigmas = (sigma, sigma, *[0] * (image.ndim - 2))
    return np.asarray(ndimage.gaussian_filter(image, sigmas, mode=mode, truncate=truncate))


@lru_cache
def disk(radius: int, softness: float) -> Floats:
    """Return a disk of sum 1, softened by a Gaussian of `softness` pixels.

    The sum is 1.01 at radius 8, where the disk touches the border and is mirrored, as published.
    """
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    flat = (x**2 + y**2 <= radius**2).astype(np.float64)
    edge = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * softness**2))
    edge /= edge.sum()
    return np.asarray(ndimage.convolve(flat / flat.sum(), np.outer(edge, edge), mode="mirror"))


def convolved(image: Floats, kernel: Floats) -> Floats:
    """Convolve every channel with an odd, symmetric kernel; mirror the border without its edge."""
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return np.asarray(signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def motion_blurred(image: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """Blur along a one-sided Gaussian trail, as ImageMagick defines motion blur.

    Args:
        image: (H, W) or (H, W, C); the border is repeated.
        radius: of which the trail has 2 * `radius` + 1 pixels.
        sigma: standard deviation of the trail in pixels.
        angle: direction of the trail in degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    # Whole pixels, rounded as ImageMagick does (a half down).
    right = np.ceil(steps * math.cos(turn) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(turn) - 0.5).astype(int)
    height, width = image.shape[:2]
    reach = 2 * radius + 1
    border = [(reach, reach), (reach, reach), *[(0, 0)] * (image.ndim - 2)]
    padded = np.pad(image, border, mode="edge")
    blurred = np.zeros(image.shape, dtype=np.float64)
    for weight, x, y in zip(weights, reach + right, reach + down, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return blurred


@lru_cache(maxsize=256)
def _zoom_taps(side: int, factor: float) -> tuple[NDArray[np.int64], Floats]:
    """Return the source pixel before every pixel of a zoomed axis, and the weight of the next."""
    # SciPy's `zoom` of the central cut, which the published code crops to the image again. Cached,
    # since the factors are the same for every image.
    cut = math.ceil(side / factor)
    zoomed = round(cut * factor)
    place = (np.arange(side) + (zoomed - side) // 2) * ((cut - 1) / (zoomed - 1))
    before = np.minimum(place.astype(np.int64), cut - 2)
    return before + (side - cut) // 2, place - before


def zoomed(image: Floats, factor: float) -> Floats:
    """Enlarge the centre of a square image (S, S) or (S, S, C) by `factor` >= 1, bilinear."""
    before, weight = _zoom_taps(len(image), factor)
    across = weight.reshape(-1, *[1] * (image.ndim - 2)).astype(image.dtype)
    down = across[:, None]
    rows = image[before] * (1 - down) + image[before + 1] * down
    return np.asarray(rows[:, before] * (1 - across) + rows[:, before + 1] * across)


def plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """Return a fractal height map in [0, 1] by the diamond-square algorithm on a torus.

    Args:
        side: side of the map in pixels, a power of two.
        decay: factor by which the roughness falls at every halving of the grid.
        rng: random stream.
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
        field[::step, half::step] = middle(
            centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        )
        field[half::step, ::step] = middle(
            centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        )
        step, rough = half, rough / decay
    field -= field.min()
    return np.asarray(field / field.max())


def scattered(image: Bytes, reach: int, rng: np.random.Generator) -> Bytes:
    """Replace every pixel by one at most `reach` away, from the lower right corner on.

    The published code means to swap two pixels, but its NumPy assignment copies one, which later
    pixels may copy in turn. The official images are made by these copies.
    """
    # The chain of copies is followed by pointer doubling, which gives the same pixels as the loop
    # over all of them, a thousand times faster.
    height, width = image.shape[:2]
    rows, cols = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + cols).ravel()
    moves = rng.integers(-reach, reach, size=(len(here), 2))
    target = here + moves[:, 1] * width + moves[:, 0]
    # source: the pixel that each one copies. turn: when it is replaced, at the end if never.
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
    """Return the Canny edges of a grey image; the thresholds are L1 norms of Sobel gradients."""
    grey = image.astype(np.int64)
    dx = ndimage.sobel(grey, axis=1, mode="nearest")
    dy = ndimage.sobel(grey, axis=0, mode="nearest")
    size = np.abs(dx) + np.abs(dy)
    padded = np.pad(size, 1)

    def next_to(down: int, right: int) -> NDArray[np.int64]:
        return padded[1 + down : 1 + down + len(size), 1 + right : 1 + right + size.shape[1]]

    steep = np.abs(dy) / np.maximum(np.abs(dx), 1e-9)
    flat, upright = steep < math.tan(math.pi / 8), steep > math.tan(3 * math.pi / 8)
    # Left and right, above and below, or along the diagonal that the gradient falls on.
    ways = [flat, upright, (dx < 0) == (dy < 0)]
    before = np.select(ways, [next_to(0, -1), next_to(-1, 0), next_to(-1, -1)], next_to(-1, 1))
    behind = np.select(ways, [next_to(0, 1), next_to(1, 0), next_to(1, 1)], next_to(1, -1))
    diagonal = ~flat & ~upright
    # Of two equal neighbours OpenCV takes the first, and on diagonals neither.
    ridge = (size > low) & (size > before) & np.where(diagonal, size > behind, size >= behind)
    # Hysteresis: a ridge is an edge if it is connected to a strong one; label 0 is the background.
    connected, count = ndimage.label(ridge, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[connected[ridge & (size > high)]] = True
    strong[0] = False
    return np.asarray(strong[connected])


def equalised(image: Bytes) -> Bytes:
    """Spread grey values so that their histogram is even and the lowest becomes 0."""
    counts = np.bincount(image.ravel(), minlength=256)
    lowest = int(np.flatnonzero(counts)[0])
    rest = image.size - counts[lowest]
    if rest == 0:
        return image
    counts[lowest] = 0
    table = np.rint(np.cumsum(counts) * (255 / rest)).clip(0, 255).astype(np.uint8)
    return np.asarray(table[image])
