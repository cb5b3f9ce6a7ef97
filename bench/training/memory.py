"""The memory that a training step needs on a CPU, and the memory that is free.

A GPU raises an error when memory runs out, and the step is repeated with less. On a CPU the kernel
kills the process, without an error to catch, so that the need is estimated before the first step.
"""

from __future__ import annotations

import resource
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.filesize import decimal as size
from torch import Tensor, nn

from ..backbones.backbone import ImageTower
from ..classifier import Classifier
from ..errors import MissingPrerequisite
from ..identity import torch_stream
from ..method import Batch, FineTuner

#: Bytes that the activations of one part of a batch may take on a CPU. Another number would change
#: the size of the parts, and with it the last bits of every fit on a CPU.
PART_BYTES = 2**30
#: Copies of the weights: student, teacher, gradients, AdamW's two moments, and one for whichever of
#: AdamW's temporaries, the best epoch's weights or a checkpoint is largest.
_COPIES = 6
#: Bytes for threads and buffers of libraries, and the factor from activations that are saved for
#: the backward pass to all that it needs, gradients of activations included. Both were measured
#: over towers and methods (tests/perf/test_memory.py).
_CONSTANT, _TRANSIENT = 128 * 2**20, 1.35
#: Why a batch cannot be divided; the second half of a message.
WHOLE = "batches are not divided if batch statistics are trained, or if the loss is from a file"
#: Larger than any real limit of a control group. Version 1 states "no limit" as about 2**63.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training step, in bytes.

    Attributes:
        fixed: for weights, gradients, moments and the images of the whole batch.
        image: in addition for each image of a part.
    """

    fixed: int
    image: int

    def of(self, part: int) -> int:
        """Return the bytes of a step that computes `part` images at a time."""
        return self.fixed + part * self.image


def saved_for_backward(forward: Callable[[], object], owned: nn.Module) -> int:
    """Return the bytes that autograd saves during a forward pass, without `owned`'s own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in owned.state_dict().values()}
    # By address, since many saved tensors are views of the same storage. The storages themselves
    # are referenced here, so that none is freed and its address reused for another one.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in saved.values())


def default_part(tower: ImageTower, side: int) -> int:
    """Return the micro-batch of a CPU: the largest power of two within `PART_BYTES`, at least 1.

    Args:
        tower: an image tower on the CPU.
        side: side of the images in pixels.
    """
    # It depends on nothing but the tower and its input. The last bits of a fit depend on it, so
    # that they must not follow from how much memory a machine happens to have.
    image = torch.full((1, 3, side, side), 0.5)
    fit = PART_BYTES // max(1, saved_for_backward(lambda: tower(image), tower))
    return 1 << max(0, fit.bit_length() - 1)


def step_memory(method: FineTuner, start: Classifier, side: int) -> StepMemory:
    """Estimate the memory of a training step, from a forward pass of two images of noise.

    Args:
        method: bound to the backbone.
        start: on the CPU, in eval mode; it is not changed.
        side: side of the images in pixels.
    """
    # Two images and not one: a method may mix an image with another one.
    pool = torch.randint(
        0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch_stream("memory")
    )
    batch = Batch(
        images=pool.float() / 255,
        labels=torch.zeros(2, dtype=torch.int64),
        rows=torch.arange(2),
        pool=pool,
        random=method.random(2, start.tower.grid, torch_stream("memory", "draw")),
        step=0,
    )
    # Any number will do: the constants of a method scale its loss, and change no size.
    constants = defaultdict[str, float](lambda: 1.0)
    with torch.random.fork_rng(devices=[]):
        try:
            saved = saved_for_backward(lambda: method.loss(batch, start, start, constants), start)
        except Exception:
            # A loss of a file may fail on two images of noise. If it is wrong altogether, the first
            # step will raise; until then the forward pass of the classifier is an estimate.
            saved = saved_for_backward(lambda: start(batch.images), start)
    weights = sum(tensor.nbytes for tensor in start.named_weights().values())
    pixels = pool[0].nbytes * (method.batch_size + 4)
    return StepMemory(_COPIES * weights + pixels + _CONSTANT, int(saved / 2 * _TRANSIENT))


def cuttable(method: FineTuner) -> bool:
    """Return whether a batch may be computed in parts without changing what is computed."""
    # Trained statistics are those of a part. And the loss of a file may couple images, as a
    # contrastive one does: whether it does is not known, and a wrong guess would be silent.
    return method.norm == "frozen" and not method.source_sha256


def wanted_part(method: FineTuner, share: int, default: int, requested: int | None) -> int:
    """Return the micro-batch of a CPU if memory were unlimited.

    Args:
        method: bound to the backbone.
        share: images of a global batch per device.
        default: see `default_part`.
        requested: `--micro-batch`, or None.
    """
    return min(share, requested or (default if cuttable(method) else share))


def fitting_part(method: FineTuner, memory: StepMemory, wanted: int, free: int) -> int:
    """Return the micro-batch that fits into memory: `wanted`, or a half, a quarter, ... of it.

    Args:
        method: bound to the backbone.
        memory: of a step.
        wanted: see `wanted_part`.
        free: bytes; see `available`.

    Raises:
        MissingPrerequisite: not even one image fits, or the batch cannot be divided and is too
            large.
    """
    if memory.of(wanted) <= free:
        return wanted
    least = 1 if cuttable(method) else wanted
    if memory.of(least) > free:
        whole = "" if least == 1 else f" for {least} images at a time ({WHOLE})"
        raise MissingPrerequisite(
            f"{method.name} needs about {size(memory.of(least))} more memory{whole}, but only"
            f" {size(free)} are free",
            fix=(
                "use a machine with more memory or raise the limit, or use a smaller backbone or a"
                " smaller `--set batch_size=...` (another fit)"
            ),
        )
    while memory.of(wanted) > free:
        wanted //= 2
    return wanted


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def available() -> int:
    """Return the bytes that this process can still allocate.

    The least of what is free on the machine, in its control groups, and below its own limits.
    """
    found = [
        psutil.virtual_memory().available,
        *_cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
    ]
    memory = psutil.Process().memory_info()
    used = {"RLIMIT_DATA": getattr(memory, "data", memory.rss), "RLIMIT_AS": memory.vms}
    for name, taken in used.items():
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            found.append(soft - taken)
    return max(0, min(found))


def _cgroups(membership: Path, root: Path) -> list[int]:
    """Return the free bytes of every limited control group of this process, parents included.

    Args:
        membership: file with lines `0::/path` (version 2) and `N:memory:/path` (version 1).
        root: where control groups are mounted.
    """
    if sys.platform != "linux":
        return []
    found = []
    with suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = root / "memory" if controllers else root
            names = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes")
                if controllers
                else ("memory.max", "memory.current")
            )
            group = top / path.lstrip("/")
            # A container may see the host's path here, but only its own group, mounted as the root.
            for folder in (group, *group.parents) if group.is_dir() else (top,):
                with suppress(OSError, ValueError):
                    limit, usage = (int((folder / name).read_text()) for name in names)
                    if limit < _UNLIMITED:
                        found.append(limit - usage + _reclaimable(folder))
                if folder == top:
                    break
    return found


def _reclaimable(folder: Path) -> int:
    """Return the bytes of a group that the kernel frees on demand: file pages not in use."""
    # They count as used. Without them, a process that has read a large dataset would seem to have
    # no memory left.
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, _, count = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(count)
    return 0
