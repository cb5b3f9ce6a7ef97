"""Masks over patches, and fills: masked patches are replaced by the same place of other images
(Xiao et al., 2023).

A mask is (N, P) bool over the patches of a grid, row by row; True is what gets replaced or left
out.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .cam import normalized


def object_mask(cam: Tensor, threshold: float) -> Tensor:
    """Patches of a map (N, P) that, after normalisation, are strictly above `threshold`."""
    return normalized(cam) > threshold


def context_mask(cam: Tensor, threshold: float) -> Tensor:
    """The patches that `object_mask` leaves."""
    return ~object_mask(cam, threshold)


def share_mask(cam: Tensor, share: float, *, highest: bool) -> Tensor:
    """The `share` of each image's patches with the highest (or lowest) map values, at least one;
    ties go to the lower index.
    """
    count = max(1, round(share * cam.shape[1]))
    order = cam.argsort(dim=1, descending=highest, stable=True)
    return torch.zeros_like(cam, dtype=torch.bool).scatter_(1, order[:, :count], True)


def bernoulli_mask(size: int, patches: int, probability: float, generator: Generator) -> Tensor:
    """Each patch masked independently with `probability`: (size, patches), on the CPU."""
    return torch.rand(size, patches, generator=generator) < probability


def exact_mask(size: int, patches: int, rate: float, generator: Generator) -> Tensor:
    """All but K = int(patches * (1 - rate)) random patches of each image masked: (size, patches),
    on the CPU.
    """
    kept = int(patches * (1 - rate))
    order = torch.rand(size, patches, generator=generator).argsort(dim=1, stable=True)
    return torch.ones(size, patches, dtype=torch.bool).scatter_(1, order[:, :kept], False)


def single_source(size: int, generator: Generator) -> Tensor:
    """For each image the one that fills it: (size,), a permutation of the global batch, with fixed
    points as in the paper.
    """
    return torch.randperm(size, generator=generator)


def multi_source(size: int, patches: int, generator: Generator) -> Tensor:
    """For each patch of image i the image (i + s) mod N that fills it, s uniform in 1..N-1, so
    never i itself: (size, patches).

    A batch of one image has no other: it fills itself.
    """
    shift = torch.randint(1, max(size, 2), (size, patches), generator=generator)
    return (torch.arange(size)[:, None] + shift) % size


def refill(
    images: Tensor, pool: Tensor, mask: Tensor, source: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Replace the masked patches by the same place of the source images.

    Args:
        images: (n, 3, H, W) float in [0, 1].
        pool: (N, 3, H, W) uint8, where the sources are taken from.
        mask: (n, P) bool.
        source: (n,), one image of the pool per image, or (n, P), one per patch.
        grid: rows and columns of the patches. H and W need not be multiples: pixel y then belongs
            to row y * rows // H.
    """
    rows, columns = grid
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device) * rows // height
    column = torch.arange(width, device=images.device) * columns // width
    fill = (
        pool[source] if source.ndim == 1 else _mosaic(pool, source.view(-1, rows, columns), column)
    )
    in_pixels = mask.view(-1, 1, rows, columns).index_select(2, row).index_select(3, column)
    return torch.where(in_pixels, fill.to(images.dtype) / 255, images)


def _mosaic(pool: Tensor, source: Tensor, column: Tensor) -> Tensor:
    """Images (n, 3, H, W) uint8 whose patch (r, c) is that of `pool[source[:, r, c]]`, one row of
    patches at a time.
    """
    rows, height = source.shape[1], pool.shape[2]
    x = torch.arange(len(column), device=pool.device)
    mosaic = pool.new_empty(len(source), *pool.shape[1:])
    for r in range(rows):
        band = slice(-(-r * height // rows), -(-(r + 1) * height // rows))
        # An index per image and pixel column (n, W), never one per pixel.
        mosaic[:, :, band] = pool[:, :, band][
            source[:, r].index_select(1, column), :, :, x
        ].permute(0, 2, 3, 1)
    return mosaic
