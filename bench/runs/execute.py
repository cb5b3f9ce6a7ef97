"""Execute one run: fit (or reuse), evaluate on every split in one pass each, and leave a record whatever happens."""

from __future__ import annotations

import datetime
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..backbones.heads import zero_shot_head
from ..classifier import Classifier, interpolate
from ..data.card import Metric
from ..data.split import Split
from ..errors import BenchError, Interrupted
from ..evaluation.forward import logits_of
from ..evaluation.guard import check_known
from ..evaluation.metrics import score
from ..evaluation.projection import matched, project
from ..evaluation.relative import relative_scores
from ..evaluation.variants import Variant, variants
from ..identity import PROTOCOL_VERSION, digest
from ..method import FineTuner, Method, Traits
from ..plugins import configure
from ..stopping import stop_if_asked
from .experiment import Experiment, Fit
from .lease import Lease, is_live
from .predictions import write_predictions
from .provenance import peak_memory_mb, provenance
from .record import CurvePoint, RunRecord

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


def execute(
    experiment: Experiment,
    method: Method,
    *,
    limit: int | None = None,
    search: bool = False,
    curve: bool = False,
    search_trials: int = 0,
    search_seconds: float | None = None,
) -> RunRecord:
    """Fit `method` and measure it; the run's folder tells how it went.

    A run that is done is returned as it is. With `search`, nothing but id-val is scored, and no image of a shift is decoded.

    Args:
        limit: recorded, so that a run on fewer images never passes for a result.
        curve: also the interpolation curve between the start and the end of the (underlying) fine-tuned fit.
        search_trials, search_seconds: how the parameters were chosen, for the record.

    Returns:
        The record; its status is `done` or `failed`.

    Raises:
        Interrupted: a stop was asked for; the record says `cancelled`.
    """
    method = method.resolved(experiment.traits)
    record = planned_record(experiment, method, limit=limit, search=search)
    record.search_trials, record.search_seconds = search_trials, search_seconds
    store, curve = experiment.store, curve and not search
    path = store.run_dir(record) / "record.json"
    old = _done(experiment, path)
    if old is not None and (old.curve or not curve):
        return _refreshed(experiment, old, record, path)
    splits = _splits(experiment, record)  # finds unreadable images before training, not after
    with Lease(path.parent, waiting=experiment.waiting) as lease:
        old = _done(experiment, path)  # another process may have finished it while this one waited
        if old is not None:
            if curve and not old.curve:
                old.curve = _curve(experiment, method, experiment.fit(method), splits, record)
                store.save_run(old)
            return _refreshed(experiment, old, record, path)
        store.save_run(record)
        try:
            fit = experiment.fit(method)
            if curve:
                record.curve = _curve(experiment, method, fit, splits, record)
            _evaluate(experiment, fit.classifier, splits, record, path.parent)
            record.fit_seconds = fit.record.total_seconds
            record.facts, record.selection = fit.record.facts, fit.record.selection
            record.peak_memory_mb = max(fit.record.peak_memory_mb or 0.0, peak_memory_mb(experiment.engine))
            lease.check()
            record.status = "done"
        except (Interrupted, KeyboardInterrupt) as stopped:
            record.status, record.error = "cancelled", str(stopped)
            raise
        except Exception as error:
            # Failed is a row: told and recorded with its traceback, and the other runs go on.
            record.status, record.error = "failed", f"{type(error).__name__}: {error}"
            if not isinstance(error, BenchError):
                record.traceback = traceback.format_exc()
            if os.environ.get("BENCH_DEBUG"):
                raise
        finally:
            record.finished = _now()
            if lease.held():
                _save_whatever_happens(experiment, record)
    experiment.reporter.event("run", record=record, path=path)
    return record


def _done(experiment: Experiment, path: Path) -> RunRecord | None:
    """The record of a run that is done already, or None."""
    record = experiment.store.read_run(path) if path.exists() else None
    return record if record is not None and record.status == "done" else None


