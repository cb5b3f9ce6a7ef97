"""The training loop: steps, checkpoints and epoch selection, resumable to the same bits."""

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
from ..stopping import Reporter, stop_if_requested
from ..storage.atomic import write_with
from ..storage.lease import Lease
from .devices import DeviceLost, Ranks, spawn_workers
from .step import TrainState

#: A checkpoint that takes longer than this, in seconds, is a slow one: gigabytes, or a network file
#: system.
_SLOW_SAVE = 1.0
#: After a slow checkpoint, training goes on for at least this many times as long before the next
#: one, so that checkpoints take at most a twentieth of the time.
_WORK_PER_SAVE = 20
#: Steps between two checks of the loss on a GPU: reading it waits for all that the GPU has queued.
_CHECK_EVERY = 50


@dataclass
class Trained:
    """The result of the loop.

    Attributes:
        classifier: of the last epoch, or of the best one, as `FineTuner.select` says.
        history: one entry per epoch.
        selection: the epoch that was selected on id-val; empty if it is the last one.
        earlier_seconds: training time of earlier attempts of a resumed fit.
        retries: the steps that were repeated with a smaller micro-batch for lack of memory.
    """

    classifier: Classifier
    history: list[dict[str, Any]]
    selection: dict[str, Any]
    earlier_seconds: float
    retries: list[dict[str, int]]


