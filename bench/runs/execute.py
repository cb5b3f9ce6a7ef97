"""Execute one run: fit or reuse, evaluate on every split, and write a record whatever happens."""

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
from ..fit_setup import Setup
from ..identity import PROTOCOL_VERSION, digest
from ..method import Method
from ..results.provenance import peak_memory_mb, provenance
from ..results.record import RunRecord
from ..stopping import Reporter, foreign
from ..storage.lease import Lease, is_live
from ..training.devices import DeviceLost
from .experiment import Experiment
from .measure import evaluate, measure_curve, metrics_of, with_line
from .status import Done, Extra, done_before

#: Why a finished run cannot be given a requested extra; completes a sentence that names the run.
_UNAVAILABLE: dict[Extra, str] = {
    "curve": "its curve's predictions were not saved, and its weights are not in this store",
    "logits": "its logits were not saved, and its weights are not in this store",
}


def refresh_finished(
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
    """Update and return the record of a finished run; None if `execute` would do any work.

    Args:
        experiment: where the run belongs.
        method: as for `execute`, and so are `limit`, `search`, `curve` and `keep_logits`.
        reporter: gets the event `done-before`.
        chosen: how the parameters were chosen, for the record.
    """
    record = planned_record(experiment, method, limit=limit, search=search).model_copy(
        update=chosen
    )
    done = done_before(
        experiment, method, experiment.store.run_dir(record), curve=curve, keep_logits=keep_logits
    )
    if done is None or done.wanted:
        return None
    return _reuse(experiment, done, record, reporter)


# The methods called here are plug-ins. What one raises before there is a record (in `bind` or
# `identity`) is an error of the command, so `foreign` is around the whole function as well.
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
    """Fit `method`, evaluate it, and write the record and the predictions to the run's folder.

    A finished run, made here or merged from a pack, is not repeated. A requested curve or logits
    that it lacks are added if possible.

    Args:
        experiment: backbone, suite, seed and store.
        method: what to fit.
        limit: images per split at most; recorded, so that such a run never passes for a result.
        search: score id-val alone and decode no image of a shift.
        curve: also measure the interpolation curve between the start and the end of the fine-tuned
            fit that `method` is or wraps.
        keep_logits: save the logits even where images times classes exceed the usual limit.
        chosen: how the parameters were chosen, for the record (`search_trials` and so on).

    Returns:
        The record, with status `done` or `failed`.

    Raises:
        Interrupted: a stop was requested; the record says `cancelled`, and the same call continues.
        DeviceLost: a process that trained with this one was killed; otherwise as `Interrupted`.
    """
    method = method.bind(experiment.setup.traits)
    record = planned_record(experiment, method, limit=limit, search=search).model_copy(
        update=chosen
    )
    store, curve, keep_logits = experiment.store, curve and not search, keep_logits and not search
    path = store.run_dir(record) / "record.json"
    done = done_before(experiment, method, path.parent, curve=curve, keep_logits=keep_logits)
    if done is not None and not done.wanted:
        return _reuse(experiment, done, record, experiment.setup.reporter)
    # Loading the splits now reports an unreadable image before hours of training, not after.
    splits = _splits(experiment.setup, record)
    with Lease(path.parent, waiting=experiment.setup.waiting) as lease:
        # Another process may have finished the run while this one waited for the lease.
        done = done_before(experiment, method, path.parent, curve=curve, keep_logits=keep_logits)
        if done is not None:
            if done.wanted:
                _add_extras(experiment, method, done, splits, record, path.parent)
            return _reuse(
                experiment, replace(done, lacking=frozenset()), record, experiment.setup.reporter
            )
        store.set_aside(path.parent)
        # Saved with status `started`, so that a killed process leaves a trace.
        store.save_run(record)
        try:
            # Within the `try`, a plug-in that calls sys.exit fails its own run and no other.
            with foreign():
                # A method without a curve is refused before it is trained.
                if curve:
                    with_line(method, experiment.setup.traits)
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
            # A process that was suspended may have lost the folder to another one meanwhile.
            lease.check()
            record.status = "done"
        except (Interrupted, KeyboardInterrupt, DeviceLost) as stopped:
            record.status, record.error = "cancelled", str(stopped)
            raise
        except Exception as error:
            # A failed run is a row of the leaderboard like any other and does not end a sweep. A
            # BenchError explains itself; the traceback of anything else shows where the bug is.
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
    """Delete a fit and its runs, so that `execute` repeats both; runs from packs stay."""
    experiment.store.forget(experiment.fit_id(method), waiting=experiment.setup.waiting)
    make_here(experiment, method, limit=limit, search=search)


def make_here(
    experiment: Experiment, method: Method, *, limit: int | None = None, search: bool = False
) -> None:
    """Have `execute` make a run here although one was merged from a pack.

    The record that is saved for it, with status `cancelled`, makes every later command go on with
    the run instead of taking the one from the pack.
    """
    record = planned_record(experiment, method, limit=limit, search=search)
    folder = experiment.store.run_dir(record)
    found = experiment.store.run_at(folder)
    if found is None or not found.origin:
        return
    with Lease(folder, waiting=experiment.setup.waiting):
        experiment.store.set_aside(folder)
        record.status, record.finished = "cancelled", _now()
        record.error = f"to be run here, next to the run from {found.origin['pack']}"
        experiment.store.save_run(record)


def _add_extras(
    experiment: Experiment,
    method: Method,
    done: Done,
    splits: dict[str, Split],
    now: RunRecord,
    folder: Path,
) -> None:
    """Add the wanted logits and curve to a finished run and save its record."""
    fit = experiment.fit(method)
    if "logits" in done.wanted:
        evaluate(experiment.setup, fit.classifier, splits, done.record, folder, keep_logits=True)
    if "curve" in done.wanted:
        done.record.curve = measure_curve(experiment, method, fit, splits, now, folder)
    experiment.store.save_run(done.record)


def _reuse(experiment: Experiment, done: Done, now: RunRecord, reporter: Reporter) -> RunRecord:
    """Report a finished run, with a warning for every requested extra that it lacks."""
    for part in sorted(done.lacking):
        reporter.event(
            "warning",
            text=f"{now.label}, seed {now.seed}: {_UNAVAILABLE[part]}; --fresh trains it again",
        )
    record = _refreshed(experiment, done.record, now)
    reporter.event(
        "done-before", record=record, path=experiment.store.run_dir(record) / "record.json"
    )
    return record


def _refreshed(experiment: Experiment, old: RunRecord, now: RunRecord) -> RunRecord:
    """Update a finished run to today's card and search, without measuring anything again."""
    # The same parameters may be a recipe and the choice of a search, or of two searches. The record
    # keeps the larger number of trials, the less favourable one.
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
        # `now` may lack comparisons that an earlier command made; their results stay.
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
    try:
        # On a full disk this fails too, and must not hide the error that is being raised.
        experiment.store.save_run(record)
    except BenchError as error:
        experiment.setup.reporter.event(
            "warning", text=f"the record could not be saved: {error.what}"
        )


def planned_record(
    experiment: Experiment, method: Method, *, limit: int | None = None, search: bool = False
) -> RunRecord:
    """Return the record of a run before it starts; `Store.run_dir` of it is the run's folder.

    Raises:
        BenchError: an image of a split that the run evaluates cannot be read.
    """
    phase: Literal["search", "final"] = "search" if search else "final"
    label = row_label(method, experiment.setup)
    # Added only where it is set, as in `_record`: a new key would change the ids of existing runs.
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
    """Save and return a failed record for a run that could not write one itself.

    Its process died, or a fit that it depends on failed. A run that is finished, or that another
    process works on, is left alone.
    """
    record = planned_record(experiment, method, limit=limit, search=search)
    record.status, record.error, record.finished = "failed", error, _now()
    folder = experiment.store.run_dir(record)
    found = experiment.store.run_at(folder)
    # A job that died may have finished its run first, and another process may have taken it over.
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
    """Build a record before anything is decoded or trained; `fit` is what the fit_id hashes."""
    fit_id = digest(fit)[:24]
    backbone, suite, card = setup.backbone, setup.suite, setup.suite.card
    search = phase == "search"
    shifts = () if search else card.shifts
    splits = ["id-val"] if search else ["id-val", "id-test", *(shift.name for shift in shifts)]
    data = {name: setup.fingerprint(name) for name in splits if name not in suite.missing}
    # A method that trains nothing looks at no training images, so they need not be there.
    counted = dict.fromkeys((*(["train"] if fit.get("train") else []), *data))
    # A limit above the size of every split changes nothing, so the run counts as a result.
    if not suite.cut:
        limit = None
    projections = {name: suite.projections[name] for name in data if name in suite.projections}
    # Everything that shapes the scores beyond the fit. The eval_id is its hash, so keys that were
    # added later (`other_pixels`) appear only where they apply: old results keep their ids.
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
        holes={name: why for name, why in suite.missing.items() if name in splits},
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
    """Return the method's name and the parameters that differ from the suite's recipe."""
    # Compared with the recipe and not with the method's own defaults, and after `bind`: a value
    # that the backbone decides (such as `head_init`) is no difference.
    usual = configure(type(method), {}, setup.suite.card.recipe)
    given, default = _flat(method), _flat(usual.bind(setup.traits))
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
    """Evaluate weights that were trained elsewhere.

    Args:
        experiment: backbone, suite and store.
        weights: a checkpoint of ShiftBench or of a known repository, or a fit's folder.
        name: name of the method in the record.
        normalize: whether the head L2-normalises features; default: as the checkpoint says.
        averaged: prefer averaged weights (EMA) if the file has both.
        limit: as for `execute`.
        keep_logits: as for `execute`.

    Raises:
        BenchError: the file cannot be read safely, or does not fit the backbone and the classes.
    """
    # Imports open_clip, which takes seconds that other runs need not spend.
    from .external import load_external

    external = load_external(weights, experiment.setup, normalize, averaged=averaged)
    classifier = external.classifier
    parameters = {"name": name, "weights": external.sha256, "normalize": classifier.head.normalize}
    # The content is hashed, and not the path: a moved file is the same method.
    parameters |= {"state": external.key} if external.key else {}
    method = {"name": "external", "version": 1, "source": "", "parameters": parameters}
    fit = {"external": parameters, "backbone": experiment.setup.backbone.weights_sha256}
    label = f"{name} ({external.format} checkpoint)" if external.format else name
    record = _record(experiment.setup, method, label, fit, limit=limit, phase="external")
    record.source_format = external.format
    record.facts = {"cosine_to_backbone": external.similarity}
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
