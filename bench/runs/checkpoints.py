"""What the checkpoints of other repositories hold: an image tower, a head or the text tower to
build one from, and which code wrote them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..backbones.inert import (
    LONGEST_NAME,
    Inert,
    attributes,
    module_state,
    modules,
    read_inert,
    repeats_itself,
)
from ..backbones.state_dicts import chosen_state, cleaned, has_averaged
from ..errors import BenchError, MissingPrerequisite
from ..storage.files import absent, not_weights


@dataclass(frozen=True)
class Layout:
    """Where a repository's code puts the parts of a classifier.

    Attributes:
        format: name of the repository.
        clip, head: what the names of the CLIP model's and of the head's tensors begin with; no
            head: it is built from the text tower.
        tower: the same of the image tower.
        quick_gelu: whether its code loads OpenAI's models alone, which were trained with QuickGELU.
    """

    format: str
    clip: str
    tower: str
    head: str = ""
    quick_gelu: bool = False


#: In the order in which they are tried: a name such as `model.visual.proj` is found with a head
#: beside it, or without.
LAYOUTS = (
    Layout(
        "wise-ft", "image_encoder.model.", "image_encoder.model.visual.", "classification_head."
    ),
    Layout("model-soups", "model.", "model.visual.", "classification_head.", quick_gelu=True),
    Layout("FLYP", "model.", "model.visual."),
    Layout("open_clip", "", "visual."),
    Layout("robust-finetuning", "backbone.", "backbone.", "classifier.", quick_gelu=True),
)

#: Of a CLIP model, what is neither image tower nor needed once there is a head.
TEXT = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "text.",
    "logit_",
)


@dataclass(frozen=True)
class Checkpoint:
    """A classifier of another repository, taken apart.

    Attributes:
        format: whose code wrote it; empty for one of ours.
        tower: image tower, named as below open_clip's `visual.`; the whole state if the format is
            ours.
        head: `weight` (C, D) and `bias` (C,); empty if there is none.
        text: text tower, named as in open_clip's model.
        normalize: whether the head divides features by their norm, if the file says so.
        activation: class of the transformer's activation, `QuickGELU` or `GELU`, if the file says
            so.
        quick_gelu: see Layout.
        key: where in the file the weights were, if it holds averaged ones too; "" otherwise.
    """

    format: str
    tower: dict[str, Tensor]
    head: dict[str, Tensor]
    text: dict[str, Tensor]
    normalize: bool | None = None
    activation: str = ""
    quick_gelu: bool = False
    key: str = ""


def read_checkpoint(
    path: Path, *, averaged: bool = True, trunk: Collection[str] = ()
) -> Checkpoint:
    """Read a file of safetensors, torch or pickle, whichever code wrote it, without running any of
    it.

    Args:
        averaged: take the averaged weights (EMA) of a file that holds those and others.
        trunk: names of the tensors of timm's model without its classifier, where the backbone is
            one.

    Raises:
        MissingPrerequisite: no such file.
        BenchError: it cannot be read safely, or is of no known layout; the message says what it
            holds.
    """
    if why := absent(path):
        raise MissingPrerequisite(why, fix="name a weights file or a fit's folder")
    try:
        held: Any = _load_safetensors(path) if path.suffix == ".safetensors" else read_inert(path)
    except (SafetensorError, OSError) as error:
        raise BenchError(
            f"the weights cannot be read: {error}", where=str(path), fix="fetch the file again"
        ) from error
    try:
        found = _taken_apart(held, averaged, trunk)
        return replace(found, key=chosen_state(held, averaged)[1]) if has_averaged(held) else found
    except BenchError as error:
        raise BenchError(error.what, where=str(path), fix=error.fix) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    if why := not_weights(path):
        raise BenchError(
            f"this is no file of weights: {why}", where=str(path), fix="fetch the file again"
        )
    return load_file(path)


def _taken_apart(held: Any, averaged: bool, trunk: Collection[str]) -> Checkpoint:
    normalize, activation = None, ""
    found, _ = chosen_state(held, averaged)
    if isinstance(found, Inert):
        state = module_state(found)
        normalize, activation = _facts(found)
    elif (
        isinstance(found, dict)
        and found
        and all(isinstance(value, Tensor) for value in found.values())
    ):
        state = {str(name): tensor for name, tensor in found.items()}
    else:
        raise BenchError(
            f"the file holds no classifier, but {_described(found)}",
            fix=(
                "name a checkpoint of wise-ft, FLYP, model-soups, open_clip or ShiftBench, or a"
                " state dict of their models"
            ),
        )
    for name, tensor in state.items():
        if (
            tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.is_complex()
            or tensor.is_quantized
        ):
            raise BenchError(
                f"{name:.200} is {tensor.dtype}, {tensor.layout} on {tensor.device}, and no plain"
                " numbers"
            )
        if repeats_itself(tensor) or len(name) > LONGEST_NAME:
            raise BenchError(
                f"{name:.200} claims to be {tuple(tensor.shape)}, which the file does not hold"
            )
    hugging_face = any(name.endswith("vision_model.embeddings.class_embedding") for name in state)
    state = cleaned(state)
    if state and all(name.startswith(("tower.", "head.")) for name in state):
        return Checkpoint("", state, {}, {})
    if trunk and set(trunk) <= state.keys():
        return _of_timm(state, trunk)
    for layout in LAYOUTS:
        if _begins(state, layout.tower) and (not layout.head or _begins(state, layout.head)):
            parts = _parts(layout, state, normalize, activation)
            return replace(parts, format="Hugging Face") if hugging_face else parts
    tops = sorted({name.split(".")[0] for name in state})
    raise BenchError(
        "the names of its tensors are those of no known classifier:"
        f" {', '.join(f'{top:.60}' for top in tops[:6])}",
        fix=(
            "its image tower has to be called `visual.` and its head `classification_head.`, or"
            " `tower.` and `head.`; a timm checkpoint needs --backbone timm:NAME, the architecture"
            " that it was trained from"
        ),
    )


def _of_timm(state: Mapping[str, Tensor], trunk: Collection[str]) -> Checkpoint:
    """A timm model with its classifier, which is what is left of it without the trunk."""
    rest = {name: tensor for name, tensor in state.items() if name not in trunk}
    if len({name.rpartition(".")[0] for name in rest}) != 1:
        told = (
            f"has {', '.join(sorted(rest)[:4])} beside the trunk" if rest else "has no classifier"
        )
        raise BenchError(
            f"it is a timm model that {told}",
            fix="without a classifier it is a backbone: `bench run --backbone timm:NAME@FILE`",
        )
    head = {name.rpartition(".")[2]: tensor for name, tensor in rest.items()}
    return Checkpoint(
        "timm", {f"trunk.{name}": state[name] for name in trunk}, head, {}, normalize=False
    )


def _parts(
    layout: Layout, state: Mapping[str, Tensor], normalize: bool | None, activation: str
) -> Checkpoint:
    tower, head, text, unknown = {}, {}, {}, []
    for name, tensor in state.items():
        if name.startswith(layout.tower):
            tower[name.removeprefix(layout.tower)] = tensor
        elif layout.head and name.startswith(layout.head):
            head[name.removeprefix(layout.head)] = tensor
        elif name.startswith(layout.clip) and name.removeprefix(layout.clip).startswith(TEXT):
            text[name.removeprefix(layout.clip)] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise BenchError(
            f"it looks like a checkpoint of {layout.format}, but has tensors beside the"
            " classifier: "
            + ", ".join(sorted(unknown)[:4])
            + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""),
            fix="their part in the logits is unknown; save the classifier alone",
        )
    return Checkpoint(layout.format, tower, head, text, normalize, activation, layout.quick_gelu)


def _facts(found: Inert) -> tuple[bool | None, str]:
    """Whether a pickled classifier normalises features, and the activation of its image tower."""
    normalize, activations = None, set()
    for name, module in modules(found):
        if name.endswith("classification_head") and isinstance(
            attributes(module).get("normalize"), bool
        ):
            normalize = attributes(module)["normalize"]
        kind = module.origin.rpartition(".")[2]
        if "visual." in name and kind in ("QuickGELU", "GELU"):
            activations.add(kind)
    if found.origin.endswith("ImageClassifier_Norm"):  # FLYP's, which normalises before the head
        normalize = True
    return normalize, activations.pop() if len(activations) == 1 else ""


def _begins(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _described(held: Any) -> str:
    if isinstance(held, dict):
        return (
            f"a mapping of {', '.join(f'{key!r:.60}' for key in list(held)[:6])}"
            if held
            else "an empty mapping"
        )
    return f"a {held.origin:.200}" if isinstance(held, Inert) else f"a {type(held).__name__}"
