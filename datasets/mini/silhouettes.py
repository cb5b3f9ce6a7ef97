"""The twenty object classes of the mini world, as polygons and as signed distance fields.

A class is a function that paints one silhouette with a `Pen` and samples its shape parameters (such
as whether a house has a chimney) from a random generator. To add a class, decorate such a function
with `@silhouette`; its place in the file is its label.

The renderer does not use the polygons. Each class is rasterised a few times with different shape
parameters and turned into signed distance fields, from which position, size, anti-aliasing,
outlines, bevels and shadows all follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

#: Number of shapes per class.
VARIANTS = 12
#: Side of a distance field in samples: twice the 48 pixels of an image.
BANK_SIZE = 96
#: A distance field spans [-1.25, 1.25], a silhouette [-1, 1] of it: outlines and shadows need
#: distances outside the object.
BANK_EXTENT = 1.25
#: Side of the mask in pixels. Pillow's polygons have hard edges; averages of 2 x 2 smooth them.
_RASTER = 2 * BANK_SIZE

Point = tuple[float, float]


class Pen:
    """A painter of filled shapes on the square [-1, 1] x [-1, 1], with y pointing down.

    With `erase=True` a shape is cut out instead.
    """

    def __init__(self) -> None:
        self._image = Image.new("1", (_RASTER, _RASTER), 0)
        self._canvas = ImageDraw.Draw(self._image)

    def polygon(self, points: Iterable[Point], *, erase: bool = False) -> None:
        """Paint a polygon, which is closed from its last point to its first."""
        pixels = [
            ((x / BANK_EXTENT + 1) * _RASTER / 2, (y / BANK_EXTENT + 1) * _RASTER / 2)
            for x, y in points
        ]
        self._canvas.polygon(pixels, fill=0 if erase else 1)

    def box(
        self, left: float, top: float, right: float, bottom: float, *, erase: bool = False
    ) -> None:
        """Paint a rectangle with sides along the axes."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], erase=erase)

    def ellipse(self, x: float, y: float, rx: float, ry: float, *, erase: bool = False) -> None:
        """Paint an ellipse with its centre at (x, y) and the radii `rx` and `ry`."""

        self.polygon(arc(x, y, rx, ry, 0, 360), erase=erase)

    def line(self, start: Point, end: Point, width: float) -> None:
        """Paint a bar of the given width with round ends."""
        (x0, y0), (x1, y1) = start, end
        length = float(np.hypot(x1 - x0, y1 - y0))
        nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon(
            [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
        )
        for x, y in (start, end):
            self.ellipse(x, y, width / 2, width / 2)

    def mask(self) -> NDArray[np.bool_]:
        """Return the painted shape, (2 * BANK_SIZE, 2 * BANK_SIZE) bool, true inside."""
        return np.asarray(self._image, dtype=bool)


def arc(
    x: float, y: float, rx: float, ry: float, start: float, stop: float, steps: int = 48
) -> list[Point]:
    """Return points on an ellipse from `start` to `stop` degrees; 0 is right, 90 is down."""
    angles = np.deg2rad(np.linspace(start, stop, steps))
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def mirrored(side: Iterable[float], y: Iterable[float]) -> list[Point]:
    """Return the outline of a shape that is symmetric about x = 0, given its right side."""
    right = [(float(a), float(b)) for a, b in zip(side, y, strict=True)]
    return [*right, *((-a, b) for a, b in reversed(right))]


Silhouette = Callable[[Pen, np.random.Generator], None]

# In the order of the functions below, which is the order of the labels. Names and order are part of
# the identity of the data, and the functions are called by the names of the classes.
_SILHOUETTES: dict[str, Silhouette] = {}


def silhouette(paint: Silhouette) -> Silhouette:
    """Register a class under its function's name."""
    _SILHOUETTES[paint.__name__] = paint
    return paint


@silhouette
def star(pen: Pen, rng: np.random.Generator) -> None:
    inner = rng.uniform(0.38, 0.5)
    angles = np.deg2rad(np.arange(10) * 36 - 90)
    # Ten corners, alternating between the tips and the notches.
    radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    pen.polygon(
        [
            (float(r * np.cos(a)), float(r * np.sin(a)) + 0.05)
            for r, a in zip(radii, angles, strict=True)
        ]
    )


@silhouette
def heart(pen: Pen, rng: np.random.Generator) -> None:
    # The usual parametric heart curve, divided by 16 to fit [-1, 1].
    t = np.linspace(0, 2 * np.pi, 90)
    width = rng.uniform(0.85, 1.0)
    x = width * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16 - 0.1
    pen.polygon([(float(a), float(b)) for a, b in zip(x, y, strict=True)])


@silhouette
def moon(pen: Pen, rng: np.random.Generator) -> None:
    shift = rng.uniform(0.35, 0.6)
    pen.ellipse(0, 0, 0.98, 0.98)
    pen.ellipse(shift, -0.12, 0.82, 0.82, erase=True)


@silhouette
def arrow(pen: Pen, rng: np.random.Generator) -> None:
    shaft, head, neck = rng.uniform(0.15, 0.27), rng.uniform(0.55, 0.75), rng.uniform(-0.05, 0.25)
    pen.polygon(
        [
            (-1, -shaft),
            (neck, -shaft),
            (neck, -head),
            (1, 0),
            (neck, head),
            (neck, shaft),
            (-1, shaft),
        ]
    )


@silhouette
def house(pen: Pen, rng: np.random.Generator) -> None:
    wall, eaves = rng.uniform(0.62, 0.8), rng.uniform(-0.2, 0.0)
    # The chimney comes first: what is painted later covers or cuts it.
    if rng.random() < 0.6:
        side = rng.choice([-1.0, 1.0])
        pen.polygon(
            [(0.35 * side, -0.85), (0.6 * side, -0.85), (0.6 * side, 0.0), (0.35 * side, 0.0)]
        )
    pen.polygon([(-1, eaves), (0, -0.95), (1, eaves)])
    pen.box(-wall, eaves - 0.02, wall, 0.9)
    door = rng.uniform(-0.35, 0.1)
    pen.box(door, 0.3, door + 0.32, 0.95, erase=True)


@silhouette
def key(pen: Pen, rng: np.random.Generator) -> None:
    bow, stem = rng.uniform(0.4, 0.5), rng.uniform(0.1, 0.14)
    pen.ellipse(-0.52, 0, bow, bow)
    pen.ellipse(-0.56, 0, bow * 0.48, bow * 0.48, erase=True)
    pen.box(-0.2, -stem, 1.0, stem)
    pen.box(0.78, 0, 0.98, rng.uniform(0.4, 0.52))
    pen.box(0.42, 0, 0.62, rng.uniform(0.3, 0.46))


@silhouette
def fish(pen: Pen, rng: np.random.Generator) -> None:
    height, tail = rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.6)
    pen.ellipse(-0.25, 0, 0.72, height)
    pen.polygon([(0.25, 0), (0.98, -tail), (0.8, 0), (0.98, tail)])
    pen.polygon([(-0.4, -height + 0.1), (0.05, -height - 0.28), (0.25, -height * 0.6)])
    pen.ellipse(-0.62, -0.12, 0.1, 0.1, erase=True)


