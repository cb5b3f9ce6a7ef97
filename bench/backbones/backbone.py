"""What a backbone is: a pre-trained image tower, its pixels, what it has seen and, if it has them,
text tower and head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.pixels.decoder import Pixels
from ..plugins import backbone_kinds, entries, loaded, unknown
from ..stopping import foreign

Layout = Literal["vit", "conv"]


class ImageTower(nn.Module, ABC):
    """Images to features, with what masking and class-activation maps need.

    Attributes:
        dim: length D of the feature vector.
        grid: rows and columns of the patch grid (`vit`) or of the final feature map (`conv`); P =
            rows * columns.
        layout: `vit` or `conv`.
    """

    dim: int
    grid: tuple[int, int]
    layout: Layout

    @abstractmethod
    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (N, D), not normalised, after the projection if the model has one.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; the tower normalises them itself.
            keep: (N, P) bool. Patches that are False are as if they did not exist: equal to a
                minus-infinity key mask in every layer (`vit` only).

        Raises:
            NotImplementedError: `keep` was given to a convolutional tower, which has no tokens to
                leave out.
        """

    @abstractmethod
    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (N, D) and, inside their autograd graph, what class-activation maps are computed
        from.

        For `vit`: one post-softmax attention tensor (N, heads, L, L) per layer, first layer first,
        L = 1 + P with the class token at index 0. For `conv`: one final feature map (N, C, rows,
        columns). The features equal `forward(images)` up to rounding.
        """


class TextTower(nn.Module, ABC):
    """Texts to embeddings in the image tower's feature space."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """exp(logit scale): what a cosine similarity is multiplied by."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, context length), int64."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (N, D), not normalised."""


class Head(nn.Module):
    """logits = weight @ f + bias, with f divided by its L2 norm first where `normalize` is set.

    Args:
        weight: (C, D).
        bias: (C,), zeros if not given.
        normalize: whether the feature is L2-normalised inside the head.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, normalize: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(
            torch.zeros(weight.shape[0]) if bias is None else bias.detach().clone().float()
        )
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        if self.normalize:
            features = features / features.norm(dim=-1, keepdim=True)
        return nn.functional.linear(features, self.weight, self.bias)


class Backbone(ABC):
    """A named, pre-trained encoder. Constructing one loads its weights once; `image_tower()` hands
    out fresh copies.

    Attributes:
        name: as given on the command line, such as `timm:tf_efficientnet_lite0`.
        weights_sha256: hash of the tensors and of what they are put into (architecture, activation,
            normalisation), never of a path: the same weights in another architecture are another
            function.
        seen: what data it was pre-trained on, in words (`unknown` if nobody says).
        pixels: how images are brought to its input.
        seen_suites: names of suites whose training images it saw in pre-training (id-val is then
            seen data).
    """

    name: str
    weights_sha256: str
    seen: str = "unknown"
    seen_suites: tuple[str, ...] = ()
    pixels: Pixels

    @abstractmethod
    def image_tower(self) -> ImageTower:
        """A fresh copy of the pre-trained image tower, in eval mode, float32, on the CPU."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """`vit` or `conv`, without building a copy."""

    def text_tower(self) -> TextTower | None:
        """A fresh copy of the text tower, or None."""
        return None

    @property
    def has_text(self) -> bool:
        """Whether a zero-shot head can be built."""
        return self.text_tower() is not None

    def native_head(self, classes: Sequence[str]) -> Head | None:
        """The backbone's own head if it was trained on exactly these classes (in any order, matched
        by name), else None.
        """
        return None


@torch.no_grad()
def zero_shot_head(
    text: TextTower,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    device: str = "cpu",
    batch: int = 512,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Head:
    """Head whose row c is scale * m/|m|, with m the mean over templates of the normalised prompt
    embeddings.

    The bias starts at 0 and stays trainable; the head normalises features. Prompts of several
    classes share a batch.

    Args:
        classes: C class names.
        templates: T prompts with one `{}` each.
        batch: prompts per forward pass of the text tower.
        progress: called after every batch with the prompts done and all of them; may raise to stop.
    """
    text = text.to(device).eval()
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    rows: list[Tensor] = []
    for first in range(0, len(prompts), batch):
        embedding = text(text.tokenize(prompts[first : first + batch]).to(device)).float()
        rows.append(embedding / embedding.norm(dim=-1, keepdim=True))
        progress(min(first + batch, len(prompts)), len(prompts))
    mean = torch.cat(rows).reshape(len(classes), len(templates), -1).mean(dim=1)
    return Head((text.scale * mean / mean.norm(dim=-1, keepdim=True)).cpu(), normalize=True)


class NormalisingTower(ImageTower):
    """Adds `normalised` to an image tower.

    Mean and standard deviation are buffers, so that they follow the tower to its device, but not
    part of its state: they are constants, and averaging weights must not touch them.

    Args:
        mean, std: of the three channels, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """(images - mean) / std for images (N, 3, H, W)."""
        return (images - self.mean) / self.std


