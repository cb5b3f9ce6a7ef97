"""The Python interface: what the command line does, as calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import Engine
from .errors import MissingPrerequisite
from .plugins import trust
from .results.record import RunRecord
from .results.store import Store, store_root
from .runs.execute import execute_external
from .runs.experiment import experiments
from .spec import RunSpec, Settings, run_spec
from .stopping import Reporter
from .storage.files import absent

if TYPE_CHECKING:
    import pandas as pd


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
        fields: those of `RunSpec`.
        store: folder of the results.
        fresh: start over.

    Raises:
        UsageError: a name or parameter is wrong.
        MissingPrerequisite: data or weights are not here.
        Interrupted: the reporter asked to stop; the same call continues.

        A run that fails while training is a record with status `failed`.
    """
    from .sweeps.sweep import run_sweep

    trust([methods, fields])
    reporter = reporter or Reporter()
    names = [name for name in Settings.model_fields if engine is not None]
    settings = Settings(**{name: getattr(engine, name) for name in names})
    spec = run_spec({"methods": methods, **fields})
    whole = run_sweep(spec, store=store, settings=settings, reporter=reporter, fresh=fresh)
    whole.run(reporter)
    return whole.records()


def sweep(
    *methods: str,
    store: Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    **fields: Any,
) -> list[RunRecord]:
    """Search with the same budget for every method, and run what was chosen with every seed, as
    `bench sweep` does.

    Example:
        `bench.sweep("full-finetune", "wise-ft:of=lp-ft", seeds=[0, 1, 2], trials=8)`

    Args:
        fields: those of `SweepSpec`.
        settings: how a trial's process computes.
        reporter: is told what happens, and asked whether to stop.

    Returns:
        The records of the final runs, those with status `failed` included.

    Raises:
        BenchError: see `run`, or the runner cannot go on.
        Interrupted: the reporter asked to stop; the same call continues.
    """
    from .sweeps.spec import sweep_spec
    from .sweeps.sweep import Sweep

    trust([methods, fields])
    whole = Sweep(
        sweep_spec({"methods": methods, **fields}),
        store=store,
        settings=settings,
        reporter=reporter or Reporter(),
    )
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
        weights: a checkpoint of wise-ft, FLYP, model-soups, open_clip, robust-finetuning, Hugging
            Face's CLIPModel or timm with its classifier; a file with the tensors of a classifier
            (`tower.*`, `head.weight`, `head.bias`); the folder of a fit.
        name: label of the row.
        normalize: whether the head divides features by their norm.
        averaged: of a file that holds averaged weights (EMA) and others, take the averaged ones.

    Raises:
        BenchError: the file is none of these, or does not fit. UsageError, MissingPrerequisite: see
            `run`; training images and id-val may be missing.
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
    """Every run of a store as a table: one row per run, one column per field and per split's
    score.
    """
    import pandas as pd

    rows = []
    for path, record in Store(store_root(store)).records():
        row = record.model_dump(exclude={"metrics", "provenance", "curve", "factors"})
        row |= {f"score.{split}": metrics.score for split, metrics in record.metrics.items()}
        rows.append({**row, "path": str(path)})
    return pd.DataFrame(rows)
