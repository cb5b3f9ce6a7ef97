"""Render scenes of the mini world to pixels, in chunks of images.

Every chunk is rendered by one thread, with one torch thread inside, so the order of operations
depends on the chunk alone, and pixels are the same bits for any number of threads. Chunks run in
parallel.

All arithmetic is in double precision. The last bits of a sine or an exponential differ between
processors; in single precision, this changed three of ten million grey levels, and with them the
identity of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .backgrounds import FAMILIES, SIZE, Canvas, normal, pixel_grid, smooth_noise
from .scenes import Scenes, Streams
from .silhouettes import BANK_EXTENT, BANK_SIZE, VARIANTS, distance_bank
from .styles import STYLES, Layers, blur, column

#: Images per chunk. Part of the world's definition: each chunk has random streams of its own, so
#: another size would give other images.
CHUNK = 100

#: Corruptions of the split `corrupted`. The order is the index in `Scenes.corruption`.
CORRUPTIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "noise": lambda images, rng: images + 0.16 * normal(rng, images.shape),
    "blur": lambda images, rng: blur(images, 1.3),
    "contrast": lambda images, rng: (images - images.mean(dim=(2, 3), keepdim=True)) * 0.35 + 0.5,
    "pixelate": (
        lambda images, rng: F.avg_pool2d(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    ),
}


def paint_scenes(scenes: Scenes, streams: Streams) -> NDArray[np.uint8]:
    """Paint one chunk of scenes.

    Args:
        scenes: parameters of n scenes.
        streams: purpose -> random stream of this chunk.

    Returns:
        (n, 48, 48, 3) uint8, RGB.
    """
    # Scenes of one style are painted as one group, with a stream of the style's own: what is added
    # to one style leaves the pixels of the others as they are.
    fields = _paint_fields(scenes, streams)
    pixels = torch.empty(len(scenes), 3, SIZE, SIZE, dtype=torch.float64)
    for index, (name, style) in enumerate(STYLES.items()):
        chosen = (scenes.style == index).nonzero().squeeze(1)
        if len(chosen) == 0:
            continue
        rng = streams(f"paint {name}")
        group = scenes.take(chosen)
        distance, texture = _place_objects(group, style.warp, rng)
        layers = Layers(group, distance, fields[chosen].unsqueeze(1), texture, rng)
        image = _occlude(style.paint(layers), group)
        # In the order of a camera: light, focus, sensor noise. The noise is not blurred.
        if style.camera:
            image = blur(image * column(group.exposure), 0.45)
            image = image + normal(rng, image.shape) * column(group.noise)
        # Styles without colour have one channel.
        pixels[chosen] = image.expand(-1, 3, -1, -1)
    for index, (name, corrupt) in enumerate(CORRUPTIONS.items()):
        chosen = (scenes.corruption == index).nonzero().squeeze(1)
        if len(chosen):
            pixels[chosen] = corrupt(pixels[chosen].clamp(0, 1), streams(f"corruption {name}"))
    # Rounded to the nearest level by adding a half, since the conversion to uint8 rounds down.
    levels = pixels.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _paint_fields(scenes: Scenes, streams: Streams) -> Tensor:
    """Return the value fields of the backgrounds, (n, 48, 48) in [0, 1]."""
    fields = torch.empty(len(scenes), SIZE, SIZE, dtype=torch.float64)
    for index, (name, paint) in enumerate(FAMILIES.items()):
        chosen = (scenes.family == index).nonzero().squeeze(1)
        if len(chosen):
            group = scenes.take(chosen)
            sampled = (
                group.field_angle,
                group.field_frequency,
                group.field_phase_x,
                group.field_phase_y,
            )
            angle, frequency, phase_x, phase_y = (values.view(-1, 1, 1) for values in sampled)
            fields[chosen] = paint(
                Canvas(angle, frequency, phase_x, phase_y, streams(f"field {name}"))
            ).clamp(0, 1)
    return fields


def _place_objects(scenes: Scenes, warp: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return signed distance (pixels) and texture of the placed objects, (k, 1, 48, 48) each.

    The silhouette's distance field is sampled under the inverse of mirror, squash, shear, rotation
    and scale. Distances are multiplied by the scale, which is the geometric mean of the two axes.
    """
    x, y = pixel_grid()
    x, y = x - scenes.x.view(-1, 1, 1), y - scenes.y.view(-1, 1, 1)
    # Two displacements of the coordinates make the outline waver (style `painting`).
    if warp:
        x = x + warp * smooth_noise(rng, len(scenes), 7, 7)
        y = y + warp * smooth_noise(rng, len(scenes), 7, 7)
    cos, sin = torch.cos(scenes.rotation).view(-1, 1, 1), torch.sin(scenes.rotation).view(-1, 1, 1)
    scale, squash = scenes.scale.view(-1, 1, 1), scenes.squash.view(-1, 1, 1)
    v = (cos * y - sin * x) / (scale * squash)
    u = (
        (cos * x + sin * y) * squash / scale - scenes.shear.view(-1, 1, 1) * v
    ) * scenes.mirror.view(-1, 1, 1)

    bank = torch.from_numpy(distance_bank().reshape(-1, 1, BANK_SIZE, BANK_SIZE))
    shapes = bank[scenes.label * VARIANTS + scenes.variant].double()
    grid = torch.stack((u, v), dim=3) / BANK_EXTENT
    # Outside its bank a silhouette has the distance of the border, which is far enough from it.
    distance = F.grid_sample(shapes, grid, padding_mode="border", align_corners=False)
    turned = u * torch.cos(scenes.texture_angle.view(-1, 1, 1)) + v * torch.sin(
        scenes.texture_angle.view(-1, 1, 1)
    )
    texture = 1 + column(scenes.texture) * torch.sin(
        turned * scenes.texture_pitch.view(-1, 1, 1)
    ).unsqueeze(1)
    return distance * (column(scenes.scale) * (SIZE / 2)), texture


