"""The input of `Method.fit`: everything that a method may use, and no access to test sets."""

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
from .run_spec import PROBE
from .stopping import Reporter, stop_if_requested
from .storage.atomic import locked, write_with
from .training.loop import Checkpoints, train
from .training.memory import available, default_part, fitting_part, step_memory, wanted_part


def standard_error(share: float, images: int) -> float:
    """Return the binomial standard error of an accuracy `share` (in [0, 1]) over `images`."""
    return math.sqrt(share * (1 - share) / images)


@dataclass(frozen=True)
class Fit:
    """A finished fit: its record and its classifier."""

    record: FitRecord
    classifier: Classifier


@dataclass(frozen=True, eq=False)
class Setup:
    """One backbone on one suite with one seed, and the machine that computes.

    Attributes:
        backbone: the pre-trained model.
        suite: an opened suite; its splits are loaded when first used.
        seed: training seed.
        engine: devices, threads and batch sizes.
        reporter: receives progress, and is polled for a stop.
        cache: folder for frozen features and zero-shot heads.
        shots: training images per class, sampled with the seed; None trains on all.
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
        """Properties of the backbone on this suite."""
        # Of the suite too: a native head counts only if it is for exactly these classes.
        native = self.backbone.native_head(self.suite.card.identities) is not None
        return Traits(text=self.backbone.has_text, native=native, layout=self.backbone.layout)

    @cached_property
    def probe(self) -> Method:
        """The method behind `head_init = probe`, with the suite's recipe, bound to the backbone."""
        # One for all methods that start from a probe, so that they share a single fit.
        return build_method(PROBE, {}, self.suite.card.recipe).bind(self.traits)

    @cached_property
    def default_part(self) -> int:
        """Images per forward pass in training on a CPU; see `training.memory.default_part`."""
        return default_part(self.backbone.image_tower(), self.backbone.pixels.size)

    def text(self) -> TextTower:
        """Return a fresh copy of the text tower.

        Raises:
            UsageError: the backbone has none.
        """
        text = self.backbone.text_tower()
        if text is None:
            raise UsageError(
                f"{self.backbone.name} has no text tower, so there is no zero-shot head",
                fix=(
                    "start from a linear probe (`--set head_init=probe`) or from a random head"
                    " (`--set head_init=random`), or use a CLIP backbone"
                ),
            )
        return text

    def start(self, init: HeadInit) -> Classifier:
        """Return the pre-trained tower with an initial head of kind `init`.

        Not for `probe`, which has to be fitted: see `Task.start`.

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
                    fix="start from another head: `--set head_init=probe` or `head_init=random`",
                )
            head = native
        else:
            # The bound of torch.nn.Linear, but from a stream of our own: torch's global generator
            # would make the head depend on what was sampled before.
            bound = tower.dim**-0.5
            weight = torch.empty(len(classes), tower.dim).uniform_(
                -bound, bound, generator=torch_stream(self.seed, "head")
            )
            head = Head(weight, normalize=self.traits.text)
        return Classifier(tower, head)

    def zero_shot_head(self, text: TextTower, weights: str) -> Head:
        """Build the head whose rows are embeddings of class prompts, or load it from the cache.

        Args:
            text: the text tower.
            weights: hash of the weights that `text` belongs to.
        """
        # ImageNet's 80,000 prompts take minutes on a GPU and hours on a CPU, hence the cache. The
        # key covers whatever changes the last bits of an embedding, libraries and threads included.
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

        def on_progress(done: int, of: int) -> None:
            self.reporter.event("data", what="embedding prompts", done=done, of=of, unit="prompts")
            stop_if_requested(self.reporter)

        path = self.cache / "heads" / f"{key[:32]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Trials of a sweep start at the same time: one builds the head, the others wait for it.
        with locked(path, lambda: stop_if_requested(self.reporter)):
            if not path.exists():
                head = zero_shot_head(
                    text,
                    card.classes,
                    card.templates,
                    device=self.engine.device,
                    progress=on_progress,
                )
                write_with(
                    path,
                    lambda temporary: save_file(
                        {"weight": head.weight.detach().contiguous()}, temporary
                    ),
                )
            return Head(load_file(path)["weight"], normalize=True)

    def is_frozen(self, tower: ImageTower) -> bool:
        """Return whether a tower's weights equal those of the pre-trained one."""
        mine = tower.state_dict()
        return mine.keys() == self._pretrained.keys() and all(
            torch.equal(tensor.cpu(), self._pretrained[name]) for name, tensor in mine.items()
        )

    def known_accuracies(self, classifier: Classifier) -> Known | None:
        """Return the published accuracies of `classifier`, or None if there are none.

        The card has them for some backbones without fine-tuning, with the zero-shot head or the
        backbone's own. They apply only if `classifier` is exactly that one.
        """
        # Weights are compared and not names: a checkpoint of the same architecture has other ones.
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
        """Return features (N, D) of the pre-trained tower: cached, memory-mapped, read-only."""
        return frozen_features(
            self.backbone, split, self.engine, self.cache, lambda: stop_if_requested(self.reporter)
        )

    def split(self, name: str) -> Split:
        """Return a split, preprocessed for the backbone."""
        return self.suite.load(name, self.backbone.pixels, self._shots(name))

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of a split, without decoding its images."""
        return self.suite.fingerprint(name, self.backbone.pixels, self._shots(name))

    def count(self, name: str) -> int:
        """Return the number of images of a split, without decoding them."""
        return self.suite.count(name, self._shots(name))

    # Few-shot training restricts the training split only: id-val and the test splits stay those of
    # every other run, so that their accuracies can be compared.
    def _shots(self, split: str) -> tuple[int, int] | None:
        return (self.shots, self.seed) if self.shots is not None and split == "train" else None

    def pixels_of(self, split: str) -> str:
        """Return the name of the preprocessing of a split's images."""
        return self.suite.pixels_of(split, self.backbone.pixels).name

    def waiting(self, claim: dict[str, Any]) -> None:
        """Report that another process holds the lease `claim`, and stop if requested.

        Raises:
            Interrupted: a stop was requested.
        """
        self.reporter.event("waiting", pid=claim.get("pid"), host=claim.get("host"))
        stop_if_requested(self.reporter)


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
