"""The Python interface: what the command line does, as calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configure import build_method
from .data.cards.suite_card import find_card
from .engine import Engine
from .errors import MissingPrerequisite
from .method import Method
from .plugins import trust
from .results.record import RunRecord
from .results.store import Store, store_root
from .runs.execute import execute, execute_external, planned_record, record_failure, start_over
from .runs.experiment import Experiment
from .runs.opening import experiments
from .runs.standing import Standing, standing
from .spec import SEARCH_SEED, RunSpec, left_out
from .stopping import Reporter, foreign
from .storage.files import absent
from .sweeps.search.samplers import Found, best_of, candidates, search
from .training.devices import DeviceLost

if TYPE_CHECKING:
    import pandas as pd

    from .sweeps.sweep import Settings


@dataclass(frozen=True)
class Planned:
    """One run to do: its experiment (backbone, suite, seed), its method with all parameters, and how the method was named."""

    experiment: Experiment
    method: Method
    asked: str
    found: Found | None = None

    @property
    def fit_id(self) -> str:
        """Identity of its fit."""
        return self.experiment.fit_id(self.method)


@dataclass(frozen=True)
class Outlook:
    """What `searched` or `run_planned` will do about one run, in the order in which they do it.

    Attributes:
        trial: its number, of a search's trial. standing: None of a run whose parameters are still searched for.
    """

    planned: Planned
    standing: Standing | None
    trial: int | None = None


@foreign()
def plan(
    spec: RunSpec, *, store: Path | None = None, engine: Engine | None = None, reporter: Reporter | None = None
) -> list[Planned]:
    """Every run of a spec, validated: names, parameters, backbone, data. Nothing is trained.

    Raises:
        UsageError: a name or parameter is wrong. MissingPrerequisite: data or weights are not here.
    """
    card, _ = find_card(spec.suite)
    methods = {name: build_method(name, spec.values(name), card.recipe) for name in spec.methods}
    for text in left_out(spec.methods, spec.shared):
        (reporter or Reporter()).event("warning", text=text)
    training = bool(spec.trials) or any(method.trains for method in methods.values())
    opened = experiments(spec, store=store, engine=engine, reporter=reporter, training=training)
    return [Planned(one, method.resolved(one.traits), name) for one in opened for name, method in methods.items()]


def outlook(planned: list[Planned], spec: RunSpec, *, fresh: bool = False, own: bool = False) -> list[Outlook]:
    """Say what will be done about a plan: the trials of its searches, then its runs. Nothing is done.

    Args:
        fresh: as of `run_planned`. own: runs from packs do not count (`make_here`).
    """
    made: set[str] = set()

    def look(one: Planned, *, search: bool, final: bool = True) -> Standing:
        record = planned_record(one.experiment, one.method, limit=spec.limit, search=search)
        folder, asked = one.experiment.store.run_dir(record), {"curve": spec.curve, "keep_logits": spec.keep_logits}
        asked = {} if search else asked
        return standing(one.experiment, one.method, folder, **asked, own=own, fresh=fresh and final, made=made)

    found: list[Outlook] = []
    chosen: dict[str, Method | None] = {}
    for one in planned if spec.trials else ():
        if one.asked in chosen:
            continue
        experiment = one.experiment.with_seed(SEARCH_SEED)
        methods = [m.resolved(one.experiment.traits) for m in candidates(one.method, spec.trials, spec.values(one.asked))]
        trials = [Planned(experiment, method, one.asked) for method in methods]
        found += [Outlook(trial, look(trial, search=True, final=False), number) for number, trial in enumerate(trials)]
        records = [_trial_done(trial, spec) for trial in trials]
        best = best_of([record for record in records if record is not None]) if None not in records else None
        chosen[one.asked] = None if best is None else methods[best]
    for one in planned:
        method = chosen.get(one.asked, one.method)
        if method is None:
            found.append(Outlook(one, None))
        else:
            final = Planned(one.experiment, method, one.asked)
            found.append(Outlook(final, look(final, search=spec.search)))
    return found


def _trial_done(trial: Planned, spec: RunSpec) -> RunRecord | None:
    store = trial.experiment.store
    record = store.run_at(store.run_dir(planned_record(trial.experiment, trial.method, limit=spec.limit, search=True)))
    return record if record is not None and record.status == "done" else None


def searched(planned: list[Planned], spec: RunSpec) -> list[Planned]:
    """The plan with every method's parameters chosen by `spec.trials` trials on id-val (a plan of its own if 0).

    Raises:
        BenchError: every trial of a method failed, or one lost a device: a search without it would choose by accident.
        Interrupted: a stop was asked for. Finished trials are kept, and the same call continues.
    """
    if not spec.trials:
        return planned
    found: dict[str, Found] = {}
    for one in planned:
        if one.asked not in found:
            experiment = one.experiment.with_seed(SEARCH_SEED)
            found[one.asked] = search(experiment, one.method, spec.trials, spec.values(one.asked), limit=spec.limit)
    return [Planned(one.experiment, found[one.asked].method, one.asked, found[one.asked]) for one in planned]


def run_planned(planned: Planned, spec: RunSpec, *, fresh: bool = False) -> RunRecord:
    """Execute one planned run. One that loses a device is a failed row, so that the runs after it go on.

    Args:
        fresh: forget its fit and its runs first (not those of nested methods, nor what came in a pack: both then stay).

    Raises:
        Interrupted: a stop was asked for.
    """
    if fresh:
        start_over(planned.experiment, planned.method, limit=spec.limit, search=spec.search)
    try:
        return execute(
            planned.experiment,
            planned.method,
            limit=spec.limit,
            search=spec.search,
            curve=spec.curve,
            keep_logits=spec.keep_logits,
            search_trials=planned.found.budget if planned.found else 0,
            search_seconds=planned.found.seconds if planned.found else None,
            search_rule=planned.found.rule if planned.found else "",
        )
    except DeviceLost as lost:
        error = f"{type(lost).__name__}: {lost}"
        record = record_failure(planned.experiment, planned.method, error, limit=spec.limit, search=spec.search)
        path = planned.experiment.store.run_dir(record) / "record.json"
        planned.experiment.reporter.event("run", record=record, path=path)
        return record


def run(
    *methods: str,
    store: Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    fresh: bool = False,
    **fields: Any,
) -> list[RunRecord]:
    """Fit and measure methods, as `bench run` does.

    Example:
        `bench.run("wise-ft", "linear-probe", suite="mini-shifts", seeds=[0, 1, 2])`

    Args:
        fields: those of `RunSpec`. store: folder of the results. fresh: start over.

    Raises:
        BenchError: see `plan`; a run that fails while training is a record with status `failed`.
    """
    from .spec import run_spec

    trust([methods, fields])
    spec = run_spec({"methods": methods, **fields})
    planned = searched(plan(spec, store=store, engine=engine, reporter=reporter), spec)
    return [run_planned(one, spec, fresh=fresh) for one in planned]


def sweep(
    *methods: str,
    store: Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    **fields: Any,
) -> list[RunRecord]:
    """Search with the same budget for every method, and run what was chosen with every seed, as `bench sweep` does.

    Example:
        `bench.sweep("full-finetune", "wise-ft:of=lp-ft", seeds=[0, 1, 2], trials=8, runner="local")`

    Args:
        fields: those of `SweepSpec`. settings: how a trial's process computes. reporter: is told what happens, and asked
            whether to stop.

    Returns:
        The records of the final runs, those with status `failed` included.

    Raises:
        BenchError: see `plan`, or the runner cannot go on. Interrupted: the reporter asked to stop; the same call continues.
    """
    from .sweeps.spec import sweep_spec
    from .sweeps.sweep import Sweep

    trust([methods, fields])
    whole = Sweep(sweep_spec({"methods": methods, **fields}), store=store, settings=settings, reporter=reporter or Reporter())
    whole.run(reporter or Reporter())
    return whole.records()


def evaluate(
    weights: Path,
    spec: RunSpec,
    *,
    name: str,
    normalize: bool | None = None,
    averaged: bool = True,
    store: Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
) -> RunRecord:
    """Measure existing weights on a suite; the row is marked as external, its training unverified.

    Args:
        weights: a checkpoint of wise-ft, FLYP, model-soups, open_clip, robust-finetuning, Hugging Face's CLIPModel or timm with
            its classifier; a file with the tensors of a classifier (`tower.*`, `head.weight`, `head.bias`); the folder of a fit.
        name: label of the row. normalize: whether the head divides features by their norm.
        averaged: of a file that holds averaged weights (EMA) and others, take the averaged ones.

    Raises:
        BenchError: the file is none of these, or does not fit. UsageError, MissingPrerequisite: see `plan`; training images and
            id-val may be missing.
    """
    if not weights.is_dir() and (why := absent(weights)):  # said before a million files are indexed
        raise MissingPrerequisite(why, fix="name a weights file or a fit's folder")
    experiment = experiments(spec, store=store, engine=engine, reporter=reporter, training=False)[0]
    return execute_external(
        experiment,
        weights,
        name=name,
        normalize=normalize,
        averaged=averaged,
        limit=spec.limit,
        keep_logits=spec.keep_logits,
    )


def load_runs(store: Path | None = None) -> pd.DataFrame:
    """Every run of a store as a table: one row per run, one column per field and per split's score."""
    import pandas as pd

    rows = []
    for path, record in Store(store_root(store)).records():
        row = record.model_dump(exclude={"metrics", "provenance", "curve", "factors"})
        row |= {f"score.{split}": metrics.score for split, metrics in record.metrics.items()}
        rows.append({**row, "path": str(path)})
    return pd.DataFrame(rows)
