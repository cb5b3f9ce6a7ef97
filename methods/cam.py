"""Class-activation maps: which patches of an image speak for a class, as seen by the classifier
that is being trained.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor


def class_activation_map(
    score: Tensor, maps: list[Tensor], layout: Literal["vit", "conv"]
) -> Tensor:
    """Map (N, P) of a score: attention rollout for `vit`, Grad-CAM for `conv`.

    Args:
        score: scalar, the sum over images of the true class's logit, scale and bias of the head
            included. The sum (and not the mean) leaves each image's map independent of its batch;
            the rollout is not invariant to the score's scale.
        maps: what `Classifier.explain` returned beside the logits that `score` was taken from.

    The graph of `score` is kept, so that the same forward pass also serves a later backward; no
    `.grad` is touched.
    """
    return attention_rollout(score, maps) if layout == "vit" else grad_cam(score, maps[0])


def attention_rollout(score: Tensor, attentions: list[Tensor]) -> Tensor:
    """Gradient-weighted attention rollout of the class token (Chefer et al., 2021, eqs. 5 and 6).

    With A_l the attention of layer l, G_l = d score / d A_l, and Abar_l = mean over heads of max(0,
    G_l * A_l), the paper rolls R <- R + Abar_l R from the first layer to the last and reads the
    class token's row. That row alone is the row vector r = e_CLS, r <- r + r Abar_l from the last
    layer to the first: the same numbers for O(L^2) per layer.

    Args:
        score: scalar (see `class_activation_map`).
        attentions: per layer, first layer first, post-softmax attention (N, heads, L, L), class
            token at index 0.

    Returns:
        (N, P) float32, P = L - 1, not negative.

    Raises:
        RuntimeError: an attention tensor is not part of the graph that `score` was computed in.
    """
    first = attentions[0]
    r = torch.zeros(first.shape[0], first.shape[-1], device=first.device)
    r[:, 0] = 1
    seen: list[int] = []

    def consume(layer: int, gradient: Tensor) -> None:
        # The backward pass reaches the layers from last to first, the very order of the recursion:
        # each gradient is used as it appears and freed. Products and sums instead of a matrix
        # product: the latter may be rounded to TF32 or bfloat16.
        a_bar = (attentions[layer].detach().float() * gradient.float()).clamp_(min=0).mean(dim=1)
        r.add_((r[:, :, None] * a_bar).sum(dim=1))
        seen.append(layer)

    hooks = [
        attention.register_hook(partial(consume, layer))  # type: ignore[no-untyped-call]
        for layer, attention in enumerate(attentions)
    ]
    try:
        _gradient(score, first)
    finally:
        for hook in hooks:
            hook.remove()
    if seen != list(reversed(range(len(attentions)))):
        raise RuntimeError(
            f"the gradient reached the layers {seen} of {len(attentions)}, not all of them from"
            " last to first"
        )
    return r[:, 1:]


def grad_cam(score: Tensor, feature_map: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017, eqs. 1 and 2): ReLU of the channels' sum, weighted by their
    mean gradient.

    Args:
        score: scalar (see `class_activation_map`).
        feature_map: (N, C, rows, columns), in the graph of `score`.

    Returns:
        (N, P) float32, P = rows * columns in row-major order, not negative.
    """
    weights = _gradient(score, feature_map).float().mean(dim=(2, 3), keepdim=True)
    return (weights * feature_map.detach().float()).sum(dim=1).clamp_(min=0).flatten(1)


def normalized(cam: Tensor) -> Tensor:
    """Each image's map (N, P) divided by its maximum + 1e-8; the minimum is not subtracted (as in
    Xiao et al., 2023).
    """
    return cam / (cam.amax(dim=1, keepdim=True) + 1e-8)


def _gradient(score: Tensor, of: Tensor) -> Tensor:
    # A backward pass inside autocast would round its own matrix products a second time.
    with torch.autocast(score.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(score, of, retain_graph=True)
    return gradient
