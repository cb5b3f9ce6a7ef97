"""The training loop: one optimiser step at a time, resumable in mid-epoch to the same bits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..classifier import Classifier
from ..configure import method_file
from ..data.batches import TrainBatches
from ..engine import Engine
from ..errors import BenchError, Diverged, Interrupted
from ..method import FineTuner
from ..stopping import Reporter, stop_if_asked
from ..storage.atomic import write_with
from ..storage.lease import Lease
from .devices import DeviceLost, Ranks, together
from .step import Learner

#: A save that takes seconds (gigabytes, a network file system) is followed by this many times as
#: long without one.
_WORK_PER_SAVE, _SECONDS = 20, 1.0


@dataclass
class Trained:
    """What the loop returns: the kept classifier, one entry per epoch, and the seconds that earlier
    attempts took.

    `retries` are the steps that were repeated with smaller micro-batches for want of memory.
    """

    classifier: Classifier
    history: list[dict[str, Any]]
    selection: dict[str, Any]
    earlier_seconds: float
    retries: list[dict[str, int]]


@dataclass
class _Progress:
    """Everything that changes while training, apart from tensors."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    loss_sum: float = 0.0
    seconds: float = 0.0
    retries: list[dict[str, int]] = field(default_factory=list)


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
    wanted_part: int | None = None,
) -> Trained:
    """Minimise `method.loss` with AdamW from `start`, on the devices of `engine`.

    Args:
        batches: the training images; each step takes one global batch, in micro-batches of
            `engine.micro_batch`.
        seed: all random draws are keyed by it and the step, so that resuming and the number of
            workers change nothing.
        constants: what `method.prepare` measured.
        score: (accuracy, NLL) on id-val, called after each epoch.
        checkpoints: saved every `engine.checkpoint_seconds` (less often if that would take more
            than a twentieth of the time) and when a stop is asked for.
        wanted_part: images per forward pass if memory were no matter; the engine's are recorded
            where they are fewer.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: a stop was asked for and the state is saved.
        DeviceLost: the process of another device was killed.
        BenchError: one image at a time does not fit into memory.
    """
    saved = checkpoints.newest()
    total = batches.steps_per_epoch * method.epochs
    learner = partial(
        Learner, start, method, total=total, seed=seed, constants=constants, wanted_part=wanted_part
    )
    others = partial(_follow, learner, batches, saved, engine)
    with together(others, engine, reporter, plugin=method_file(type(method))) as ranks:
        first = learner(
            engine=engine, ranks=ranks, warn=lambda text: reporter.event("warning", text=text)
        )
        return _lead(
            first,
            ranks,
            batches,
            saved,
            total,
            score=score,
            checkpoints=checkpoints,
            engine=engine,
            reporter=reporter,
        )


def _lead(
    learner: Learner,
    ranks: Ranks,
    batches: TrainBatches,
    saved: Path | None,
    total: int,
    *,
    score: Callable[[Classifier], tuple[float, float]],
    checkpoints: Checkpoints,
    engine: Engine,
    reporter: Reporter,
) -> Trained:
    """The loop of the run's own process."""
    student, method, per_epoch = learner.student, learner.method, batches.steps_per_epoch
    progress, kept = _Progress(), dict[str, Tensor]()
    if saved is not None:
        progress, kept = _restored(learner, saved)
        reporter.event("resumed", step=progress.step, total=total)

    earlier, pause = progress.seconds, engine.checkpoint_seconds

    def save() -> None:
        nonlocal pause
        progress.seconds += clock.lap()
        progress.retries = learner.retries
        tensors = learner.tensors() | {f"kept/{name}": tensor for name, tensor in kept.items()}
        checkpoints.save(tensors, progress.__dict__)
        took = clock.since_lap()
        pause = max(engine.checkpoint_seconds, _WORK_PER_SAVE * took if took > _SECONDS else 0.0)

    clock = _Clock()
    exact = torch.float32 if engine.device_type == "mps" else torch.float64
    losses = torch.tensor(progress.loss_sum, dtype=exact, device=engine.device)
    # On a GPU a look at the loss waits for the device, so it is rare there; before anything is
    # saved it is always taken.
    look_every = 1 if engine.device_type == "cpu" else 50
    mine = batches.of_part(ranks.rank, ranks.count)
    while True:
        if len(progress.history) < progress.step // per_epoch:
            try:
                accuracy, nll = score(student)
            except Interrupted:
                save()
                raise
            learner.train_mode()
            epoch = progress.step // per_epoch
            entry = {
                "epoch": epoch,
                "loss": progress.loss_sum / per_epoch,
                "id_val": accuracy,
                "id_val_nll": nll,
            }
            progress.history.append(entry)
            reporter.event(
                "epoch", **entry, epochs=method.epochs, seconds=progress.seconds + clock.since_lap()
            )
            best = progress.best
            if method.select == "best" and (
                best is None or (-accuracy, nll) < (-best["id_val"], best["id_val_nll"])
            ):
                progress.best = entry
                kept = {
                    name: tensor.detach().clone() for name, tensor in student.state_dict().items()
                }
            progress.loss_sum = 0.0
            losses.zero_()
            if reporter.stop and progress.step < total:
                save()
                stop_if_asked(reporter)
        if progress.step == total:
            break
        for images, labels in mine.epoch(*divmod(progress.step, per_epoch)):
            try:
                ranks.go_on()
                loss = learner.step(images, labels, progress.step)
            except DeviceLost:
                # On CPUs a step that failed has changed nothing; on a GPU, what it had queued may
                # be anything.
                if engine.device_type == "cpu":
                    save()
                raise
            losses += loss
            progress.step += 1
            due = clock.since_lap() > pause
            if (
                reporter.stop
                or due
                or progress.step % per_epoch == 0
                or progress.step % look_every == 0
            ):
                _check_finite(losses, loss, learner, progress.step)
                progress.loss_sum = float(losses)
                in_epoch = (progress.step - 1) % per_epoch + 1
                reporter.event(
                    "step", step=progress.step, total=total, loss=progress.loss_sum / in_epoch
                )
                if reporter.stop or due:
                    save()
                    stop_if_asked(reporter)
    selection: dict[str, Any] = {}
    if method.select == "best" and progress.best is not None:
        student.load_state_dict(kept)
        selection = {
            "epoch": {
                "value": progress.best["epoch"],
                "id_val": progress.best["id_val"],
                "among": method.epochs,
            }
        }
    return Trained(
        student.eval().requires_grad_(True), progress.history, selection, earlier, learner.retries
    )