@dataclass
class _Progress:
    """The state of a training apart from tensors. Its fields are the JSON part of a checkpoint."""

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
        start: initial classifier, and the teacher.
        method: loss and recipe.
        batches: the training images; each step takes one global batch, in micro-batches of
            `engine.micro_batch`.
        seed: random numbers depend on it and the step only, so that neither resuming nor the number
            of workers changes a result.
        constants: the result of `method.prepare`.
        score: returns (accuracy, NLL) on id-val; called after each epoch.
        checkpoints: saved every `engine.checkpoint_seconds` (less often if that would take more
            than a twentieth of the time), and when a stop is requested.
        engine: devices and micro-batch.
        reporter: receives progress, and is polled for a stop after every step.
        wanted_part: micro-batch if memory were unlimited; a smaller one of `engine` is recorded.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: a stop was requested and the state is saved.
        DeviceLost: the process of another device was killed.
        BenchError: one image at a time does not fit into memory.
    """
    # Looked up once, before any process starts, so that all resume from the same file.
    saved = checkpoints.newest()
    total = batches.steps_per_epoch * method.epochs
    # A partial and no closure, since it is pickled for the followers.
    train_state = partial(
        TrainState,
        start,
        method,
        total=total,
        seed=seed,
        constants=constants,
        wanted_part=wanted_part,
    )
    follow = partial(_follow, train_state, batches, saved, engine)
    with spawn_workers(follow, engine, reporter, plugin=method_file(type(method))) as ranks:
        loop = _Loop(
            train_state(
                engine=engine, ranks=ranks, warn=lambda text: reporter.event("warning", text=text)
            ),
            ranks,
            batches,
            total,
            score=score,
            checkpoints=checkpoints,
            engine=engine,
            reporter=reporter,
        )
        if saved is not None:
            loop.resume(saved)
        return loop.run()


class _Loop:
    """The loop of the leading process.

    Read `run` first. A training is a sequence of two kinds of work: a step, and the score of an
    epoch. The next one follows from two numbers alone, the steps taken and the epochs scored. So
    resuming is to restore these numbers and the tensors, and to enter the same loop again; there is
    no other path for a training that was interrupted. All random numbers, the order of the images
    included, are functions of the seed and the step, so that nothing else has to be restored and
    the resumed training has the same bits.

    A stop is obeyed between two pieces of work, where the state is consistent, and after a
    checkpoint. (Scoring may be interrupted, since it changes nothing.) Two things are done as
    rarely as possible. The loss is read from a GPU every `_CHECK_EVERY` steps, since that waits for
    the device; but always before a checkpoint, so that a state with a loss that is not finite is
    never saved. And checkpoints are written by the clock, less often where writing is slow.
    """

    def __init__(
        self,
        train_state: TrainState,
        ranks: Ranks,
        batches: TrainBatches,
        total: int,
        *,
        score: Callable[[Classifier], tuple[float, float]],
        checkpoints: Checkpoints,
        engine: Engine,
        reporter: Reporter,
    ) -> None:
        self._train_state, self._student, self._method = (
            train_state,
            train_state.student,
            train_state.method,
        )
        self._ranks, self._batches = ranks, batches.of_part(ranks.rank, ranks.count)
        self._total, self._per_epoch = total, batches.steps_per_epoch
        self._score, self._checkpoints = score, checkpoints
        self._engine, self._reporter = engine, reporter

        self._progress, self._best_weights = _Progress(), dict[str, Tensor]()
        self._earlier_seconds = 0.0
        self._pause = engine.checkpoint_seconds
        self._check_every = 1 if engine.device_type == "cpu" else _CHECK_EVERY
        # Summed on the device, where adding a loss does not wait for it. MPS has no float64.
        exact = torch.float32 if engine.device_type == "mps" else torch.float64
        self._losses = torch.zeros((), dtype=exact, device=engine.device)
        self._clock = _Clock()

    def resume(self, saved: Path) -> None:
        """Restore a checkpoint."""
        self._progress, self._best_weights = _restored(self._train_state, saved)
        self._earlier_seconds = self._progress.seconds
        self._losses.fill_(self._progress.loss_sum)
        self._reporter.event("resumed", step=self._progress.step, total=self._total)
        self._clock.lap()

    def run(self) -> Trained:
        """Train to the last step, and return the selected classifier."""
        while True:
            # Scored here and not behind the last step: a stop may have come in between.
            if len(self._progress.history) < self._progress.step // self._per_epoch:
                self._score_epoch()
            if self._progress.step == self._total:
                return self._result()
            self._train_epoch()

    def _score_epoch(self) -> None:
        # An interrupted score is saved as "not yet scored": the resumed training begins with it.
        progress = self._progress
        try:
            accuracy, nll = self._score(self._student)
        except Interrupted:
            self._save()
            raise
        self._train_state.train_mode()
        entry = {
            "epoch": progress.step // self._per_epoch,
            "loss": progress.loss_sum / self._per_epoch,
            "id_val": accuracy,
            "id_val_nll": nll,
        }
        progress.history.append(entry)
        self._reporter.event(
            "epoch",
            **entry,
            epochs=self._method.epochs,
            seconds=progress.seconds + self._clock.since_lap(),
        )
        self._remember_best(entry)
        progress.loss_sum = 0.0
        self._losses.zero_()
        # After the last epoch there is nothing to resume: the fit is finished instead.
        if self._reporter.stop and progress.step < self._total:
            self._save_and_stop()

    def _remember_best(self, entry: dict[str, Any]) -> None:
        best = self._progress.best
        if self._method.select == "best" and (
            best is None
            or (-entry["id_val"], entry["id_val_nll"]) < (-best["id_val"], best["id_val_nll"])
        ):
            # Cloned, since the next step changes the weights in place. They stay on the device.
            self._progress.best = entry
            self._best_weights = {
                name: tensor.detach().clone() for name, tensor in self._student.state_dict().items()
            }

    def _train_epoch(self) -> None:
        """Take the steps of an epoch that are left."""
        progress = self._progress
        for images, labels in self._batches.epoch(*divmod(progress.step, self._per_epoch)):
            loss = self._take_step(images, labels)
            self._losses += loss
            progress.step += 1
            # Four reasons to read the loss: a stop, a checkpoint that is due, the end of an epoch,
            # whose mean loss is recorded, and the regular check.
            due = self._clock.since_lap() > self._pause
            if (
                self._reporter.stop
                or due
                or progress.step % self._per_epoch == 0
                or progress.step % self._check_every == 0
            ):
                self._check_loss(loss)
                if self._reporter.stop or due:
                    self._save_and_stop()

    def _take_step(self, images: Tensor, labels: Tensor) -> Tensor:
        try:
            self._ranks.advance()
            return self._train_state.step(images, labels, self._progress.step)
        except DeviceLost:
            # On a CPU, a step that failed has changed nothing. On a GPU, weights may be in any
            # state, since what was queued may or may not have run; the last checkpoint has to do.
            if self._engine.device_type == "cpu":
                self._save()
            raise

    def _check_loss(self, loss: Tensor) -> None:
        progress = self._progress
        _check_finite(self._losses, loss, self._train_state, progress.step)
        progress.loss_sum = float(self._losses)
        in_epoch = (progress.step - 1) % self._per_epoch + 1
        self._reporter.event(
            "step", step=progress.step, total=self._total, loss=progress.loss_sum / in_epoch
        )

    def _save_and_stop(self) -> None:
        """Save a checkpoint, then stop if that is why it was saved."""
        self._save()
        stop_if_requested(self._reporter)

    def _save(self) -> None:
        # The time since the last checkpoint counts as soon as it is saved. What is computed after
        # the last checkpoint of a killed process is computed again, and counts once.
        progress = self._progress
        progress.seconds += self._clock.lap()
        progress.retries = self._train_state.retries
        tensors = self._train_state.tensors() | {
            f"kept/{name}": tensor for name, tensor in self._best_weights.items()
        }
        self._checkpoints.save(tensors, progress.__dict__)
        took = self._clock.since_lap()
        self._pause = max(
            self._engine.checkpoint_seconds, _WORK_PER_SAVE * took if took > _SLOW_SAVE else 0.0
        )

    def _result(self) -> Trained:
        best, selection = self._progress.best, dict[str, Any]()
        if self._method.select == "best" and best is not None:
            self._student.load_state_dict(self._best_weights)
            selection = {
                "epoch": {
                    "value": best["epoch"],
                    "id_val": best["id_val"],
                    "among": self._method.epochs,
                }
            }
        return Trained(
            self._student.eval().requires_grad_(True),
            self._progress.history,
            selection,
            self._earlier_seconds,
            self._train_state.retries,
        )


def _follow(
    train_state: Callable[..., TrainState],
    batches: TrainBatches,
    saved: Path | None,
    engine: Engine,
    ranks: Ranks,
    advanced: Callable[[], bool],
) -> None:
    """Take the leader's steps on this process's share of every batch.

    The followers know nothing of epochs, scores and checkpoints: they wait while the leader is
    occupied with these.
    """
    follower = train_state(engine=engine.on(ranks.rank), ranks=ranks)
    step = _restored(follower, saved)[0].step if saved is not None else 0
    for images, labels in batches.of_part(ranks.rank, ranks.count).steps(step):
        if not advanced():
            return
        follower.step(images, labels, step)
        step += 1


def _restored(train_state: TrainState, saved: Path) -> tuple[_Progress, dict[str, Tensor]]:
    """Load a checkpoint into `train_state`; return the progress and the best epoch's weights."""
    tensors, state = read(saved)
    try:
        progress = _Progress(**state)
    except TypeError as error:
        raise BenchError(
            f"the checkpoint was written by another version: {error}",
            where=str(saved),
            fix="start over with --fresh",
        ) from error
    train_state.restore(tensors, progress.retries, progress.step)
    device = next(train_state.student.parameters()).device
    return progress, {
        name.removeprefix("kept/"): t.to(device)
        for name, t in tensors.items()
        if name.startswith("kept/")
    }


