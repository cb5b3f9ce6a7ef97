"""A checkpoint is one file: tensors and a JSON state, replaced in one step, loaded without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BenchError
from ..storage.atomic import write_with
from ..storage.lease import Lease


class Checkpoints:
    """The checkpoints of one fit. Each generation of its lease writes its own file; the next one continues from the newest.

    Args:
        folder: the fit's folder. lease: the claim on it, checked before every write.
    """

    def __init__(self, folder: Path, lease: Lease) -> None:
        self._folder = folder / "checkpoint"
        self._lease = lease

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace this generation's checkpoint, then drop those of earlier generations.

        Raises:
            LeaseLost: another process has taken the fit over. BenchError: the disk is full; the old checkpoint stays.
        """
        self._lease.check()
        copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        mine = self._folder / f"{self._lease.generation:06d}.safetensors"
        write_with(mine, lambda path: save_file(copies, path, metadata={"state": json.dumps(state)}))
        for old in self._folder.glob("*.safetensors"):
            if int(old.stem) < self._lease.generation:
                old.unlink(missing_ok=True)

    def newest(self) -> Path | None:
        """The newest checkpoint of any generation, or None; see `read`."""
        return max(self._folder.glob("*.safetensors"), default=None)

    def clear(self) -> None:
        """Remove all checkpoints (the fit is finished, or starts over)."""
        for file in self._folder.glob("*"):
            file.unlink(missing_ok=True)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
            state: dict[str, Any] = json.loads(content.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BenchError(f"a checkpoint cannot be read: {error}", where=str(file), fix="start over with --fresh") from error
    return tensors, state