def _follow(
    learner: Callable[..., Learner],
    batches: TrainBatches,
    saved: Path | None,
    engine: Engine,
    ranks: Ranks,
    told_to_go_on: Callable[[], bool],
) -> None:
    """The loop of a further device's process: the same steps on its share of every batch, as long
    as it is told to.
    """
    follower = learner(engine=engine.on(ranks.rank), ranks=ranks)
    step = _restored(follower, saved)[0].step if saved is not None else 0
    for images, labels in batches.of_part(ranks.rank, ranks.count).steps(step):
        if not told_to_go_on():
            return
        follower.step(images, labels, step)
        step += 1


def _restored(learner: Learner, saved: Path) -> tuple[_Progress, dict[str, Tensor]]:
    """Load a checkpoint into a learner; returns what else it holds: the progress, and the kept
    (best) weights.
    """
    tensors, state = read(saved)
    try:
        progress = _Progress(**state)
    except TypeError as error:
        raise BenchError(
            f"the checkpoint is of another version: {error}", fix="start over with --fresh"
        ) from error
    learner.restore(tensors, progress.retries, progress.step)
    device = next(learner.student.parameters()).device
    return progress, {
        name.removeprefix("kept/"): t.to(device)
        for name, t in tensors.items()
        if name.startswith("kept/")
    }


def _check_finite(losses: Tensor, loss: Tensor, learner: Learner, step: int) -> None:
    if not torch.isfinite(losses):
        method, rate = learner.method, learner.optimizer.param_groups[0]["lr"]
        raise Diverged(
            f"the loss of {method.name} is {float(loss)} at step {step} (learning rate {rate:.2g},"
            f" precision {method.precision})",
            fix=(
                "lower `--set lr=...`, raise `--set warmup=...`, or keep `--set clip=1`; nothing of"
                " this fit is kept as a result"
            ),
        )


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


class Checkpoints:
    """The checkpoints of one fit. Each generation of its lease writes its own file; the next one
    continues from the newest.

    Args:
        folder: the fit's folder.
        lease: the claim on it, checked before every write.
    """

    def __init__(self, folder: Path, lease: Lease) -> None:
        self._folder = folder / "checkpoint"
        self._lease = lease

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace this generation's checkpoint, then drop those of earlier generations.

        Raises:
            LeaseLost: another process has taken the fit over.
            BenchError: the disk is full; the old checkpoint stays.
        """
        self._lease.check()
        copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        mine = self._folder / f"{self._lease.generation:06d}.safetensors"
        write_with(
            mine, lambda path: save_file(copies, path, metadata={"state": json.dumps(state)})
        )
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
        raise BenchError(
            f"a checkpoint cannot be read: {error}", where=str(file), fix="start over with --fresh"
        ) from error
    return tensors, state
