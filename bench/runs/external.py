"""Weights from elsewhere: put into a classifier on a backbone's architecture, or refused with what
differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, can_be_weight
from ..backbones.open_clip_backbone import architectures_like
from ..classifier import Classifier
from ..errors import BenchError, MissingPrerequisite
from ..evaluation.variants import activation_of
from ..identity import digest, tensors_sha256
from ..results.store import Store
from ..task import Setup
from .checkpoints import Checkpoint, read_checkpoint

#: Cosine between two towers' weights below which one is not the other, fine-tuned. Fine-tuning
#: leaves above 0.9; towers that were trained apart are near 0.
DESCENDS = 0.5

#: Rows of a zero-shot head have the norm exp(logit scale), 100 for OpenAI's models; those of a
#: drawn linear layer are below 1.
ZERO_SHOT_NORM = 10.0


@dataclass(frozen=True)
class External:
    """A classifier from elsewhere.

    Attributes:
        format: whose code wrote it; empty for ours.
        sha256: of its tensors.
        similarity: cosine between its tower's weights and the backbone's.
        key: of the weights, in a file that holds averaged ones and others.
    """

    classifier: Classifier
    format: str
    sha256: str
    similarity: float
    key: str = ""


def load_external(
    path: Path, setup: Setup, normalize: bool | None = None, *, averaged: bool = True
) -> External:
    """The classifier in a file, or in the folder of a fit, which says itself which file and whether
    to normalise.

    A checkpoint without a head (open_clip, FLYP) gets the zero-shot head of its own text tower for
    the suite's classes and prompts.

    Args:
        averaged: take the averaged weights (EMA) of a file that holds those and others, as timm
            does.

    Raises:
        BenchError: it cannot be read safely; its tensors are not those of the backbone's
            architecture (the first differences are named); its head has another number of classes;
            its activation is not the backbone's.
    """
    if path.is_dir():
        fit = Store(path.parent.parent).fit(path.name)
        if fit is None:
            raise MissingPrerequisite(
                "the folder is not that of a finished fit",
                where=str(path),
                fix="name a weights file or a fit's folder",
            )
        path, normalize = path / fit.weights, fit.normalize
    tower = setup.backbone.image_tower()
    pretrained = {f"tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    checkpoint = read_checkpoint(path, averaged=averaged, trunk=_trunk(tower))
    if checkpoint.key:
        how = (
            "averaged weights; --no-ema takes the others"
            if averaged
            else "others than the averaged weights; --ema takes those"
        )
        setup.reporter.event(
            "warning",
            text=f"{path.name} holds several states: measured is `{checkpoint.key}`, {how}",
        )
    if not checkpoint.format:
        normalize = setup.traits.text if normalize is None else normalize
        classifier = Classifier(
            tower, Head(torch.zeros(len(setup.suite.card.classes), tower.dim), normalize=normalize)
        )
        _check(checkpoint.tower, classifier.named_weights(), path, setup)
        state = checkpoint.tower
    else:
        architectures = [] if checkpoint.format == "timm" else architectures_like(checkpoint.tower)
        _check_kind(checkpoint, tower, path, setup, architectures)
        _check_activation(checkpoint, tower, path, setup)
        state = {
            f"tower.{_inside(name, tower)}": tensor for name, tensor in checkpoint.tower.items()
        }
        _check(state, pretrained, path, setup, architectures)
        state = {name: _float(tensor) for name, tensor in state.items()}
        head = _own_head(checkpoint, tower.dim, normalize, path, setup) or _zero_shot_head(
            checkpoint, path, setup
        )
        classifier = Classifier(tower, head)
        state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    similarity = _cosine(state, pretrained)
    _warn(checkpoint, tower, similarity, setup)
    return External(
        classifier.with_weights(state).eval(),
        checkpoint.format,
        tensors_sha256(state),
        similarity,
        checkpoint.key,
    )


def _trunk(tower: nn.Module) -> set[str]:
    """Names of the tensors of timm's model, where the tower is nothing but one."""
    names = tower.state_dict().keys()
    return (
        {name.removeprefix("model.") for name in names}
        if all(name.startswith("model.") for name in names)
        else set()
    )


def _inside(name: str, tower: nn.Module) -> str:
    """Name in our tower of what open_clip calls `visual.` + `name`; towers around timm's models
    have it in two parts.
    """
    if hasattr(tower, "visual"):
        return f"visual.{name}"
    part, _, rest = name.partition(".")
    return ".".join(({"trunk": "model", "head": "projection"}.get(part, part), rest))


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if can_be_weight(tensor) else tensor


def _check(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    path: Path,
    setup: Setup,
    architectures: Sequence[str] = (),
) -> None:
    problems = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    problems += [f"{name} is unknown" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} is {state[name].dtype}, and not plain floating-point numbers"
        for name in wanted.keys() & state.keys()
        if wanted[name].is_floating_point() and not can_be_weight(state[name])
    ]
    if problems:
        raise BenchError(
            f"the weights do not fit {setup.backbone.name} with {len(setup.suite.card.classes)}"
            " classes: "
            + "; ".join(sorted(problems)[:4])
            + (f" and {len(problems) - 4} more" if len(problems) > 4 else ""),
            where=str(path),
            fix=(
                "name the backbone that they were trained from, and the suite whose classes they"
                " have"
            )
            + (
                f"; their architecture is {' or '.join(architectures[:3])} of open_clip"
                if architectures
                else ""
            ),
        )


