"""A sweep as a plan: which runs there are to make, and which fits each of them is built on. Nothing
is trained here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..configure import broken_methods, build_method
from ..data.cards.suite_card import find_card
from ..engine import Engine
from ..errors import BenchError, UsageError
from ..method import FineTuner, Method
from ..results.record import RunRecord
from ..runs.execute import planned_record, row_label
from ..runs.experiment import Experiment, backbone_of, experiments
from ..runs.measure import fine_tuned, has_line
from ..runs.standing import needs
from ..spec import REFERENCE, SEARCH_SEED, left_out
from ..stopping import Reporter, foreign
from .job import Job
from .search.asha import stop_at
from .search.samplers import Found
from .spec import SweepSpec


@dataclass(frozen=True)
class Entrant:
    """A method of the sweep on one backbone and one suite.

    Attributes:
        asked: as the spec names it.
        suite, backbone: as a job names them.
        method: resolved, with the recipe's parameters.
        fixed: parameters that the user set, which no search draws.
    """

    asked: str
    suite: str
    backbone: str
    experiment: Experiment
    method: Method
    fixed: frozenset[str]


@dataclass(frozen=True)
class Impossible:
    """A method that cannot run on a backbone, while it can on another one of the sweep."""

    asked: str
    suite: str
    backbone: str
    reason: str


@dataclass(frozen=True)
class Planned:
    """A job together with what the driver knows of it: the objects that it is made of and, of a
    run, who asked for it first and where its record lies.
    """

    job: Job
    experiment: Experiment
    method: Method
    entrant: Entrant | None = None
    path: Path | None = None

    @property
    def final(self) -> bool:
        """Whether it is one of the runs that the sweep is for."""
        return self.job.is_run and self.job.trial is None

    @property
    def tuner(self) -> FineTuner | None:
        """The fine-tuner that the method is or wraps, which trains in epochs; None if there is
        none.
        """
        return fine_tuned(self.method, self.experiment.setup.traits)


@dataclass(frozen=True)
class Plan:
    """Entrants in the order of suites, backbones and methods.

    Attributes:
        blind: final runs, too, look at id-val and at nothing else.
        every_curve: one that cannot be drawn fails its run, instead of being left out.
    """

    spec: SweepSpec
    entrants: list[Entrant]
    impossible: list[Impossible]
    blind: bool = False
    every_curve: bool = False

    def trial(self, entrant: Entrant, method: Method, number: int) -> Planned:
        """One trial of a search, on id-val."""
        experiment = entrant.experiment.with_seed(SEARCH_SEED)
        record = planned_record(experiment, method, limit=self.spec.limit, search=True)
        return self._run(entrant, experiment, method, record, trial=number)

    def rung(self, trial: Planned, share: Fraction) -> Planned:
        """The fine-tuning of a search trial as far as this share of its epochs."""
        tuner, entrant = trial.tuner, trial.entrant
        assert tuner is not None, "a trial that has rungs is trained in epochs"
        assert entrant is not None, "a trial is somebody's"
        epoch = stop_at(share, tuner.epochs)
        record = planned_record(trial.experiment, tuner, limit=self.spec.limit, search=True)
        planned = self._run(entrant, trial.experiment, tuner, record, trial=trial.job.trial)
        job = replace(
            planned.job, id=f"rung-{planned.job.fit_id}-{epoch}", phase="rung", epoch=epoch
        )
        return replace(planned, job=job)

    def final(self, entrant: Entrant, method: Method, seed: int, found: Found | None) -> Planned:
        """One final run, on everything."""
        experiment = entrant.experiment.with_seed(seed)
        record = planned_record(experiment, method, limit=self.spec.limit, search=self.blind)
        curve = {"none": False, "baseline": method.name == REFERENCE, "all": True}[self.spec.curve]
        curve = curve and (
            self.every_curve or has_line(fine_tuned(method, experiment.setup.traits))
        )
        planned = self._run(entrant, experiment, method, record, curve=curve)
        if found is None:
            return planned
        return replace(planned, job=replace(planned.job, chosen=found.told))

    def _run(
        self,
        entrant: Entrant,
        experiment: Experiment,
        method: Method,
        record: RunRecord,
        *,
        trial: int | None = None,
        curve: bool = False,
    ) -> Planned:
        job = Job(
            id=f"run-{record.eval_id}",
            phase="search" if self.blind or trial is not None else "final",
            method=portable(method),
            label=record.label,
            suite=entrant.suite,
            backbone=entrant.backbone,
            seed=experiment.setup.seed,
            fit_id=record.fit_id,
            needs=needs(experiment, method),
            trial=trial,
            curve=curve,
        )
        return Planned(
            job, experiment, method, entrant, experiment.store.run_dir(record) / "record.json"
        )


def stage_task(of: Planned, stage: Method) -> Planned:
    """A fit that the job `of` is built on, as a job of its own."""
    fit_id = of.experiment.fit_id(stage)
    job = Job(
        id=f"fit-{fit_id}",
        phase="stage",
        method=portable(stage),
        label=row_label(stage, of.experiment.setup),
        suite=of.job.suite,
        backbone=of.job.backbone,
        seed=of.job.seed,
        fit_id=fit_id,
        needs=needs(of.experiment, stage),
    )
    return Planned(job, of.experiment, stage)


def portable(method: Method) -> dict[str, Any]:
    """A method as `{"name", "parameters"}` that `build_method` makes the same method of, in any
    process.
    """
    values = {key: _portable_value(getattr(method, key)) for key in type(method).model_fields}
    return {"name": _reference(method), "parameters": values}


def _reference(method: Method) -> str:
    """An installed method's name; the file of one that was loaded from a file."""
    return (
        str(sys.modules[type(method).__module__].__file__) if method.source_sha256 else method.name
    )