def _refreshed(experiment: Experiment, old: RunRecord, now: RunRecord, path: Path) -> RunRecord:
    """A done run with what the card and the search say today; its measurements stay."""
    searched = now if now.search_trials > old.search_trials else old
    update = {
        **{key: getattr(now, key) for key in ("label", "shifts", "averaged", "holes", "factors", "id_val_seen", "limit")},
        "search_trials": searched.search_trials,
        "search_seconds": searched.search_seconds,
    }
    record = old.model_copy(update=update)
    record.ood = _average(record, {name: value.score for name, value in record.metrics.items()})
    record.relative = relative_scores(experiment.suite.card, record)
    if record != old:
        experiment.store.save_run(record)
    experiment.reporter.event("done-before", record=record, path=path)
    return record


def _splits(experiment: Experiment, record: RunRecord) -> dict[str, Split]:
    return {name: experiment.split(name) for name in record.data}


def _save_whatever_happens(experiment: Experiment, record: RunRecord) -> None:
    """Save the last word on a run; where even that fails (a full disk), the error that is on its way says more."""
    try:
        experiment.store.save_run(record)
    except BenchError as error:
        experiment.reporter.event("warning", text=f"the record could not be saved: {error.what}")


def planned_record(experiment: Experiment, method: Method, *, limit: int | None = None, search: bool = False) -> RunRecord:
    """The record of a run of `method`, before anything was done: its `eval_id` tells where the run lies.

    Raises:
        BenchError: an image of a split that the run measures cannot be read.
    """
    phase: Literal["search", "final"] = "search" if search else "final"
    label = row_label(method, experiment)
    few = {} if experiment.shots is None else {"shots": experiment.shots}
    return _record(experiment, method.identity() | few, label, experiment.identity(method), limit=limit, phase=phase)


def record_failure(experiment: Experiment, method: Method, error: str, *, limit: int | None = None, search: bool = False) -> None:
    """Leave a row for a run that could not say itself how it failed: its process died, or what it is built on failed.

    A run that is done, or that some process works on, is left alone.
    """
    record = planned_record(experiment, method, limit=limit, search=search)
    path = experiment.store.run_dir(record) / "record.json"
    if _done(experiment, path) is None and not is_live(path.parent):
        with Lease(path.parent, waiting=experiment.waiting):
            record.status, record.error, record.finished = "failed", error, _now()
            experiment.store.save_run(record)


def _record(
    experiment: Experiment,
    method: dict[str, Any],
    label: str,
    fit: dict[str, Any],
    *,
    limit: int | None,
    phase: Literal["final", "search", "external"],
) -> RunRecord:
    """The record of a run as it stands before anything was decoded or trained; a search opens id-val alone.

    Args:
        fit: what the fit_id is the hash of.
    """
    fit_id = digest(fit)[:24]
    backbone, suite, card = experiment.backbone, experiment.suite, experiment.suite.card
    search = phase == "search"
    shifts = () if search else card.shifts
    splits = ["id-val"] if search else ["id-val", "id-test", *(shift.name for shift in shifts)]
    data = {name: experiment.fingerprint(name) for name in splits if name not in suite.holes}
    if not suite.cut:
        limit = None  # a limit that leaves every image in is none
    projections = {name: suite.projections[name] for name in data if name in suite.projections}
    measured = {
        "data": data,
        "projection": {name: one.fingerprint for name, one in projections.items()} or "identity",
        "pixels": backbone.pixels.name,
        "metrics": _metrics_of(experiment),
    }
    other_pixels = {name: used for name in data if (used := experiment.pixels_of(name)) != backbone.pixels.name}
    if other_pixels:
        measured["other_pixels"] = other_pixels
    return RunRecord(
        status="started",
        method=method,
        label=label,
        backbone=backbone.name,
        backbone_sha256=backbone.weights_sha256,
        backbone_seen=backbone.seen,
        suite=card.name,
        seed=experiment.seed,
        fit_id=fit_id,
        eval_id=digest({"fit": fit_id, **measured})[:24],
        pixels=backbone.pixels.name,
        protocol=PROTOCOL_VERSION,
        limit=limit,
        phase=phase,
        data=data,
        projections={name: one.name for name, one in projections.items()},
        shifts=[shift.name for shift in shifts],
        averaged=[shift.name for shift in shifts if shift.in_average],
        holes={name: why for name, why in suite.holes.items() if name in splits},
        factors={shift.name: shift.factors for shift in shifts},
        id_val_seen=not {card.name, card.id.data}.isdisjoint(backbone.seen_suites),
        started=_now(),
        identity={"fit": fit, "evaluation": measured},
        provenance=provenance(experiment.engine),
    )


