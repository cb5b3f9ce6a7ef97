"""mini-clip: an image tower and a text tower of a million parameters, pre-trained on captioned
renderings.

It has the parts of CLIP at a size at which two cores suffice: a vision transformer whose tokens are
patches of the image, a text transformer over words, one feature space. The weights lie beside this
module, with a card (`mini-clip.json`) that states their hash, the vocabulary and what they have
seen; `scripts/mini_pretrain.py` is the command that made them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as read_tensors
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..data.pixels.decoder import Pixels
from ..errors import MissingPrerequisite, UsageError
from .backbone import Backbone, ImageTower, Layout, TextTower, attend, pack_kept

FOLDER = Path(__file__).parent
IMAGE_SIZE, GRID = 48, 6
DIM = 128
CONTEXT_LENGTH = 16
PAD, UNKNOWN = "<pad>", "<unknown>"
"""Ids 0 and 1 of every vocabulary."""
PIXEL_MEAN, PIXEL_SD = 0.45, 0.27


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, tokens: Tensor, key_mask: Tensor | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """(N, L, width) to (N, L, width); `key_mask` (N, L) and `maps` as in `attend`."""
        n, length, width = tokens.shape
        qkv = self.qkv(self.norm_1(tokens)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        tokens = tokens + self.out(attend(query, key, value, key_mask=key_mask, maps=maps))
        widened = F.gelu(self.widen(self.norm_2(tokens)), approximate="tanh")
        output: Tensor = tokens + self.narrow(widened)
        return output


class Stem(nn.Sequential):
    """Six 3 x 3 convolutions, (N, 3, 48, 48) to (N, 128, 6, 6), one position per patch of 8 x 8
    pixels.

    In pre-training each is followed by batch normalisation; `folded()` merges that into the
    convolutions, so that the tower that is shipped, fine-tuned and averaged has no running
    statistics.
    """

    PLAN = ((3, 24, 2), (24, 32, 1), (32, 48, 2), (48, 64, 1), (64, 96, 2), (96, 128, 1))

    def __init__(self, *, batch_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in self.PLAN:
            layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
        super().__init__(*layers[:-1])

    def folded(self) -> Stem:
        """The same function in evaluation mode, without batch normalisation."""
        convolutions = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in self if isinstance(layer, nn.BatchNorm2d)]
        stem = Stem()
        targets = (layer for layer in stem if isinstance(layer, nn.Conv2d))
        for target, convolution, norm in zip(targets, convolutions, norms, strict=True):
            target.load_state_dict(fuse_conv_bn_eval(convolution.eval(), norm.eval()).state_dict())
        return stem


class MiniImageTower(ImageTower):
    """A convolutional stem, then three transformer blocks over 36 patch tokens and a class
    token.
    """

    dim = DIM
    grid = (GRID, GRID)
    layout: Layout = "vit"

    def __init__(self, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.stem = Stem(batch_norm=batch_norm)
        self.class_token = nn.Parameter(torch.randn(DIM) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + GRID * GRID, DIM) * 0.02)
        self.blocks = nn.ModuleList(Block(DIM, heads=4) for _ in range(3))
        self.norm = nn.LayerNorm(DIM)
        self.projection = nn.Linear(DIM, DIM, bias=False)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (N, 128); see `ImageTower.forward`."""
        return self._features(images, keep, None)

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and three attention tensors (N, 4, 37, 37); see `ImageTower.explain`."""
        maps: list[Tensor] = []
        return self._features(images, None, maps), maps

    def _features(self, images: Tensor, keep: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        patches = self.stem((images - PIXEL_MEAN) / PIXEL_SD).flatten(2).transpose(1, 2)
        tokens = (
            torch.cat((self.class_token.expand(len(images), 1, -1), patches), dim=1)
            + self.positions
        )
        key_mask = None
        if keep is not None:
            tokens, key_mask = pack_kept(tokens, keep)
        for block in self.blocks:
            tokens = block(tokens, key_mask, maps)
        features: Tensor = self.projection(self.norm(tokens[:, 0]))
        return features


class MiniTextTower(TextTower):
    """Two transformer blocks over words; the embedding is the projected mean of the tokens.

    Args:
        vocabulary: all words; the first two are `PAD` and `UNKNOWN`.
    """

    def __init__(self, vocabulary: Sequence[str], width: int = 96) -> None:
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self.words = nn.Embedding(len(self.vocabulary), width)
        # With the customary small embeddings all captions start out looking alike.
        nn.init.normal_(self.words.weight, std=0.7)
        self.positions = nn.Parameter(torch.randn(CONTEXT_LENGTH, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, DIM, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    @property
    def scale(self) -> float:
        return float(self.log_scale.detach().exp())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, 16) of lower-case words; punctuation is ignored, words outside the vocabulary
        become `UNKNOWN`.

        "an" is read as "a", the one article that the captions had. Texts of more than 16 words are
        cut; one without words is one unknown word.
        """
        tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = ["a" if word == "an" else word for word in re.findall(r"[a-z]+", text.lower())]
            ids = [self._ids.get(word, 1) for word in words[:CONTEXT_LENGTH]] or [1]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) ids to (N, 128); a text's embedding does not depend on its padding."""
        present = tokens != 0
        hidden = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, present)
        weight = present.unsqueeze(-1).to(hidden.dtype)
        embeddings: Tensor = self.projection(
            self.norm((hidden * weight).sum(dim=1) / weight.sum(dim=1))
        )
        return embeddings