def _portable_value(value: Any) -> Any:
    if isinstance(value, Method):
        whole = portable(value)
        return {"name": whole["name"], **whole["parameters"]}
    if isinstance(value, (list, tuple)):
        return [_portable_value(item) for item in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


@foreign()
def make_plan(
    spec: SweepSpec, *, store: Path, engine: Engine, reporter: Reporter, **final: bool
) -> Plan:
    """Open every suite and backbone, and build every method on each.

    Args:
        final: `blind` and `every_curve` of the plan.

    Raises:
        UsageError: a name or parameter is wrong, or a method can run on none of the backbones.
        MissingPrerequisite: data or weights are not here.
    """
    entrants: list[Entrant] = []
    impossible: list[Impossible] = []
    refused: dict[str, UsageError] = {}
    for name, why in broken_methods().items() if spec.takes_all else ():
        reporter.event("warning", text=f"{name} is left out: {why}")
    values = {
        contender.asked: (contender.name, spec.values(contender)) for contender in spec.contenders
    }
    for text in left_out([contender.name for contender in spec.contenders], spec.shared):
        reporter.event("warning", text=text)
    for suite in spec.suites:
        card, card_path = find_card(suite)
        named = str(card_path) if suite.endswith(".toml") else suite
        methods = {
            asked: build_method(name, given, card.recipe) for asked, (name, given) in values.items()
        }
        training = spec.searches or any(method.trains for method in methods.values())
        for backbone in spec.backbones or (backbone_of(card, None),):
            opened = spec.run_spec(named, backbone)
            experiment = experiments(
                opened, store=store, engine=engine, reporter=reporter, training=training
            )[0]
            for asked, method in methods.items():
                place = (asked, named, backbone)
                try:
                    resolved = method.resolved(experiment.setup.traits)
                    _check_portable(resolved)
                except UsageError as error:
                    refused[asked] = error
                    impossible.append(Impossible(*place, reason=error.what))
                    continue
                entrants.append(Entrant(*place, experiment, resolved, frozenset(values[asked][1])))
    for asked, refusal in refused.items():
        if not spec.takes_all and all(entrant.asked != asked for entrant in entrants):
            raise refusal
    if not entrants:
        raise UsageError(
            "no installed method can run on these backbones",
            fix="`bench backbones` says what each of them offers",
        )
    return Plan(spec, entrants, impossible, **final)


def _check_portable(method: Method) -> None:
    """A method that other processes would build differently is refused before anything is
    trained.
    """
    whole = portable(method)
    if build_method(whole["name"], whole["parameters"]).identity() != method.identity():
        raise BenchError(
            f"{method.name} cannot be handed to another process: its parameters, written down and"
            " read again, are others",
            fix="make its fields plain values or nested methods",
        )
