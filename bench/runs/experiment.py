"""One backbone on one suite with one seed: fits methods through the store, each distinct one once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ..backbones.backbone import Backbone, Head, ImageTower, TextTower, load_backbone, zero_shot_head
from ..classifier import Classifier
from ..configure import build_method
from ..data.cards.locations import cache_dir
from ..data.cards.suite_card import Known, SuiteCard, find_card
from ..data.split import Split
from ..data.suite import Suite, open_suite
from ..engine import Engine, default_device
from ..errors import Diverged, UsageError
from ..evaluation.forward import LIBRARIES, frozen_features
from ..identity import PROTOCOL_VERSION, digest, tensors_sha256, torch_stream
from ..method import HeadInit, Method, Traits
from ..results.provenance import peak_memory_mb, provenance, reset_peak_memory
from ..results.store import LOG, FitRecord, Store, store_root
from ..spec import PROBE, RunSpec
from ..stopping import PassedOn, Reporter, stop_if_asked
from ..storage.atomic import locked, write_with
from ..storage.lease import Lease
from ..task import Task
from ..training.loop import Checkpoints
from ..training.memory import default_part


@dataclass(frozen=True)
class Fit:
    """A finished fit: its record and its classifier."""

    record: FitRecord
    classifier: Classifier


class Experiment:
    """Everything that a run shares with its nested fits.

    Args:
        suite: opened; its splits are loaded when first used. seed: of training. cache: folder for frozen features.
        shots: train on this many images per class, drawn by the seed; None trains on all.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        suite: Suite,
        seed: int,
        store: Store,
        engine: Engine,
        reporter: Reporter,
        cache: Path,
        shots: int | None = None,
    ) -> None:
        self.backbone, self.suite, self.seed, self.shots = backbone, suite, seed, shots
        self.store, self.engine, self.reporter, self.cache = store, engine, reporter, cache

    def with_seed(self, seed: int) -> Experiment:
        """The same backbone, suite and store with another seed."""
        return Experiment(
            backbone=self.backbone,
            suite=self.suite,
            seed=seed,
            store=self.store,
            engine=self.engine,
            reporter=self.reporter,
            cache=self.cache,
            shots=self.shots,
        )

    @cached_property
    def traits(self) -> Traits:
        """What the backbone offers on this suite."""
        native = self.backbone.native_head(self.suite.card.identities) is not None
        return Traits(text=self.backbone.has_text, native=native, layout=self.backbone.layout)

    @cached_property
    def probe(self) -> Method:
        """The method behind `head_init = probe`, with the suite's recipe."""
        return build_method(PROBE, {}, self.suite.card.recipe)

    @cached_property
    def default_part(self) -> int:
        """Images that a CPU takes at a time in training; see `bench.training.memory.default_part`."""
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
                fix="start from the probe or a random head (`--set head_init=probe`), or use a CLIP backbone",
            )
        return text

    def start(self, init: HeadInit) -> Classifier:
        """The pre-trained tower with a head of this kind.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        if init == "probe":
            return self.fit(self.probe).classifier
        classes, tower = self.suite.card.classes, self.backbone.image_tower()
        if init == "zero-shot":
            head = self.zero_shot_head(self.text(), self.backbone.weights_sha256)
        elif init == "native":
            native = self.backbone.native_head(self.suite.card.identities)
            if native is None:
                raise UsageError(
                    f"{self.backbone.name} was not trained on the classes of {self.suite.card.name}, so it has no native head",
                    fix="`--set head_init=probe` or `--set head_init=random`",
                )
            head = native
        else:
            bound = tower.dim**-0.5  # as torch.nn.Linear initialises
            weight = torch.empty(len(classes), tower.dim).uniform_(-bound, bound, generator=torch_stream(self.seed, "head"))
            head = Head(weight, normalize=self.traits.text)
        return Classifier(tower, head)

    def zero_shot_head(self, text: TextTower, weights: str) -> Head:
        """Built once for these weights, names and prompts, and kept: ImageNet's 80,000 prompts take minutes to hours.

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
                head = zero_shot_head(text, card.classes, card.templates, device=self.engine.device, progress=told)
                write_with(path, lambda temporary: save_file({"weight": head.weight.detach().contiguous()}, temporary))
            return Head(load_file(path)["weight"], normalize=True)

    def is_frozen(self, tower: ImageTower) -> bool:
        """Whether a tower's weights are those of the pre-trained one."""
        mine = tower.state_dict()
        return mine.keys() == self._pretrained.keys() and all(
            torch.equal(tensor.cpu(), self._pretrained[name]) for name, tensor in mine.items()
        )

    def known_accuracies(self, classifier: Classifier) -> Known | None:
        """What is published on this backbone's classifier without fine-tuning (zero-shot, or its own head), if the card says so
        and `classifier` is that one."""
        known = next((one for one in self.suite.card.known if self.backbone.name in one.backbones), None)
        if known is None or not self.is_frozen(classifier.tower):
            return None
        if not (self.traits.text or self.traits.native):
            return None
        start, head = self.start("zero-shot" if self.traits.text else "native").head, classifier.head
        same = start.normalize == head.normalize and all(
            torch.equal(tensor.cpu(), start.state_dict()[name]) for name, tensor in head.state_dict().items()
        )
        return known if same else None

    @cached_property
    def _pretrained(self) -> dict[str, torch.Tensor]:
        return self.backbone.image_tower().state_dict()

    def features(self, split: Split) -> NDArray[np.float32]:
        """Features (N, D) of the pre-trained tower on a split, cached on disk (read-only, memory-mapped)."""
        return frozen_features(self.backbone, split, self.engine, self.cache, lambda: stop_if_asked(self.reporter))

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

    def identity(self, method: Method) -> dict[str, Any]:
        """Everything that shapes the weights of `method` here; the fit_id is its hash."""
        card = self.suite.card
        method = method.resolved(self.traits)
        return {
            "protocol": PROTOCOL_VERSION,
            "method": method.identity(),
            "probe": self.probe.resolved(self.traits).identity() if _starts_from_probe(method) else None,
            "backbone": self.backbone.weights_sha256,
            "pixels": self.backbone.pixels.name,
            "train": self.fingerprint("train") if method.trains else None,
            "id_val": self.fingerprint("id-val") if method.trains else None,
            "classes": digest(list(card.classes)),
            "templates": digest(list(card.templates)),
            "metric": card.metric,
            "seed": self.seed,
        }

    def fit_id(self, method: Method) -> str:
        """Name of the fit: 24 hexadecimal digits."""
        return digest(self.identity(method))[:24]

    def fit(self, method: Method) -> Fit:
        """Train, or load what the store has. A live fit of another process is waited for; a dead one is continued.

        Raises:
            BenchError: as `Method.fit`; a failed fit is not kept, its checkpoint is.
        """
        stop_if_asked(self.reporter)
        method = method.resolved(self.traits)
        fit_id = self.fit_id(method)
        record = self.store.fit(fit_id)
        if record is not None:
            self.reporter.event("reused", method=method.name, fit_id=fit_id)
            return Fit(record, self.load(record))
        folder = self.store.fit_dir(fit_id)
        with Lease(folder, waiting=self.waiting) as lease:
            record = self.store.fit(fit_id)
            if record is not None:
                return Fit(record, self.load(record))
            return self._train(method, fit_id, lease)

    def _train(self, method: Method, fit_id: str, lease: Lease) -> Fit:
        folder = self.store.fit_dir(fit_id)
        checkpoints = Checkpoints(folder, lease)
        task = Task(self, checkpoints, LoggedReporter(self.reporter, folder / LOG), trains=method.trains)
        reset_peak_memory(self.engine)
        self.reporter.event("fit", method=method.name, fit_id=fit_id, seed=self.seed)
        start = time.monotonic()
        classifier = method.fit(task).to("cpu").eval()
        _check_weights(method, classifier)
        nested = self._closure(task.nested)
        # Own time is what was not spent in nested fits; the loop's clock adds what earlier attempts of a resumed fit took.
        seconds = time.monotonic() - start - task.nested_seconds + task.earlier_seconds
        record = FitRecord(
            fit_id=fit_id,
            identity=self.identity(method),
            weights=f"weights-{lease.generation:06d}.safetensors",
            weights_sha256=tensors_sha256(classifier.named_weights()),
            normalize=classifier.head.normalize,
            seconds=seconds,
            nested=task.nested,
            total_seconds=seconds + sum(record.seconds for record in nested),
            facts=task.facts,
            selection=task.selection,
            history=task.history,
            retries=task.retries,
            micro_batch=task.micro_batch,
            peak_memory_mb=peak_memory_mb(self.engine),
            provenance=provenance(self.engine),
        )
        self.store.commit_fit(record, classifier, lease)
        checkpoints.clear()
        kept = self.store.fit(fit_id)
        assert kept is not None
        if kept.weights_sha256 != record.weights_sha256:
            return Fit(kept, self.load(kept))
        return Fit(kept, classifier)

    def selections(self, record: FitRecord) -> dict[str, Any]:
        """What was chosen on id-val for a fit and, by their method's name, for the fits that it is made of."""
        nested = {
            f"{fit.identity['method']['name']}.{name}": chosen
            for fit in reversed(self._closure(record.nested))
            for name, chosen in fit.selection.items()
        }
        return record.selection | nested

    def _closure(self, fit_ids: list[str]) -> list[FitRecord]:
        """The records of these fits and of all that they used, each once."""
        found: dict[str, FitRecord] = {}
        waiting = list(fit_ids)
        while waiting:
            fit_id = waiting.pop()
            record = None if fit_id in found else self.store.fit(fit_id)
            if record is not None:
                found[fit_id] = record
                waiting += record.nested
        return list(found.values())

    def load(self, record: FitRecord) -> Classifier:
        """The classifier of a finished fit.

        Raises:
            BenchError: its weights are missing or damaged.
        """
        tower = self.backbone.image_tower()
        head = Head(torch.zeros(len(self.suite.card.classes), tower.dim), normalize=record.normalize)
        return self.store.load_weights(record, Classifier(tower, head))

    def waiting(self, claim: dict[str, Any]) -> None:
        """Told while another process holds what this one wants; gives up if a stop was asked for."""
        self.reporter.event("waiting", pid=claim.get("pid"), host=claim.get("host"))
        stop_if_asked(self.reporter)


