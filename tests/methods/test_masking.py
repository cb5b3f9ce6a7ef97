"""Masks cut where they say, and fills take the same place of the images they say, pixel for
pixel.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.methods import masking

from support.towers import global_batch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refill_by_pixel(
    images: Tensor, pool: Tensor, mask: Tensor, source: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The definition, one pixel at a time."""
    out = images.clone()
    height, width = images.shape[-2:]
    for i in range(len(images)):
        for y in range(height):
            for x in range(width):
                patch = (y * grid[0] // height) * grid[1] + x * grid[1] // width
                if mask[i, patch]:
                    j = source[i] if source.ndim == 1 else source[i, patch]
                    out[i, :, y, x] = pool[j, :, y, x].float() / 255
    return out


def test_the_threshold_is_strict() -> None:
    cam = torch.tensor([[2.0, 1.0, 0.5, 1.0001]])
    assert masking.object_mask(cam, 0.5).tolist() == [[True, False, False, True]]
    assert masking.context_mask(cam, 0.5).tolist() == [[False, True, True, False]]


def test_an_all_zero_map_has_no_object_and_is_all_context() -> None:
    cam = torch.zeros(2, 9)
    assert not masking.object_mask(cam, 0.3).any()
    assert masking.context_mask(cam, 0.3).all()


def test_a_share_takes_the_highest_or_lowest_patches_and_ties_go_to_the_lower_index() -> None:
    cam = torch.tensor([[1.0, 3.0, 0.0, 3.0, 0.0, 2.0, 3.0, 0.0]])
    assert masking.share_mask(cam, 0.25, highest=True).nonzero()[:, 1].tolist() == [1, 3]
    assert masking.share_mask(cam, 0.25, highest=False).nonzero()[:, 1].tolist() == [2, 4]
    assert masking.share_mask(cam, 0.01, highest=True).sum() == 1


@pytest.mark.parametrize(("patches", "saved"), [(49, 12), (196, 49), (256, 64)])
def test_random_masks_without_a_fill_keep_an_exact_count(patches: int, saved: int) -> None:
    mask = masking.exact_mask(50, patches, 0.75, generator())
    assert ((~mask).sum(dim=1) == saved).all()
    assert (mask.sum(dim=0) > 0).all()
    assert (mask.sum(dim=0) < 50).all()


def test_random_masks_with_a_fill_are_independent_coins() -> None:
    mask = masking.bernoulli_mask(2000, 9, 0.3, generator())
    assert abs(float(mask.float().mean()) - 0.3) < 0.01
    assert len(set(mask.sum(dim=1).tolist())) > 3


def test_a_single_fill_permutes_the_pixels_of_the_global_batch() -> None:
    pool, _ = global_batch(6)
    source = masking.single_source(6, generator())
    assert sorted(source.tolist()) == list(range(6))
    filled = masking.refill(
        pool.float() / 255, pool, torch.ones(6, 9, dtype=torch.bool), source, (3, 3)
    )
    assert torch.equal(filled, pool[source].float() / 255)
    assert torch.equal(filled.sort(dim=0).values, (pool.float() / 255).sort(dim=0).values)


def test_a_single_fill_may_have_fixed_points() -> None:
    fixed = [
        (masking.single_source(8, generator(seed)) == torch.arange(8)).any().item()
        for seed in range(40)
    ]
    assert 10 < sum(fixed) < 40


def test_a_multi_fill_never_takes_the_image_itself_and_takes_every_other_one() -> None:
    source = masking.multi_source(5, 2000, generator())
    for i, row in enumerate(source):
        assert set(row.tolist()) == set(range(5)) - {i}
        counts = row.bincount(minlength=5)
        assert counts[counts > 0].min() > 400


def test_a_batch_of_one_image_fills_itself() -> None:
    assert masking.multi_source(1, 9, generator()).tolist() == [[0] * 9]


@pytest.mark.parametrize("size", [(24, 24), (24, 32), (23, 17), (10, 13), (5, 4)])
@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
@pytest.mark.parametrize("fill", ["single", "multi"])
def test_refilling_equals_its_definition_at_any_image_size(
    size: tuple[int, int], grid: tuple[int, int], fill: str
) -> None:
    patches, rows = grid[0] * grid[1], torch.tensor([4, 1])
    pool = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8, generator=generator(1))
    images = pool[rows].float() / 255
    mask = masking.bernoulli_mask(5, patches, 0.5, generator(2))[rows]
    source = (
        masking.single_source(5, generator(3))
        if fill == "single"
        else masking.multi_source(5, patches, generator(3))
    )
    filled = masking.refill(images, pool, mask, source[rows], grid)
    assert torch.equal(filled, refill_by_pixel(images, pool, mask, source[rows], grid))
