"""Find the state dict in a checkpoint and rename its tensors to those of the bare model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import BenchError
from .inert import Inert

#: Keys under which training code saves the state dict and that of the averaged weights (EMA). The
#: first one found counts. The names are those of timm, open_clip, robust-finetuning and of common
#: training scripts.
_STATE_KEYS: Final = ("state_dict", "model_state_dict", "model")
_AVERAGED_KEYS: Final = ("state_dict_ema", "model_ema", "ema_state_dict")

#: Parts that torch.compile, activation checkpointing and FSDP insert anywhere in a name. In
#: contrast, (distributed) data parallelism and AveragedModel put `module` in front, and a model may
#: have a part called `module` of its own elsewhere.
_WRAPPERS: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
#: Scalars that are not weights: the number of states that AveragedModel has averaged, and facts in
#: OpenAI's models.
_NO_WEIGHTS: Final = frozenset({"n_averaged", "input_resolution", "context_length", "vocab_size"})


def chosen_state(content: Any, averaged: bool) -> tuple[Any, str]:
    """Return the state dict, or pickled module, in a file's content, and its key.

    Args:
        content: content of the file.
        averaged: prefer averaged weights.

    Returns:
        The state dict or module, and its key; the whole content and "" if it is under no known key.
    """
    if isinstance(content, dict):
        for key in (*(_AVERAGED_KEYS if averaged else ()), *_STATE_KEYS):
            # A file may have a tensor or a name under such a key, which is no state dict.
            if isinstance(content.get(key), dict | Inert):
                return content[key], key
    return content, ""


def has_averaged(content: Any) -> bool:
    """Return whether a file's content has averaged weights in addition to others."""
    return chosen_state(content, True)[1] != chosen_state(content, False)[1]


def cleaned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of the bare model, without what wrappers add.

    The names of Hugging Face's CLIP become open_clip's.

    Raises:
        BenchError: two tensors would get the same name.
    """
    found: dict[str, Tensor] = {}
    for whole, tensor in state.items():
        parts = [part for part in str(whole).split(".") if part not in _WRAPPERS]
        # Wrappers may be nested, as in an average of a data-parallel model.
        while parts[0] == "module" and len(parts) > 1:
            parts = parts[1:]
        if parts[-1] in _NO_WEIGHTS and tensor.ndim == 0:
            continue
        name = ".".join(parts)
        # Which of the two is meant is unknown, and either would pass all later checks.
        if name in found:
            raise BenchError(
                f"two of its tensors are called {name:.200} once the names of wrappers are removed"
            )
        found[name] = tensor
    return _of_open_clip(found) if "vision_model.embeddings.class_embedding" in found else found


#: Hugging Face's CLIPModel -> open_clip: tensors and modules outside the transformer blocks,
#: modules inside them, and matrices that the two libraries store transposed.
_OUTSIDE: Final = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_INSIDE: Final = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TRANSPOSED: Final = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_BLOCK: Final = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def _of_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of Hugging Face's CLIPModel; others keep their names.

    Unknown tensors are not dropped: the caller reports what does not belong to the model.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        # Keys and values are read together with the queries.
        if block and block[3] in ("self_attn.k_proj", "self_attn.v_proj"):
            continue
        if block:
            place = f"{'visual.' if block[1] == 'vision' else ''}transformer.resblocks.{block[2]}"
            # open_clip stacks queries, keys and values in one tensor.
            if block[3] == "self_attn.q_proj":
                parts = [state.get(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
                if any(part is None or part.shape != tensor.shape for part in parts):
                    raise BenchError(f"{name} has no keys and values of the same shape")
                found[f"{place}.attn.in_proj_{block[4]}"] = torch.cat(
                    [part for part in parts if part is not None]
                )
            else:
                found[f"{place}.{_INSIDE.get(block[3], block[3])}.{block[4]}"] = tensor
        elif name in _TRANSPOSED and tensor.ndim == 2:
            found[_TRANSPOSED[name]] = tensor.T
        # Position ids only count from 0; open_clip has no such buffer.
        elif not name.endswith(".position_ids"):
            found[
                _OUTSIDE.get(name) or (f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else name)
            ] = tensor
    return found