def _own_head(
    checkpoint: Checkpoint, dim: int, normalize: bool | None, path: Path, setup: Setup
) -> Head | None:
    """The head in the checkpoint, or None if it has none."""
    if not checkpoint.head:
        return None
    if not {"weight"} <= checkpoint.head.keys() <= {"weight", "bias"}:
        raise BenchError(
            "its head is not one linear layer of `weight` and `bias`, but has the tensors"
            f" {', '.join(sorted(checkpoint.head))}",
            where=str(path),
            fix="their part in the logits is unknown; save a head that is one linear layer",
        )
    for name, tensor in checkpoint.head.items():
        if not can_be_weight(tensor):
            raise BenchError(
                f"its head's {name} is {tensor.dtype}, and not plain floating-point numbers",
                where=str(path),
            )
    weight, bias = checkpoint.head["weight"], checkpoint.head.get("bias")
    classes = len(setup.suite.card.classes)
    if (
        weight.ndim != 2
        or weight.shape[1] != dim
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.head.items()}
        raise BenchError(
            f"its head has the shapes {shapes} instead of ({classes}, {dim}) and ({classes},)",
            where=str(path),
            fix="name the backbone that it was trained from",
        )
    if weight.shape[0] != classes:
        raise BenchError(
            f"its head has {weight.shape[0]} classes, and {setup.suite.card.name} has {classes}",
            where=str(path),
            fix="name the suite of the classes that it was trained on; `bench suites` lists them",
        )
    if normalize is None:
        normalize = checkpoint.normalize
    if (
        normalize is None
        # A state dict does not say; only a head that started from text has such long rows
    ):
        normalize = float(weight.float().norm(dim=1).median()) > ZERO_SHOT_NORM
    return Head(weight, bias, normalize=normalize)


def _zero_shot_head(checkpoint: Checkpoint, path: Path, setup: Setup) -> Head:
    """The zero-shot head of the checkpoint's own text tower."""
    text = setup.text()
    wanted = text.state_dict()
    # `model.` is where our tower keeps open_clip's model.
    state = {f"model.{name}": tensor for name, tensor in checkpoint.text.items()}
    missing = sorted(wanted.keys() - state.keys())
    wrong = sorted(
        name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape
    )
    if missing or wrong:
        lacks = (
            f"{missing[0]} is missing"
            if missing
            else f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}"
        )
        raise BenchError(
            f"it has no head, and no text tower of {setup.backbone.name} to build one from:"
            f" {lacks}",
            where=str(path),
            fix=(
                "name a checkpoint of the whole classifier (wise-ft's zeroshot.pt,"
                " checkpoint_N.pt), or another backbone"
            ),
        )
    text.load_state_dict({name: state[name].float() for name in wanted})
    # The same tensors make other embeddings in a backbone of another activation, which its identity
    # tells.
    return setup.zero_shot_head(
        text, digest([setup.backbone.weights_sha256, tensors_sha256(dict(text.state_dict()))])
    )


def _check_kind(
    checkpoint: Checkpoint, tower: nn.Module, path: Path, setup: Setup, architectures: Sequence[str]
) -> None:
    """Refuse a backbone of another library before all its tensors are called missing."""
    if not hasattr(tower, "visual") and not any(
        name.startswith("trunk.") for name in checkpoint.tower
    ):
        raise BenchError(
            f"a checkpoint of {checkpoint.format} has an image tower of CLIP's, and"
            f" {setup.backbone.name} is none",
            where=str(path),
            fix=(
                f"--backbone open_clip:{architectures[0] if architectures else 'ARCH'}/TAG, with"
                " the tag that it was trained from"
            )
            + (" (openai for this repository)" if checkpoint.quick_gelu else ", such as openai"),
        )


def _check_activation(checkpoint: Checkpoint, tower: nn.Module, path: Path, setup: Setup) -> None:
    ours = activation_of(tower)
    if checkpoint.activation and ours and checkpoint.activation != ours:
        raise BenchError(
            f"its image tower computes {checkpoint.activation}, and {setup.backbone.name} computes"
            f" {ours}: the same weights would silently be another, worse model",
            where=str(path),
            fix=(
                "name the backbone that it was trained from: open_clip:ARCH/openai for OpenAI's"
                " models (QuickGELU), or open_clip:ARCH-quickgelu@random for the architecture alone"
            ),
        )


def _cosine(state: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> float:
    """Cosine between the matrices of two towers, all taken as one vector; biases and norms are
    alike in all towers.
    """
    dot = ours = theirs = 0.0
    for name, tensor in pretrained.items():
        if tensor.ndim >= 2:
            a, b = tensor.double().flatten(), state[name].double().flatten()
            dot, ours, theirs = dot + float(a @ b), ours + float(a @ a), theirs + float(b @ b)
    return dot / (ours * theirs) ** 0.5 if ours and theirs else 0.0


def _warn(checkpoint: Checkpoint, tower: nn.Module, similarity: float, setup: Setup) -> None:
    """Tell what the file cannot rule out."""
    ours, name = activation_of(tower), setup.backbone.name
    if similarity >= DESCENDS:
        if checkpoint.quick_gelu and ours == "GELU" and not checkpoint.activation:
            text = (
                f"the code of {checkpoint.format} loads OpenAI's models, which need QuickGELU, and"
                f" {name} computes GELU"
            )
            setup.reporter.event("warning", text=f"{text}: the wrong one silently costs accuracy")
        return
    text = (
        f"these weights are no fine-tuned {name} (cosine {similarity:.2f}): the row is listed under"
        " a backbone that it is not"
    )
    if checkpoint.format and ours and not checkpoint.activation:
        known = (
            "its code loads OpenAI's models, which need QuickGELU"
            if checkpoint.quick_gelu
            else "the file does not say which"
        )
        if not (checkpoint.quick_gelu and ours == "QuickGELU"):
            text += (
                f"; and {name} computes {ours}, where {known}: the wrong one silently costs"
                " accuracy"
            )
    setup.reporter.event("warning", text=text)