def _occlude(image: Tensor, scenes: Scenes) -> Tensor:
    """Paint a bar of one colour across the object, in the scenes that have one."""
    chosen = scenes.occluder.nonzero().squeeze(1)
    if len(chosen) == 0:
        return image
    group = scenes.take(chosen)
    x, y = pixel_grid()
    x, y = x - group.x.view(-1, 1, 1), y - group.y.view(-1, 1, 1)
    cos, sin = (
        torch.cos(group.occluder_angle).view(-1, 1, 1),
        torch.sin(group.occluder_angle).view(-1, 1, 1),
    )
    scale = group.scale.view(-1, 1, 1)
    across = (x * cos + y * sin - group.occluder_offset.view(-1, 1, 1) * scale).abs() - 0.16 * scale
    along = (y * cos - x * sin).abs() - 1.3 * scale
    # Relative to the object's size and centre, so that the bar hides about the same share of it.
    # Coverage falls off over one pixel, which smooths the edges.
    cover = (0.5 - torch.maximum(across, along) * (SIZE / 2)).clamp(0, 1).unsqueeze(1)
    image = image.expand(-1, 3, -1, -1).contiguous()
    image[chosen] = torch.lerp(image[chosen], column(group.occluder_rgb), cover)
    return image


@contextmanager
def _one_thread_per_chunk() -> Iterator[int]:
    """Set torch to one thread inside each worker, and yield how many workers to use."""
    # Several torch threads may add numbers in another order, which changes the last bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def paint_chunks(count: int, paint: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Paint images in chunks, on as many threads as torch is set to.

    Args:
        count: number of images.
        paint: chunk number -> its (CHUNK, 48, 48, 3) pixels; the last chunk is cut to fit.

    Returns:
        (count, 48, 48, 3) uint8, RGB.
    """
    pixels = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)

    def fill(chunk: int) -> None:
        first = chunk * CHUNK
        with torch.inference_mode():
            pixels[first : first + CHUNK] = paint(chunk)[: count - first]

    # Built here, since all threads would otherwise start to build it at the same time.
    distance_bank()
    with _one_thread_per_chunk() as threads, ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(-(-count // CHUNK))))
    return pixels
