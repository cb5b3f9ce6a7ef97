"""Load checkpoints of other repositories into a backbone's architecture, or say what differs."""

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
from ..fit_setup import Setup
from ..identity import digest, tensors_sha256
from ..results.store import Store
from .checkpoints import Checkpoint, read_checkpoint

#: Cosine between two towers' weights below which one was not fine-tuned from the other. Fine-tuning
#: leaves it above 0.9; for towers that were trained independently it is near 0.
DESCENDS = 0.5

#: Norm of a head's rows above which it is taken for a zero-shot head. Its rows have the norm
#: exp(logit scale), 100 for OpenAI's models; those of a randomly initialised linear layer are below
#: 1.
ZERO_SHOT_NORM = 10.0


@dataclass(frozen=True)
class External:
    """A classifier that was trained elsewhere.

    Attributes:
        classifier: on the backbone's architecture.
        format: repository whose code wrote the checkpoint; empty for ShiftBench's own format.
        sha256: hash of the classifier's tensors.
        similarity: cosine between its tower's weights and the backbone's.
        key: key of the weights in a file that also has averaged ones; empty otherwise.
    """

    classifier: Classifier
    format: str
    sha256: str
    similarity: float
    key: str = ""


def load_external(
    path: Path, setup: Setup, normalize: bool | None = None, *, averaged: bool = True
) -> External:
    """Load the classifier in a checkpoint file or in the folder of a fit.

    A checkpoint without a head (open_clip, FLYP) gets the zero-shot head of its own text tower for
    the suite's classes and prompts.

    Args:
        path: checkpoint file, or folder of a fit of ShiftBench.
        setup: backbone and suite.
        normalize: whether the head L2-normalises features; default: as the checkpoint says. A fit's
            record always says it.
        averaged: prefer averaged weights (EMA) if the file has both, as timm does.

    Raises:
        MissingPrerequisite: there is no such file, or the folder has no finished fit.
        BenchError: the file cannot be read safely, its tensors do not fit the backbone (the message
            names the first differences), its head has another number of classes, or its activation
            is not the backbone's.
    """
    if path.is_dir():
        # `path` is STORE/fits/FIT_ID.
        fit = Store(path.parent.parent).fit(path.name)
        if fit is None:
            raise MissingPrerequisite(
                "the folder has no finished fit",
                where=str(path),
                fix="pass a weights file or the folder of a finished fit",
            )
        path, normalize = path / fit.weights, fit.normalize
    tower = setup.backbone.image_tower()
    pretrained = {f"tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    checkpoint = read_checkpoint(path, averaged=averaged, trunk=_trunk(tower))
    if checkpoint.key:
        which = (
            "the averaged weights; --no-ema uses the others"
            if averaged
            else "not the averaged weights; --ema uses those"
        )
        setup.reporter.event(
            "warning",
            text=f"{path.name} has several sets of weights; using `{checkpoint.key}`, {which}",
        )
    # ShiftBench's own format has our tensor names and always a head.
    if not checkpoint.format:
        normalize = setup.traits.text if normalize is None else normalize
        classifier = Classifier(
            tower, Head(torch.zeros(len(setup.suite.card.classes), tower.dim), normalize=normalize)
        )
        _check(checkpoint.tower, classifier.named_weights(), path, setup)
        state = checkpoint.tower
    else:
        # The kind of tower and the activation are checked before single tensors: what they say is
        # more useful than a list of missing names.
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
    """Return the tensor names of the timm model if the tower consists of nothing else."""
    names = tower.state_dict().keys()
    return (
        {name.removeprefix("model.") for name in names}
        if all(name.startswith("model.") for name in names)
        else set()
    )


def _inside(name: str, tower: nn.Module) -> str:
    """Return the name in our tower of the tensor that open_clip calls `visual.` + `name`."""
    if hasattr(tower, "visual"):
        return f"visual.{name}"
    # open_clip wraps timm's models as `trunk` and `head`; our tower calls these parts otherwise.
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
        f"{name} is {state[name].dtype}, not plain floating-point numbers"
        for name in wanted.keys() & state.keys()
        if wanted[name].is_floating_point() and not can_be_weight(state[name])
    ]
    if problems:
        # Another architecture makes hundreds of differences; four are enough to recognise it.
        named = "; ".join(sorted(problems)[:4])
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        fix = "pass the backbone that they were trained from, and the suite whose classes they have"
        if architectures:
            fix += f"; their architecture is {' or '.join(architectures[:3])} of open_clip"
        raise BenchError(
            f"the weights do not fit {setup.backbone.name} with {len(setup.suite.card.classes)}"
            f" classes: {named}{more}",
            where=str(path),
            fix=fix,
        )


