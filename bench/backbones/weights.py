"""Read weights files safely, make random weights reproducible, and hash weights by content."""

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

#: Exceptions of torch, safetensors and zipfile for a damaged file. Others are bugs and are raised.
_DAMAGED = (
    OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError,
    MemoryError, zipfile.BadZipFile,
    safetensors.SafetensorError,
)  # fmt: skip


@contextmanager
def safely(path: Path, *, backbone: str) -> Iterator[None]:
    """Check a weights file, and turn errors of loading it into a UsageError that says what to do.

    The code in the `with` block must load tensors only (safetensors, or torch.load with
    weights_only=True).

    Args:
        path: the weights file.
        backbone: name of the backbone, for messages.

    Raises:
        UsageError: the file is a TorchScript archive, contains other objects than tensors, is
            damaged, or does not fit the architecture.
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
        # torch advises to load such a file with weights_only=False, which this message replaces.
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise UsageError(
                "the file is refused: it contains Python objects other than tensors, which could"
                " run code while they are loaded",
                where,
                "if you trust the file, save its state dict alone (safetensors, or torch.save of a"
                " dict of tensors)",
            ) from error
        # `load_state_dict` raises a plain RuntimeError with one line per tensor.
        if isinstance(error, RuntimeError) and "state_dict" in str(error):
            problem = " ".join(str(error).split())[:300]
            what = f"the file does not fit the architecture: {problem}"
            raise UsageError(
                what, where, "pass the architecture that the file was saved from"
            ) from error
        if isinstance(error, _DAMAGED):
            raise UsageError(
                f"the file cannot be read as weights: {reason(error)}",
                where,
                "download the file again",
            ) from error
        raise


@dataclass(frozen=True)
class StateInFile:
    """A state dict that was read from a file, under the names of the bare model.

    Attributes:
        path: the file.
        state: tensor by name.
        seen: what these weights are, for `Backbone.seen`.
        bare: whether the file contains nothing else and uses these names.
    """

    path: Path
    state: dict[str, Tensor]
    seen: str
    bare: bool

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """Yield a file of the bare state dict, for libraries that only read files themselves."""
        # Copying is avoided where it changes nothing: weights have gigabytes.
        if self.bare:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            # Cloned, since safetensors refuses tensors that share memory.
            save_file(
                {name: tensor.detach().contiguous().clone() for name, tensor in self.state.items()},
                file,
            )
            yield file


def state_in(path: Path, *, averaged: bool) -> StateInFile:
    """Read the state dict in a file, without running code from it.

    Args:
        path: the weights file.
        averaged: prefer averaged weights (EMA) if the file has both, as timm does.

    Raises:
        BenchError: the file has no state dict.
    """
    content: Any = load_file(path) if path.suffix == ".safetensors" else read_inert(path)
    state, key = chosen_state(content, averaged)
    # An empty name stands for a whole pickled module, which is not a state dict.
    inert = (
        [value.origin for value in state.values() if isinstance(value, Inert)]
        if isinstance(state, dict)
        else [""]
    )
    if inert or not all(isinstance(value, Tensor) for value in state.values()):
        what = (
            f"{inert[0]:.100} in place of a tensor, which could run code; nothing of it was run"
            if any(inert)
            else "no state dict"
        )
        raise BenchError(
            f"the file contains {what}",
            fix="save the state dict of the model alone, preferably as safetensors",
        )
    which = (
        f": `{key}`, not the {'last' if averaged else 'averaged'} weights"
        if has_averaged(content)
        else ""
    )
    found = cleaned(state)
    # open_clip itself removes `module.`, so a file with nothing but that need not be rewritten.
    bare = not key and {str(name).removeprefix("module.") for name in state} == found.keys()
    return StateInFile(path, found, f"unknown (weights from a file{which})", bare)


def check_kinds(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that the weights of a loaded model were floating-point numbers in the file.

    Args:
        state: the tensors in the file.
        model: the model that they were loaded into.

    Raises:
        BenchError: a tensor is of integers, complex or 8-bit numbers.
    """
    # `load_state_dict` casts whatever there is, and quantised weights would become nonsense.
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name in state and not can_be_weight(state[name]):
            raise BenchError(f"{name} is {state[name].dtype}, not plain floating-point numbers")


@contextmanager
def random_weights(library: str, architecture: str, seed: int) -> Iterator[None]:
    """Seed torch for a model that is created in the `with` block, and restore its state after.

    Args:
        library: `timm` or `open_clip`.
        architecture: name of the architecture.
        seed: seed in the backbone's name.
    """
    # CPU only: models are created there, so a name gives the same weights on every machine.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("random backbone", library, architecture, seed))
        yield


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Prevent a library in the `with` block from configuring the root logger."""
    # open_clip calls `logging.info`, which installs a handler for all loggers if there is none.
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def without_noise(model: nn.Module) -> None:
    """Switch off dropout, stochastic depth and patch dropout of a model, in place.

    Its train mode then differs from its eval mode by batch norm only.
    """
    # Recipes for robust fine-tuning train without them. A method that wants such noise has to add
    # it itself, where it is part of the method's identity.
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        # The attributes of DropPath and DropBlock, of PatchDropout, and of models that call
        # F.dropout with a rate of their own.
        for rate in ("drop_prob", "prob", "drop_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def content_sha256(tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of tensors and of the facts that make them a model.

    Args:
        tensors: tensor by name.
        facts: architecture, mean and standard deviation.
    """
    # Equal tensors are different models under QuickGELU and GELU, TensorFlow's and PyTorch's
    # padding, or other pixel statistics. File formats and paths change nothing and are left out.
    return digest({"tensors": tensors_sha256(tensors), "facts": dict(facts)})
