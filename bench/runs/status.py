"""Decide what has to be done for a run, given what the store has.

Plans (`bench sweep --dry-run`) and `execute` both use these functions, so that a plan says exactly
what will happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..method import FineTuner, Method
from ..results.predictions import has_curve, has_logits
from ..results.record import RunRecord
from ..storage.lease import is_live
from .experiment import Experiment
from .measure import fine_tuned

#: Parts of a run that are saved only on request.
Extra = Literal["curve", "logits"]

#: `done` and `merged`: nothing is done, because the run was made here, or merged from a pack.
#: `to evaluate`: all its fits are trained. `to train`: some are not. `to continue`: one has a
#: checkpoint. `running`: another process works on it, and `execute` waits.
RunState = Literal["done", "merged", "to evaluate", "to train", "to continue", "running"]


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        record: of the run.
        wanted: requested parts that will be added to it.
        lacking: requested parts that it does not have, including `wanted`.
    """

    record: RunRecord
    wanted: frozenset[Extra]
    lacking: frozenset[Extra]


@dataclass(frozen=True)
class RunStatus:
    """What `execute` will do about a run.

    Attributes:
        state: see `RunState`.
        why: the reason, where the state alone does not say it.
        fits: methods whose fits will be made, in that order.
    """

    state: RunState
    why: str = ""
    fits: tuple[Method, ...] = ()


def dependencies(experiment: Experiment, method: Method) -> list[Method]:
    """Return the methods, bound, whose fits this one needs: those it wraps, and the probe."""
    wrapped = [stage.bind(experiment.setup.traits) for stage in method.dependencies()]
    starts = {getattr(one, "head_init", None) for one in (method, *wrapped)}
    return [*wrapped, *([experiment.setup.probe] if "probe" in starts else [])]


def needs(experiment: Experiment, method: Method) -> tuple[str, ...]:
    """Return the fit_ids of `dependencies`."""
    return tuple(
        dict.fromkeys(experiment.fit_id(stage) for stage in dependencies(experiment, method))
    )


def done_before(
    experiment: Experiment,
    method: Method,
    folder: Path,
    *,
    curve: bool = False,
    keep_logits: bool = False,
    own: bool = False,
) -> Done | None:
    """Return the finished run of a folder, or None if it has to be made.

    A run from a pack counts if it has the requested parts, or if they cannot be added here either.

    Args:
        experiment: where the run belongs.
        method: bound to the backbone.
        folder: of the run.
        curve: whether a curve is requested.
        keep_logits: whether logits are requested.
        own: ignore runs from packs.
    """
    record = experiment.store.run_at(folder)
    if record is None or record.status != "done" or (own and record.origin):
        return None
    lacking = _lacking(experiment, record, curve=curve, keep_logits=keep_logits)
    wanted = _addable(experiment, method, record, lacking)
    # Nothing is added to a run from a pack: a record with measurements of two machines would be
    # reproducible on neither. The run is made here instead, next to it.
    return None if wanted and record.origin else Done(record, wanted, lacking)


def _addable(
    experiment: Experiment, method: Method, done: RunRecord, lacking: frozenset[Extra]
) -> frozenset[Extra]:
    """Return which of the lacking parts can be added to a finished run."""
    # A curve that was never measured is a result, so its fits are trained if they are missing, and
    # the logits come along. Predictions and logits only repeat known results image by image: they
    # are added if the weights are there, and nothing is trained for them.
    if not lacking or ("curve" in lacking and not done.curve):
        return lacking
    tuner = fine_tuned(method, experiment.setup.traits)
    at_hand = all(
        experiment.store.fit(experiment.fit_id(one)) is not None
        for one in (method, tuner or method)
    )
    return lacking if at_hand else frozenset()


def _lacking(
    experiment: Experiment, done: RunRecord, *, curve: bool, keep_logits: bool
) -> frozenset[Extra]:
    folder, found = experiment.store.run_dir(done), set[Extra]()
    # Earlier versions recorded the scores of a curve and saved no predictions.
    if curve and not (done.curve and has_curve(folder, done.metrics)):
        found.add("curve")
    if keep_logits and not has_logits(folder, done.metrics):
        found.add("logits")
    return frozenset(found)


