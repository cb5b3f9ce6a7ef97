"""One optimiser step: micro-batches, several devices, and retries when memory runs out."""

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


class TrainState:
    """The student, the frozen teacher and the optimiser of one process.

    With several devices, those of all processes stay equal: they start equal, and each step applies
    the same summed gradient. So weights are never broadcast.

    Args:
        start: initial student, and the teacher.
        method: loss and recipe.
        total: number of steps, for the schedule.
        seed: random numbers depend on it and the step only.
        constants: the result of `method.prepare`.
        engine: settings of this process.
        ranks: the processes of the training.
        wanted_part: micro-batch if memory were unlimited; None: the engine's.
        warn: called with a message when memory runs out.

    Attributes:
        micro_batch: images per forward pass; None: this process's whole share. It is halved when
            memory runs out.
        retries: the steps that were repeated for lack of memory, each with the micro-batch from
            then on.
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
        # On a CPU memory is estimated before the first step. A part that is smaller for that reason
        # is recorded like one that was halved later: both change the last bits of a result.
        if self.micro_batch is not None and self.micro_batch < (wanted_part or 0):
            self.retries.append({"step": 0, "micro_batch": self.micro_batch})

    def train_mode(self) -> None:
        """Put the student into training mode; scoring puts it into eval mode."""
        self.student.train()
        # Frozen batch normalisation uses the pre-trained statistics, which eval mode does.
        if self.method.norm == "frozen":
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Take one optimiser step and return the mean loss of the global batch, on the device.

        Args:
            images: (n, 3, S, S) uint8, this process's share of the global batch.
            labels: (N,) int64, of the whole global batch.
            step: step number, from 0.

        Raises:
            BenchError: memory does not suffice, however small the micro-batches.
            DeviceLost: another process has ended.
        """
        method, device, size = self.method, self._engine.device, len(labels)
        set_rate(self.optimizer, method.schedule, method.lr, method.warmup, step, self._total)
        # Every process gets all images: a method may mix any two images of the global batch. They
        # are gathered as uint8, a quarter of the size of floats.
        pool = self._ranks.all_gather(images.to(device, non_blocking=True), size)
        labels = labels.to(device, non_blocking=True)
        # Sampled on the CPU, so that the numbers are the same on every kind of device, and for the
        # global batch, so that they do not depend on how it is divided.
        on_cpu = method.random(
            size, self.student.tower.grid, torch_stream(self._seed, "draw", step)
        )
        # A copy from memory that is not pinned waits for everything that the GPU has queued.
        if self._engine.device_type == "cuda":
            on_cpu = {name: values.pin_memory() for name, values in on_cpu.items()}
        random = {name: values.to(device, non_blocking=True) for name, values in on_cpu.items()}
        while True:
            loss = self._backward(pool, labels, random, step)
            # All processes repeat the step if one ran out of memory: their micro-batches stay
            # equal, and none waits in an exchange that another never enters.
            (ran_out,) = self._ranks.any_rank(loss is None)
            if loss is not None and not ran_out:
                break
            # Nothing was applied yet, so that the step is repeated from the same weights. The loss
            # and the gradients go first, since the second attempt needs their memory.
            del loss
            self.optimizer.zero_grad(set_to_none=True)
            self._halve_micro_batch(size, step)
        self._ranks.add_up(self.student, loss)
        if method.clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), method.clip)
        self.optimizer.step()
        return loss

    def _backward(
        self, pool: Tensor, labels: Tensor, random: Mapping[str, Tensor], step: int
    ) -> Tensor | None:
        """Accumulate this process's share of the gradient.

        Returns:
            Its share of the mean loss, or None if memory ran out.
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
                    random={name: values[first:last] for name, values in random.items()},
                    step=step,
                )
                # Weighted by the images of the part: parts may differ in size, and their gradients
                # have to add up to that of the mean over the global batch.
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
            # Returned and not raised: the exception's traceback would hold this frame, and with it
            # the activations of the failed attempt.
            return None
        return total

    def _halve_micro_batch(self, size: int, step: int) -> None:
        # None stands for a process's whole share: the global batch divided, and rounded up.
        used = min(self.micro_batch or size, -(-size // self._ranks.count))
        # `--micro-batch` is the user's word that the loss of a file can be computed in parts.
        if not cuttable(self.method) and self._engine.micro_batch is None:
            raise BenchError(
                f"{used} images at a time do not fit into memory, and {WHOLE}",
                where=f"method {self.method.name}",
                fix=(
                    "use a device with more memory, or a smaller `--set batch_size=...` (another"
                    " fit). If the method is a file whose loss couples no images, give"
                    " --micro-batch"
                ),
            )
        if used == 1:
            raise BenchError(
                "not even one image at a time fits into memory",
                fix="use a device with more memory, or a smaller backbone",
            )
        self.micro_batch = used // 2
        self.retries.append({"step": step, "micro_batch": self.micro_batch})
        self._warn(
            f"out of memory with {used} images at a time; repeating step {step + 1} with"
            f" {self.micro_batch}, same batch"
        )
        release_memory()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of student and optimiser for a checkpoint, by name."""
        tensors = {f"student/{name}": tensor for name, tensor in self.student.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
        return tensors

    def restore(
        self, tensors: Mapping[str, Tensor], retries: Sequence[Mapping[str, int]], step: int
    ) -> None:
        """Restore a checkpoint, to continue with step number `step`.

        Args:
            tensors: by the names of `tensors()`; others are ignored.
            retries: of the checkpoint.
            step: step number, from 0.
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
        # Micro-batches stay as small as those that fitted before, so that a resumed training does
        # not run out of memory again. If this machine asks for smaller ones, that is a new retry.
        self.retries = [dict(retry) for retry in retries]
        if retries:
            fitted = retries[-1]["micro_batch"]
            if self.micro_batch is not None and self.micro_batch < fitted:
                self.retries.append({"step": step, "micro_batch": self.micro_batch})
            else:
                self.micro_batch = fitted
