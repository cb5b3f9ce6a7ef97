"""One backbone on one suite with one seed: fits methods through the store, each distinct one
once.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..backbones.backbone import Head, load_backbone
from ..classifier import Classifier
from ..data.cards.locations import cache_dir
from ..data.cards.suite_card import SuiteCard, find_card
from ..data.suite import open_suite
from ..engine import Engine, default_device
from ..errors import Diverged, UsageError
from ..identity import PROTOCOL_VERSION, digest, tensors_sha256
from ..method import HeadInit, Method
from ..results.provenance import peak_memory_mb, provenance, reset_peak_memory
from ..results.store import LOG, FitRecord, Store, store_root
from ..spec import RunSpec
from ..stopping import PassedOn, Reporter, stop_if_asked
from ..storage.lease import Lease
from ..task import Fit, Setup, Task
from ..training.loop import Checkpoints


class Experiment:
    """A setup and the store that its fits are kept in: every distinct fit is trained once."""

    def __init__(self, setup: Setup, store: Store) -> None:
        self.setup, self.store = setup, store

    def with_seed(self, seed: int) -> Experiment:
        """The same backbone, suite and store with another seed."""
        return Experiment(replace(self.setup, seed=seed), self.store)

    def start(self, init: HeadInit) -> Classifier:
        """The pre-trained tower with a head of this kind.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        return self.fit(self.setup.probe).classifier if init == "probe" else self.setup.start(init)

    def identity(self, method: Method) -> dict[str, Any]:
        """Everything that shapes the weights of `method` here; the fit_id is its hash."""
        card = self.setup.suite.card
        method = method.resolved(self.setup.traits)
        return {
            "protocol": PROTOCOL_VERSION,
            "method": method.identity(),
            "probe": self.setup.probe.identity() if _starts_from_probe(method) else None,
            "backbone": self.setup.backbone.weights_sha256,
            "pixels": self.setup.backbone.pixels.name,
            "train": self.setup.fingerprint("train") if method.trains else None,
            "id_val": self.setup.fingerprint("id-val") if method.trains else None,
            "classes": digest(list(card.classes)),
            "templates": digest(list(card.templates)),
            "metric": card.metric,
            "seed": self.setup.seed,
        }

    def fit_id(self, method: Method) -> str:
        """Name of the fit: 24 hexadecimal digits."""
        return digest(self.identity(method))[:24]

    def fit(self, method: Method) -> Fit:
        """Train, or load what the store has. A live fit of another process is waited for; a dead
        one is continued.

        Raises:
            BenchError: as `Method.fit`; a failed fit is not kept, its checkpoint is.
        """
        stop_if_asked(self.setup.reporter)
        method = method.resolved(self.setup.traits)
        fit_id = self.fit_id(method)
        record = self.store.fit(fit_id)
        if record is not None:
            self.setup.reporter.event("reused", method=method.name, fit_id=fit_id)
            return Fit(record, self.load(record))
        folder = self.store.fit_dir(fit_id)
        with Lease(folder, waiting=self.setup.waiting) as lease:
            record = self.store.fit(fit_id)
            if record is not None:
                return Fit(record, self.load(record))
            return self._train(method, fit_id, lease)

    def _train(self, method: Method, fit_id: str, lease: Lease) -> Fit:
        folder = self.store.fit_dir(fit_id)
        checkpoints = Checkpoints(folder, lease)
        task = Task(
            self.setup,
            self.fit,
            checkpoints,
            LoggedReporter(self.setup.reporter, folder / LOG),
            trains=method.trains,
        )
        reset_peak_memory(self.setup.engine)
        self.setup.reporter.event("fit", method=method.name, fit_id=fit_id, seed=self.setup.seed)
        start = time.monotonic()
        classifier = method.fit(task).to("cpu").eval()
        _check_weights(method, classifier)
        nested = self._closure(task.nested)
        # Own time is what was not spent in nested fits; the loop's clock adds what earlier attempts
        # of a resumed fit took.
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
            peak_memory_mb=peak_memory_mb(self.setup.engine),
            provenance=provenance(self.setup.engine),
        )
        self.store.commit_fit(record, classifier, lease)
        checkpoints.clear()
        kept = self.store.fit(fit_id)
        assert kept is not None
        if kept.weights_sha256 != record.weights_sha256:
            return Fit(kept, self.load(kept))
        return Fit(kept, classifier)

    def selections(self, record: FitRecord) -> dict[str, Any]:
        """What was chosen on id-val for a fit and, by their method's name, for the fits that it is
        made of.
        """
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
        tower = self.setup.backbone.image_tower()
        head = Head(
            torch.zeros(len(self.setup.suite.card.classes), tower.dim), normalize=record.normalize
        )
        return self.store.load_weights(record, Classifier(tower, head))


def _starts_from_probe(method: Method) -> bool:
    """Whether the method, or one nested in it, starts from the probe's head, which then shapes its
    weights.
    """
    values = [getattr(method, key) for key in type(method).model_fields]
    return getattr(method, "head_init", None) == "probe" or any(
        _starts_from_probe(v) for v in values if isinstance(v, Method)
    )


def _check_weights(method: Method, classifier: Classifier) -> None:
    """A result is finite or it is no result: a last step may spoil weights that no later loss looks
    at.
    """
    for name, tensor in classifier.named_weights().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Diverged(
                f"{method.name} ended with weights that are not finite: {name}",
                fix="lower `--set lr=...`",
            )


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
        training: whether somebody will train; without, the training images and id-val may be
            missing.

    Raises:
        UsageError: a name is wrong.
        MissingPrerequisite: data or weights are not here.
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
        Experiment(Setup(backbone, suite, seed, engine, reporter, cache_dir(), spec.shots), root)
        for seed in spec.seeds
    ]