class MiniClip(Backbone):
    """The shipped pair of towers.

    Args:
        folder: where `mini-clip.json` and the weights are; default: those in the package.

    Raises:
        MissingPrerequisite: there is no card or there are no weights in the folder.
        UsageError: the weights are not those that the card names.
    """

    name = "mini-clip"
    pixels = Pixels(size=IMAGE_SIZE, resize=IMAGE_SIZE)

    def __init__(self, folder: Path = FOLDER) -> None:
        card_file = folder / "mini-clip.json"
        try:
            card: dict[str, Any] = json.loads(card_file.read_text(encoding="utf-8"))
            content = (folder / card["weights"]).read_bytes()
        except FileNotFoundError as error:
            raise MissingPrerequisite(
                "mini-clip's weights are not here",
                where=str(error.filename),
                fix=f"python scripts/mini_pretrain.py {folder}",
            ) from error
        self.weights_sha256 = hashlib.sha256(content).hexdigest()
        if self.weights_sha256 != card["sha256"]:
            raise UsageError(
                "mini-clip's weights are not those that its card names",
                where=str(folder / card["weights"]),
                fix="install the package again",
            )
        self.seen = str(card["seen"])
        self._vocabulary: list[str] = card["vocabulary"]
        self._state = {name: tensor.float() for name, tensor in read_tensors(content).items()}

    @property
    def layout(self) -> Layout:
        return "vit"

    @property
    def has_text(self) -> bool:
        return True

    @cached_property
    def _towers(self) -> tuple[MiniImageTower, MiniTextTower]:
        towers = nn.ModuleDict({"image": MiniImageTower(), "text": MiniTextTower(self._vocabulary)})
        towers.load_state_dict(self._state)
        image, text = towers.eval().children()
        assert isinstance(image, MiniImageTower)
        assert isinstance(text, MiniTextTower)
        return image, text

    def image_tower(self) -> MiniImageTower:
        """A fresh copy, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._towers[0])

    def text_tower(self) -> MiniTextTower:
        """A fresh copy, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._towers[1])


def load(variant: str) -> MiniClip:
    """`mini-clip`, or `mini-clip:FOLDER` for towers of one's own, written by
    `scripts/mini_pretrain.py`.
    """
    backbone = MiniClip(Path(variant) if variant else FOLDER)
    if variant:
        backbone.name = f"mini-clip:{variant}"
    return backbone