def _metrics_of(experiment: Experiment) -> dict[str, Metric]:
    """The metric of every split whose card entry names one of its own, and of the suite."""
    card = experiment.suite.card
    return {"": card.metric, **{shift.name: shift.metric for shift in card.shifts if shift.metric}}


def row_label(method: Method, experiment: Experiment) -> str:
    """The method's name and the parameters that differ from what the suite's recipe gives it."""
    usual = configure(type(method), {}, experiment.suite.card.recipe)
    given, default = _flat(method), _flat(usual.resolved(experiment.traits))
    differs = [
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in given.items()
        if default.get(key) != value
    ]
    if experiment.shots is not None:
        differs.insert(0, f"shots={experiment.shots}")
    return method.name + (f" ({', '.join(differs)})" if differs else "")


def _flat(method: Method, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key in type(method).model_fields:
        value = getattr(method, key)
        if isinstance(value, Method):
            flat[prefix + key] = value.name
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _evaluate(
    experiment: Experiment, classifier: Classifier, splits: Mapping[str, Split], record: RunRecord, folder: Path
) -> None:
    """Metrics and predictions on every split, into the record and the folder."""
    metrics, projections = _metrics_of(experiment), experiment.suite.projections
    start = time.monotonic()
    known = experiment.known_accuracies(classifier)
    for name, split in splits.items():
        logits = _measured(experiment, {"it": classifier}, split)["it"]
        if known is not None and experiment.suite.complete(name):
            check_known(
                known, name, logits, split.labels, projections.get(name), partial(_variants, experiment, classifier, split)
            )
        if name == "id-test":
            for shift in set(record.projections):
                rows, labels = matched(split.labels, projections[shift])
                if len(rows):
                    record.id_matched[shift] = score(project(logits[rows], projections[shift]), labels, None)
        if name in projections:
            logits = project(logits, projections[name])
        record.metrics[name] = score(logits, split.labels, split.groups, metrics.get(name, metrics[""]), split.skipped)
        write_predictions(folder / "predictions" / f"{name}.parquet", split, logits)
    record.eval_seconds = time.monotonic() - start
    record.ood = _average(record, {name: value.score for name, value in record.metrics.items()})
    record.relative = relative_scores(experiment.suite.card, record)


def _variants(experiment: Experiment, classifier: Classifier, split: Split) -> Iterator[Variant]:
    """What the guard may find a cause in; the prompts of one template are enough for that."""
    card, suite = experiment.suite.card, experiment.suite
    return variants(
        classifier,
        split,
        suite.pixels_of(split.name, experiment.backbone.pixels),
        suite.projections.get(split.name),
        experiment.engine,
        experiment.backbone.text_tower(),
        lambda text: zero_shot_head(text, card.classes, card.templates[:1], device=experiment.engine.device),
    )


def _measured(experiment: Experiment, classifiers: Mapping[str, Classifier], split: Split) -> dict[str, Any]:
    def progress(done: int, of: int) -> None:
        experiment.reporter.event("evaluate", split=split.name, done=done, of=of)
        stop_if_asked(experiment.reporter)

    # A frozen tower's features are the same for every head: they come from the cache, one forward pass per split, ever.
    frozen = {name: model for name, model in classifiers.items() if experiment.is_frozen(model.tower)}
    logits = logits_of({n: m for n, m in classifiers.items() if n not in frozen}, split, experiment.engine, progress)
    if frozen:
        features = torch.from_numpy(np.array(experiment.features(split)))
        with torch.inference_mode():
            logits |= {name: model.head.cpu()(features).numpy() for name, model in frozen.items()}
    return logits


def _average(record: RunRecord, scores: Mapping[str, float]) -> float | None:
    """Unweighted mean over the declared shifts; None while one of them is missing."""
    if not record.averaged or any(name not in scores for name in record.averaged):
        return None
    return float(np.mean([scores[name] for name in record.averaged]))


def fine_tuned(method: Method, traits: Traits) -> FineTuner | None:
    """The fine-tuner that a method is, or that it wraps and nothing beside it; None if there is none."""
    while not isinstance(method, FineTuner):
        inner = method.stages()
        if len(inner) != 1:
            return None
        method = inner[0].resolved(traits)
    return method


def _curve(experiment: Experiment, method: Method, fit: Fit, splits: Mapping[str, Split], record: RunRecord) -> list[CurvePoint]:
    """Scores along the straight line from the start to the end of the fine-tuned fit that `method` is or wraps."""
    tuner = fine_tuned(method, experiment.traits)
    if tuner is None:
        raise BenchError(f"{method.name} has no fine-tuned fit to draw a curve of", fix="leave --curve out")
    assert tuner.head_init is not None
    end = fit.classifier if tuner is method else experiment.fit(tuner).classifier
    start = experiment.start(tuner.head_init)
    line = {str(alpha): interpolate(start, end, alpha) for alpha in ALPHAS}
    metrics = _metrics_of(experiment)
    scores: dict[str, dict[str, float]] = {key: {} for key in line}
    for name, split in splits.items():
        for key, logits in _measured(experiment, line, split).items():
            if name in experiment.suite.projections:
                logits = project(logits, experiment.suite.projections[name])
            scores[key][name] = score(logits, split.labels, split.groups, metrics.get(name, metrics[""])).score
    return [CurvePoint(alpha=float(key), scores=scores[key], ood=_average(record, scores[key])) for key in line]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def execute_external(
    experiment: Experiment, weights: Path, *, name: str, normalize: bool | None = None, limit: int | None = None
) -> RunRecord:
    """Measure weights that somebody trained elsewhere.

    Args:
        weights: a file with the tensors of a classifier on this backbone (ours, or of a known repository), or a fit's folder.
        normalize: whether the head divides features by their norm; default: as the fit says, else if there is a text tower.

    Raises:
        BenchError: the file cannot be read safely, or its tensors do not fit the backbone and the classes.
    """
    from .external import load_external

    external = load_external(weights, experiment, normalize)
    classifier = external.classifier
    parameters = {"name": name, "weights": external.sha256, "normalize": classifier.head.normalize}
    method = {"name": "external", "version": 1, "source": "", "parameters": parameters}
    fit = {"external": parameters, "backbone": experiment.backbone.weights_sha256}
    label = f"{name} ({external.format} checkpoint)" if external.format else name
    record = _record(experiment, method, label, fit, limit=limit, phase="external")
    record.source_format, record.facts = external.format, {"cosine_to_backbone": external.similarity}
    path = experiment.store.run_dir(record) / "record.json"
    with Lease(path.parent, waiting=experiment.waiting):
        _evaluate(experiment, classifier, _splits(experiment, record), record, path.parent)
        record.status, record.finished = "done", _now()
        experiment.store.save_run(record)
    experiment.reporter.event("run", record=record, path=path)
    return record
