"""The task that a method is given: everything it may use, and no way to reach a test set."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

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
from .identity import torch_stream
from .method import FineTuner, HeadInit, Method, Traits
from .stopping import Reporter, stop_if_asked
from .training.loop import train
from .training.memory import available, fitting_part, step_memory, wanted_part

if TYPE_CHECKING:
    from .runs.experiment import Experiment
    from .training.loop import Checkpoints


def standard_error(share: float, images: int) -> float:
    """Estimate the binomial standard error of a share (in [0, 1]) of so many images."""
    return math.sqrt(share * (1 - share) / images)


class Task:
    """One backbone, the training and id-val images of one suite, and a seed.

    Args:
        trains: whether the method says that it looks at images; one that says no is given none.

    Attributes:
        traits: what the backbone offers. classes: C class names. templates: prompt templates.
        seed: of this run. device: where to compute.
    """

    def __init__(self, experiment: Experiment, checkpoints: Checkpoints, reporter: Reporter, *, trains: bool = True) -> None:
        self._experiment = experiment
        self._trains = trains
        self._checkpoints = checkpoints
        self._reporter = reporter
        self.traits: Traits = experiment.traits
        self.classes: tuple[str, ...] = experiment.suite.card.classes
        self.templates: tuple[str, ...] = experiment.suite.card.templates
        self.seed: int = experiment.seed
        self.device: str = experiment.engine.device
        #: what the fit's record keeps
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
        """A fresh copy of the pre-trained image tower."""
        return self._experiment.backbone.image_tower()

    def text(self) -> TextTower:
        """A fresh copy of the text tower.

        Raises:
            UsageError: the backbone has none.
        """
        return self._experiment.text()

    def start(self, init: HeadInit) -> Classifier:
        """The starting classifier: the pre-trained tower with a head of this kind.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        if init == "probe":
            return self.fit(self._experiment.probe)
        return self._experiment.start(init)

    def features(self, split: Literal["train", "id-val"]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Frozen features (N, D) of the pre-trained tower, cached on disk, and labels (N,).

        Raises:
            UsageError: another split was asked for; test images are out of a method's reach.
        """
        if split not in ("train", "id-val"):
            raise UsageError(f"a method may see the splits train and id-val, not `{split}`")
        images = self._images(split)
        return np.array(self._experiment.features(images)), images.labels

    def fit(self, method: Method) -> Classifier:
        """Another method's result on this task, trained once and reused by everyone who asks."""
        self._check_trains(f"fits {method.name}")
        begin = time.monotonic()
        fit = self._experiment.fit(method)
        self.nested_seconds += time.monotonic() - begin
        if fit.record.fit_id not in self.nested:
            self.nested.append(fit.record.fit_id)
        return fit.classifier

    def train(self, start: Classifier, method: FineTuner) -> Classifier:
        """Train `method.loss` from `start`: progress, checkpoints, resume and selection are taken care of. Once per fit.

        Raises:
            Diverged: the loss is not finite. Interrupted: a stop was asked for; the state is saved.
        """
        if self._trained:
            raise UsageError(
                f"{method.name} trains twice within one fit", fix="make the first training a method of its own and use task.fit"
            )
        self._trained = True
        experiment, engine = self._experiment, self._experiment.engine
        parts = engine.devices > 1 or (engine.micro_batch is not None and engine.micro_batch < method.batch_size)
        if method.norm == "train" and parts:
            raise UsageError(
                "batch statistics that are trained depend on the micro-batch and on the number of devices",
                where="norm=train",
                fix="leave --micro-batch and --devices out",
            )
        self.facts |= dict(method.prepare(self, start))
        split = self._images("train")
        engine, wanted = self._parted(method, start, len(split))
        batches = TrainBatches(
            split,
            batch_size=method.batch_size,
            seed=self.seed,
            augment=method.augment,
            size=experiment.backbone.pixels.size,
            workers=self._workers(split, method),
            pin=engine.device_type == "cuda",
        )
        if engine.devices > batches.batch_size:
            raise UsageError(
                f"{engine.devices} devices cannot share a batch of {batches.batch_size} images", fix="fewer --devices"
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
        self.history, self.earlier_seconds, self.retries = trained.history, trained.earlier_seconds, trained.retries
        self.selection |= trained.selection
        return trained.classifier

    def _parted(self, method: FineTuner, start: Classifier, images: int) -> tuple[Engine, int | None]:
        """The engine with the images that fit a forward pass, and how many there would be if memory were no matter.

        A GPU takes all of its share and halves it when memory runs out; a CPU has no such error.

        Raises:
            MissingPrerequisite: memory does not suffice for a step.
        """
        engine, experiment = self._experiment.engine, self._experiment
        if engine.device_type != "cpu":
            return engine, engine.micro_batch
        share = -(-min(method.batch_size, images) // engine.devices)
        wanted = wanted_part(method, share, experiment.default_part, engine.micro_batch)
        memory = step_memory(method, start, experiment.backbone.pixels.size)
        part = fitting_part(method, memory, wanted, available() // engine.devices)
        if part < wanted:
            self._reporter.event(
                "warning", text=f"{size(available())} of memory are free: {part} images at a time instead of {wanted}"
            )
        return replace(engine, micro_batch=part if part < share or engine.micro_batch else None), wanted

    def _workers(self, split: Split, method: FineTuner) -> int:
        engine = self._experiment.engine
        if engine.workers is not None:
            return engine.workers
        cores = engine.cores // engine.devices if engine.cores else available_cores(engine.devices)
        return fitting_workers(split, method.augment, cores, ahead=engine.device_type != "cpu")

    def score(self, classifier: Classifier) -> tuple[float, float]:
        """(score by the suite's metric, NLL in nats) on id-val."""
        split = self._images("id-val")
        logits = logits_of({"it": classifier}, split, self._experiment.engine, lambda done, of: self.stop_if_asked())
        return self.score_logits(logits["it"])

    def score_logits(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """As `score`, for logits (N, C) of the id-val images in the order of `features("id-val")`."""
        split = self._images("id-val")
        metrics = score(logits, split.labels, split.groups, self._experiment.suite.card.metric)
        return metrics.score, metrics.nll

    def choose(self, name: str, candidates: Sequence[tuple[Any, float, float]], *, one_se: bool = False) -> Any:
        """Choose among (value, id-val score, id-val NLL), and record it as a selection.

        Args:
            one_se: the first candidate whose score is within one standard error of the best one's,
                so that no single image decides; list the simplest first. Otherwise the highest
                score, then the lowest NLL, then the first.
        """
        chosen = best = min(candidates, key=lambda candidate: (-candidate[1], candidate[2]))
        if one_se:
            least = best[1] - standard_error(best[1], len(self._images("id-val")))
            chosen = next(candidate for candidate in candidates if candidate[1] >= least)
        self.selection[name] = {"value": chosen[0], "id_val": chosen[1], "among": len(candidates)}
        if one_se:
            self.selection[name] |= {"rule": "one standard error", "best_id_val": best[1]}
        return chosen[0]

    def _images(self, split: Literal["train", "id-val"]) -> Split:
        self._check_trains(f"looks at {split}")
        return self._experiment.split(split)

    def _check_trains(self, what: str) -> None:
        if not self._trains:
            raise UsageError(f"a method that says it trains nothing {what}", fix="take `trains = False` out of its class")

    def stop_if_asked(self) -> None:
        """Call between two pieces of long work of one's own; `train`, `features`, `score` and `fit` do so themselves.

        Raises:
            Interrupted: a stop was asked for.
        """
        stop_if_asked(self._reporter)

    def note(self, **facts: float) -> None:
        """Put measured constants into the fit's record."""
        self.facts |= facts

    def generator(self, purpose: str, *step: int) -> torch.Generator:
        """A CPU generator of its own for this seed, purpose and step."""
        return torch_stream(self.seed, purpose, *step)
