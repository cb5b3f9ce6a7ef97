"""The input of `Method.fit`: everything that a method may use, and no access to test sets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal as size

from .backbones.backbone import ImageTower, TextTower
from .classifier import Classifier
from .data.batches import TrainBatches, fitting_workers
from .data.pixels.cache import available_cores
from .data.split import Split
from .engine import Engine
from .errors import UsageError
from .evaluation.forward import logits_of
from .evaluation.metrics import score
from .fit_setup import Fit, Setup
from .identity import torch_stream
from .method import FineTuner, HeadInit, Method, Traits
from .stopping import Reporter, stop_if_requested
from .training.loop import Checkpoints, train
from .training.memory import available, fitting_part, step_memory, wanted_part


def standard_error(share: float, images: int) -> float:
    """Return the binomial standard error of an accuracy `share` (in [0, 1]) over `images`."""
    return math.sqrt(share * (1 - share) / images)


class Task:
    """One backbone, the training and id-val images of one suite, and a seed.

    Args:
        setup: backbone, suite, seed and machine.
        fit: trains another method on the same setup, or loads the fit if there is one.
        checkpoints: where `train` saves its state.
        reporter: receives progress, and is polled for a stop.
        trains: `Method.trains`. If False, the method gets no images.

    Attributes:
        traits: properties of the backbone.
        classes: C class names.
        templates: prompt templates.
        seed: training seed.
        device: where to compute.
    """

    # A method gets this object and not the setup, so that no test split is used by mistake.

    def __init__(
        self,
        setup: Setup,
        fit: Callable[[Method], Fit],
        checkpoints: Checkpoints,
        reporter: Reporter,
        *,
        trains: bool = True,
    ) -> None:
        self._setup, self._fit = setup, fit
        self._trains = trains
        self._checkpoints = checkpoints
        self._reporter = reporter
        self.traits: Traits = setup.traits
        self.classes: tuple[str, ...] = setup.suite.card.classes
        self.templates: tuple[str, ...] = setup.suite.card.templates
        self.seed: int = setup.seed
        self.device: str = setup.engine.device
        # Everything from here on is collected while the method runs, and becomes part of the fit's
        # record. Seconds of nested fits are counted apart: a fit records its own time only.
        self.facts: dict[str, float] = {}
        self.selection: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.nested: list[str] = []
        self.nested_seconds = 0.0
        self.earlier_seconds = 0.0
        self.retries: list[dict[str, int]] = []
        self.micro_batch: int | None = None
        self._trained = False

    def tower(self) -> ImageTower:
        """Return a fresh copy of the pre-trained image tower."""
        return self._setup.backbone.image_tower()

    def text(self) -> TextTower:
        """Return a fresh copy of the text tower.

        Raises:
            UsageError: the backbone has none.
        """
        return self._setup.text()

    def start(self, init: HeadInit) -> Classifier:
        """Return the starting classifier: the pre-trained tower with a head of kind `init`.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        if init == "probe":
            return self.fit(self._setup.probe)
        return self._setup.start(init)

    def features(
        self, split: Literal["train", "id-val"]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return features (N, D) of the pre-trained tower, cached on disk, and labels (N,).

        Raises:
            UsageError: `split` is a test split, which a method must not see.
        """
        if split not in ("train", "id-val"):
            raise UsageError(f"a method may see the splits train and id-val, not `{split}`")
        images = self._images(split)
        # A copy: the cached array is mapped read-only, which torch.from_numpy warns about.
        return np.array(self._setup.features(images)), images.labels

    def fit(self, method: Method) -> Classifier:
        """Return another method's classifier on this task; it is trained once and then reused."""
        self._check_trains(f"fits {method.name}")
        begin = time.monotonic()
        fit = self._fit(method)
        self.nested_seconds += time.monotonic() - begin
        if fit.record.fit_id not in self.nested:
            self.nested.append(fit.record.fit_id)
        return fit.classifier

    def train(self, start: Classifier, method: FineTuner) -> Classifier:
        """Train `start` with `method.loss`, with checkpoints, resuming and epoch selection.

        May be called once per fit.

        Raises:
            Diverged: the loss is not finite.
            Interrupted: a stop was requested; the state is saved.
            UsageError: called twice, or the options do not fit the method.
        """
        # A fit has one checkpoint, so that a second training would resume from the first one's.
        if self._trained:
            raise UsageError(
                f"{method.name} calls task.train twice within one fit",
                fix="make the first training a method of its own and call task.fit",
            )
        self._trained = True
        # What cannot work is refused before `prepare` and the estimate of memory, which may compute
        # for minutes.
        setup, engine = self._setup, self._setup.engine
        parts = engine.devices > 1 or (
            engine.micro_batch is not None and engine.micro_batch < method.batch_size
        )
        # Each part would normalise by its own statistics: another result than the whole batch.
        if method.norm == "train" and parts:
            raise UsageError(
                "trained batch statistics depend on the micro-batch and on the number of devices",
                where="norm=train",
                fix="omit --micro-batch and --devices",
            )
        self.facts |= dict(method.prepare(self, start))
        split = self._images("train")
        engine, wanted = self._fit_memory(method, start, len(split))
        batches = TrainBatches(
            split,
            batch_size=method.batch_size,
            seed=self.seed,
            augment=method.augment,
            size=setup.backbone.pixels.size,
            workers=self._workers(split, method),
            pin=engine.device_type == "cuda",
        )
        if engine.devices > batches.batch_size:
            raise UsageError(
                f"{engine.devices} devices cannot share a batch of {batches.batch_size} images",
                fix=f"--devices {batches.batch_size}, or fewer",
            )
        trained = train(
            start,
            method,
            batches,
            seed=self.seed,
            constants=self.facts,
            score=self.score,
            checkpoints=self._checkpoints,
            engine=engine,
            reporter=self._reporter,
            wanted_part=wanted,
        )
        self.micro_batch = engine.micro_batch
        self.history, self.earlier_seconds, self.retries = (
            trained.history,
            trained.earlier_seconds,
            trained.retries,
        )
        self.selection |= trained.selection
        return trained.classifier

    def _fit_memory(
        self, method: FineTuner, start: Classifier, images: int
    ) -> tuple[Engine, int | None]:
        """Choose the micro-batch by the memory that is free.

        Returns:
            The engine with its micro-batch, and the micro-batch if memory were unlimited.

        Raises:
            MissingPrerequisite: memory does not suffice for a step.
        """
        # A GPU starts with its whole share and halves it on an out-of-memory error. A CPU raises no
        # such error: the kernel kills the process instead. So there, memory is estimated first.
        engine, setup = self._setup.engine, self._setup
        if engine.device_type != "cpu":
            return engine, engine.micro_batch
        share = -(-min(method.batch_size, images) // engine.devices)
        wanted = wanted_part(method, share, setup.default_part, engine.micro_batch)
        memory = step_memory(method, start, setup.backbone.pixels.size)
        part = fitting_part(method, memory, wanted, available() // engine.devices)
        if part < wanted:
            self._reporter.event(
                "warning",
                text=(
                    f"only {size(available())} of memory are free: computing {part} images at a"
                    f" time instead of {wanted}"
                ),
            )
        # None stands for the whole share, as on a GPU, unless the user gave a number.
        return (
            replace(engine, micro_batch=part if part < share or engine.micro_batch else None),
            wanted,
        )

    def _workers(self, split: Split, method: FineTuner) -> int:
        engine = self._setup.engine
        if engine.workers is not None:
            return engine.workers
        # Each device's process prepares its own share, so that they divide the cores.
        cores = engine.cores // engine.devices if engine.cores else available_cores(engine.devices)
        return fitting_workers(split, method.augment, cores, ahead=engine.device_type != "cpu")

    def score(self, classifier: Classifier) -> tuple[float, float]:
        """Return (score by the suite's metric, NLL in nats) on id-val."""
        split = self._images("id-val")
        logits = logits_of(
            {"model": classifier},
            split,
            self._setup.engine,
            lambda done, of: self.stop_if_requested(),
        )
        return self.score_logits(logits["model"])

    def score_logits(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """Return (score, NLL) of logits (N, C) of id-val, in the order of `features("id-val")`."""
        split = self._images("id-val")
        metrics = score(logits, split.labels, split.groups, self._setup.suite.card.metric)
        return metrics.score, metrics.nll

    def choose(
        self, name: str, candidates: Sequence[tuple[Any, float, float]], *, one_se: bool = False
    ) -> Any:
        """Choose the best candidate on id-val, record the selection, and return its value.

        Without `one_se`: the highest score, then the lowest NLL, then the first.

        Args:
            name: name of the hyper-parameter, in the record.
            candidates: (value, score on id-val, NLL on id-val) each.
            one_se: choose the first candidate whose score is within one standard error of the
                best, so that no single image decides. List the simplest first.
        """
        chosen = best = min(candidates, key=lambda candidate: (-candidate[1], candidate[2]))
        if one_se:
            # By the error of the best score, as usual for this rule (Breiman et al., 1984).
            least = best[1] - standard_error(best[1], len(self._images("id-val")))
            chosen = next(candidate for candidate in candidates if candidate[1] >= least)
        self.selection[name] = {"value": chosen[0], "id_val": chosen[1], "among": len(candidates)}
        if one_se:
            self.selection[name] |= {"rule": "one standard error", "best_id_val": best[1]}
        return chosen[0]

    def _images(self, split: Literal["train", "id-val"]) -> Split:
        self._check_trains(f"reads the images of {split}")
        return self._setup.split(split)

    def _check_trains(self, what: str) -> None:
        if not self._trains:
            raise UsageError(
                f"the method has `trains = False`, but {what}",
                fix="remove `trains = False` from its class",
            )

    def stop_if_requested(self) -> None:
        """Raise Interrupted if a stop was requested.

        Call it between pieces of long work of your own; `train`, `features`, `score` and `fit` do
        so themselves.

        Raises:
            Interrupted: a stop was requested.
        """
        stop_if_requested(self._reporter)

    def note(self, **facts: float) -> None:
        """Add measured constants to the fit's record."""
        self.facts |= facts

    def generator(self, purpose: str, *step: int) -> torch.Generator:
        """Return a CPU generator that depends on the seed, `purpose` and `step` only."""
        return torch_stream(self.seed, purpose, *step)
