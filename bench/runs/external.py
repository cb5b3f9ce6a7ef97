"""Weights from elsewhere: read without pickle's power to run code, and put into a classifier or refused with the difference."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..backbones.backbone import Head
from ..classifier import Classifier
from ..errors import BenchError, MissingPrerequisite
from ..identity import tensors_sha256
from .experiment import Experiment
from .store import Store


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file; prefixes of wrappers (`module.`) are dropped.

    Raises:
        MissingPrerequisite: no such file. BenchError: it holds something else than tensors, or cannot be read.
    """
    if not path.is_file():
        raise MissingPrerequisite("there is no such file", where=str(path), fix="name a weights file or a fit's folder")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(
            f"the weights cannot be read safely: {first}", where=str(path), fix="save a plain state dict, best as safetensors"
        ) from error
    while isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BenchError("the file is not a mapping of names to tensors", where=str(path), fix="save `model.state_dict()`")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_external(path: Path, experiment: Experiment, normalize: bool | None = None) -> tuple[Classifier, str]:
    """The classifier and the hash of its tensors; the folder of a fit says itself which file, and whether to normalise.

    Raises:
        BenchError: names or shapes differ from the backbone's classifier; the first differences are named.
    """
    if path.is_dir():
        fit = Store(path.parent.parent).fit(path.name)
        if fit is None:
            raise MissingPrerequisite(
                "the folder is not that of a finished fit", where=str(path), fix="name a weights file or a fit's folder"
            )
        path, normalize = path / fit.weights, fit.normalize
    state = read_state(path)
    normalize = experiment.traits.text if normalize is None else normalize
    tower = experiment.backbone.image_tower()
    classifier = Classifier(tower, Head(torch.zeros(len(experiment.suite.card.classes), tower.dim), normalize=normalize))
    wanted = classifier.named_weights()
    problems = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    problems += [f"{name} is unknown" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if problems:
        raise BenchError(
            f"the weights do not fit {experiment.backbone.name} with {len(experiment.suite.card.classes)} classes: "
            + "; ".join(sorted(problems)[:4])
            + (f" and {len(problems) - 4} more" if len(problems) > 4 else ""),
            where=str(path),
            fix="name the backbone that they were trained from, and the suite whose classes they have",
        )
    return classifier.with_weights(state).eval(), tensors_sha256(state)