@silhouette
def tree(pen: Pen, rng: np.random.Generator) -> None:
    width, trunk = rng.uniform(0.62, 0.8), rng.uniform(0.1, 0.17)
    for top, bottom, share in ((-1.0, -0.3, 0.55), (-0.65, 0.15, 0.78), (-0.25, 0.65, 1.0)):
        pen.polygon([(0, top), (width * share, bottom), (-width * share, bottom)])
    pen.box(-trunk, 0.6, trunk, 1.0)


@silhouette
def cup(pen: Pen, rng: np.random.Generator) -> None:
    taper, ring = rng.uniform(0.0, 0.16), rng.uniform(0.3, 0.38)
    pen.ellipse(0.5, -0.05, ring + 0.08, ring + 0.1)
    pen.ellipse(0.5, -0.05, ring - 0.12, ring - 0.1, erase=True)
    pen.polygon([(-0.75, -0.75), (0.5, -0.75), (0.5 - taper, 0.8), (-0.75 + taper, 0.8)])


@silhouette
def bottle(pen: Pen, rng: np.random.Generator) -> None:
    body, neck, shoulder = rng.uniform(0.3, 0.4), rng.uniform(0.1, 0.15), rng.uniform(-0.3, -0.1)
    pen.polygon(mirrored([neck, neck, body, body], [-0.98, shoulder - 0.22, shoulder + 0.08, 0.98]))
    # The rim of the neck.
    pen.box(-neck - 0.06, -1.0, neck + 0.06, -0.84)


