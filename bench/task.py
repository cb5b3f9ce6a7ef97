"""The task that a method is given: everything it may use, and no way to reach a test set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal as size
from safetensors.torch import load_file, save_file

from .backbones.backbone import Backbone, Head, ImageTower, TextTower, zero_shot_head
from .classifier import Classifier
from .configure import build_method
from .data.batches import TrainBatches, fitting_workers
from .data.cards.suite_card import Known
from .data.pixels.cache import available_cores
from .data.split import Split
from .data.suite import Suite
from .engine import Engine
from .errors import UsageError
from .evaluation.forward import LIBRARIES, frozen_features, logits_of
from .evaluation.metrics import score
from .identity import PROTOCOL_VERSION, digest, torch_stream
from .method import FineTuner, HeadInit, Method, Traits
from .results.store import FitRecord
from .spec import PROBE
from .stopping import Reporter, stop_if_asked
from .storage.atomic import locked, write_with
from .training.loop import Checkpoints, train
from .training.memory import available, default_part, fitting_part, step_memory, wanted_part


def standard_error(share: float, images: int) -> float:
    """Estimate the binomial standard error of a share (in [0, 1]) of so many images."""
    return math.sqrt(share * (1 - share) / images)


@dataclass(frozen=True)
class Fit:
    """A finished fit: its record and its classifier."""

    record: FitRecord
    classifier: Classifier


@dataclass(frozen=True, eq=False)
class Setup:
    """One backbone on one suite with one seed, and the machine: what methods, identities and
    evaluation look at.

    Attributes:
        suite: opened; its splits are loaded when first used.
        seed: of training.
        cache: folder for frozen features.
        shots: train on this many images per class, drawn by the seed; None trains on all.
    """

    backbone: Backbone
    suite: Suite
    seed: int
    engine: Engine
    reporter: Reporter
    cache: Path
    shots: int | None = None

    @cached_property
    def traits(self) -> Traits:
        """What the backbone offers on this suite."""
        native = self.backbone.native_head(self.suite.card.identities) is not None
        return Traits(text=self.backbone.has_text, native=native, layout=self.backbone.layout)

    @cached_property
    def probe(self) -> Method:
        """The method behind `head_init = probe`, with the suite's recipe, resolved."""
        return build_method(PROBE, {}, self.suite.card.recipe).resolved(self.traits)

    @cached_property
    def default_part(self) -> int:
        """Images that a CPU takes at a time in training; see
        `bench.training.memory.default_part`.
        """
        return default_part(self.backbone.image_tower(), self.backbone.pixels.size)

    def text(self) -> TextTower:
        """A fresh copy of the text tower.

        Raises:
            UsageError: the backbone has none.
        """
        text = self.backbone.text_tower()
        if text is None:
            raise UsageError(
                f"{self.backbone.name} has no text tower, so there is no zero-shot head",
                fix=(
                    "start from the probe or a random head (`--set head_init=probe`), or use a CLIP"
                    " backbone"
                ),
            )
        return text

    def start(self, init: HeadInit) -> Classifier:
        """The pre-trained tower with a head of this kind, but for `probe`, which has to be fitted.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        classes, tower = self.suite.card.classes, self.backbone.image_tower()
        if init == "zero-shot":
            head = self.zero_shot_head(self.text(), self.backbone.weights_sha256)
        elif init == "native":
            native = self.backbone.native_head(self.suite.card.identities)
            if native is None:
                raise UsageError(
                    f"{self.backbone.name} was not trained on the classes of"
                    f" {self.suite.card.name}, so it has no native head",
                    fix="`--set head_init=probe` or `--set head_init=random`",
                )
            head = native
        else:
            bound = tower.dim**-0.5  # as torch.nn.Linear initialises
            weight = torch.empty(len(classes), tower.dim).uniform_(
                -bound, bound, generator=torch_stream(self.seed, "head")
            )
            head = Head(weight, normalize=self.traits.text)
        return Classifier(tower, head)

    def zero_shot_head(self, text: TextTower, weights: str) -> Head:
        """Built once for these weights, names and prompts, and kept: ImageNet's 80,000 prompts take
        minutes to hours.

        Args:
            weights: hash of what `text` is part of.
        """
        card = self.suite.card
        key = digest(
            {
                "weights": weights,
                "classes": list(card.classes),
                "templates": list(card.templates),
                "arithmetic": [self.engine.device_type, self.engine.threads],
                "libraries": [version(name) for name in LIBRARIES],
                "protocol": PROTOCOL_VERSION,
            }
        )

        def told(done: int, of: int) -> None:
            self.reporter.event("data", what="embedding prompts", done=done, of=of, unit="prompts")
            stop_if_asked(self.reporter)

        path = self.cache / "heads" / f"{key[:32]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, lambda: stop_if_asked(self.reporter)):
            if not path.exists():
                head = zero_shot_head(
                    text, card.classes, card.templates, device=self.engine.device, progress=told
                )
                write_with(
                    path,
                    lambda temporary: save_file(
                        {"weight": head.weight.detach().contiguous()}, temporary
                    ),
                )
            return Head(load_file(path)["weight"], normalize=True)

    def is_frozen(self, tower: ImageTower) -> bool:
        """Whether a tower's weights are those of the pre-trained one."""
        mine = tower.state_dict()
        return mine.keys() == self._pretrained.keys() and all(
            torch.equal(tensor.cpu(), self._pretrained[name]) for name, tensor in mine.items()
        )

    def known_accuracies(self, classifier: Classifier) -> Known | None:
        """What is published on this backbone's classifier without fine-tuning (zero-shot, or its
        own head), if the card says so and `classifier` is that one.
        """
        known = next(
            (one for one in self.suite.card.known if self.backbone.name in one.backbones), None
        )
        if known is None or not self.is_frozen(classifier.tower):
            return None
        if not (self.traits.text or self.traits.native):
            return None
        start, head = (
            self.start("zero-shot" if self.traits.text else "native").head,
            classifier.head,
        )
        same = start.normalize == head.normalize and all(
            torch.equal(tensor.cpu(), start.state_dict()[name])
            for name, tensor in head.state_dict().items()
        )
        return known if same else None

    @cached_property
    def _pretrained(self) -> dict[str, torch.Tensor]:
        return self.backbone.image_tower().state_dict()

    def features(self, split: Split) -> NDArray[np.float32]:
        """Features (N, D) of the pre-trained tower on a split, cached on disk (read-only,
        memory-mapped).
        """
        return frozen_features(
            self.backbone, split, self.engine, self.cache, lambda: stop_if_asked(self.reporter)
        )

    def split(self, name: str) -> Split:
        """A split at the backbone's pixels."""
        return self.suite.load(name, self.backbone.pixels, self._shots(name))

    def fingerprint(self, name: str) -> str:
        """That of a split, without decoding it."""
        return self.suite.fingerprint(name, self.backbone.pixels, self._shots(name))

    def count(self, name: str) -> int:
        """Images of a split, without decoding it."""
        return self.suite.count(name, self._shots(name))

    def _shots(self, split: str) -> tuple[int, int] | None:
        return (self.shots, self.seed) if self.shots is not None and split == "train" else None

    def pixels_of(self, split: str) -> str:
        """Name of the preprocessing of a split's images."""
        return self.suite.pixels_of(split, self.backbone.pixels).name

    def waiting(self, claim: dict[str, Any]) -> None:
        """Told while another process holds what this one wants; gives up if a stop was asked
        for.
        """
        self.reporter.event("waiting", pid=claim.get("pid"), host=claim.get("host"))
        stop_if_asked(self.reporter)


