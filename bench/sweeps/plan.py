"""Plan a sweep: which runs to make, and which fits each of them depends on; nothing is trained."""

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
from ..run_spec import REFERENCE, SEARCH_SEED, left_out
from ..runs.execute import planned_record, row_label
from ..runs.experiment import Experiment, backbone_of, experiments
from ..runs.measure import fine_tuned, has_line
from ..runs.status import needs
from ..stopping import Reporter, foreign
from .job import Job
from .search.asha import stop_at
from .search.samplers import Winner
from .sweep_spec import SweepSpec


@dataclass(frozen=True)
class Entrant:
    """A method of the sweep on one backbone and one suite.

    Attributes:
        requested: the method as the spec names it.
        suite: name, or absolute path of a card.
        backbone: name.
        experiment: suite, backbone and settings, opened.
        method: the method, bound to the backbone, with the parameters of the recipe.
        fixed: names of the parameters that the user set, which no search changes.
    """

    requested: str
    suite: str
    backbone: str
    experiment: Experiment
    method: Method
    fixed: frozenset[str]


@dataclass(frozen=True)
class Impossible:
    """A method that cannot run on a backbone, with the reason."""

    # Listed, not raised, if the method can run on another backbone of the sweep.
    requested: str
    suite: str
    backbone: str
    reason: str


@dataclass(frozen=True)
class Planned:
    """A job together with the objects that only the driver has.

    Attributes:
        job: the job, as plain data.
        experiment: suite, backbone and settings, opened.
        method: the method, bound to the backbone.
        entrant: the first entrant that needs the run; None for a stage.
        path: the file of the run's record; None for a stage.
    """

    job: Job
    experiment: Experiment
    method: Method
    entrant: Entrant | None = None
    path: Path | None = None

    @property
    def final(self) -> bool:
        """Whether the job is a final run, whose record is a result of the sweep."""
        return self.job.is_run and self.job.trial is None

    @property
    def tuner(self) -> FineTuner | None:
        """The fine-tuner that the method is or wraps; None if nothing is trained in epochs."""
        return fine_tuned(self.method, self.experiment.setup.traits)


@dataclass(frozen=True)
class Plan:
    """The methods, backbones and suites of a sweep, and its jobs on request.

    Attributes:
        spec: the spec of the sweep.
        entrants: in the order of suites, backbones and methods.
        impossible: combinations that cannot run.
        blind: evaluate the final runs too on id-val alone.
        every_curve: fail a run whose interpolation curve is impossible, instead of skipping the
            curve.
    """

    spec: SweepSpec
    entrants: list[Entrant]
    impossible: list[Impossible]
    blind: bool = False
    every_curve: bool = False

    def trial(self, entrant: Entrant, method: Method, number: int) -> Planned:
        """Return the job of one search trial, evaluated on id-val.

        Args:
            entrant: whose search it is.
            method: the method with the trial's parameters.
            number: number of the trial; 0 is the recipe.
        """
        # All trials share one seed, which no final run has, so that the final runs of the best
        # trial are not the runs by which it was chosen.
        experiment = entrant.experiment.with_seed(SEARCH_SEED)
        record = planned_record(experiment, method, limit=self.spec.limit, search=True)
        return self._run(entrant, experiment, method, record, trial=number)

    def rung(self, trial: Planned, share: Fraction) -> Planned:
        """Return the job that trains a search trial up to a share of its epochs.

        Args:
            trial: the whole trial.
            share: share of its epochs, in (0, 1).
        """
        tuner, entrant = trial.tuner, trial.entrant
        assert tuner is not None, "a trial that has rungs is trained in epochs"
        assert entrant is not None, "a trial belongs to an entrant"
        # The job of the fine-tuner, not of a method that wraps it: methods that wrap the same fit
        # then share its rungs.
        epoch = stop_at(share, tuner.epochs)
        record = planned_record(trial.experiment, tuner, limit=self.spec.limit, search=True)
        planned = self._run(entrant, trial.experiment, tuner, record, trial=trial.job.trial)
        job = replace(
            planned.job, id=f"rung-{planned.job.fit_id}-{epoch}", phase="rung", epoch=epoch
        )
        return replace(planned, job=job)

    def final(self, entrant: Entrant, method: Method, seed: int, found: Winner | None) -> Planned:
        """Return the job of one final run, evaluated on all splits.

        Args:
            entrant: whose run it is.
            method: the method with the chosen parameters.
            seed: seed of the fit.
            found: how a search chose the parameters; None without a search.
        """
        experiment = entrant.experiment.with_seed(seed)
        record = planned_record(experiment, method, limit=self.spec.limit, search=self.blind)
        # By default the reference alone: other methods are measured against its curve.
        curve = {"none": False, "baseline": method.name == REFERENCE, "all": True}[self.spec.curve]
        curve = curve and (
            self.every_curve or has_line(fine_tuned(method, experiment.setup.traits))
        )
        planned = self._run(entrant, experiment, method, record, curve=curve)
        if found is None:
            return planned
        return replace(planned, job=replace(planned.job, chosen=found.record_fields))

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
            # The phase decides which splits the trial's process may open.
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
    """Return the job of a fit that another job depends on.

    Args:
        of: the job that depends on the fit.
        stage: the method of the fit.
    """
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
    """Return a method as `{"name", "parameters"}` from which any process can build it.

    `build_method` is the inverse.
    """
    # Every field, defaults included: a process with another default would otherwise build another
    # method. `make_plan` checks that the way back gives the same method.
    values = {key: _portable_value(getattr(method, key)) for key in type(method).model_fields}
    return {"name": _reference(method), "parameters": values}


