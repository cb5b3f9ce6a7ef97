"""Where a run stands in the store and what `execute` does about it: one judgement, of which plans
and deeds are both made.
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

#: What a run keeps of single images only where it is asked for.
Part = Literal["curve", "logits"]
#: `done`, `merged`: nothing is done, since the store's own run, or one that came in a pack, is
#: there. `to evaluate`: all that is trained for it is there. `to continue`: from its checkpoint.
#: `running`: another process is at it, which is waited for.
State = Literal["done", "merged", "to evaluate", "to train", "to continue", "running"]


@dataclass(frozen=True)
class Done:
    """A run that need not be made.

    Attributes:
        wanted: what was asked for and is added to it.
        lacking: what was asked for and it has not kept, `wanted` included.
    """

    record: RunRecord
    wanted: frozenset[Part]
    lacking: frozenset[Part]


@dataclass(frozen=True)
class Standing:
    """What `execute` will do about a run.

    Attributes:
        why: in words, where the state alone does not say it.
        fits: the methods whose fits it makes, in their order.
    """

    state: State
    why: str = ""
    fits: tuple[Method, ...] = ()


def stages(experiment: Experiment, method: Method) -> list[Method]:
    """The fits that a method's own is built on, resolved: what it wraps, and the probe where a head
    starts from it.
    """
    wrapped = [stage.resolved(experiment.setup.traits) for stage in method.stages()]
    starts = {getattr(one, "head_init", None) for one in (method, *wrapped)}
    return [*wrapped, *([experiment.setup.probe] if "probe" in starts else [])]


def needs(experiment: Experiment, method: Method) -> tuple[str, ...]:
    """The fit_ids of `stages`."""
    return tuple(dict.fromkeys(experiment.fit_id(stage) for stage in stages(experiment, method)))


def done_before(
    experiment: Experiment,
    method: Method,
    folder: Path,
    *,
    curve: bool = False,
    keep_logits: bool = False,
    own: bool = False,
) -> Done | None:
    """Find the run that lies in a folder, or came for it in a pack, if it is done; None if it is to
    be made.

    To a run from a pack nothing is added: two machines in one record would be the run of neither.
    Where it lacks what is asked for and the weights for that are here, or a curve, the run is made
    here, beside it.

    Args:
        own: a run from a pack does not count.
    """
    record = experiment.store.run_at(folder)
    if record is None or record.status != "done" or (own and record.origin):
        return None
    lacking = _lacking(experiment, record, curve=curve, keep_logits=keep_logits)
    wanted = _addable(experiment, method, record, lacking)
    return None if wanted and record.origin else Done(record, wanted, lacking)


def _addable(
    experiment: Experiment, method: Method, done: RunRecord, lacking: frozenset[Part]
) -> frozenset[Part]:
    """What can be added to a done run.

    A run without a curve gets one, whatever has to be trained for it, and with it the logits. What
    a run merely did not keep of its images is added where its weights are at hand; nothing is
    trained for that.
    """
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
) -> frozenset[Part]:
    folder, found = experiment.store.run_dir(done), set[Part]()
    if curve and not (done.curve and has_curve(folder, done.metrics)):
        found.add("curve")
    if keep_logits and not has_logits(folder, done.metrics):
        found.add("logits")
    return frozenset(found)


def standing(
    experiment: Experiment,
    method: Method,
    folder: Path,
    *,
    curve: bool = False,
    keep_logits: bool = False,
    own: bool = False,
    fresh: bool = False,
    made: set[str] | None = None,
) -> Standing:
    """Say what `execute` will do about a run.

    Args:
        method: resolved.
        folder: of the run, as `Store.run_dir` says before it is made.
        own: see `done_before`.
        fresh: it is forgotten first.
        made: fit_ids that will be there by then, though they are not yet; those that this run makes
            are added.
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
            f"without {' and '.join(sorted(done.lacking))}: its weights are not here"
            if done.lacking
            else ""
        )
        if done.record.origin:
            return Standing(
                "merged",
                "; ".join(part for part in (f"from {done.record.origin['pack']}", lost) if part),
            )
        return Standing("done", lost)
    if fresh:
        made.discard(fit_id)
    fits: list[Method] = []
    for one in _bases(experiment, method, curve=curve and (done is None or "curve" in done.wanted)):
        _missing(experiment, one, made, fits, absent=fit_id if fresh else "")
    why = _why(done, before, fresh=fresh)
    if is_live(folder) or (fits and is_live(store.fit_dir(fit_id))):
        return Standing("running", "another process is at it, and is waited for", tuple(fits))
    if not any(_trains(one) for one in fits):
        return Standing("to evaluate", why, tuple(fits))
    stopped = not fresh and any(
        (store.fit_dir(experiment.fit_id(one)) / "checkpoint").is_dir() for one in fits
    )
    return Standing("to continue" if stopped else "to train", why, tuple(fits))


def _bases(experiment: Experiment, method: Method, *, curve: bool) -> list[Method]:
    """What a run asks for a fit of: the method and, for a curve, both ends of its line."""
    tuner = fine_tuned(method, experiment.setup.traits) if curve else None
    start = [experiment.setup.probe] if tuner is not None and tuner.head_init == "probe" else []
    return [method, *([] if tuner is None else [tuner]), *start]


def _missing(
    experiment: Experiment, method: Method, made: set[str], found: list[Method], absent: str
) -> None:
    """Add the fits that are not there, each behind what it is built on."""
    fit_id = experiment.fit_id(method)
    if fit_id in made or (fit_id != absent and experiment.store.fit(fit_id) is not None):
        return
    for stage in stages(experiment, method):
        _missing(experiment, stage, made, found, absent)
    made.add(fit_id)
    found.append(method)


def _trains(method: Method) -> bool:
    """Whether a fit takes more than what it is built on: an interpolation does not."""
    return method.trains and (isinstance(method, FineTuner) or not method.stages())


def _why(done: Done | None, before: RunRecord | None, *, fresh: bool) -> str:
    if before is None:
        return ""
    if before.origin:
        return f"beside the run from {before.origin['pack']}"
    if fresh:
        return "forgotten first"
    if done is not None:
        return f"to add its {' and '.join(sorted(done.wanted))}"
    if before.status == "failed":
        return f"failed before: {next(iter(before.error.splitlines()), '')}"
    return "begun before" if before.status == "started" else before.error or "stopped before"