class Task:
    """One backbone, the training and id-val images of one suite, and a seed.

    Args:
        fit: trains another method here, or finds it trained.
        trains: whether the method says that it looks at images; one that says no is given none.

    Attributes:
        traits: what the backbone offers. classes: C class names. templates: prompt templates.
        seed: of this run. device: where to compute.
    """

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
        return self._setup.backbone.image_tower()

    def text(self) -> TextTower:
        """A fresh copy of the text tower.

        Raises:
            UsageError: the backbone has none.
        """
        return self._setup.text()

    def start(self, init: HeadInit) -> Classifier:
        """The starting classifier: the pre-trained tower with a head of this kind.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        if init == "probe":
            return self.fit(self._setup.probe)
        return self._setup.start(init)

    def features(
        self, split: Literal["train", "id-val"]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Frozen features (N, D) of the pre-trained tower, cached on disk, and labels (N,).

        Raises:
            UsageError: another split was asked for; test images are out of a method's reach.
        """
        if split not in ("train", "id-val"):
            raise UsageError(f"a method may see the splits train and id-val, not `{split}`")
        images = self._images(split)
        return np.array(self._setup.features(images)), images.labels

    def fit(self, method: Method) -> Classifier:
        """Another method's result on this task, trained once and reused by everyone who asks."""
        self._check_trains(f"fits {method.name}")
        begin = time.monotonic()
        fit = self._fit(method)
        self.nested_seconds += time.monotonic() - begin
        if fit.record.fit_id not in self.nested:
            self.nested.append(fit.record.fit_id)
        return fit.classifier

    def train(self, start: Classifier, method: FineTuner) -> Classifier:
        """Train `method.loss` from `start`: progress, checkpoints, resume and selection are taken
        care of. Once per fit.

        Raises:
            Diverged: the loss is not finite.
            Interrupted: a stop was asked for; the state is saved.
        """
        if self._trained:
            raise UsageError(
                f"{method.name} trains twice within one fit",
                fix="make the first training a method of its own and use task.fit",
            )
        self._trained = True
        setup, engine = self._setup, self._setup.engine
        parts = engine.devices > 1 or (
            engine.micro_batch is not None and engine.micro_batch < method.batch_size
        )
        if method.norm == "train" and parts:
            raise UsageError(
                "batch statistics that are trained depend on the micro-batch and on the number of"
                " devices",
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
            size=setup.backbone.pixels.size,
            workers=self._workers(split, method),
            pin=engine.device_type == "cuda",
        )
        if engine.devices > batches.batch_size:
            raise UsageError(
                f"{engine.devices} devices cannot share a batch of {batches.batch_size} images",
                fix="fewer --devices",
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

    def _parted(
        self, method: FineTuner, start: Classifier, images: int
    ) -> tuple[Engine, int | None]:
        """The engine with the images that fit a forward pass, and how many there would be if memory
        were no matter.

        A GPU takes all of its share and halves it when memory runs out; a CPU has no such error.

        Raises:
            MissingPrerequisite: memory does not suffice for a step.
        """
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
                    f"{size(available())} of memory are free: {part} images at a time instead of"
                    f" {wanted}"
                ),
            )
        return (
            replace(engine, micro_batch=part if part < share or engine.micro_batch else None),
            wanted,
        )

    def _workers(self, split: Split, method: FineTuner) -> int:
        engine = self._setup.engine
        if engine.workers is not None:
            return engine.workers
        cores = engine.cores // engine.devices if engine.cores else available_cores(engine.devices)
        return fitting_workers(split, method.augment, cores, ahead=engine.device_type != "cpu")

    def score(self, classifier: Classifier) -> tuple[float, float]:
        """(score by the suite's metric, NLL in nats) on id-val."""
        split = self._images("id-val")
        logits = logits_of(
            {"it": classifier}, split, self._setup.engine, lambda done, of: self.stop_if_asked()
        )
        return self.score_logits(logits["it"])

    def score_logits(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """As `score`, for logits (N, C) of the id-val images in the order of
        `features("id-val")`.
        """
        split = self._images("id-val")
        metrics = score(logits, split.labels, split.groups, self._setup.suite.card.metric)
        return metrics.score, metrics.nll

    def choose(
        self, name: str, candidates: Sequence[tuple[Any, float, float]], *, one_se: bool = False
    ) -> Any:
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
        return self._setup.split(split)

    def _check_trains(self, what: str) -> None:
        if not self._trains:
            raise UsageError(
                f"a method that says it trains nothing {what}",
                fix="take `trains = False` out of its class",
            )

    def stop_if_asked(self) -> None:
        """Call between two pieces of long work of one's own; `train`, `features`, `score` and `fit`
        do so themselves.

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
