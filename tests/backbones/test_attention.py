"""Explicit attention and packing, on their own."""

from __future__ import annotations

import pytest
import torch

from bench.backbones.backbone import attend, pack_tokens


def test_explicit_attention_equals_the_fused_one_and_its_rows_sum_to_one() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8)  # N = 2, 4 heads, L = 5
    hidden = torch.tensor([[True] * 5, [True, True, False, True, False]])
    for mask in (None, hidden):
        maps: list[torch.Tensor] = []
        explicit = attend(query, key, value, key_mask=mask, maps=maps)
        assert torch.allclose(explicit, attend(query, key, value, key_mask=mask), atol=1e-6)
        assert torch.allclose(maps[0].sum(-1), torch.ones(2, 4, 5))
    assert (maps[0][1, :, :, [2, 4]] == 0).all()


def test_attention_can_be_differentiated_where_no_weight_requires_a_gradient() -> None:
    query, key, value = torch.randn(3, 1, 1, 3, 4)
    maps: list[torch.Tensor] = []
    (gradient,) = torch.autograd.grad(attend(query, key, value, maps=maps).sum(), maps)
    assert gradient.shape == (1, 1, 3, 3)


def test_unmasked_patches_are_packed_in_order_and_the_padding_is_hidden() -> None:
    tokens = torch.arange(3 * 5).float().view(3, 5, 1)
    keep = torch.tensor([[False, True, False, True], [False] * 4, [True, True, True, False]])
    packed, mask = pack_tokens(tokens, keep)
    assert packed.shape == (3, 4, 1)
    assert mask is not None
    assert [row[hidden].flatten().tolist() for row, hidden in zip(packed, mask, strict=True)] == [
        [0, 2, 4],
        [5],
        [10, 11, 12, 13],
    ]


def test_equal_lengths_need_no_mask() -> None:
    tokens = torch.randn(2, 5, 3)
    packed, mask = pack_tokens(
        tokens, torch.tensor([[True, False, True, False], [False, False, True, True]])
    )
    assert (packed.shape, mask) == ((2, 3, 3), None)
    assert pack_tokens(tokens, torch.ones(2, 4, dtype=torch.bool)) == (tokens, None)
    assert pack_tokens(tokens, torch.zeros(2, 4, dtype=torch.bool))[0].shape == (2, 1, 3)


@pytest.mark.parametrize(
    "keep", [torch.ones(2, 4), torch.ones(2, 5, dtype=torch.bool), torch.ones(4, dtype=torch.bool)]
)
def test_a_keep_of_another_kind_or_shape_is_refused(keep: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="keep must be bool"):
        pack_tokens(torch.randn(2, 5, 3), keep)
