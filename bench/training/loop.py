"""The training loop: one optimiser step at a time, resumable in mid-epoch to the same bits."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..classifier import Classifier
from ..data.batches import TrainBatches
from ..errors import BenchError, Diverged, Interrupted
from ..identity import torch_stream
from ..method import Batch, FineTuner
from ..stopping import Reporter, stop_if_asked
from .checkpoint import Checkpoints
from .engine import Engine
from .schedules import set_rate


@dataclass
class Trained:
    """What the loop returns: the kept classifier, one entry per epoch, and the seconds that earlier attempts took."""

    classifier: Classifier
    history: list[dict[str, Any]]
    selection: dict[str, Any]
    earlier_seconds: float


@dataclass
class _Progress:
    """Everything that changes while training, apart from tensors."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    loss_sum: float = 0.0
    seconds: float = 0.0


def train(
    start: Classifier,
    method: FineTuner,
    batches: TrainBatches,
    *,
    seed: int,
    constants: Mapping[str, float],
    score: Callable[[Classifier], tuple[float, float]],
    checkpoints: Checkpoints,
    engine: Engine,
    reporter: Reporter,
) -> Trained:
    """Minimise `method.loss` with AdamW from `start`.

    Args:
        batches: the training images; each step takes one global batch, in micro-batches of `engine.micro_batch`.
        seed: all random draws are keyed by it and the step, so that resuming and the number of workers change nothing.
        constants: what `method.prepare` measured.
        score: (accuracy, NLL) on id-val, called after each epoch.
        checkpoints: saved every `engine.checkpoint_seconds` and when a stop is asked for.

    Raises:
        Diverged: the loss is not finite. Interrupted: a stop was asked for and the state is saved.
    """
    teacher = copy.deepcopy(start).to(engine.device).eval().requires_grad_(False)
    student = copy.deepcopy(start).to(engine.device).train()
    if method.norm == "frozen":
        _freeze_norm(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=method.lr, weight_decay=method.weight_decay)
    per_epoch, total = batches.steps_per_epoch, batches.steps_per_epoch * method.epochs
    progress, kept = _Progress(), {}
    saved = checkpoints.load()
    if saved is not None:
        kept = _restore(saved[0], student, optimizer)
        try:
            progress = _Progress(**saved[1])
        except TypeError as error:
            raise BenchError(f"the checkpoint is of another version: {error}", fix="start over with --fresh") from error
        reporter.event("resumed", step=progress.step, total=total)

    earlier = progress.seconds

    def save() -> None:
        progress.seconds += clock.lap()
        checkpoints.save(_tensors(student, optimizer, kept), progress.__dict__)

    clock = _Clock()
    exact = torch.float32 if engine.device_type == "mps" else torch.float64
    losses = torch.tensor(progress.loss_sum, dtype=exact, device=engine.device)
    # On a GPU a look at the loss waits for the device, so it is rare there; before anything is saved it is always taken.
    look_every = 1 if engine.device_type == "cpu" else 50
    while True:
        if len(progress.history) < progress.step // per_epoch:
            try:
                accuracy, nll = score(student)
            except Interrupted:
                save()
                raise
            _refreeze(student, method)
            epoch = progress.step // per_epoch
            entry = {"epoch": epoch, "loss": progress.loss_sum / per_epoch, "id_val": accuracy, "id_val_nll": nll}
            progress.history.append(entry)
            reporter.event("epoch", **entry, epochs=method.epochs)
            best = progress.best
            if method.select == "best" and (best is None or (-accuracy, nll) < (-best["id_val"], best["id_val_nll"])):
                progress.best = entry
                kept = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
            progress.loss_sum = 0.0
            losses.zero_()
        if progress.step == total:
            break
        for pool, labels in batches.epoch(*divmod(progress.step, per_epoch)):
            set_rate(optimizer, method.schedule, method.lr, method.warmup, progress.step, total)
            loss = take_step(student, teacher, optimizer, method, pool, labels, progress.step, seed, constants, engine)
            losses += loss
            progress.step += 1
            due = clock.since_lap() > engine.checkpoint_seconds
            if reporter.stop or due or progress.step % per_epoch == 0 or progress.step % look_every == 0:
                _check_finite(losses, loss, method, progress.step, optimizer)
                progress.loss_sum = float(losses)
                in_epoch = (progress.step - 1) % per_epoch + 1
                reporter.event("step", step=progress.step, total=total, loss=progress.loss_sum / in_epoch)
                if reporter.stop or due:
                    save()
                    stop_if_asked(reporter)
    selection: dict[str, Any] = {}
    if method.select == "best" and progress.best is not None:
        student.load_state_dict(kept)
        selection = {"epoch": {"value": progress.best["epoch"], "id_val": progress.best["id_val"], "among": method.epochs}}
    return Trained(student.eval().requires_grad_(True), progress.history, selection, earlier)


def take_step(
    student: Classifier,
    teacher: Classifier,
    optimizer: torch.optim.Optimizer,
    method: FineTuner,
    pool: Tensor,
    labels: Tensor,
    step: int,
    seed: int,
    constants: Mapping[str, float],
    engine: Engine,
) -> Tensor:
    """One optimiser step on a global batch; returns its mean loss on the device."""
    size = len(labels)
    pool = pool.to(engine.device, non_blocking=True)
    labels = labels.to(engine.device, non_blocking=True)
    # Drawn on the CPU, so that the numbers are the same on every device; moved once.
    draws = {
        name: values.to(engine.device, non_blocking=True)
        for name, values in method.draw(size, student.tower.grid, torch_stream(seed, "draw", step)).items()
    }
    total = torch.zeros((), device=engine.device)
    optimizer.zero_grad(set_to_none=True)
    for first in range(0, size, engine.micro_batch or size):
        last = min(first + (engine.micro_batch or size), size)
        batch = Batch(
            images=pool[first:last].float() / 255,
            labels=labels[first:last],
            rows=torch.arange(first, last, device=engine.device),
            pool=pool,
            draws={name: values[first:last] for name, values in draws.items()},
            step=step,
        )
        with torch.autocast(engine.device_type, torch.bfloat16, enabled=method.precision == "bf16"):
            loss = method.loss(batch, student, teacher, constants) * ((last - first) / size)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    if method.clip:
        nn.utils.clip_grad_norm_(student.parameters(), method.clip)
    optimizer.step()
    return total


def _freeze_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _refreeze(student: Classifier, method: FineTuner) -> None:
    # Scoring puts the model into eval mode.
    student.train()
    if method.norm == "frozen":
        _freeze_norm(student)


def _check_finite(losses: Tensor, loss: Tensor, method: FineTuner, step: int, optimizer: torch.optim.Optimizer) -> None:
    if not torch.isfinite(losses):
        rate = optimizer.param_groups[0]["lr"]
        raise Diverged(
            f"the loss of {method.name} is {float(loss)} at step {step} (learning rate {rate:.2g}, precision {method.precision})",
            fix="lower `--set lr=...`, raise `--set warmup=...`, or keep `--set clip=1`; nothing of this fit is kept as a result",
        )


def _tensors(student: Classifier, optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {f"student/{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"kept/{name}": tensor for name, tensor in kept.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
    return tensors


def _restore(tensors: Mapping[str, Tensor], student: Classifier, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load student and optimiser in place; returns the kept (best) weights."""
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "kept": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    student.load_state_dict(parts["student"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    device = next(student.parameters()).device
    return {name: tensor.to(device) for name, tensor in parts["kept"].items()}


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def since_lap(self) -> float:
        return time.monotonic() - self._last

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
