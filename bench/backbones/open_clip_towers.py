"""Image and text towers that wrap open_clip's models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from .backbone import (
    Architecture,
    ImageTower,
    NormalisingTower,
    TextTower,
    attend,
    differentiable,
    pack_tokens,
    refuse_keep,
)
from .timm_towers import tower_of


class OpenClipViT(NormalisingTower):
    """open_clip's VisionTransformer; its features are the projected class token.

    Args:
        visual: the image tower of an open_clip model.
        mean: see `NormalisingTower`.
        std: see `NormalisingTower`.
    """

    layout: Architecture = "vit"

    def __init__(self, visual: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.visual: Any = visual
        rows, columns = self.visual.grid_size
        self.grid = (int(rows), int(columns))
        self.dim = int(self.visual.output_dim)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, D); see `ImageTower.forward`."""
        return self._features(images, keep, None)

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features and attention weights; see `ImageTower.explain`."""
        maps: list[Tensor] = []
        return self._features(images, None, maps), maps

    def _features(self, images: Tensor, keep: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        # open_clip's forward pass, written out: its own neither leaves out tokens nor returns
        # attention weights.
        visual, key_mask = self.visual, None
        # With class token, position embeddings and ln_pre.
        tokens = visual._embeds(self.normalised(images))
        if keep is not None:
            tokens, key_mask = pack_tokens(tokens, keep)
        for block in visual.transformer.resblocks:
            tokens = tokens + block.ls_1(_attention(block.attn, block.ln_1(tokens), key_mask, maps))
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        features: Tensor = visual._pool(tokens)[0] @ visual.proj
        return features


def _attention(
    attn: nn.MultiheadAttention, tokens: Tensor, key_mask: Tensor | None, maps: list[Tensor] | None
) -> Tensor:
    """Apply torch's MultiheadAttention to tokens (N, L, W), by `attend`."""
    count, length, _ = tokens.shape
    # torch stacks the weights of queries, keys and values.
    joint = F.linear(tokens, attn.in_proj_weight, attn.in_proj_bias)
    query, key, value = joint.reshape(count, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed: Tensor = attn.out_proj(attend(query, key, value, key_mask=key_mask, maps=maps))
    return mixed


class OpenClipResNet(NormalisingTower):
    """CLIP's modified ResNet; its feature map is the output of layer4, before attention pooling.

    Args:
        visual: the image tower of an open_clip model.
        mean: see `NormalisingTower`.
        std: see `NormalisingTower`.
    """

    layout: Architecture = "conv"

    def __init__(self, visual: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.visual: Any = visual
        size = self.visual.image_size
        rows, columns = (size, size) if isinstance(size, int) else size
        # The stem reduces the resolution by 4, and layers 2 to 4 by 2 each.
        self.grid = (rows // 32, columns // 32)
        self.dim = int(self.visual.output_dim)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, D); see `ImageTower.forward`."""
        refuse_keep(keep)
        features: Tensor = self.visual.attnpool(self._map(images))
        return features

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features and the final feature map; see `ImageTower.explain`."""
        feature_map = differentiable(self._map(images))
        return self.visual.attnpool(feature_map), [feature_map]

    def _map(self, images: Tensor) -> Tensor:
        # Channels-last order is faster for convolutions; see `TimmConv`.
        feature_map = self.visual.stem(
            self.normalised(images).contiguous(memory_format=torch.channels_last)
        )
        for layer in (
            self.visual.layer1,
            self.visual.layer2,
            self.visual.layer3,
            self.visual.layer4,
        ):
            feature_map = layer(feature_map)
        result: Tensor = feature_map
        return result


class OpenClipText(TextTower):
    """The text tower of an open_clip model, with its logit scale.

    Args:
        model: an open_clip model without its image tower.
        tokenizer: open_clip's tokenizer, from texts to ids (N, context length).
    """

    def __init__(self, model: Any, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.model: Any = model
        self._tokenizer = tokenizer

    @property
    def scale(self) -> float:
        """See `TextTower.scale`."""
        return float(self.model.logit_scale.detach().exp())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (N, context length), int64."""
        return self._tokenizer(list(texts))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return embeddings (N, D), not normalised."""
        embeddings: Tensor = self.model.encode_text(tokens)
        return embeddings


def image_tower_of(
    visual: Any, mean: Sequence[float], std: Sequence[float], size: int
) -> ImageTower:
    """Wrap the image tower of an open_clip model.

    Args:
        visual: the image tower.
        mean: see `NormalisingTower`.
        std: see `NormalisingTower`.
        size: side of the images in pixels.

    Raises:
        UsageError: there is no wrapper for it. The message is a clause about the model, without its
            name, which the caller adds.
    """
    # Exact types and settings are checked, because the towers write out the forward pass: a variant
    # that they do not know would silently compute something else.
    if isinstance(visual, TimmModel):
        return tower_of(visual.trunk, mean, std, size, projection=visual.head)
    if isinstance(visual, ModifiedResNet):
        return OpenClipResNet(visual, mean, std)
    if type(visual) is not VisionTransformer:
        raise UsageError(f"its image tower is a {type(visual).__name__}")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        raise UsageError("it does not pool by the class token, which masks and attention maps need")
    if any(type(block) is not ResidualAttentionBlock for block in visual.transformer.resblocks):
        raise UsageError("its blocks are not plain attention followed by an MLP")
    return OpenClipViT(visual, mean, std)
