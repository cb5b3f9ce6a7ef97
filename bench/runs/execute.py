"""Execute one run: fit (or reuse), evaluate on every split in one pass each, and leave a record
whatever happens.
"""

from __future__ import annotations

import datetime
import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..configure import configure
from ..data.split import Split
from ..errors import BenchError, EndedByPlugin, Interrupted
from ..evaluation.metrics import relative_scores
from ..identity import PROTOCOL_VERSION, digest
from ..method import Method
from ..results.provenance import peak_memory_mb, provenance
from ..results.record import RunRecord
from ..stopping import Reporter, foreign
from ..storage.lease import Lease, is_live
from ..task import Setup
from ..training.devices import DeviceLost
from .experiment import Experiment
from .measure import evaluate, measure_curve, metrics_of, with_line
from .standing import Done, Part, done_before

_GONE: dict[Part, str] = {
    "curve": "what its curve's points predict was not kept, and its weights are not in this store",
    "logits": "its logits were not kept, and its weights are not in this store",
}


def look_again(
    experiment: Experiment,
    method: Method,
    *,
    limit: int | None,
    search: bool,
    curve: bool,
    keep_logits: bool,
    reporter: Reporter,
    **chosen: Any,
) -> RunRecord | None:
    """Find a run that `execute` would return as it is, and bring its record up to date; None if
    there is none.

    Args:
        reporter: is told of it.
        chosen: how the parameters were, for the record. Others: as of `execute`.
    """
    record = planned_record(experiment, method, limit=limit, search=search).model_copy(
        update=chosen
    )
    done = done_before(
        experiment, method, experiment.store.run_dir(record), curve=curve, keep_logits=keep_logits
    )
    return None if done is None or done.wanted else _told(experiment, done, record, reporter)


@foreign()
def execute(
    experiment: Experiment,
    method: Method,
    *,
    limit: int | None = None,
    search: bool = False,
    curve: bool = False,
    keep_logits: bool = False,
    **chosen: Any,
) -> RunRecord:
    """Fit `method` and measure it; the run's folder tells how it went.

    A run that is done, here or by the pack that it came in, is returned as it is. With `search`,
    nothing but id-val is scored, and no image of a shift is decoded.

    Args:
        limit: recorded, so that a run on fewer images never passes for a result.
        curve: also the interpolation curve between the start and the end of the (underlying)
            fine-tuned fit.
        keep_logits: with the predictions, also where images times classes are many. Both are added
            to a run that is done.
        chosen: how the parameters were, for the record (`search_trials` and its like).

    Returns:
        The record; its status is `done` or `failed`.

    Raises:
        Interrupted: a stop was asked for.
        DeviceLost: a process that trained with this one was killed. Of both the record says
            `cancelled`, and the same call continues.
    """
    method = method.resolved(experiment.setup.traits)
    record = planned_record(experiment, method, limit=limit, search=search).model_copy(
        update=chosen
    )
    store, curve, keep_logits = experiment.store, curve and not search, keep_logits and not search
    path = store.run_dir(record) / "record.json"
    done = done_before(experiment, method, path.parent, curve=curve, keep_logits=keep_logits)
    if done is not None and not done.wanted:
        return _told(experiment, done, record, experiment.setup.reporter)
    splits = _splits(experiment.setup, record)  # finds unreadable images before training, not after
    with Lease(path.parent, waiting=experiment.setup.waiting) as lease:
        # Another process may have finished it while this one waited.
        done = done_before(experiment, method, path.parent, curve=curve, keep_logits=keep_logits)
        if done is not None:
            if done.wanted:
                fit = experiment.fit(method)
                if "logits" in done.wanted:
                    evaluate(
                        experiment.setup,
                        fit.classifier,
                        splits,
                        done.record,
                        path.parent,
                        keep_logits=True,
                    )
                if "curve" in done.wanted:
                    done.record.curve = measure_curve(
                        experiment, method, fit, splits, record, path.parent
                    )
                store.save_run(done.record)
            return _told(
                experiment, replace(done, lacking=frozenset()), record, experiment.setup.reporter
            )
        store.set_aside(path.parent)
        store.save_run(record)
        try:
            with foreign():
                if curve:
                    with_line(
                        method, experiment.setup.traits
                    )  # found out before training, not after
                fit = experiment.fit(method)
                if curve:
                    record.curve = measure_curve(
                        experiment, method, fit, splits, record, path.parent
                    )
                evaluate(
                    experiment.setup,
                    fit.classifier,
                    splits,
                    record,
                    path.parent,
                    keep_logits=keep_logits,
                )
            record.fit_seconds = fit.record.total_seconds
            record.facts, record.selection = fit.record.facts, experiment.selections(fit.record)
            record.peak_memory_mb = max(
                fit.record.peak_memory_mb or 0.0, peak_memory_mb(experiment.setup.engine)
            )
            lease.check()
            record.status = "done"
        except (Interrupted, KeyboardInterrupt, DeviceLost) as stopped:
            record.status, record.error = "cancelled", str(stopped)
            raise
        except Exception as error:
            # Failed is a row: told and recorded with its traceback, and the other runs go on.
            record.status, record.error = "failed", f"{type(error).__name__}: {error}"
            if not isinstance(error, BenchError) or isinstance(error, EndedByPlugin):
                record.traceback = traceback.format_exc()
            if os.environ.get("BENCH_DEBUG"):
                raise
        finally:
            record.finished = _now()
            if lease.held():
                _save_whatever_happens(experiment, record)
    experiment.setup.reporter.event("run", record=record, path=path)
    return record


