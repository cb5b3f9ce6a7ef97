"""From scene parameters to pixels, a chunk of images at a time.

Every chunk is painted by one thread, with one torch thread inside, in operations whose order does
not depend on anything but the chunk: pixels are the same bits whatever the number of threads.
Chunks run side by side.

All of it is in double precision. A sine or an exponential ends in other last bits on another kind
of processor; of single precision, that moved one in some millions of grey levels, and with it the
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

CHUNK = 100
"""Images per chunk. Part of the world's definition: streams are counted by chunk."""

CORRUPTIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "noise": lambda images, rng: images + 0.16 * normal(rng, images.shape),
    "blur": lambda images, rng: blur(images, 1.3),
    "contrast": lambda images, rng: (images - images.mean(dim=(2, 3), keepdim=True)) * 0.35 + 0.5,
    "pixelate": (
        lambda images, rng: F.avg_pool2d(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    ),
}


def paint_scenes(scenes: Scenes, streams: Streams) -> NDArray[np.uint8]:
    """Paint one chunk.

    Returns:
        (n, 48, 48, 3) uint8, RGB.
    """
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
        picture = _occlude(style.paint(layers), group)
        if style.camera:
            picture = blur(picture * column(group.exposure), 0.45)
            picture = picture + normal(rng, picture.shape) * column(group.noise)
        pixels[chosen] = picture.expand(-1, 3, -1, -1)
    for index, (name, corrupt) in enumerate(CORRUPTIONS.items()):
        chosen = (scenes.corruption == index).nonzero().squeeze(1)
        if len(chosen):
            pixels[chosen] = corrupt(pixels[chosen].clamp(0, 1), streams(f"corruption {name}"))
    levels = pixels.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _paint_fields(scenes: Scenes, streams: Streams) -> Tensor:
    """Value fields of the backgrounds, (n, 48, 48) in [0, 1]."""
    fields = torch.empty(len(scenes), SIZE, SIZE, dtype=torch.float64)
    for index, (name, paint) in enumerate(FAMILIES.items()):
        chosen = (scenes.family == index).nonzero().squeeze(1)
        if len(chosen):
            group = scenes.take(chosen)
            drawn = (
                group.field_angle,
                group.field_frequency,
                group.field_phase_x,
                group.field_phase_y,
            )
            angle, frequency, phase_x, phase_y = (values.view(-1, 1, 1) for values in drawn)
            fields[chosen] = paint(
                Canvas(angle, frequency, phase_x, phase_y, streams(f"field {name}"))
            ).clamp(0, 1)
    return fields


def _place_objects(scenes: Scenes, warp: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Signed distance in pixels and surface texture of the placed objects, (k, 1, 48, 48) each.

    The silhouette's distance field is looked up under the inverse of mirror, squash, shear,
    rotation and scale; distances are scaled by the mean of the two axes.
    """
    x, y = pixel_grid()
    x, y = x - scenes.x.view(-1, 1, 1), y - scenes.y.view(-1, 1, 1)
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
    distance = F.grid_sample(shapes, grid, padding_mode="border", align_corners=False)
    turned = u * torch.cos(scenes.texture_angle.view(-1, 1, 1)) + v * torch.sin(
        scenes.texture_angle.view(-1, 1, 1)
    )
    texture = 1 + column(scenes.texture) * torch.sin(
        turned * scenes.texture_pitch.view(-1, 1, 1)
    ).unsqueeze(1)
    return distance * (column(scenes.scale) * (SIZE / 2)), texture


def _occlude(picture: Tensor, scenes: Scenes) -> Tensor:
    """A bar of one colour across the object, in the scenes that have one."""
    chosen = scenes.occluder.nonzero().squeeze(1)
    if len(chosen) == 0:
        return picture
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
    cover = (0.5 - torch.maximum(across, along) * (SIZE / 2)).clamp(0, 1).unsqueeze(1)
    picture = picture.expand(-1, 3, -1, -1).contiguous()
    picture[chosen] = torch.lerp(picture[chosen], column(group.occluder_rgb), cover)
    return picture


@contextmanager
def _one_thread_per_chunk() -> Iterator[int]:
    """Sets torch to one thread inside each worker, and yields how many workers to use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def paint_chunks(count: int, paint: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Paint `count` images, `CHUNK` at a time, on as many threads as torch is set to.

    Args:
        paint: chunk number to its (CHUNK, 48, 48, 3) pixels; the last chunk is cut to fit.
    """
    pixels = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)

    def fill(chunk: int) -> None:
        first = chunk * CHUNK
        with torch.inference_mode():
            pixels[first : first + CHUNK] = paint(chunk)[: count - first]

    distance_bank()  # built once, before the threads ask for it
    with _one_thread_per_chunk() as threads, ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(-(-count // CHUNK))))
    return pixels
