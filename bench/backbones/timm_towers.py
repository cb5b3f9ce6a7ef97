"""Image towers that wrap timm's vision transformers and convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import UsageError
from .backbone import (
    Architecture,
    NormalisingTower,
    attend,
    differentiable,
    pack_tokens,
    refuse_keep,
)


class TimmViT(NormalisingTower):
    """timm's VisionTransformer; its features are the class token.

    Args:
        model: the model without its classifier.
        mean: see `NormalisingTower`.
        std: see `NormalisingTower`.
        projection: applied to the features; open_clip's towers with a timm trunk have one.
    """

    layout: Architecture = "vit"

    def __init__(
        self,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__(mean, std)
        self.model: Any = model
        self.projection: Any = projection or nn.Identity()
        rows, columns = self.model.patch_embed.grid_size
        self.grid = (int(rows), int(columns))
        # The dimension is tried out: it depends on timm's options for the head and the projection.
        with torch.no_grad():
            tokens = torch.zeros(1, 1 + self.grid[0] * self.grid[1], self.model.embed_dim)
            self.dim = int(self.projection(self.model.forward_head(tokens)).shape[1])

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, D); see `ImageTower.forward`."""
        return self._features(images, keep, None)

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features and attention weights; see `ImageTower.explain`."""
        maps: list[Tensor] = []
        return self._features(images, None, maps), maps

    def _features(self, images: Tensor, keep: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        # timm's forward pass, written out: its own neither leaves out tokens nor returns attention
        # weights.
        model, key_mask = self.model, None
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(self.normalised(images))))
        if keep is not None:
            tokens, key_mask = pack_tokens(tokens, keep)
        for block in model.blocks:
            tokens = tokens + block.ls1(_attention(block.attn, block.norm1(tokens), key_mask, maps))
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        features: Tensor = self.projection(model.forward_head(model.norm(tokens)))
        return features


def _attention(
    attn: Any, tokens: Tensor, key_mask: Tensor | None, maps: list[Tensor] | None
) -> Tensor:
    """Apply timm's Attention to tokens (N, L, W), by `attend`."""
    count, length, _ = tokens.shape
    query, key, value = (
        attn.qkv(tokens).reshape(count, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    )
    mixed = attend(attn.q_norm(query), attn.k_norm(key), value, key_mask=key_mask, maps=maps)
    result: Tensor = attn.proj(attn.norm(mixed))
    return result


class TimmConv(NormalisingTower):
    """Any timm model whose final features are a map (N, C, rows, columns).

    Args:
        model: the model without its classifier.
        mean: see `NormalisingTower`.
        std: see `NormalisingTower`.
        size: side of the images in pixels.
        projection: see `TimmViT`.

    Raises:
        UsageError: the final features are not such a map.
    """

    layout: Architecture = "conv"

    def __init__(
        self,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__(mean, std)
        self.model: Any = model
        self.projection: Any = projection or nn.Identity()
        # timm does not say for all models which features they return, so one image is tried out, in
        # eval mode: otherwise it would change the running statistics of batch norms.
        self.grid, training = (0, 0), self.training
        self.eval()
        with torch.no_grad():
            feature_map = self._map(torch.zeros(1, 3, size, size))
            if feature_map.ndim != 4 or getattr(model, "output_fmt", "NCHW") not in ("NCHW", None):
                raise UsageError(
                    "its final features are not a map (N, C, rows, columns) like those of a"
                    " convolutional network"
                )
            features = self._pooled(feature_map)
        self.train(training)
        if features.ndim != 2:
            raise UsageError("its pooled features are not vectors")
        self.grid = (feature_map.shape[2], feature_map.shape[3])
        self.dim = features.shape[1]

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, D); see `ImageTower.forward`."""
        refuse_keep(keep)
        return self._pooled(self._map(images))

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features and the final feature map; see `ImageTower.explain`."""
        feature_map = differentiable(self._map(images))
        return self._pooled(feature_map), [feature_map]

    def _map(self, images: Tensor) -> Tensor:
        # Channels-last order makes depthwise convolutions on a CPU up to three times faster. The
        # weights keep their order: converting them gains nothing more, and safetensors does not
        # accept strided tensors.
        ordered = self.normalised(images).contiguous(memory_format=torch.channels_last)
        feature_map: Tensor = self.model.forward_features(ordered)
        return feature_map

    def _pooled(self, feature_map: Tensor) -> Tensor:
        features: Tensor = self.projection(self.model.forward_head(feature_map))
        return features


def tower_of(
    model: Any,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    projection: nn.Module | None = None,
) -> TimmViT | TimmConv:
    """Wrap a timm model without its classifier.

    Args:
        model: the model.
        mean: see `NormalisingTower`.
        std: see `NormalisingTower`.
        size: side of the images in pixels.
        projection: see `TimmViT`.

    Raises:
        UsageError: it is neither a transformer with a plain class token nor a convolutional
            network. The message is a clause about the model, without its name, which the caller
            adds.
    """
    # Exact types and settings are checked, because `TimmViT` writes out the forward pass: a variant
    # that it does not know would silently compute something else.
    kind = type(model)
    if not issubclass(kind, VisionTransformer):
        return TimmConv(model, mean, std, size, projection)
    if kind is not VisionTransformer:
        raise UsageError(
            f"{kind.__name__} is another kind of transformer than timm's VisionTransformer"
        )
    if model.global_pool != "token" or model.attn_pool is not None:
        raise UsageError(
            f"it pools by {model.global_pool!r}, not by the class token, which masks and attention"
            " maps need"
        )
    if model.num_prefix_tokens != 1:
        raise UsageError(
            f"it has {model.num_prefix_tokens - 1} register or distillation tokens in addition to"
            " the class token"
        )
    for block in model.blocks:
        attn = getattr(block, "attn", None)
        if (
            type(block) is not Block
            or type(attn) is not Attention
            or getattr(attn, "gate", None) is not None
        ):
            raise UsageError("its blocks are not plain attention followed by an MLP")
    return TimmViT(model, mean, std, projection)
