"""Class-activation maps: which patches of an image are evidence for a class."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor


def class_activation_map(
    score: Tensor, maps: list[Tensor], layout: Literal["vit", "conv"]
) -> Tensor:
    """Return the map of a score: attention rollout for `vit`, Grad-CAM for `conv`.

    Args:
        score: scalar, the sum over images of the true class's logit.
        maps: from the call of `Classifier.explain` that returned these logits.
        layout: layout of the image tower.

    Returns:
        (N, P) float32, not negative. No `.grad` is changed, and the graph of `score` is retained,
        so that the same forward pass can serve the loss.
    """
    # The sum and not the mean of the logits: the rollout is not invariant to the score's scale, and
    # with a mean each image's map would depend on the size of its batch.
    return attention_rollout(score, maps) if layout == "vit" else grad_cam(score, maps[0])


def attention_rollout(score: Tensor, attentions: list[Tensor]) -> Tensor:
    """Return the attention rollout of the class token (Chefer et al., 2021, eqs. 5 and 6).

    With A_l the attention of layer l, G_l = d score / d A_l, and Abar_l the mean over heads of
    max(0, G_l * A_l), the paper computes R <- R + Abar_l R from the first layer to the last, and
    takes the class token's row of R.

    Args:
        score: scalar (see `class_activation_map`).
        attentions: one tensor per layer, the first layer first: attention after the softmax,
            (N, heads, L, L), with the class token at index 0.

    Returns:
        (N, P) float32, P = L - 1, not negative.

    Raises:
        RuntimeError: an attention tensor is not part of the graph that `score` was computed in.
    """
    # Only the class token's row r is computed: r = e_CLS, then r <- r + r Abar_l, from the last
    # layer to the first. The numbers are the same, for O(L^2) per layer instead of O(L^3).
    first = attentions[0]
    r = torch.zeros(first.shape[0], first.shape[-1], device=first.device)
    r[:, 0] = 1
    seen: list[int] = []

    def consume(layer: int, gradient: Tensor) -> None:
        # The backward pass reaches the layers from last to first, which is the order of the
        # recursion. So each gradient is used when it appears and freed: never are those of all
        # layers in memory. Products and sums instead of a matrix product, which may be rounded to
        # TF32 or bfloat16.
        a_bar = (attentions[layer].detach().float() * gradient.float()).clamp_(min=0).mean(dim=1)
        r.add_((r[:, :, None] * a_bar).sum(dim=1))
        seen.append(layer)

    hooks = [
        attention.register_hook(partial(consume, layer))  # type: ignore[no-untyped-call]
        for layer, attention in enumerate(attentions)
    ]
    # The gradient of the first layer's attention, since that passes through all others; its value
    # is not needed.
    try:
        _gradient(score, first)
    finally:
        for hook in hooks:
            hook.remove()
    if seen != list(reversed(range(len(attentions)))):
        raise RuntimeError(
            f"the gradient reached the layers {seen} of {len(attentions)}, expected all of them"
            " from last to first"
        )
    return r[:, 1:]


def grad_cam(score: Tensor, feature_map: Tensor) -> Tensor:
    """Return Grad-CAM (Selvaraju et al., 2017): ReLU(sum_k alpha_k A^k), eqs. 1 and 2.

    A^k is channel k of the feature map, and alpha_k the mean gradient of the score with respect to
    it.

    Args:
        score: scalar (see `class_activation_map`).
        feature_map: (N, C, rows, columns), in the graph of `score`.

    Returns:
        (N, P) float32, P = rows * columns in row-major order, not negative.
    """
    alpha = _gradient(score, feature_map).float().mean(dim=(2, 3), keepdim=True)
    return (alpha * feature_map.detach().float()).sum(dim=1).clamp_(min=0).flatten(1)


def normalized(cam: Tensor) -> Tensor:
    """Return each image's map (N, P) divided by its maximum + 1e-8."""
    # The minimum is not subtracted, as in the code of Xiao et al. (2023): their thresholds are for
    # such maps.
    return cam / (cam.amax(dim=1, keepdim=True) + 1e-8)


def _gradient(score: Tensor, of: Tensor) -> Tensor:
    # A backward pass inside autocast would round its own matrix products a second time.
    with torch.autocast(score.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(score, of, retain_graph=True)
    return gradient
