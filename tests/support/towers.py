"""Towers of a few thousand weights, a task around them, and a training step: what the tests of the
methods run on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.backbones.backbone import Head, ImageTower
from bench.classifier import Classifier
from bench.identity import torch_stream
from bench.method import Batch, FineTuner, HeadInit, Method, Traits

SIZE, CLASSES = 24, 4
VIT, CONV = (
    Traits(text=True, native=False, layout="vit"),
    Traits(text=False, native=True, layout="conv"),
)


class Block(nn.Module):
    """A pre-norm transformer block that can show its attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm_1, self.norm_2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.mlp = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = 3 * q @ k.transpose(-2, -1)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
        attention = scores.softmax(dim=-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(n, length, width))
        return x + torch.tanh(self.mlp(self.norm_2(x))), attention


class TinyViT(ImageTower):
    """Two blocks of width 16 on a grid of 3 x 3 patches."""

    dim, grid, layout = 6, (3, 3), "vit"

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, SIZE // 3, stride=SIZE // 3)
        self.tokens = nn.Parameter(torch.randn(1 + 9, width))
        self.blocks = nn.ModuleList(Block(width, heads=2) for _ in range(2))
        self.project = nn.Linear(width, self.dim, bias=False)

    def run(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.patches((images - 0.5) * 4).flatten(2).transpose(1, 2)
        x = torch.cat([x.new_zeros(len(x), 1, x.shape[-1]), x], dim=1) + self.tokens
        if keep is not None:
            keep = torch.cat([keep.new_ones(len(keep), 1), keep], dim=1)
        attentions = []
        for block in self.blocks:
            x, attention = block(x, keep)
            attentions.append(attention)
        return self.project(x[:, 0]), attentions

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.run(images, keep)[0]

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.run(images, None)


class TinyConv(ImageTower):
    """Two convolutions with a batch normalisation (frozen, as in eval mode) to a final map of 3 x
    3, then the mean over it.
    """

    dim, grid, layout = 6, (3, 3), "conv"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, self.dim, 2, stride=2)
        self.eval()

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is not None:
            raise NotImplementedError("no tokens to leave out")
        return self.explain(images)[0]

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        last = self.last(torch.tanh(self.norm(self.stem((images - 0.5) * 4))))
        return last.mean(dim=(2, 3)), [last]


def classifier(
    layout: Literal["vit", "conv"] = "vit", seed: int = 0, *, normalize: bool = True
) -> Classifier:
    """A tiny classifier of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = TinyViT() if layout == "vit" else TinyConv()
        return Classifier(
            tower,
            Head(3 * torch.randn(CLASSES, tower.dim), torch.randn(CLASSES), normalize=normalize),
        )


def global_batch(size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (size, 3, 24, 24) uint8 and labels (size,)."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(0, 256, (size, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return pool, torch.randint(0, CLASSES, (size,), generator=generator)


def score_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over images of the true class's logit."""
    return logits.gather(1, labels[:, None]).sum()


def full_rollout(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """The textbook way, in float64: all gradients at once, L x L products from the first layer to
    the last.
    """
    model = copy.deepcopy(model).double()
    logits, _, attentions = model.explain(images.double())
    gradients = torch.autograd.grad(score_of(logits, labels), attentions)
    length = attentions[0].shape[-1]
    rolled = torch.eye(length, dtype=torch.float64).expand(len(images), length, length)
    for attention, gradient in zip(attentions, gradients, strict=True):
        a_bar = (gradient * attention).clamp(min=0).mean(dim=1)
        rolled = rolled + a_bar @ rolled
    return rolled[:, 0, 1:].detach()


def micro_batch(
    method: FineTuner, pool: Tensor, labels: Tensor, rows: Tensor, grid: tuple[int, int] = (3, 3)
) -> Batch:
    """The part `rows` of a global batch, with the method's draws for it."""
    samples = method.random(len(pool), grid, torch.Generator().manual_seed(7))
    cut = {name: values[rows] for name, values in samples.items()}
    return Batch(pool[rows].float() / 255, labels[rows], rows, pool, cut, step=0)


def step(
    method: FineTuner,
    student: Classifier,
    teacher: Classifier,
    pool: Tensor,
    labels: Tensor,
    sizes: Sequence[int],
    constants: Mapping[str, float],
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimiser step, accumulated over micro-batches of these sizes."""
    student = copy.deepcopy(student)
    total, first = 0.0, 0
    for size in sizes:
        batch = micro_batch(method, pool, labels, torch.arange(first, first + size))
        loss = method.loss(batch, student, teacher, constants) * (size / len(pool))
        loss.backward()  # type: ignore[no-untyped-call]
        total, first = total + loss.item(), first + size
    assert first == len(pool)
    return total, {
        name: weight.grad for name, weight in student.named_parameters() if weight.grad is not None
    }


@dataclass
class TinyTask:
    """A task whose features are given and whose `fit` returns what it is told to."""

    traits: Traits = VIT
    train: tuple[NDArray[Any], NDArray[Any]] = (np.zeros((0, 6)), np.zeros(0))
    id_val: tuple[NDArray[Any], NDArray[Any]] = (np.zeros((0, 6)), np.zeros(0))
    classes: tuple[str, ...] = ("a", "b", "c", "d")
    seed: int = 0
    device: str = "cpu"
    fitted: Classifier | None = None
    scores: dict[float, tuple[float, float]] = field(default_factory=dict)
    chosen: dict[str, tuple[Any, int]] = field(default_factory=dict)
    started: list[HeadInit] = field(default_factory=list)

    def tower(self) -> ImageTower:
        return classifier(self.traits.layout).tower

    def start(self, init: HeadInit) -> Classifier:
        self.started.append(init)
        return classifier(self.traits.layout)

    def fit(self, method: Method) -> Classifier:
        assert self.fitted is not None
        return self.fitted

    def features(self, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
        return {"train": self.train, "id-val": self.id_val}[split]

    def score(self, model: Classifier) -> tuple[float, float]:
        return self.scores[round(float(model.head.bias.detach()[0]), 6)]

    def score_logits(self, logits: NDArray[Any]) -> tuple[float, float]:
        labels = torch.from_numpy(self.id_val[1])
        nll = torch.nn.functional.cross_entropy(torch.from_numpy(logits), labels)
        return float((logits.argmax(1) == self.id_val[1]).mean()), float(nll)

    def stop_if_requested(self) -> None:
        pass

    def choose(
        self, name: str, candidates: Sequence[tuple[Any, float, float]], *, one_se: bool = False
    ) -> Any:
        best = min(candidates, key=lambda candidate: (-candidate[1], candidate[2]))
        chosen = best
        if one_se:
            least = best[1] - (best[1] * (1 - best[1]) / len(self.id_val[1])) ** 0.5
            chosen = next(one for one in candidates if one[1] >= least)
        self.chosen[name] = (chosen[0], len(candidates))
        return chosen[0]

    def generator(self, purpose: str, *steps: int) -> torch.Generator:
        return torch_stream(self.seed, purpose, *steps)