def _check_finite(losses: Tensor, loss: Tensor, train_state: TrainState, step: int) -> None:
    # The sum and not the last loss: NaN or infinity in any step since the last check stays in it.
    if not torch.isfinite(losses):
        method, rate = train_state.method, train_state.optimizer.param_groups[0]["lr"]
        raise Diverged(
            f"the loss of {method.name} is {float(loss)} at step {step} (learning rate {rate:.2g},"
            f" precision {method.precision}); this fit is not saved",
            fix="lower `--set lr=...`, raise `--set warmup=...`, or set `--set clip=1`",
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
    """The checkpoints of one fit.

    Args:
        folder: the fit's folder.
        lease: the claim on the fit, checked before every write.
    """

    # Each generation of the lease writes a file of its own. A process that was taken for dead and
    # wakes up again can then not overwrite the checkpoint of the one that took the fit over.

    def __init__(self, folder: Path, lease: Lease) -> None:
        self._folder = folder / "checkpoint"
        self._lease = lease

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace this generation's checkpoint, then delete those of earlier generations.

        Args:
            tensors: by name, on any device.
            state: everything else, as JSON can hold it.

        Raises:
            LeaseLost: another process has taken over the fit.
            BenchError: the disk is full; the old checkpoint remains.
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
        """Return the newest checkpoint of any generation, or None; see `read`."""
        # Generations are padded with zeros, so that the largest name is the newest.
        return max(self._folder.glob("*.safetensors"), default=None)

    def clear(self) -> None:
        """Remove all checkpoints (the fit is finished, or starts over)."""
        for file in self._folder.glob("*"):
            file.unlink(missing_ok=True)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state of a checkpoint.

    Raises:
        BenchError: the file cannot be read.
    """
    # safetensors and not torch.save: reading it runs no code, whoever has written the file.
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            state: dict[str, Any] = json.loads(content.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BenchError(
            f"a checkpoint cannot be read: {error}", where=str(file), fix="start over with --fresh"
        ) from error
    return tensors, state