def _starts_from_probe(method: Method) -> bool:
    """Whether the method, or one nested in it, starts from the probe's head, which then shapes its weights."""
    values = [getattr(method, key) for key in type(method).model_fields]
    return getattr(method, "head_init", None) == "probe" or any(_starts_from_probe(v) for v in values if isinstance(v, Method))


def _check_weights(method: Method, classifier: Classifier) -> None:
    """A result is finite or it is no result: a last step may spoil weights that no later loss looks at."""
    for name, tensor in classifier.named_weights().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Diverged(f"{method.name} ended with weights that are not finite: {name}", fix="lower `--set lr=...`")


class LoggedReporter(PassedOn):
    """Passes events on and appends those that tell how training went to a fit's `log.jsonl`."""

    def __init__(self, to: Reporter, path: Path) -> None:
        super().__init__(to)
        self._path = path

    def event(self, kind: str, **fields: Any) -> None:
        """Pass on; log epochs and resumptions."""
        if kind in ("epoch", "resumed"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"time": time.time(), "event": kind, **fields}) + "\n"
            with self._path.open("ab+") as file:
                file.seek(max(0, file.tell() - 1))
                torn = file.read(1) not in (b"", b"\n")  # its writer was killed in mid-line
                file.write(b"\n" * torn + line.encode())
        super().event(kind, **fields)


