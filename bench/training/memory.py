"""What a training step takes of memory, and how much there is: on a CPU nothing but the system's
killer says "too much".
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

#: What the activations of one part of a batch may take on a CPU.
PART_BYTES = 2**30
#: Student, teacher, gradients, AdamW's two moments, and what it, the best epoch or a save takes
#: beside them.
_COPIES = 6
#: Threads, libraries' buffers, and gradients of activations: found over towers and methods
#: (tests/perf/test_memory.py).
_CONSTANT, _TRANSIENT = 128 * 2**20, 1.35
#: Why a batch stays whole.
WHOLE = "batch statistics that are trained, and losses of a file, do not stand smaller parts"
#: No cgroup has a limit of this size; version 1 says so where there is none.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class StepMemory:
    """What a training step takes, in bytes.

    Attributes:
        fixed: weights, gradients, moments and the images of the whole batch.
        image: more for each image of a part.
    """

    fixed: int
    image: int

    def of(self, part: int) -> int:
        """Bytes of a step that takes `part` images at a time."""
        return self.fixed + part * self.image


def saved_for_backward(forward: Callable[[], object], owned: nn.Module) -> int:
    """Count the bytes that autograd keeps of a forward pass, `owned`'s own tensors excluded."""
    own = {tensor.untyped_storage().data_ptr() for tensor in owned.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def default_part(tower: ImageTower, side: int) -> int:
    """Choose how many images a CPU takes at a time, by the tower and its pixels alone: the bits of
    a fit depend on it.

    Args:
        side: of the images, pixels.

    Returns:
        The largest power of two whose activations take at most `PART_BYTES`, at least 1.
    """
    image = torch.full((1, 3, side, side), 0.5)
    fit = PART_BYTES // max(1, saved_for_backward(lambda: tower(image), tower))
    return 1 << max(0, fit.bit_length() - 1)


def step_memory(method: FineTuner, start: Classifier, side: int) -> StepMemory:
    """Measure what a training step takes, on a batch of two images of noise.

    Args:
        method: resolved.
        start: on the CPU, in eval mode; not changed.
        side: of the images, pixels.
    """
    pool = torch.randint(
        0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch_stream("memory")
    )
    batch = Batch(
        images=pool.float() / 255,
        labels=torch.zeros(2, dtype=torch.int64),
        rows=torch.arange(2),
        pool=pool,
        draws=method.draw(2, start.tower.grid, torch_stream("memory", "draw")),
        step=0,
    )
    constants = defaultdict[str, float](
        lambda: 1.0
    )  # what they are does not change what a step takes
    with torch.random.fork_rng(devices=[]):
        try:
            saved = saved_for_backward(lambda: method.loss(batch, start, start, constants), start)
        except Exception:
            # A loss that cannot be had of two images of noise; if it is wrong, the first step says
            # so.
            saved = saved_for_backward(lambda: start(batch.images), start)
    weights = sum(tensor.nbytes for tensor in start.named_weights().values())
    pixels = pool[0].nbytes * (method.batch_size + 4)
    return StepMemory(_COPIES * weights + pixels + _CONSTANT, int(saved / 2 * _TRANSIENT))


def cuttable(method: FineTuner) -> bool:
    """Whether a batch may be computed in parts: not where statistics are trained, nor where a
    file's loss may couple images.
    """
    return method.norm == "frozen" and not method.source_sha256


def wanted_part(method: FineTuner, share: int, default: int, asked: int | None) -> int:
    """Choose how many images a CPU takes at a time if memory were no matter.

    Args:
        share: images of a batch that fall to a device.
        default: see `default_part`.
        asked: by the user.
    """
    return min(share, asked or (default if cuttable(method) else share))


def fitting_part(method: FineTuner, memory: StepMemory, wanted: int, free: int) -> int:
    """Choose how many images to take at a time: as many as wanted, or half of that, a quarter, ...
    where memory is short.

    Args:
        wanted: images of the part that does not depend on memory.
        free: bytes; see `available`.

    Raises:
        MissingPrerequisite: not even one image fits, or the batch has to be whole and does not fit.
    """
    if memory.of(wanted) <= free:
        return wanted
    least = 1 if cuttable(method) else wanted
    if memory.of(least) > free:
        whole = "" if least == 1 else f" for {least} images at a time ({WHOLE})"
        raise MissingPrerequisite(
            f"{method.name} needs about {size(memory.of(least))} of memory more{whole}, and"
            f" {size(free)} are free",
            fix=(
                "a machine or a limit with more memory, a smaller backbone, or a smaller `--set"
                " batch_size=...` (another fit)"
            ),
        )
    while memory.of(wanted) > free:
        wanted //= 2
    return wanted


def resident() -> int:
    """Bytes that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def available() -> int:
    """Bytes that this process can still take: of the machine, of its control groups, and of its own
    limits.
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
    """Free bytes of every control group with a limit that this process is in, itself or through one
    above.

    Args:
        membership: lines `0::/path` (version 2) and `N:memory:/path` (version 1).
        root: where they are mounted.
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
            # In a container the path may be that of the host, and the group is the root that one
            # sees.
            for folder in (group, *group.parents) if group.is_dir() else (top,):
                with suppress(OSError, ValueError):
                    limit, usage = (int((folder / name).read_text()) for name in names)
                    if limit < _UNLIMITED:
                        found.append(limit - usage + _reclaimable(folder))
                if folder == top:
                    break
    return found


def _reclaimable(folder: Path) -> int:
    """Bytes of a group that are file pages nobody looked at lately, which the kernel drops
    first.
    """
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, _, count = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(count)
    return 0