def _own_head(
    checkpoint: Checkpoint, dim: int, normalize: bool | None, path: Path, setup: Setup
) -> Head | None:
    """Return the head in the checkpoint, or None if it has none."""
    if not checkpoint.head:
        return None
    # A head that cannot be used is an error even if there is a text tower: a zero-shot head in its
    # place would be another classifier than the one in the file.
    if not {"weight"} <= checkpoint.head.keys() <= {"weight", "bias"}:
        raise BenchError(
            "its head is not one linear layer of `weight` and `bias`, but has the tensors"
            f" {', '.join(sorted(checkpoint.head))}",
            where=str(path),
            fix="save a head that is one linear layer",
        )
    for name, tensor in checkpoint.head.items():
        if not can_be_weight(tensor):
            raise BenchError(
                f"its head's {name} is {tensor.dtype}, not plain floating-point numbers",
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
            fix="pass the backbone that it was trained from",
        )
    if weight.shape[0] != classes:
        raise BenchError(
            f"its head has {weight.shape[0]} classes, and {setup.suite.card.name} has {classes}",
            where=str(path),
            fix="pass the suite of the classes that it was trained on; `bench suites` lists them",
        )
    if normalize is None:
        normalize = checkpoint.normalize
    # A state dict does not say whether its code normalises. Only a head that was built from text
    # embeddings has rows as long as that, and such a head needs normalised features.
    if normalize is None:
        normalize = float(weight.float().norm(dim=1).median()) > ZERO_SHOT_NORM
    return Head(weight, bias, normalize=normalize)


def _zero_shot_head(checkpoint: Checkpoint, path: Path, setup: Setup) -> Head:
    """Build the zero-shot head of the checkpoint's own text tower."""
    text = setup.text()
    wanted = text.state_dict()
    # Our text tower has open_clip's model as its attribute `model`.
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
                "pass a checkpoint of the whole classifier (wise-ft's zeroshot.pt,"
                " checkpoint_N.pt), or another backbone"
            ),
        )
    text.load_state_dict({name: state[name].float() for name in wanted})
    # The head is cached under this key. The backbone's hash is in it because the same text tensors
    # give other embeddings under another activation.
    return setup.zero_shot_head(
        text, digest([setup.backbone.weights_sha256, tensors_sha256(dict(text.state_dict()))])
    )


def _check_kind(
    checkpoint: Checkpoint, tower: nn.Module, path: Path, setup: Setup, architectures: Sequence[str]
) -> None:
    """Refuse a backbone of another library before every tensor is reported as missing."""
    if not hasattr(tower, "visual") and not any(
        name.startswith("trunk.") for name in checkpoint.tower
    ):
        architecture = architectures[0] if architectures else "ARCH"
        tag = "openai for this repository" if checkpoint.quick_gelu else "for example openai"
        raise BenchError(
            f"a {checkpoint.format} checkpoint has a CLIP image tower, and {setup.backbone.name}"
            " does not",
            where=str(path),
            fix=(
                f"pass --backbone open_clip:{architecture}/TAG with the tag that it was trained"
                f" from ({tag})"
            ),
        )


def _check_activation(checkpoint: Checkpoint, tower: nn.Module, path: Path, setup: Setup) -> None:
    ours = activation_of(tower)
    if checkpoint.activation and ours and checkpoint.activation != ours:
        raise BenchError(
            f"its image tower computes {checkpoint.activation}, and {setup.backbone.name} computes"
            f" {ours}: the same weights would silently give a worse model",
            where=str(path),
            fix=(
                "pass the backbone that it was trained from: open_clip:ARCH/openai for OpenAI's"
                " models (QuickGELU), or open_clip:ARCH-quickgelu@random for the architecture alone"
            ),
        )


def _cosine(state: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> float:
    """Return the cosine between the weight matrices of two towers, flattened to one vector."""
    dot = ours = theirs = 0.0
    for name, tensor in pretrained.items():
        # Biases and norm scales are similar in all towers and would raise the cosine of any two.
        if tensor.ndim >= 2:
            a, b = tensor.double().flatten(), state[name].double().flatten()
            dot, ours, theirs = dot + float(a @ b), ours + float(a @ a), theirs + float(b @ b)
    return dot / (ours * theirs) ** 0.5 if ours and theirs else 0.0


def _warn(checkpoint: Checkpoint, tower: nn.Module, similarity: float, setup: Setup) -> None:
    """Warn about a likely wrong activation or backbone, which the file neither states nor excludes.

    The wrong one of QuickGELU and GELU costs accuracy and raises no error. A pickled module states
    its activation; for a state dict, the habits of its repository are all there is.
    """
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
        f"these weights were not fine-tuned from {name} (cosine {similarity:.2f}): the row is"
        " listed under the wrong backbone"
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
