"""Read classifier checkpoints of other repositories and recognise which code wrote them.

`read_checkpoint` splits a file into an image tower, a head, and the text tower from which a missing
head can be built. docs/checkpoints.md lists the formats.
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
class CheckpointLayout:
    """The tensor name prefixes of one repository's classifiers.

    Attributes:
        format: name of the repository.
        clip: prefix of the CLIP model's tensors.
        tower: prefix of the image tower's tensors.
        head: prefix of the head's tensors; empty if the head is built from the text tower.
        quick_gelu: whether the code only loads OpenAI's models, which were trained with QuickGELU.
    """

    format: str
    clip: str
    tower: str
    head: str = ""
    quick_gelu: bool = False


#: The first layout that matches wins, so the order matters: model-soups and FLYP share the prefix
#: `model.visual.` and differ only in the head, and open_clip's own `visual.` is the least specific.
LAYOUTS = (
    CheckpointLayout(
        "wise-ft", "image_encoder.model.", "image_encoder.model.visual.", "classification_head."
    ),
    CheckpointLayout(
        "model-soups", "model.", "model.visual.", "classification_head.", quick_gelu=True
    ),
    CheckpointLayout("FLYP", "model.", "model.visual."),
    CheckpointLayout("open_clip", "", "visual."),
    CheckpointLayout("robust-finetuning", "backbone.", "backbone.", "classifier.", quick_gelu=True),
)

#: Prefixes, below `CheckpointLayout.clip`, of a CLIP model's text tower and logit scale. They are
#: needed only to build a missing head. Any other name outside tower and head is an error.
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
    """A classifier checkpoint, split into its parts.

    Attributes:
        format: repository whose code wrote it; empty for ShiftBench's own format.
        tower: image tower, named as below open_clip's `visual.`; for ShiftBench's own format the
            whole state.
        head: `weight` (C, D) and `bias` (C,); empty if there is none.
        text: text tower, named as in open_clip's model.
        normalize: whether the head L2-normalises features; None if the file does not say.
        activation: `QuickGELU` or `GELU`; empty if the file does not say.
        quick_gelu: see `CheckpointLayout`.
        key: key of the weights in a file that also has averaged ones; empty otherwise.
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
    """Read a checkpoint in safetensors, torch or pickle format without running code from it.

    Args:
        path: file to read.
        averaged: prefer averaged weights (EMA) if the file has both.
        trunk: tensor names of the timm model without its classifier, if the backbone is a timm one.

    Raises:
        MissingPrerequisite: there is no such file.
        BenchError: the file cannot be read safely, or its layout is unknown.
    """
    if why := absent(path):
        raise MissingPrerequisite(why, fix="name a weights file or a fit's folder")
    try:
        content: Any = (
            _load_safetensors(path) if path.suffix == ".safetensors" else read_inert(path)
        )
    except (SafetensorError, OSError) as error:
        raise BenchError(
            f"the weights cannot be read: {error}", where=str(path), fix="download the file again"
        ) from error
    try:
        found = _split(content, averaged, trunk)
        if has_averaged(content):
            return replace(found, key=chosen_state(content, averaged)[1])
        return found
    # The functions below see tensors only, so the path is added here.
    except BenchError as error:
        raise BenchError(error.what, where=str(path), fix=error.fix) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    if why := not_weights(path):
        raise BenchError(
            f"this is not a weights file: {why}", where=str(path), fix="download the file again"
        )
    return load_file(path)


