"""What a fit is made of: one backbone on one suite with one seed, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from .backbones.backbone import Backbone, Head, ImageTower, TextTower, zero_shot_head
from .classifier import Classifier
from .configure import build_method
from .data.cards.suite_card import Known
from .data.split import Split
from .data.suite import Suite
from .engine import Engine
from .errors import UsageError
from .evaluation.forward import LIBRARIES, frozen_features
from .identity import PROTOCOL_VERSION, digest, torch_stream
from .method import HeadInit, Method, Traits
from .results.store import FitRecord
from .run_spec import PROBE
from .stopping import Reporter, stop_if_requested
from .storage.atomic import locked, write_with
from .training.memory import default_part


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