def refuse_keep(keep: Tensor | None) -> None:
    """Raise NotImplementedError if `keep` was given to a convolutional tower."""
    if keep is not None:
        raise NotImplementedError(
            "a convolutional tower has no tokens to leave out; mask the pixels of the image instead"
        )


def differentiable(feature_map: Tensor) -> Tensor:
    """The same map, of which gradients can be taken even if no weight of the tower requires one."""
    if torch.is_grad_enabled() and not feature_map.requires_grad:
        feature_map.requires_grad_()
    return feature_map


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None = None,
    maps: list[Tensor] | None = None,
) -> Tensor:
    """softmax(query @ key.T / sqrt(d)) @ value with the heads joined again: (N, L, heads * d).

    Args:
        query, key, value: (N, heads, L, d).
        key_mask: (N, L) bool; keys that are False are read by nobody (minus infinity before the
            softmax).
        maps: if given, the attention is computed explicitly and its weights (N, heads, L, L) are
            appended, inside the autograd graph. They can be differentiated with respect to even if
            no weight of the tower requires a gradient.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if maps is None:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(
            dim=-1
        )
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()
        maps.append(weights)
        mixed = weights.to(value.dtype) @ value  # the softmax of an autocast region is float32
    return mixed.transpose(1, 2).flatten(2)


def pack_kept(tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out the patches that are not kept: shorter sequences instead of masked ones, at equal
    results for the class token.

    Rows are packed to the longest kept length K of the batch. A patch that nobody reads changes
    nothing, so this equals a minus-infinity key mask in every layer, at the cost of 1 + K tokens.

    Args:
        tokens: (N, 1 + P, W), class token first, position embeddings added.
        keep: (N, P) bool; K may be 0.

    Returns:
        (N, 1 + K, W) in the patches' order, and a key mask (N, 1 + K) that hides the padding, or
            None if no row has any.

    Raises:
        ValueError: `keep` is not bool or not (N, P).
    """
    count, length, width = tokens.shape
    if keep.dtype != torch.bool or keep.shape != (count, length - 1):
        raise ValueError(
            f"keep must be bool of shape {(count, length - 1)}, not {keep.dtype} of shape"
            f" {tuple(keep.shape)}"
        )
    kept = keep.sum(dim=1)
    shortest, longest = torch.stack(
        torch.aminmax(kept)
    ).tolist()  # one synchronisation with the device
    if shortest == length - 1:
        return tokens, None
    order = torch.argsort(keep.logical_not().byte(), dim=1, stable=True)[:, :longest]
    # Whole rows are selected: the deterministic backward of a gather on a GPU sorts every single
    # element.
    class_token = order.new_zeros(count, 1)
    place = (
        torch.cat([class_token, 1 + order], dim=1)
        + length * torch.arange(count, device=tokens.device)[:, None]
    )
    packed = tokens.flatten(0, 1).index_select(0, place.flatten()).view(count, 1 + longest, width)
    if shortest == longest:
        return packed, None
    return packed, torch.arange(1 + longest, device=tokens.device) <= kept[:, None]


@cache
def load_backbone(name: str) -> Backbone:
    """A backbone with its weights, by name such as `timm:resnet50` (loaded once per process).

    Raises:
        UsageError: unknown kind or name.
        MissingPrerequisite: its weights are not here.
    """
    kind, _, rest = name.partition(":")
    if kind not in entries("bench.backbones"):
        raise unknown(
            "kind of backbone", kind, backbone_kinds(), fix="`bench backbones` explains the names"
        )
    with foreign():
        backbone: Backbone = loaded(entries("bench.backbones")[kind])(rest)
    return backbone


def can_be_weight(tensor: Tensor) -> bool:
    """Whether a tensor is of numbers that can be weights as they are: not integers, complex or of 8
    bits, and dense.
    """
    return (
        tensor.layout == torch.strided and tensor.is_floating_point() and tensor.element_size() > 1
    )
