"""Fit methods for one backbone, suite and seed, and train each distinct fit only once."""

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
from ..fit_setup import Fit, Setup
from ..identity import PROTOCOL_VERSION, digest, tensors_sha256
from ..method import HeadInit, Method
from ..results.provenance import peak_memory_mb, provenance, reset_peak_memory
from ..results.store import LOG, FitRecord, Store, store_root
from ..run_spec import RunSpec
from ..stopping import PassedOn, Reporter, stop_if_requested
from ..storage.lease import Lease
from ..task import Task
from ..training.loop import Checkpoints


class Experiment:
    """A setup and the store in which its fits are saved.

    Args:
        setup: one backbone on one suite with one seed.
        store: where fits are looked up before they are trained, and saved afterwards.
    """

    def __init__(self, setup: Setup, store: Store) -> None:
        self.setup, self.store = setup, store

    def with_seed(self, seed: int) -> Experiment:
        """Return an experiment with the same backbone, suite and store and another seed."""
        return Experiment(replace(self.setup, seed=seed), self.store)

    def start(self, init: HeadInit) -> Classifier:
        """Return the pre-trained tower with a head of this kind.

        Raises:
            UsageError: the backbone does not offer this head.
        """
        # The probe is a fit of its own; the setup alone cannot train.
        return self.fit(self.setup.probe).classifier if init == "probe" else self.setup.start(init)

    def identity(self, method: Method) -> dict[str, Any]:
        """Return everything that determines the weights of `method`; the fit_id is its hash."""
        card = self.setup.suite.card
        # Bound first: a default that the backbone decides and the same value given explicitly are
        # one fit.
        method = method.bind(self.setup.traits)
        return {
            # Device, threads and paths are left out on purpose: a fit is reused on other machines.
            "protocol": PROTOCOL_VERSION,
            "method": method.identity(),
            "probe": self.setup.probe.identity() if _starts_from_probe(method) else None,
            "backbone": self.setup.backbone.weights_sha256,
            "pixels": self.setup.backbone.pixels.name,
            # A method that trains nothing does not need the training images, which may be absent.
            "train": self.setup.fingerprint("train") if method.trains else None,
            "id_val": self.setup.fingerprint("id-val") if method.trains else None,
            "classes": digest(list(card.classes)),
            "templates": digest(list(card.templates)),
            "metric": card.metric,
            "seed": self.setup.seed,
        }

    def fit_id(self, method: Method) -> str:
        """Return the name of the method's fit: 24 hexadecimal digits."""
        return digest(self.identity(method))[:24]

    def fit(self, method: Method) -> Fit:
        """Load the method's fit from the store, or train and save it.

        If another process trains the same fit, wait for it; if that process died, continue from its
        checkpoint.

        Raises:
            BenchError: as `Method.fit`. A failed fit is not saved, but its checkpoint stays.
        """
        stop_if_requested(self.setup.reporter)
        method = method.bind(self.setup.traits)
        fit_id = self.fit_id(method)
        record = self.store.fit(fit_id)
        if record is not None:
            self.setup.reporter.event("reused", method=method.name, fit_id=fit_id)
            return Fit(record, self.load(record))
        folder = self.store.fit_dir(fit_id)
        with Lease(folder, waiting=self.setup.waiting) as lease:
            # Another process may have finished it while this one waited for the lease.
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
        # Nested fits have records, and times, of their own. A resumed fit adds the time of its
        # earlier attempts, which the checkpoint carries.
        seconds = time.monotonic() - start - task.nested_seconds + task.earlier_seconds
        record = FitRecord(
            fit_id=fit_id,
            identity=self.identity(method),
            # The generation of the lease is unique to its owner, so that a stalled owner which
            # wakes up cannot overwrite the weights of its successor.
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
        # The first record wins. If another process was first, all callers get its weights.
        saved = self.store.fit(fit_id)
        assert saved is not None
        if saved.weights_sha256 != record.weights_sha256:
            return Fit(saved, self.load(saved))
        return Fit(saved, classifier)

    def selections(self, record: FitRecord) -> dict[str, Any]:
        """Return what was selected on id-val for a fit and its nested fits, as `method.name`."""
        nested = {
            f"{fit.identity['method']['name']}.{name}": chosen
            for fit in reversed(self._closure(record.nested))
            for name, chosen in fit.selection.items()
        }
        return record.selection | nested

    def _closure(self, fit_ids: list[str]) -> list[FitRecord]:
        """Return the records of these fits and of all their nested fits, each once."""
        found: dict[str, FitRecord] = {}
        waiting = list(fit_ids)
        while waiting:
            fit_id = waiting.pop()
            record = None if fit_id in found else self.store.fit(fit_id)
            # `bench clean` may have removed a nested fit, whose own nested fits are unknown then.
            if record is not None:
                found[fit_id] = record
                waiting += record.nested
        return list(found.values())

    def load(self, record: FitRecord) -> Classifier:
        """Load the classifier of a finished fit.

        Raises:
            BenchError: its weights are missing or damaged.
        """
        # The zeros give the head its shape; `load_weights` replaces them.
        tower = self.setup.backbone.image_tower()
        head = Head(
            torch.zeros(len(self.setup.suite.card.classes), tower.dim), normalize=record.normalize
        )
        return self.store.load_weights(record, Classifier(tower, head))


def _starts_from_probe(method: Method) -> bool:
    """Return whether the method, or one nested in it, starts from the probe's head."""
    values = [getattr(method, key) for key in type(method).model_fields]
    return getattr(method, "head_init", None) == "probe" or any(
        _starts_from_probe(v) for v in values if isinstance(v, Method)
    )


def _check_weights(method: Method, classifier: Classifier) -> None:
    # Training checks every loss, but no loss follows the last step, which may still overflow.
    for name, tensor in classifier.named_weights().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Diverged(
                f"{method.name} ended with weights that are not finite: {name}",
                fix="lower `--set lr=...`",
            )


class LoggedReporter(PassedOn):
    """A reporter that also appends the epochs and resumptions of a fit to its `log.jsonl`.

    Args:
        to: reporter that gets every event.
        path: the log file.
    """

    def __init__(self, to: Reporter, path: Path) -> None:
        super().__init__(to)
        self._path = path

    def event(self, kind: str, **fields: Any) -> None:
        """Pass the event on and log it if it is an epoch or a resumption."""
        if kind in ("epoch", "resumed"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"time": time.time(), "event": kind, **fields}) + "\n"
            # If the writer of the last line was killed in the middle of it, a new line keeps this
            # entry readable. Written at once, so that a reader sees whole lines.
            with self._path.open("ab+") as file:
                file.seek(max(0, file.tell() - 1))
                torn = file.read(1) not in (b"", b"\n")
                file.write(b"\n" * torn + line.encode())
        super().event(kind, **fields)


