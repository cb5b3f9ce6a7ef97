"""mini-clip: a CLIP model of a million parameters, pre-trained on captioned renderings.

It has the parts of CLIP at a size for which two CPU cores suffice: a vision transformer, a text
transformer over words, and a shared feature space. The weights are shipped next to this module,
with a card (`mini-clip.json`) that states their hash, the vocabulary and the training data.
`scripts/mini_pretrain.py` trains them.
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
from .backbone import Architecture, Backbone, ImageTower, TextTower, attend, pack_tokens

#: Folder of the shipped weights and their card.
FOLDER = Path(__file__).parent
#: Side of the images in pixels, and of the grid of their patches of 8 x 8 pixels.
IMAGE_SIZE, GRID = 48, 6
#: Length of the feature vector.
DIM = 128
#: Words per text.
CONTEXT_LENGTH = 16
#: Words with the ids 0 and 1 in every vocabulary.
PAD, UNKNOWN = "<pad>", "<unknown>"
#: Mean and standard deviation of pixels in [0, 1], the same for all channels.
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
        """Map tokens (N, L, width) to (N, L, width).

        Args:
            tokens: (N, L, width).
            key_mask: (N, L); see `attend`.
            maps: see `attend`.
        """
        n, length, width = tokens.shape
        qkv = self.qkv(self.norm_1(tokens)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        tokens = tokens + self.out(attend(query, key, value, key_mask=key_mask, maps=maps))
        widened = F.gelu(self.widen(self.norm_2(tokens)), approximate="tanh")
        output: Tensor = tokens + self.narrow(widened)
        return output


class Stem(nn.Sequential):
    """Six 3 x 3 convolutions, from images (N, 3, 48, 48) to patches (N, 128, 6, 6).

    Args:
        batch_norm: whether a batch normalisation follows each convolution, as in pre-training. The
            shipped tower has none (see `folded`), so that no running statistics have to be
            fine-tuned or averaged.
    """

    #: (input channels, output channels, stride) of every convolution.
    PLAN = ((3, 24, 2), (24, 32, 1), (32, 48, 2), (48, 64, 1), (64, 96, 2), (96, 128, 1))

    def __init__(self, *, batch_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in self.PLAN:
            layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
        # Without the last ReLU: tokens of a transformer may be negative.
        super().__init__(*layers[:-1])

    def folded(self) -> Stem:
        """Return the same function in eval mode, with batch norms merged into the convolutions."""
        convolutions = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in self if isinstance(layer, nn.BatchNorm2d)]
        stem = Stem()
        targets = (layer for layer in stem if isinstance(layer, nn.Conv2d))
        for target, convolution, norm in zip(targets, convolutions, norms, strict=True):
            target.load_state_dict(fuse_conv_bn_eval(convolution.eval(), norm.eval()).state_dict())
        return stem


class MiniImageTower(ImageTower):
    """The image tower: a convolutional stem and three transformer blocks over 1 + 36 tokens."""

    dim = DIM
    grid = (GRID, GRID)
    layout: Architecture = "vit"

    def __init__(self, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.stem = Stem(batch_norm=batch_norm)
        self.class_token = nn.Parameter(torch.randn(DIM) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + GRID * GRID, DIM) * 0.02)
        self.blocks = nn.ModuleList(Block(DIM, heads=4) for _ in range(3))
        self.norm = nn.LayerNorm(DIM)
        self.projection = nn.Linear(DIM, DIM, bias=False)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, 128); see `ImageTower.forward`."""
        return self._features(images, keep, None)

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features and three attention tensors (N, 4, 37, 37); see `ImageTower.explain`."""
        maps: list[Tensor] = []
        return self._features(images, None, maps), maps

    def _features(self, images: Tensor, keep: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        patches = self.stem((images - PIXEL_MEAN) / PIXEL_SD).flatten(2).transpose(1, 2)
        tokens = (
            torch.cat((self.class_token.expand(len(images), 1, -1), patches), dim=1)
            + self.positions
        )
        key_mask = None
        # After the position embeddings, which tokens carry along when they are packed.
        if keep is not None:
            tokens, key_mask = pack_tokens(tokens, keep)
        for block in self.blocks:
            tokens = block(tokens, key_mask, maps)
        features: Tensor = self.projection(self.norm(tokens[:, 0]))
        return features


class MiniTextTower(TextTower):
    """The text tower: two transformer blocks over words and the projected mean of their tokens.

    Args:
        vocabulary: all words; the first two are `PAD` and `UNKNOWN`.
        width: length of a token.
    """

    def __init__(self, vocabulary: Sequence[str], width: int = 96) -> None:
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self.words = nn.Embedding(len(self.vocabulary), width)
        # With the usual small initialisation, all captions have almost the same embedding at first.
        nn.init.normal_(self.words.weight, std=0.7)
        self.positions = nn.Parameter(torch.randn(CONTEXT_LENGTH, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, DIM, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    @property
    def scale(self) -> float:
        """See `TextTower.scale`."""
        return float(self.log_scale.detach().exp())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the ids (N, 16) of the lower-case words, without punctuation.

        Words outside the vocabulary become `UNKNOWN`, and so does a text without words. Texts of
        more than 16 words are truncated.
        """
        tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.int64)
        for row, text in enumerate(texts):
            # The captions of pre-training had "a" as their only article.
            words = ["a" if word == "an" else word for word in re.findall(r"[a-z]+", text.lower())]
            ids = [self._ids.get(word, 1) for word in words[:CONTEXT_LENGTH]] or [1]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Return embeddings (N, 128) of token ids (N, L), independent of the padding."""
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
    """The backbone of both towers.

    Args:
        folder: folder of `mini-clip.json` and the weights; default: those in the package.

    Raises:
        MissingPrerequisite: the card or the weights are not in the folder.
        UsageError: the weights do not have the hash on the card.
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
                "the weights of mini-clip are missing",
                where=str(error.filename),
                fix=f"python scripts/mini_pretrain.py {folder}",
            ) from error
        # The file's hash suffices here: mini-clip has one architecture and one file format.
        self.weights_sha256 = hashlib.sha256(content).hexdigest()
        if self.weights_sha256 != card["sha256"]:
            raise UsageError(
                "the weights of mini-clip do not have the hash on its card",
                where=str(folder / card["weights"]),
                fix="reinstall the package",
            )
        self.seen = str(card["seen"])
        self._vocabulary: list[str] = card["vocabulary"]
        self._state = {name: tensor.float() for name, tensor in read_tensors(content).items()}

    @property
    def layout(self) -> Architecture:
        """Layout of the image tower, `vit`."""
        return "vit"

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower: always."""
        return True

    # Built on first use and copied from then on: copying is faster than building.
    @cached_property
    def _towers(self) -> tuple[MiniImageTower, MiniTextTower]:
        towers = nn.ModuleDict({"image": MiniImageTower(), "text": MiniTextTower(self._vocabulary)})
        towers.load_state_dict(self._state)
        image, text = towers.eval().children()
        assert isinstance(image, MiniImageTower)
        assert isinstance(text, MiniTextTower)
        return image, text

    def image_tower(self) -> MiniImageTower:
        """Return a fresh copy of the image tower, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._towers[0])

    def text_tower(self) -> MiniTextTower:
        """Return a fresh copy of the text tower, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._towers[1])


def load(variant: str) -> MiniClip:
    """Load `mini-clip`, or `mini-clip:FOLDER` with weights written by `scripts/mini_pretrain.py`.

    Args:
        variant: what follows `mini-clip:` in the name; empty for the shipped weights.
    """
    backbone = MiniClip(Path(variant) if variant else FOLDER)
    if variant:
        backbone.name = f"mini-clip:{variant}"
    return backbone