def start_over(
    experiment: Experiment, method: Method, *, limit: int | None = None, search: bool = False
) -> None:
    """Forget a fit and its runs, so that `execute` makes both anew. What came in a pack stays, and
    gets a run beside it.
    """
    experiment.store.forget(experiment.fit_id(method), waiting=experiment.setup.waiting)
    make_here(experiment, method, limit=limit, search=search)


def make_here(
    experiment: Experiment, method: Method, *, limit: int | None = None, search: bool = False
) -> None:
    """Have `execute` make a run though one came in a pack; until it is made, the folder says so to
    every later command.
    """
    record = planned_record(experiment, method, limit=limit, search=search)
    folder = experiment.store.run_dir(record)
    found = experiment.store.run_at(folder)
    if found is None or not found.origin:
        return
    with Lease(folder, waiting=experiment.setup.waiting):
        experiment.store.set_aside(folder)
        record.status, record.finished = "cancelled", _now()
        record.error = f"to be made beside the run from {found.origin['pack']}"
        experiment.store.save_run(record)


def _told(experiment: Experiment, done: Done, now: RunRecord, reporter: Reporter) -> RunRecord:
    """A run that is done, told with what it lacks."""
    for part in sorted(done.lacking):
        reporter.event(
            "warning", text=f"{now.label}, seed {now.seed}: {_GONE[part]}; --fresh trains it again"
        )
    record = _refreshed(experiment, done.record, now)
    reporter.event(
        "done-before", record=record, path=experiment.store.run_dir(record) / "record.json"
    )
    return record


def _refreshed(experiment: Experiment, old: RunRecord, now: RunRecord) -> RunRecord:
    """A done run with what the card and the search say today; its measurements stay."""
    searched = now if now.search_trials > old.search_trials else old
    update = {
        **{
            key: getattr(now, key)
            for key in (
                "label",
                "shifts",
                "averaged",
                "holes",
                "miscounted",
                "ignored",
                "factors",
                "id_val_seen",
                "limit",
            )
        },
        "duplicates": old.duplicates | now.duplicates,
        "search_trials": searched.search_trials,
        "search_seconds": searched.search_seconds,
        "search_rule": searched.search_rule,
        "search_cut_short": searched.search_cut_short,
    }
    record = old.model_copy(update=update)
    record.ood = record.average(record.scores())
    record.relative = relative_scores(experiment.setup.suite.card, record)
    if record != old:
        experiment.store.save_run(record)
    return record


def _splits(setup: Setup, record: RunRecord) -> dict[str, Split]:
    return {name: setup.split(name) for name in record.data}


def _save_whatever_happens(experiment: Experiment, record: RunRecord) -> None:
    """Save the last word on a run; where even that fails (a full disk), the error that is on its
    way says more.
    """
    try:
        experiment.store.save_run(record)
    except BenchError as error:
        experiment.setup.reporter.event(
            "warning", text=f"the record could not be saved: {error.what}"
        )


def planned_record(
    experiment: Experiment, method: Method, *, limit: int | None = None, search: bool = False
) -> RunRecord:
    """The record of a run of `method`, before anything was done: its `eval_id` tells where the run
    lies.

    Raises:
        BenchError: an image of a split that the run measures cannot be read.
    """
    phase: Literal["search", "final"] = "search" if search else "final"
    label = row_label(method, experiment.setup)
    few = {} if experiment.setup.shots is None else {"shots": experiment.setup.shots}
    return _record(
        experiment.setup,
        method.identity() | few,
        label,
        experiment.identity(method),
        limit=limit,
        phase=phase,
    )