@silhouette
def bird(pen: Pen, rng: np.random.Generator) -> None:
    """Standing, seen from the side: body, head, beak, tail, a lifted wing and two legs."""
    pen.polygon(arc(-0.05, 0.12, 0.56, 0.36, 0, 360))
    pen.ellipse(0.5, -0.32, 0.27, 0.25)
    pen.polygon([(0.7, -0.42), (1.02, -0.28), (0.7, -0.18)])
    pen.polygon([(-0.45, -0.02), (-1.0, -0.1 - rng.uniform(0, 0.2)), (-0.95, 0.18), (-0.4, 0.3)])
    lift = rng.uniform(0.45, 0.85)
    pen.polygon([(-0.3, 0.0), (-0.45, -lift), (-0.12, -lift + 0.12), (0.25, -0.1)])
    for foot in (-0.12, 0.14):
        pen.line((foot, 0.4), (foot + 0.04, 0.88), 0.09)
        pen.line((foot + 0.04, 0.88), (foot + 0.2, 0.88), 0.09)


@silhouette
def leaf(pen: Pen, rng: np.random.Generator) -> None:
    """A broad blade with a pointed tip, a stalk and veins."""
    width = rng.uniform(0.55, 0.68)
    t = np.linspace(0, 1, 40)
    side = width * np.sin(np.pi * t**1.25) ** 0.9 * (1 - 0.25 * (1 - t))
    y = -0.98 + 1.6 * t
    pen.polygon(mirrored(side, y))
    pen.line((0, 0.55), (rng.uniform(-0.12, 0.12), 1.0), 0.1)
    for level in (-0.1, 0.3):
        for way in (-1.0, 1.0):
            pen.polygon(
                [
                    (0, level + 0.04),
                    (0, level - 0.05),
                    (way * width, level - 0.42),
                    (way * width, level - 0.3),
                ],
                erase=True,
            )


@silhouette
def cloud(pen: Pen, rng: np.random.Generator) -> None:
    pen.ellipse(-0.5, 0.12, 0.45, rng.uniform(0.34, 0.42))
    pen.ellipse(0.52, 0.14, 0.43, rng.uniform(0.32, 0.4))
    pen.ellipse(rng.uniform(-0.2, 0.0), -0.2, 0.44, 0.44)
    pen.ellipse(rng.uniform(0.2, 0.34), -0.08, 0.34, 0.36)
    pen.box(-0.55, 0.1, 0.55, 0.5)


@silhouette
def mushroom(pen: Pen, rng: np.random.Generator) -> None:
    cap, stem = rng.uniform(0.7, 0.95), rng.uniform(0.2, 0.3)
    pen.polygon(arc(0, 0.05, 0.95, cap, 180, 360))
    pen.polygon([(-stem, 0.0), (stem, 0.0), (stem * 1.3, 0.92), (-stem * 1.3, 0.92)])


@silhouette
def boat(pen: Pen, rng: np.random.Generator) -> None:
    sail = rng.uniform(0.6, 0.85)
    pen.polygon([(-1.0, 0.4), (1.0, 0.4), (0.62, 0.85), (-0.62, 0.85)])
    pen.box(-0.05, -0.95, 0.04, 0.42)
    pen.polygon([(0.12, -0.9), (0.12 + sail, 0.25), (0.12, 0.25)])
    pen.polygon([(-0.13, -0.6), (-0.13, 0.25), (-0.13 - sail * 0.7, 0.25)])


@silhouette
def crown(pen: Pen, rng: np.random.Generator) -> None:
    dip, middle = rng.uniform(-0.05, 0.15), rng.uniform(-0.8, -0.65)
    pen.polygon(
        [
            (-0.85, 0.7),
            (-1.0, -0.5),
            (-0.45, dip),
            (0.0, middle),
            (0.45, dip),
            (1.0, -0.5),
            (0.85, 0.7),
        ]
    )
    for x, y in ((-0.98, -0.55), (0.0, middle - 0.05), (0.98, -0.55)):
        pen.ellipse(x, y, 0.13, 0.13)


