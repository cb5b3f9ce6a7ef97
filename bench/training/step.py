"""One optimiser step: a global batch in micro-batches, on one or several devices, in as much memory
as there is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..classifier import Classifier
from ..engine import Engine, ran_out_of_memory, release_memory
from ..errors import BenchError
from ..identity import torch_stream
from ..method import Batch, FineTuner
from .devices import Ranks
from .memory import WHOLE, cuttable
from .schedules import set_rate


class Learner:
    """The student, the frozen teacher and the optimiser of one process.

    Those of processes that train together stay equal: they start equal, and each step applies the
    same summed gradient.

    Args:
        start: what the student starts as and the teacher stays.
        total: steps of the whole training, which the schedule is stretched over.
        seed: all random draws are keyed by it and the step.
        constants: what `method.prepare` measured.
        engine: of this process.
        ranks: the processes that train together.
        wanted_part: images per forward pass if memory were no matter; None: what the engine says.
        warn: told in one sentence when memory runs out.

    Attributes:
        micro_batch: images per forward pass, or None for all of this process's at once; halved when
            memory runs out.
        retries: the steps that were repeated for want of memory, and the micro-batch from then on.
    """

    def __init__(
        self,
        start: Classifier,
        method: FineTuner,
        *,
        total: int,
        seed: int,
        constants: Mapping[str, float],
        engine: Engine,
        ranks: Ranks,
        wanted_part: int | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.teacher = copy.deepcopy(start).to(engine.device).eval().requires_grad_(False)
        self.student = copy.deepcopy(start).to(engine.device)
        self.method, self._total, self._seed, self._constants = method, total, seed, constants
        self._engine, self._ranks, self._warn = engine, ranks, warn
        self.train_mode()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=method.lr, weight_decay=method.weight_decay
        )
        self.micro_batch = engine.micro_batch
        self.retries: list[dict[str, int]] = []
        if self.micro_batch is not None and self.micro_batch < (wanted_part or 0):
            self.retries.append({"step": 0, "micro_batch": self.micro_batch})

    def train_mode(self) -> None:
        """Put the student into the mode that it is trained in (scoring puts it into another)."""
        self.student.train()
        if self.method.norm == "frozen":
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Take step number `step`; returns the mean loss of the global batch, on the device.

        Args:
            images: (n, 3, S, S) uint8, this process's share of the global batch.
            labels: (N,) int64, those of all of it.

        Raises:
            BenchError: memory does not suffice, however small the micro-batches.
            DeviceLost: another process has ended.
        """
        method, device, size = self.method, self._engine.device, len(labels)
        set_rate(self.optimizer, method.schedule, method.lr, method.warmup, step, self._total)
        pool = self._ranks.whole(images.to(device, non_blocking=True), size)
        labels = labels.to(device, non_blocking=True)
        # Drawn on the CPU, so that the numbers are the same on every device; moved once.
        drawn = method.draw(size, self.student.tower.grid, torch_stream(self._seed, "draw", step))
        if (
            self._engine.device_type == "cuda"
        ):  # a copy from other memory would wait for all that the GPU has still to do
            drawn = {name: values.pin_memory() for name, values in drawn.items()}
        draws = {name: values.to(device, non_blocking=True) for name, values in drawn.items()}
        while True:
            loss = self._backward(pool, labels, draws, step)
            (ran_out,) = self._ranks.anywhere(loss is None)
            if loss is not None and not ran_out:
                break
            # Nothing was applied yet, so the step is taken again from the same weights.
            del loss
            self.optimizer.zero_grad(set_to_none=True)
            self._halve_micro_batch(size, step)
        self._ranks.add_up(self.student, loss)
        if method.clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), method.clip)
        self.optimizer.step()
        return loss

    def _backward(
        self, pool: Tensor, labels: Tensor, draws: Mapping[str, Tensor], step: int
    ) -> Tensor | None:
        """Accumulate this process's share of the gradient; returns its share of the mean loss, or
        None if memory ran out.
        """
        size = len(labels)
        mine = self._ranks.share(size)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            total = torch.zeros((), device=self._engine.device)
            for first in range(mine.start, mine.stop, self.micro_batch or size):
                last = min(first + (self.micro_batch or size), mine.stop)
                batch = Batch(
                    images=pool[first:last].float() / 255,
                    labels=labels[first:last],
                    rows=torch.arange(first, last, device=self._engine.device),
                    pool=pool,
                    draws={name: values[first:last] for name, values in draws.items()},
                    step=step,
                )
                with torch.autocast(
                    self._engine.device_type,
                    torch.bfloat16,
                    enabled=self.method.precision == "bf16",
                ):
                    loss = self.method.loss(batch, self.student, self.teacher, self._constants) * (
                        (last - first) / size
                    )
                loss.backward()
                total += loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return None  # and with this frame everything that it holds
        return total

    def _halve_micro_batch(self, size: int, step: int) -> None:
        used = min(self.micro_batch or size, -(-size // self._ranks.count))
        if not cuttable(self.method) and self._engine.micro_batch is None:
            raise BenchError(
                f"{used} images at a time do not fit into memory, and {WHOLE}",
                where=f"method {self.method.name}",
                fix=(
                    "a smaller `--set batch_size=...` (another fit), or a device with more memory;"
                    " a file whose loss couples no images: --micro-batch"
                ),
            )
        if used == 1:
            raise BenchError(
                "not even one image at a time fits into memory",
                fix="use a device with more, or a smaller backbone",
            )
        self.micro_batch = used // 2
        self.retries.append({"step": step, "micro_batch": self.micro_batch})
        self._warn(
            f"out of memory with {used} images at a time; repeating step {step + 1} with"
            f" {self.micro_batch}, same batch"
        )
        release_memory()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of student and optimiser, by name."""
        tensors = {f"student/{name}": tensor for name, tensor in self.student.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
        return tensors

    def restore(
        self, tensors: Mapping[str, Tensor], retries: Sequence[Mapping[str, int]], step: int
    ) -> None:
        """Continue before step number `step` from what `tensors` gave (other names are left alone).

        Micro-batches are as small as those that fitted then.
        """
        parts: dict[str, dict[str, Any]] = {"student": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        self.student.load_state_dict(parts["student"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.retries = [dict(retry) for retry in retries]
        if retries:
            fitted = retries[-1]["micro_batch"]
            if self.micro_batch is not None and self.micro_batch < fitted:
                self.retries.append({"step": step, "micro_batch": self.micro_batch})
            else:
                self.micro_batch = fitted
