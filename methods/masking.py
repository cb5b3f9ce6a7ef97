"""Masks over patches, and fills of masked patches from other images (Xiao et al., 2023).

A mask is (N, P) bool over the patches of a grid in row-major order; True is masked. A masked patch
is replaced by the same patch of another image, or left out.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .cam import normalized


def object_mask(cam: Tensor, threshold: float) -> Tensor:
    """Return the patches whose normalised map value (N, P) is strictly above `threshold`."""
    return normalized(cam) > threshold


def context_mask(cam: Tensor, threshold: float) -> Tensor:
    """Return the complement of `object_mask`."""
    return ~object_mask(cam, threshold)


def share_mask(cam: Tensor, share: float, *, highest: bool) -> Tensor:
    """Return the `share` of each image's patches with the highest (or lowest) map values."""
    # At least one patch, or nothing would be masked. A stable sort, so that ties go to the lower
    # index on every device.
    count = max(1, round(share * cam.shape[1]))
    order = cam.argsort(dim=1, descending=highest, stable=True)
    return torch.zeros_like(cam, dtype=torch.bool).scatter_(1, order[:, :count], True)


def bernoulli_mask(size: int, patches: int, probability: float, generator: Generator) -> Tensor:
    """Mask each patch independently with `probability`: (size, patches), on the CPU."""
    return torch.rand(size, patches, generator=generator) < probability


def exact_mask(size: int, patches: int, rate: float, generator: Generator) -> Tensor:
    """Mask all but K = int(patches * (1 - rate)) random patches of each image, on the CPU."""
    # The same K for each image: the token sequences that remain are then of equal length.
    k = int(patches * (1 - rate))
    order = torch.rand(size, patches, generator=generator).argsort(dim=1, stable=True)
    return torch.ones(size, patches, dtype=torch.bool).scatter_(1, order[:, :k], False)


def single_source(size: int, generator: Generator) -> Tensor:
    """Return for each image the one that fills it: (size,), a permutation of the global batch."""
    # An image may fill itself, as in the paper's code.
    return torch.randperm(size, generator=generator)


def multi_source(size: int, patches: int, generator: Generator) -> Tensor:
    """Return for each patch the image that fills it: (size, patches), never the image itself."""
    # Image (i + s) mod N, with s uniform in 1..N-1. A batch of one image has no other one: it fills
    # itself.
    shift = torch.randint(1, max(size, 2), (size, patches), generator=generator)
    return (torch.arange(size)[:, None] + shift) % size


def refill(
    images: Tensor, pool: Tensor, mask: Tensor, source: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Return the images with masked patches replaced by the same patches of the source images.

    Args:
        images: (n, 3, H, W) float in [0, 1].
        pool: (N, 3, H, W) uint8, all images of the global batch.
        mask: (n, P) bool.
        source: indices into the pool, (n,) one per image, or (n, P) one per patch.
        grid: rows and columns of the patches.
    """
    # The last feature map of a convolutional tower need not divide the image: H and W may be no
    # multiples of the grid. So pixel y belongs to row y * rows // H, here and in `_mosaic`.
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
    """Return images (n, 3, H, W) uint8 whose patch (r, c) is that of `pool[source[:, r, c]]`."""
    rows, height = source.shape[1], pool.shape[2]
    x = torch.arange(len(column), device=pool.device)
    mosaic = pool.new_empty(len(source), *pool.shape[1:])
    for r in range(rows):
        band = slice(-(-r * height // rows), -(-(r + 1) * height // rows))
        # One row of patches at a time needs an index per image and pixel column, (n, W). An index
        # for every pixel would be larger than the images.
        mosaic[:, :, band] = pool[:, :, band][
            source[:, r].index_select(1, column), :, :, x
        ].permute(0, 2, 3, 1)
    return mosaic