@silhouette
def hammer(pen: Pen, rng: np.random.Generator) -> None:
    handle, head = rng.uniform(0.1, 0.14), rng.uniform(0.2, 0.28)
    pen.box(-handle, -0.6, handle, 1.0)
    pen.box(-0.62, -0.55 - head, 0.3, -0.55 + head)
    pen.polygon([(0.25, -0.55 - head), (0.85, -0.5 + head * 0.9), (0.25, -0.55 + head * 0.6)])


@silhouette
def umbrella(pen: Pen, rng: np.random.Generator) -> None:
    dome = rng.uniform(0.75, 0.95)
    pen.polygon(arc(0, 0.0, 1.0, dome, 180, 360))
    # Three scallops along the lower edge, each a third of its width.
    for x in (-0.667, 0.0, 0.667):
        pen.ellipse(x, 0.02, 0.333, 0.16, erase=True)
    pen.box(-0.06, -0.3, 0.06, 0.75)
    # The crook: an outer and an inner arc, the second backwards so that they close one outline.
    pen.polygon(arc(0.17, 0.75, 0.23, 0.24, 0, 180) + arc(0.17, 0.75, 0.11, 0.11, 180, 0))


@silhouette
def car(pen: Pen, rng: np.random.Generator) -> None:
    roof, back = rng.uniform(-0.52, -0.4), rng.uniform(-0.6, -0.45)
    pen.polygon(
        [
            (-1, 0.0),
            (-0.72, -0.05),
            (back, roof),
            (0.3, roof),
            (0.62, -0.05),
            (1, 0.05),
            (1, 0.4),
            (-1, 0.4),
        ]
    )
    pen.polygon(
        [(-0.5, -0.06), (back + 0.12, roof + 0.12), (-0.14, roof + 0.12), (-0.14, -0.06)],
        erase=True,
    )
    pen.polygon([(0.0, -0.06), (0.0, roof + 0.12), (0.24, roof + 0.12), (0.44, -0.06)], erase=True)
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.4, 0.24, 0.24)


@silhouette
def bell(pen: Pen, rng: np.random.Generator) -> None:
    shoulder, rim = rng.uniform(0.42, 0.52), rng.uniform(0.8, 0.95)
    t = np.linspace(0, 1, 30)
    side = shoulder * np.sqrt(np.clip(t * 2.5, 0, 1)) + (rim - shoulder) * t**5
    pen.polygon(mirrored(side, -0.75 + 1.3 * t))
    pen.ellipse(0, -0.82, 0.14, 0.14)
    pen.ellipse(0, 0.72, 0.2, 0.2)


#: Class names in the order of the labels.
CLASSES: tuple[str, ...] = tuple(_SILHOUETTES)


@cache
def distance_bank() -> NDArray[np.float32]:
    """Return the signed distance fields of every class and variant, negative inside.

    The shapes are the same for every seed of the world: worlds differ in their scenes, not in what
    a key looks like.

    Returns:
        (classes, VARIANTS, BANK_SIZE, BANK_SIZE) float32, in units in which a silhouette spans
        [-1, 1]. The array is shared and must not be written to.
    """
    bank = np.empty((len(CLASSES), VARIANTS, BANK_SIZE, BANK_SIZE), dtype=np.float32)
    for label, (name, paint) in enumerate(_SILHOUETTES.items()):
        for variant in range(VARIANTS):
            pen = Pen()
            paint(pen, stream("silhouette", name, variant))
            bank[label, variant] = _signed_distance(pen.mask())
    return bank


def _signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the signed distance to the edge of a mask, at half its resolution.

    Args:
        mask: (2 * BANK_SIZE, 2 * BANK_SIZE) bool, true inside.
    """
    # The distances are averaged, not the mask: an average of the mask would lose the exact edge.
    pixels = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    halved = pixels.reshape(BANK_SIZE, 2, BANK_SIZE, 2).mean(axis=(1, 3))
    field: NDArray[np.float32] = (halved * (2 * BANK_EXTENT / _RASTER)).astype(np.float32)
    return field


def stream(*words: str | int) -> np.random.Generator:
    """Return a random generator keyed by words, such as `stream(seed, "sketch", "noise", chunk)`.

    Streams have names instead of an order, so that a new style, split or parameter does not change
    the random numbers of the others.
    """
    # The separator cannot be part of a word, so ("ab", "c") and ("a", "bc") differ.
    digest = hashlib.blake2b("\x1f".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