def _split(content: Any, averaged: bool, trunk: Collection[str]) -> Checkpoint:
    normalize, activation = None, ""
    found, _ = chosen_state(content, averaged)
    # wise-ft and FLYP pickle whole modules, which also record facts that a state dict lacks.
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
            f"the file contains {_described(found)} instead of a classifier",
            fix=(
                "pass a checkpoint of wise-ft, FLYP, model-soups, open_clip or ShiftBench, or a"
                " state dict of one of their models"
            ),
        )
    # Refuse unusual tensors before anything computes with them: a cast to float32 would silently
    # accept quantised or complex numbers, and would allocate the full size of an expanded tensor
    # whose few bytes of storage claim to be terabytes.
    for name, tensor in state.items():
        if (
            tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.is_complex()
            or tensor.is_quantized
        ):
            raise BenchError(
                f"{name:.200} is {tensor.dtype}, {tensor.layout} on {tensor.device}, not a dense"
                " tensor of plain numbers"
            )
        if repeats_itself(tensor) or len(name) > LONGEST_NAME:
            raise BenchError(
                f"{name:.200} claims the shape {tuple(tensor.shape)}, which is more than the file"
                " contains"
            )
    # `cleaned` renames Hugging Face's tensors to open_clip's, so this has to be noted before.
    hugging_face = any(name.endswith("vision_model.embeddings.class_embedding") for name in state)
    state = cleaned(state)
    if state and all(name.startswith(("tower.", "head.")) for name in state):
        return Checkpoint("", state, {}, {})
    # Names of timm models follow no common prefix. The backbone's own names identify them.
    if trunk and set(trunk) <= state.keys():
        return _timm_checkpoint(state, trunk)
    for layout in LAYOUTS:
        if _begins(state, layout.tower) and (not layout.head or _begins(state, layout.head)):
            parts = _parts(layout, state, normalize, activation)
            return replace(parts, format="Hugging Face") if hugging_face else parts
    tops = sorted({name.split(".")[0] for name in state})
    raise BenchError(
        "its tensor names match no known classifier; they begin with"
        f" {', '.join(f'{top:.60}' for top in tops[:6])}",
        fix=(
            "name the image tower's tensors `visual.*` and the head's `classification_head.*`, or"
            " `tower.*` and `head.*`; for a timm checkpoint, pass --backbone timm:NAME with the"
            " architecture that it was trained from"
        ),
    )


def _timm_checkpoint(state: Mapping[str, Tensor], trunk: Collection[str]) -> Checkpoint:
    """Split a timm model into its trunk and its classifier, which is the rest."""
    rest = {name: tensor for name, tensor in state.items() if name not in trunk}
    # timm's classifiers have different names (`fc`, `head`, `classifier`, ...), but each is a
    # single module, so its tensors share one prefix.
    if len({name.rpartition(".")[0] for name in rest}) != 1:
        problem = (
            f"has {', '.join(sorted(rest)[:4])} in addition to the trunk"
            if rest
            else "has no classifier"
        )
        raise BenchError(
            f"it is a timm model that {problem}",
            fix="use a model without a classifier as a backbone: `--backbone timm:NAME@FILE`",
        )
    head = {name.rpartition(".")[2]: tensor for name, tensor in rest.items()}
    # A timm classifier is applied to raw features, so it never normalises.
    return Checkpoint(
        "timm", {f"trunk.{name}": state[name] for name in trunk}, head, {}, normalize=False
    )


def _parts(
    layout: CheckpointLayout, state: Mapping[str, Tensor], normalize: bool | None, activation: str
) -> Checkpoint:
    tower, head, text, unknown = {}, {}, {}, []
    for name, tensor in state.items():
        # The tower first: its prefix extends (or equals) that of the CLIP model around it.
        if name.startswith(layout.tower):
            tower[name.removeprefix(layout.tower)] = tensor
        elif layout.head and name.startswith(layout.head):
            head[name.removeprefix(layout.head)] = tensor
        elif name.startswith(layout.clip) and name.removeprefix(layout.clip).startswith(TEXT):
            text[name.removeprefix(layout.clip)] = tensor
        else:
            unknown.append(name)
    # Ignoring an adapter or a second head would silently measure another model.
    if unknown:
        raise BenchError(
            f"it looks like a {layout.format} checkpoint, but has tensors outside the classifier: "
            + ", ".join(sorted(unknown)[:4])
            + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""),
            fix="save the classifier alone: how these tensors affect the logits is unknown",
        )
    return Checkpoint(layout.format, tower, head, text, normalize, activation, layout.quick_gelu)


def _facts(found: Inert) -> tuple[bool | None, str]:
    """Return whether a pickled classifier normalises features, and its image tower's activation."""
    normalize, activations = None, set()
    for name, module in modules(found):
        if name.endswith("classification_head") and isinstance(
            attributes(module).get("normalize"), bool
        ):
            normalize = attributes(module)["normalize"]
        kind = module.origin.rpartition(".")[2]
        if "visual." in name and kind in ("QuickGELU", "GELU"):
            activations.add(kind)
    # This class of FLYP normalises in its forward pass and has no attribute that says so.
    if found.origin.endswith("ImageClassifier_Norm"):
        normalize = True
    return normalize, activations.pop() if len(activations) == 1 else ""


def _begins(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _described(content: Any) -> str:
    if isinstance(content, dict):
        if not content:
            return "an empty mapping"
        return f"a mapping with the keys {', '.join(f'{key!r:.60}' for key in list(content)[:6])}"
    if isinstance(content, Inert):
        return f"a {content.origin:.200}"
    return f"a {type(content).__name__}"