def record_failure(
    experiment: Experiment,
    method: Method,
    error: str,
    *,
    limit: int | None = None,
    search: bool = False,
) -> RunRecord:
    """Leave a row, and return it, for a run that could not say itself how it failed: its process
    died, or what it is built on failed.

    A run that is done, or that some process works on, is left alone.
    """
    record = planned_record(experiment, method, limit=limit, search=search)
    record.status, record.error, record.finished = "failed", error, _now()
    folder = experiment.store.run_dir(record)
    found = experiment.store.run_at(folder)
    if (found is None or found.status != "done" or found.origin) and not is_live(folder):
        with Lease(folder, waiting=experiment.setup.waiting):
            experiment.store.set_aside(folder)
            experiment.store.save_run(record)
    return record


def _record(
    setup: Setup,
    method: dict[str, Any],
    label: str,
    fit: dict[str, Any],
    *,
    limit: int | None,
    phase: Literal["final", "search", "external"],
) -> RunRecord:
    """The record of a run as it stands before anything was decoded or trained; a search opens
    id-val alone.

    Args:
        fit: what the fit_id is the hash of.
    """
    fit_id = digest(fit)[:24]
    backbone, suite, card = setup.backbone, setup.suite, setup.suite.card
    search = phase == "search"
    shifts = () if search else card.shifts
    splits = ["id-val"] if search else ["id-val", "id-test", *(shift.name for shift in shifts)]
    data = {name: setup.fingerprint(name) for name in splits if name not in suite.holes}
    counted = dict.fromkeys((*(["train"] if fit.get("train") else []), *data))
    if not suite.cut:
        limit = None  # a limit that leaves every image in is none
    projections = {name: suite.projections[name] for name in data if name in suite.projections}
    measured = {
        "data": data,
        "projection": {name: one.fingerprint for name, one in projections.items()} or "identity",
        "pixels": backbone.pixels.name,
        "metrics": metrics_of(setup),
    }
    other_pixels = {
        name: used for name in data if (used := setup.pixels_of(name)) != backbone.pixels.name
    }
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
        seed=setup.seed,
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
        miscounted={name: how for name in counted if (how := suite.miscounted(name))},
        ignored={name: count for name in counted if (count := suite.ignored(name))},
        duplicates=suite.duplicates(list(counted)),
        factors={shift.name: shift.factors for shift in shifts},
        id_val_seen=not {card.name, card.id.data, *suite.id_names}.isdisjoint(backbone.seen_suites),
        started=_now(),
        identity={"fit": fit, "evaluation": measured},
        provenance=provenance(setup.engine),
    )


def row_label(method: Method, setup: Setup) -> str:
    """The method's name and the parameters that differ from what the suite's recipe gives it."""
    usual = configure(type(method), {}, setup.suite.card.recipe)
    given, default = _flat(method), _flat(usual.resolved(setup.traits))
    differs = [
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in given.items()
        if default.get(key) != value
    ]
    if setup.shots is not None:
        differs.insert(0, f"shots={setup.shots}")
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


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@foreign()
def execute_external(
    experiment: Experiment,
    weights: Path,
    *,
    name: str,
    normalize: bool | None = None,
    averaged: bool = True,
    limit: int | None = None,
    keep_logits: bool = False,
) -> RunRecord:
    """Measure weights that somebody trained elsewhere.

    Args:
        weights: a file with the tensors of a classifier on this backbone (ours, or of a known
            repository), or a fit's folder.
        normalize: whether the head divides features by their norm; default: as the fit says, else
            if there is a text tower.
        averaged: see `load_external`.
        keep_logits: as of `execute`.

    Raises:
        BenchError: the file cannot be read safely, or its tensors do not fit the backbone and the
            classes.
    """
    from .external import load_external

    external = load_external(weights, experiment.setup, normalize, averaged=averaged)
    classifier = external.classifier
    parameters = {"name": name, "weights": external.sha256, "normalize": classifier.head.normalize}
    parameters |= {"state": external.key} if external.key else {}
    method = {"name": "external", "version": 1, "source": "", "parameters": parameters}
    fit = {"external": parameters, "backbone": experiment.setup.backbone.weights_sha256}
    label = f"{name} ({external.format} checkpoint)" if external.format else name
    record = _record(experiment.setup, method, label, fit, limit=limit, phase="external")
    record.source_format, record.facts = (
        external.format,
        {"cosine_to_backbone": external.similarity},
    )
    path = experiment.store.run_dir(record) / "record.json"
    with Lease(path.parent, waiting=experiment.setup.waiting):
        experiment.store.set_aside(path.parent)
        evaluate(
            experiment.setup,
            classifier,
            _splits(experiment.setup, record),
            record,
            path.parent,
            keep_logits=keep_logits,
        )
        record.status, record.finished = "done", _now()
        experiment.store.save_run(record)
    experiment.setup.reporter.event("run", record=record, path=path)
    return record
