"""State dicts as people save them: which of a file's is meant, what wrappers add to its names, and
the names of Hugging Face.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import BenchError
from .inert import Inert

#: Keys below which training code keeps the state dict, and that of the averaged weights; the first
#: that is there counts.
_KEPT_UNDER: Final = ("state_dict", "model_state_dict", "model")
_AVERAGED_UNDER: Final = ("state_dict_ema", "model_ema", "ema_state_dict")

#: What torch.compile, activation checkpointing and FSDP put into names, anywhere; (distributed)
#: data parallelism and AveragedModel put `module` before them.
_WRAPPERS: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
#: Numbers that are no weights: how many states AveragedModel has averaged, and facts that OpenAI's
#: models carry along.
_NO_WEIGHTS: Final = frozenset({"n_averaged", "input_resolution", "context_length", "vocab_size"})


def chosen_state(held: Any, averaged: bool) -> tuple[Any, str]:
    """The state dict, or pickled module, among what a file holds, and the key that it was found
    under ("" if it is all).

    Args:
        averaged: take the averaged weights where there are any.
    """
    if isinstance(held, dict):
        for key in (*(_AVERAGED_UNDER if averaged else ()), *_KEPT_UNDER):
            if isinstance(held.get(key), dict | Inert):
                return held[key], key
    return held, ""


def has_averaged(held: Any) -> bool:
    """Whether a file holds averaged weights beside others."""
    return chosen_state(held, True)[1] != chosen_state(held, False)[1]


def cleaned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of the bare model, those of Hugging Face's CLIP under
    open_clip's.

    Raises:
        BenchError: two tensors have one name then.
    """
    found: dict[str, Tensor] = {}
    for whole, tensor in state.items():
        parts = [part for part in str(whole).split(".") if part not in _WRAPPERS]
        while parts[0] == "module" and len(parts) > 1:
            parts = parts[1:]
        if parts[-1] in _NO_WEIGHTS and tensor.ndim == 0:
            continue
        name = ".".join(parts)
        if name in found:
            raise BenchError(
                f"two of its tensors are called {name:.200} once the names of wrappers are left out"
            )
        found[name] = tensor
    return _of_open_clip(found) if "vision_model.embeddings.class_embedding" in found else found


#: Hugging Face's CLIPModel -> open_clip, outside and inside the blocks.
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
    """Rename the tensors of Hugging Face's CLIPModel. What is no part of it keeps its name."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if block and block[3] in ("self_attn.k_proj", "self_attn.v_proj"):
            continue  # taken with the queries
        if block:
            place = f"{'visual.' if block[1] == 'vision' else ''}transformer.resblocks.{block[2]}"
            if block[3] == "self_attn.q_proj":
                parts = [state.get(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
                if any(part is None or part.shape != tensor.shape for part in parts):
                    raise BenchError(f"{name} has no keys and values beside it")
                found[f"{place}.attn.in_proj_{block[4]}"] = torch.cat(
                    [part for part in parts if part is not None]
                )
            else:
                found[f"{place}.{_INSIDE.get(block[3], block[3])}.{block[4]}"] = tensor
        elif name in _TRANSPOSED and tensor.ndim == 2:
            found[_TRANSPOSED[name]] = tensor.T
        elif not name.endswith(".position_ids"):
            found[
                _OUTSIDE.get(name) or (f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else name)
            ] = tensor
    return found
