"""Attention that can be looked into, and tokens that can be left out; shared by the transformers of timm and open_clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None, maps: list[Tensor] | None = None
) -> Tensor:
    """softmax(query @ key.T / sqrt(d)) @ value with the heads joined again: (N, L, heads * d).

    Args:
        query, key, value: (N, heads, L, d).
        key_mask: (N, L) bool; keys that are False are read by nobody (minus infinity before the softmax).
        maps: if given, the attention is computed explicitly and its weights (N, heads, L, L) are appended, inside the
            autograd graph. They can be differentiated with respect to even if no weight of the tower requires a gradient.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if maps is None:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()
        maps.append(weights)
        mixed = weights.to(value.dtype) @ value  # the softmax of an autocast region is float32
    return mixed.transpose(1, 2).flatten(2)


def pack_kept(tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out the patches that are not kept: shorter sequences instead of masked ones, at equal results for the class token.

    Rows are packed to the longest kept length K of the batch. A patch that nobody reads changes nothing, so this equals a
    minus-infinity key mask in every layer, at the cost of 1 + K tokens.

    Args:
        tokens: (N, 1 + P, W), class token first, position embeddings added.
        keep: (N, P) bool; K may be 0.

    Returns:
        (N, 1 + K, W) in the patches' order, and a key mask (N, 1 + K) that hides the padding, or None if no row has any.

    Raises:
        ValueError: `keep` is not bool or not (N, P).
    """
    count, length, width = tokens.shape
    if keep.dtype != torch.bool or keep.shape != (count, length - 1):
        raise ValueError(f"keep must be bool of shape {(count, length - 1)}, not {keep.dtype} of shape {tuple(keep.shape)}")
    kept = keep.sum(dim=1)
    shortest, longest = torch.stack(torch.aminmax(kept)).tolist()  # one synchronisation with the device
    if shortest == length - 1:
        return tokens, None
    order = torch.argsort(keep.logical_not().byte(), dim=1, stable=True)[:, :longest]
    # Whole rows are selected: the deterministic backward of a gather on a GPU sorts every single element.
    class_token = order.new_zeros(count, 1)
    place = torch.cat([class_token, 1 + order], dim=1) + length * torch.arange(count, device=tokens.device)[:, None]
    packed = tokens.flatten(0, 1).index_select(0, place.flatten()).view(count, 1 + longest, width)
    if shortest == longest:
        return packed, None
    return packed, torch.arange(1 + longest, device=tokens.device) <= kept[:, None]
