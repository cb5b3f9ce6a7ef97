"""How a process uses its machine: devices, threads, workers and micro-batches.

None of these settings is part of a fit's identity; all are recorded with it.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, replace

from .errors import UsageError


@dataclass(frozen=True)
class Engine:
    """The compute settings of one process.

    Args:
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        threads: torch threads. A fixed number, since it changes the last bits of a result.
        workers: threads per device that decode and augment training images ahead; None: as many as
            the images need.
        cores: CPU cores for decoding; None: all.
        micro_batch: images per forward pass in training, per device; None: see `default_part` on a
            CPU, else a device's whole share.
        eval_batch: images per forward pass in evaluation; None: see `images_at_once`.
        checkpoint_seconds: seconds between two checkpoints.
        deterministic: refuse operations that are not bit-reproducible (some have no deterministic
            implementation on a GPU).
        devices: number of devices that train one model, from `device` on. Features and scores are
            computed on the first.
    """

    device: str = "cpu"
    threads: int = 2
    workers: int | None = None
    cores: int | None = None
    micro_batch: int | None = None
    eval_batch: int | None = None
    checkpoint_seconds: float = 60.0
    deterministic: bool = True
    devices: int = 1

    @property
    def device_type(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.device.partition(":")[0]

    @property
    def images_at_once(self) -> int:
        """Images per forward pass in evaluation."""
        # On a CPU, larger batches cause page faults, which take half of the time in some towers.
        return self.eval_batch or (32 if self.device_type == "cpu" else 256)

    def on(self, rank: int) -> Engine:
        """Return the settings of the process of device number `rank`, from 0."""
        device = f"cuda:{self._first + rank}" if self.device_type == "cuda" else self.device
        return replace(self, device=device, devices=1)

    @property
    def _first(self) -> int:
        return int(self.device.partition(":")[2] or 0)

    def apply(self) -> None:
        """Apply the settings to torch's global state.

        Raises:
            UsageError: the device does not exist here, or there are fewer than requested.
        """
        # cuBLAS is deterministic only with this workspace, and reads the variable when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic)
        # Memory-efficient attention has no deterministic backward pass. TF32 rounds to ten bits, so
        # that `precision = fp32` would not be fp32.
        torch.backends.cuda.enable_mem_efficient_sdp(not self.deterministic)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            # The rest lists every kind of device that torch was ever built for.
            why = str(error).split(". ")[0]
            raise UsageError(
                f"the device `{self.device}` cannot be used here: {why}", fix="use --device cpu"
            ) from error
        # On a CPU any number is allowed: several processes share it, which the tests use.
        available = {"cuda": torch.cuda.device_count() - self._first, "mps": 1}.get(
            self.device_type, self.devices
        )
        if self.devices > available:
            raise UsageError(
                f"{self.devices} devices were requested, but only {available} are available from"
                f" `{self.device}` on",
                fix=f"use --devices {available}",
            )


def default_device() -> str:
    """Return `cuda` if available, else `mps`, else `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


#: Parts of error messages that mean "out of memory". torch.OutOfMemoryError covers only torch's own
#: CUDA allocator: libraries below it, Metal, and a CPU under a limit (`ulimit -d`) raise a
#: RuntimeError.
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "could not create a memory object",
)


def ran_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Return whether an error of torch, Python or a library means that memory ran out."""
    import torch

    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Free the memory that a finished or failed computation has left behind."""
    import torch

    # Autograd graphs and their hooks may reference each other, so that reference counting alone
    # does not free them.
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
