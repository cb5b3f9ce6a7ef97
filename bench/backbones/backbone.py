"""The interfaces of backbones and towers, and the attention that vision transformers share."""

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

Architecture = Literal["vit", "conv"]


class ImageTower(nn.Module, ABC):
    """An image encoder that also supports masked patches and class-activation maps.

    Attributes:
        dim: length D of the feature vector.
        grid: (rows, columns) of the patch grid (`vit`) or final feature map (`conv`); P = rows *
            columns.
        layout: `vit` or `conv`.
    """

    dim: int
    grid: tuple[int, int]
    layout: Architecture

    @abstractmethod
    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, D), not normalised, after the projection if the model has one.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; the tower normalises them itself.
            keep: (N, P) bool, `vit` only. Patches that are False have no influence, as under a key
                mask of minus infinity in every layer.

        Raises:
            NotImplementedError: `keep` was given to a convolutional tower, which has no tokens.
        """

    @abstractmethod
    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features (N, D) and the tensors that class-activation maps are computed from.

        For `vit`, these are the attention weights after the softmax (N, heads, L, L) of every
        layer, first layer first, with L = 1 + P and the class token at index 0. For `conv`, it is
        the final feature map (N, C, rows, columns). They are inside the autograd graph of the
        features, which equal `forward(images)` up to rounding.
        """


class TextTower(nn.Module, ABC):
    """A text encoder whose embeddings are in the image tower's feature space."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """The factor of cosine similarities, exp(logit scale)."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (N, context length), int64."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Return embeddings (N, D), not normalised."""


class Head(nn.Module):
    """A linear classifier: logits = weight @ features + bias.

    Args:
        weight: (C, D).
        bias: (C,), zeros if not given.
        normalize: whether features are L2-normalised inside the head.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, normalize: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(
            torch.zeros(weight.shape[0]) if bias is None else bias.detach().clone().float()
        )
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, D)."""
        if self.normalize:
            features = features / features.norm(dim=-1, keepdim=True)
        return nn.functional.linear(features, self.weight, self.bias)


class Backbone(ABC):
    """A named, pre-trained model; constructing one loads its weights.

    Attributes:
        name: as given on the command line, such as `timm:tf_efficientnet_lite0`.
        weights_sha256: hash of the tensors and of the architecture, activation and normalisation
            that they are used with; independent of paths and file formats.
        seen: data that it was pre-trained on, in words; `unknown` if not documented.
        pixels: how images are preprocessed.
        seen_suites: suites whose training images it saw in pre-training, so that id-val is not
            unseen data.
    """

    name: str
    weights_sha256: str
    seen: str = "unknown"
    seen_suites: tuple[str, ...] = ()
    pixels: Pixels

    @abstractmethod
    def image_tower(self) -> ImageTower:
        """Return a fresh copy of the image tower, in eval mode, float32, on the CPU."""

    @property
    @abstractmethod
    def layout(self) -> Architecture:
        """Layout of the image tower, `vit` or `conv`; makes no copy of it."""

    def text_tower(self) -> TextTower | None:
        """Return a fresh copy of the text tower, or None."""
        return None

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower, from which a zero-shot head can be built."""
        return self.text_tower() is not None

    def native_head(self, classes: Sequence[str]) -> Head | None:
        """Return the backbone's own head if it was trained on exactly these classes, else None.

        Classes are matched by name, so their order does not matter.
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
    """Build a zero-shot head from the embeddings of class prompts.

    Row c is scale * m / |m|, where m is the mean over templates of the normalised embeddings of
    class c. The bias is 0 and trainable. The head normalises features.

    Args:
        text: text tower; moved to `device`.
        classes: C class names.
        templates: T prompts with one `{}` each.
        device: where to compute.
        batch: prompts per forward pass.
        progress: called after every batch with the number of prompts done and their total; may
            raise to stop.
    """
    text = text.to(device).eval()
    # A batch may span classes, so that few templates do not make small batches.
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    rows: list[Tensor] = []
    for first in range(0, len(prompts), batch):
        embedding = text(text.tokenize(prompts[first : first + batch]).to(device)).float()
        rows.append(embedding / embedding.norm(dim=-1, keepdim=True))
        progress(min(first + batch, len(prompts)), len(prompts))
    # Normalised before and after the mean, as CLIP's prompt ensembles are.
    mean = torch.cat(rows).reshape(len(classes), len(templates), -1).mean(dim=1)
    return Head((text.scale * mean / mean.norm(dim=-1, keepdim=True)).cpu(), normalize=True)


class NormalisingTower(ImageTower):
    """An image tower that normalises pixels by mean and standard deviation.

    Args:
        mean: of the three channels, for pixels in [0, 1].
        std: standard deviation of the three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Buffers, so that they follow the tower to its device, but not part of its state: they are
        # constants, which must not be averaged or hashed with the weights.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std for images (N, 3, H, W)."""
        return (images - self.mean) / self.std


