"""How a machine is used: devices, threads, workers, micro-batches. None of it is part of a fit's
meaning; all is recorded.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, replace

from .errors import UsageError


@dataclass(frozen=True)
class Engine:
    """Settings of one process.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: torch threads (they change the bits of a result, so they are fixed).
        devices: how many train one model together, `device` being the first; frozen features and
            scores come from the first.
        workers: threads that decode and augment training images ahead, for each device; None: as
            many as the images need.
        cores: that this process may use to decode ahead; None: all.
        micro_batch: images per forward pass in training, on each device; None: on a CPU what
            `default_part` says, else a device's whole share at once.
        eval_batch: images per forward pass in evaluation; None: see `images_at_once`.
        checkpoint_seconds: time between two checkpoints.
        deterministic: refuse operations that do not repeat to the bit (some have no such form on a
            GPU).
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
        """Images per forward pass in evaluation. On a CPU larger ones cost page faults, in some
        towers half of the time.
        """
        return self.eval_batch or (32 if self.device_type == "cpu" else 256)

    def on(self, rank: int) -> Engine:
        """The settings of the process that has the device number `rank`, 0 being the first."""
        device = f"cuda:{self._first + rank}" if self.device_type == "cuda" else self.device
        return replace(self, device=device, devices=1)

    @property
    def _first(self) -> int:
        return int(self.device.partition(":")[2] or 0)

    def apply(self) -> None:
        """Set what torch keeps globally.

        Raises:
            UsageError: the device does not exist here, or there are not so many.
        """
        # cuBLAS is deterministic only with this workspace, and reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic)
        # The memory-efficient attention has no deterministic backward; TF32 would make fp32
        # something else.
        torch.backends.cuda.enable_mem_efficient_sdp(not self.deterministic)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            why = str(error).split(". ")[
                0
            ]  # the rest lists every kind of device that torch was ever built for
            raise UsageError(
                f"the device `{self.device}` cannot be used here: {why}", fix="--device cpu"
            ) from error
        there = {"cuda": torch.cuda.device_count() - self._first, "mps": 1}.get(
            self.device_type, self.devices
        )
        if self.devices > there:
            raise UsageError(
                f"there are {there} devices from `{self.device}` on, not {self.devices}",
                fix=f"--devices {there}",
            )


def default_device() -> str:
    """`cuda` if there is one, else `mps`, else `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


#: In the errors of libraries below torch, of devices for which it has none, and of a CPU under a
#: limit (`ulimit -d`).
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "could not create a memory object",
)


def ran_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Tell whether an error means that memory ran out: torch's own, Python's, or that of a
    library.
    """
    import torch

    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Give back what a computation that is over, or ran out of memory, has left behind."""
    import torch

    gc.collect()  # autograd graphs and their hooks may refer to each other
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
