"""Content hashes, and random streams that are seeded by a hash of their purpose."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Part of every hash. Increase it when the engine changes what a fit means (order of batches,
#: arithmetic of the optimiser, rule of the splits): no earlier result is reused then.
PROTOCOL_VERSION = 1


def canonical_json(value: Any) -> str:
    """Serialise to JSON such that equal values give the same text.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        TypeError: for an object that JSON does not have.
    """
    # Sorted keys, no spaces and no escapes: none of these may depend on how a value was built.
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    import torch

    # Not the hash of a file: the same weights in another format are the same weights.
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # As bytes, since NumPy has no bfloat16.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def seed_for(*purpose: str | int) -> int:
    """Return a 63-bit seed that depends on `purpose` only."""
    # One generator for everything would shift all random numbers behind a sample that is added.
    # With a stream for each purpose, old results stay as they are. 63 bits, since torch takes
    # signed seeds.
    return int.from_bytes(hashlib.sha256(canonical_json(list(purpose)).encode()).digest()[:8]) >> 1


def torch_stream(*purpose: str | int) -> torch.Generator:
    """Return a CPU generator with the seed `seed_for(*purpose)`."""
    import torch

    return torch.Generator().manual_seed(seed_for(*purpose))


def numpy_stream(*purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator with the seed `seed_for(*purpose)`."""
    import numpy as np

    # Named explicitly, since the generator of `default_rng` may change between NumPy versions.
    return np.random.Generator(np.random.Philox(seed_for(*purpose)))
