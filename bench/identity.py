"""Identity by content: canonical JSON, hashes, and random streams that are hashes of what they are
for.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Raised when the engine itself changes what a fit means (order of batches, optimiser arithmetic,
#: split rule).
PROTOCOL_VERSION = 1


def canonical_json(value: Any) -> str:
    """Serialise to the one JSON text that equal values share (sorted keys, no spaces, no NaN).

    Raises:
        ValueError: for NaN or infinity, which have no canonical form.
        TypeError: for an object that JSON does not know.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def seed_for(*purpose: str | int) -> int:
    """A 63-bit seed that depends on nothing but `purpose`, so that adding a stream never moves
    another.
    """
    return int.from_bytes(hashlib.sha256(canonical_json(list(purpose)).encode()).digest()[:8]) >> 1


def torch_stream(*purpose: str | int) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*purpose)`."""
    import torch

    return torch.Generator().manual_seed(seed_for(*purpose))


def numpy_stream(*purpose: str | int) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) seeded by `seed_for(*purpose)`."""
    import numpy as np

    return np.random.Generator(np.random.Philox(seed_for(*purpose)))