def _reference(method: Method) -> str:
    """Return the name of an installed method, or the file of one that was loaded from a file."""
    return (
        str(sys.modules[type(method).__module__].__file__) if method.source_sha256 else method.name
    )


def _portable_value(value: Any) -> Any:
    # A nested method is written as one table, as in a spec file: its name next to its parameters.
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
    """Open every suite and backbone of a sweep, and build every method on each.

    Args:
        spec: the spec of the sweep.
        store: root of the store.
        engine: settings of a trial's process.
        reporter: receives warnings.
        final: `blind` and `every_curve` of the plan.

    Raises:
        UsageError: a name or parameter is wrong, or a method can run on none of the backbones.
        MissingPrerequisite: data or weights are missing.
    """
    entrants: list[Entrant] = []
    impossible: list[Impossible] = []
    refused: dict[str, UsageError] = {}
    for name, why in broken_methods().items() if spec.takes_all else ():
        reporter.event("warning", text=f"{name} is skipped: {why}")
    values = {
        contender.requested: (contender.name, spec.values(contender))
        for contender in spec.contenders
    }
    for text in left_out([contender.name for contender in spec.contenders], spec.shared):
        reporter.event("warning", text=text)
    for suite in spec.suites:
        card, card_path = find_card(suite)
        # By its absolute path, since a trial's process may run in another folder.
        named = str(card_path) if suite.endswith(".toml") else suite
        methods = {
            requested: build_method(name, given, card.recipe)
            for requested, (name, given) in values.items()
        }
        # Without any training the training images need not be there.
        training = spec.has_search or any(method.trains for method in methods.values())
        for backbone in spec.backbones or (backbone_of(card, None),):
            opened = spec.run_spec(named, backbone)
            experiment = experiments(
                opened, store=store, engine=engine, reporter=reporter, training=training
            )[0]
            for requested, method in methods.items():
                place = (requested, named, backbone)
                # A backbone without a text tower, say, rules some methods out.
                try:
                    bound = method.bind(experiment.setup.traits)
                    _check_portable(bound)
                except UsageError as error:
                    refused[requested] = error
                    impossible.append(Impossible(*place, reason=error.what))
                    continue
                entrants.append(Entrant(*place, experiment, bound, frozenset(values[requested][1])))
    # A method that was named has to run on at least one backbone. With `all` it is skipped.
    for requested, refusal in refused.items():
        if not spec.takes_all and all(entrant.requested != requested for entrant in entrants):
            raise refusal
    if not entrants:
        raise UsageError(
            "no installed method can run on these backbones",
            fix="run `bench backbones` to see what each of them offers",
        )
    return Plan(spec, entrants, impossible, **final)


def _check_portable(method: Method) -> None:
    """Raise unless another process would build the same method.

    Raises:
        BenchError: its parameters change on the way.
    """
    whole = portable(method)
    # By identity, which the fit_id is computed from. Else every trial would fail in its process,
    # one after another.
    if build_method(whole["name"], whole["parameters"]).identity() != method.identity():
        raise BenchError(
            f"{method.name} cannot be sent to another process: its parameters change when they are"
            " serialized and read again",
            fix="use plain values or nested methods as its fields",
        )
