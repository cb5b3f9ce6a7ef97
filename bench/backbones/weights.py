"""Weights from outside: read safely, drawn reproducibly, freed of randomness in training, and
identified by content.
"""

from __future__ import annotations

import logging
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BenchError, UsageError
from ..identity import digest, seed_for, tensors_sha256
from .backbone import can_be_weight
from .inert import Inert, check_weights_file, read_inert, reason
from .state_dicts import chosen_state, cleaned, has_averaged

#: What reading a damaged file of weights may raise.
_DAMAGED = (
    OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError,
    MemoryError, zipfile.BadZipFile,
    safetensors.SafetensorError,
)  # fmt: skip


@contextmanager
def safely(path: Path, *, backbone: str) -> Iterator[None]:
    """Turn what goes wrong while the weights in `path` are loaded into a UsageError that says what
    to do.

    The loading itself must be restricted to tensors (safetensors, or torch.load with
    weights_only=True).

    Raises:
        UsageError: a TorchScript archive, a pickle with more than tensors in it, a damaged file, or
            other tensors than the architecture has.
    """
    where = f"backbone {backbone}, file {path}"
    try:
        check_weights_file(path)
        yield
    except UsageError:
        raise
    except BenchError as error:
        raise UsageError(error.what, error.where or where, error.fix) from error
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise UsageError(
                "this file is refused: it holds Python objects other than tensors, which could run"
                " code while they are loaded",
                where,
                "save the state dict alone (safetensors, or torch.save of a dict of tensors), where"
                " you trust the file",
            ) from error
        if isinstance(error, RuntimeError) and "state_dict" in str(error):
            problem = " ".join(str(error).split())[:300]
            what = f"the file does not fit the architecture: {problem}"
            raise UsageError(
                what, where, "name the architecture that the file was saved from"
            ) from error
        if isinstance(error, _DAMAGED):
            raise UsageError(
                f"the file cannot be read as weights: {reason(error)}",
                where,
                "fetch the file again",
            ) from error
        raise


@dataclass(frozen=True)
class StateInFile:
    """The state dict in a file, under the names of the bare model.

    Attributes:
        seen: what these weights are, for `Backbone.seen`.
        bare: whether the file holds it under these names, and nothing else.
    """

    path: Path
    state: dict[str, Tensor]
    seen: str
    bare: bool

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """A file for a library that reads by itself: the file, or one for the time being."""
        if self.bare:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            save_file(
                {name: tensor.detach().contiguous().clone() for name, tensor in self.state.items()},
                file,
            )
            yield file


def state_in(path: Path, *, averaged: bool) -> StateInFile:
    """Read the state dict in a file, without running anything of it.

    Args:
        averaged: take the averaged weights (EMA) of a file that holds those and others, as timm
            does.

    Raises:
        BenchError: there is none.
    """
    held: Any = load_file(path) if path.suffix == ".safetensors" else read_inert(path)
    state, key = chosen_state(held, averaged)
    inert = (
        [value.origin for value in state.values() if isinstance(value, Inert)]
        if isinstance(state, dict)
        else [""]
    )
    if inert or not all(isinstance(value, Tensor) for value in state.values()):
        what = (
            f"{inert[0]:.100} where a tensor should be, which could run code; nothing of it was run"
            if any(inert)
            else "no state dict"
        )
        raise BenchError(
            f"the file holds {what}",
            fix="save the state dict of the model alone, best as safetensors",
        )
    of = (
        f": `{key}`, beside {'the last' if averaged else 'averaged'} weights"
        if has_averaged(held)
        else ""
    )
    found = cleaned(state)
    bare = not key and {str(name).removeprefix("module.") for name in state} == found.keys()
    return StateInFile(path, found, f"unknown (weights from a file{of})", bare)


def check_kinds(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that what became weights of a model were floating-point numbers: libraries cast
    whatever there is.

    Raises:
        BenchError: one was not.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name in state and not can_be_weight(state[name]):
            raise BenchError(f"{name} is {state[name].dtype}, and not plain floating-point numbers")


@contextmanager
def drawn(library: str, architecture: str, seed: int) -> Iterator[None]:
    """Draw random weights from a stream of their own, so that a name always gives the same ones;
    CPU only.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("random backbone", library, architecture, seed))
        yield


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Keep a library that logs through the root logger from installing a handler there, which would
    print from then on.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def without_noise(model: nn.Module) -> None:
    """Switch off dropout, stochastic depth and patch dropout in place: train() then equals eval()
    but for batch norm.

    Robust fine-tuning recipes train without them; a method that wants such noise adds it where it
    can be seen.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        # DropPath and DropBlock; PatchDropout; models that call F.dropout with a rate of their own
        for rate in ("drop_prob", "prob", "drop_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def content_sha256(tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 of the tensors and of the facts without which they are not a function.

    Equal tensors make different models under QuickGELU and GELU, TensorFlow's and PyTorch's
    padding, or other pixel statistics; so `facts` names the architecture, mean and standard
    deviation. File formats and paths are not in it.
    """
    return digest({"tensors": tensors_sha256(tensors), "facts": dict(facts)})