def refuse_keep(keep: Tensor | None) -> None:
    """Raise NotImplementedError if `keep` was given to a convolutional tower."""
    if keep is not None:
        raise NotImplementedError(
            "a convolutional tower has no tokens to leave out; mask the pixels of the image instead"
        )


def differentiable(feature_map: Tensor) -> Tensor:
    """Make sure that gradients with respect to a feature map can be taken, and return it.

    Without this, a tower with frozen weights would compute it outside the autograd graph.
    """
    # Allowed only for leaves of the graph, and without trainable weights this is one.
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
    """Return softmax(query @ key.T / sqrt(d)) @ value with the heads joined, (N, L, heads * d).

    Args:
        query: (N, heads, L, d).
        key: (N, heads, L, d).
        value: (N, heads, L, d).
        key_mask: (N, L) bool; keys that are False get minus infinity before the softmax.
        maps: if given, the attention weights (N, heads, L, L) are appended to it. They are inside
            the autograd graph even if no weight of the tower requires a gradient.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    # The fused kernel is faster, but does not return the attention weights.
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
        # Under autocast the softmax returns float32 and the values are bfloat16.
        mixed = weights.to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2)


def pack_tokens(tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Drop the tokens of masked patches, so that the transformer computes fewer of them.

    The class token's result equals that of a key mask of minus infinity in every layer, because a
    patch that no token reads changes nothing. Rows are padded to the longest in the batch, with K
    patches.

    Args:
        tokens: (N, 1 + P, W), class token first, position embeddings added.
        keep: (N, P) bool, the patches to keep; a row may have none.

    Returns:
        Tokens (N, 1 + K, W) in their original order, and a key mask (N, 1 + K) that hides the
        padding, or None if there is no padding.

    Raises:
        ValueError: `keep` is not bool or not (N, P).
    """
    count, length, width = tokens.shape
    if keep.dtype != torch.bool or keep.shape != (count, length - 1):
        raise ValueError(
            f"keep must be bool of shape {(count, length - 1)}, not {keep.dtype} of shape"
            f" {tuple(keep.shape)}"
        )
    lengths = keep.sum(dim=1)
    # Both at once, so that the device is synchronised only once.
    shortest, longest = torch.stack(torch.aminmax(lengths)).tolist()
    if shortest == length - 1:
        return tokens, None
    # A stable sort brings the patches to keep to the front and leaves them in order.
    order = torch.argsort(keep.logical_not().byte(), dim=1, stable=True)[:, :longest]
    # Whole rows of the flattened tokens are selected. A gather would be simpler, but its
    # deterministic backward on a GPU sorts every single element.
    class_token = order.new_zeros(count, 1)
    place = (
        torch.cat([class_token, 1 + order], dim=1)
        + length * torch.arange(count, device=tokens.device)[:, None]
    )
    packed = tokens.flatten(0, 1).index_select(0, place.flatten()).view(count, 1 + longest, width)
    if shortest == longest:
        return packed, None
    return packed, torch.arange(1 + longest, device=tokens.device) <= lengths[:, None]


@cache
def load_backbone(name: str) -> Backbone:
    """Load a backbone by its name, such as `timm:resnet50`, once per process.

    Raises:
        UsageError: the kind or name is unknown.
        MissingPrerequisite: its weights are missing.
    """
    # Only the plug-in of this kind is imported: open_clip and timm take seconds.
    kind, _, rest = name.partition(":")
    if kind not in entries("bench.backbones"):
        raise unknown(
            "kind of backbone", kind, backbone_kinds(), fix="`bench backbones` explains the names"
        )
    with foreign():
        backbone: Backbone = loaded(entries("bench.backbones")[kind])(rest)
    return backbone


def can_be_weight(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and of floating-point numbers with at least 16 bits."""
    # Integers and 8-bit floats are quantised weights, which mean nothing without their scales.
    return (
        tensor.layout == torch.strided and tensor.is_floating_point() and tensor.element_size() > 1
    )