def backbone_of(card: SuiteCard, requested: str | None) -> str:
    """Return the requested backbone, or the default of the suite's card.

    Raises:
        UsageError: neither names one.
    """
    if named := requested or card.backbone:
        return named
    # No fallback to mini-clip: it would run, on images of 48 pixels, and the results would mean
    # nothing.
    raise UsageError(
        f"no backbone is given, and the suite {card.name} has no default",
        fix=(
            'pass --backbone NAME (`bench backbones` lists them), or add `backbone = "NAME"` to the'
            " card"
        ),
    )


def experiments(
    spec: RunSpec,
    *,
    store: Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    training: bool = True,
) -> list[Experiment]:
    """Open the spec's backbone and suite and return one experiment per seed; train nothing.

    Args:
        spec: what to run.
        store: folder of the store; default: as `store_root`.
        engine: device and arithmetic settings; default: the best device.
        reporter: gets progress and warnings.
        training: whether anything will be trained; if not, the training images and id-val may be
            missing.

    Raises:
        UsageError: a name is wrong.
        MissingPrerequisite: data or weights are missing.
    """
    reporter = reporter or Reporter()
    card, card_path = find_card(spec.suite)
    engine = engine or Engine(device=default_device())
    # Before anything computes: cuBLAS reads its settings when it starts.
    engine.apply()

    def progress(what: str, done: int, of: int) -> None:
        reporter.event("data", what=what, done=done, of=of)
        stop_if_requested(reporter)

    backbone = load_backbone(backbone_of(card, spec.backbone))
    suite = open_suite(
        card,
        card_path=card_path,
        data_root=spec.data_root,
        limit=spec.limit,
        skip_unreadable=spec.skip_unreadable,
        training=training,
        progress=progress,
    )
    for warning in suite.warnings:
        reporter.event("warning", text=warning)
    root = Store(store_root(store))
    return [
        Experiment(Setup(backbone, suite, seed, engine, reporter, cache_dir(), spec.shots), root)
        for seed in spec.seeds
    ]