def status_of(
    experiment: Experiment,
    method: Method,
    folder: Path,
    *,
    curve: bool = False,
    keep_logits: bool = False,
    own: bool = False,
    fresh: bool = False,
    made: set[str] | None = None,
) -> RunStatus:
    """Return what `execute` will do about a run.

    Args:
        experiment: where the run belongs.
        method: bound to the backbone.
        folder: of the run, by `Store.run_dir`.
        curve: whether a curve is requested.
        keep_logits: whether logits are requested.
        own: ignore runs from packs.
        fresh: the fit and its runs are deleted first.
        made: fit_ids that earlier runs of the plan will have made by then; those that this run
            makes are added.
    """
    store, made = experiment.store, set() if made is None else made
    fit_id, before = experiment.fit_id(method), store.run_at(folder)
    done = (
        None
        if fresh
        else done_before(experiment, method, folder, curve=curve, keep_logits=keep_logits, own=own)
    )
    if done is not None and not done.wanted:
        lost = (
            f"without {' and '.join(sorted(done.lacking))}: its weights are not in the store"
            if done.lacking
            else ""
        )
        if done.record.origin:
            return RunStatus(
                "merged",
                "; ".join(part for part in (f"from {done.record.origin['pack']}", lost) if part),
            )
        return RunStatus("done", lost)
    # --fresh deletes the fit even if an earlier run of the plan has just made it.
    if fresh:
        made.discard(fit_id)
    fits: list[Method] = []
    for one in _bases(experiment, method, curve=curve and (done is None or "curve" in done.wanted)):
        _missing(experiment, one, made, fits, absent=fit_id if fresh else "")
    why = _why(done, before, fresh=fresh)
    if is_live(folder) or (fits and is_live(store.fit_dir(fit_id))):
        return RunStatus("running", "another process works on it; waits for it", tuple(fits))
    # An interpolation has a fit of its own, which takes no training.
    if not any(_trains(one) for one in fits):
        return RunStatus("to evaluate", why, tuple(fits))
    stopped = not fresh and any(
        (store.fit_dir(experiment.fit_id(one)) / "checkpoint").is_dir() for one in fits
    )
    return RunStatus("to continue" if stopped else "to train", why, tuple(fits))


def _bases(experiment: Experiment, method: Method, *, curve: bool) -> list[Method]:
    """Return the methods that a run fits: its own and, for a curve, those of both ends."""
    tuner = fine_tuned(method, experiment.setup.traits) if curve else None
    start = [experiment.setup.probe] if tuner is not None and tuner.head_init == "probe" else []
    return [method, *([] if tuner is None else [tuner]), *start]


def _missing(
    experiment: Experiment, method: Method, made: set[str], found: list[Method], absent: str
) -> None:
    """Append the methods whose fits are not in the store, each after its dependencies.

    `absent` is a fit_id that counts as missing although the store may have it.
    """
    fit_id = experiment.fit_id(method)
    if fit_id in made or (fit_id != absent and experiment.store.fit(fit_id) is not None):
        return
    for stage in dependencies(experiment, method):
        _missing(experiment, stage, made, found, absent)
    made.add(fit_id)
    found.append(method)


def _trains(method: Method) -> bool:
    """Return whether making the fit trains, beyond its dependencies; an interpolation does not."""
    return method.trains and (isinstance(method, FineTuner) or not method.dependencies())


def _why(done: Done | None, before: RunRecord | None, *, fresh: bool) -> str:
    if before is None:
        return ""
    if before.origin:
        return f"next to the run from {before.origin['pack']}"
    if fresh:
        return "deleted first"
    if done is not None:
        return f"to add its {' and '.join(sorted(done.wanted))}"
    if before.status == "failed":
        return f"failed before: {next(iter(before.error.splitlines()), '')}"
    if before.status == "started":
        return "started before"
    return before.error or "stopped before"