def backbone_of(card: SuiteCard, asked: str | None) -> str:
    """Name the backbone to run a suite on: the one that is asked for, else the card's own.

    Raises:
        UsageError: neither names one. The miniature's would do, 48 pixels wide, and mean nothing.
    """
    if named := asked or card.backbone:
        return named
    raise UsageError(
        f"no backbone is named, and the suite {card.name} has none of its own",
        fix='--backbone NAME (`bench backbones` lists them), or `backbone = "NAME"` in the card',
    )


def experiments(
    spec: RunSpec,
    *,
    store: Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    training: bool = True,
) -> list[Experiment]:
    """The spec's backbone and suite, opened, once per seed; nothing is trained.

    Args:
        training: whether somebody will train; without, the training images and id-val may be missing.

    Raises:
        UsageError: a name is wrong. MissingPrerequisite: data or weights are not here.
    """
    reporter = reporter or Reporter()
    card, card_path = find_card(spec.suite)
    engine = engine or Engine(device=default_device())
    engine.apply()

    def told(what: str, done: int, of: int) -> None:
        reporter.event("data", what=what, done=done, of=of)
        stop_if_asked(reporter)

    backbone = load_backbone(backbone_of(card, spec.backbone))
    suite = open_suite(
        card,
        card_path=card_path,
        data_root=spec.data_root,
        limit=spec.limit,
        skip_unreadable=spec.skip_unreadable,
        training=training,
        progress=told,
    )
    for warning in suite.warnings:
        reporter.event("warning", text=warning)
    root = Store(store_root(store))
    return [
        Experiment(
            backbone=backbone,
            suite=suite,
            seed=seed,
            store=root,
            engine=engine,
            reporter=reporter,
            cache=cache_dir(),
            shots=spec.shots,
        )
        for seed in spec.seeds
    ]
