"""The Python API: the commands of `bench` as functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import Engine
from .errors import MissingPrerequisite, UsageError
from .plugins import trust
from .results.record import RunRecord
from .results.store import Store, store_root
from .run_spec import RunSpec, Settings, run_spec
from .runs.execute import execute_external
from .runs.experiment import experiments
from .stopping import Reporter
from .storage.files import absent

if TYPE_CHECKING:
    import pandas as pd


def run(
    *methods: str,
    store: str | Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    fresh: bool = False,
    **fields: Any,
) -> list[RunRecord]:
    """Train and evaluate methods, as `bench run` does.

    Example:
        `bench.run("wise-ft", "linear-probe", suite="mini-shifts", seeds=[0, 1, 2])`

    Args:
        methods: names, or paths of files that end in `.py`.
        store: folder of the results; default: BENCH_STORE, else `bench-store`.
        engine: device, threads and batch sizes.
        reporter: receives progress, and is polled for a stop.
        fresh: discard earlier results and train again.
        fields: further fields of `RunSpec`.

    Returns:
        One record per method and seed. A run that fails has the status `failed`.

    Raises:
        UsageError: a name or parameter is wrong.
        MissingPrerequisite: data or weights are missing.
        Interrupted: the reporter requested a stop; the same call continues.
    """
    from .sweeps.sweep import run_sweep

    # Passing a file's name in a call is consent to run it, as typing it in a command is.
    trust([methods, fields])
    reporter = reporter or Reporter()
    # An engine says how this process computes; a spec of settings says the same of the processes
    # that a sweep starts. Without an engine, the settings' own defaults hold.
    names = [name for name in Settings.model_fields if engine is not None]
    settings = Settings(**{name: getattr(engine, name) for name in names})
    spec = run_spec({"methods": methods, **fields})
    whole = run_sweep(spec, store=_folder(store), settings=settings, reporter=reporter, fresh=fresh)
    whole.run(reporter)
    return whole.records()


def sweep(
    *methods: str,
    store: str | Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    **fields: Any,
) -> list[RunRecord]:
    """Tune every method with the same budget and run the result with every seed: `bench sweep`.

    Example:
        `bench.sweep("full-finetune", "wise-ft:of=lp-ft", seeds=[0, 1, 2], trials=8)`

    Args:
        methods: names or files, with parameters as `NAME:KEY=VALUE,KEY=VALUE`.
        store: folder of the results; default: BENCH_STORE, else `bench-store`.
        settings: device, threads and batch sizes of a trial.
        reporter: receives progress, and is polled for a stop.
        fields: further fields of `SweepSpec`.

    Returns:
        The records of the final runs, including those with the status `failed`.

    Raises:
        BenchError: as in `run`, or the runner failed.
        Interrupted: the reporter requested a stop; the same call continues.
    """
    from .sweeps.sweep import Sweep
    from .sweeps.sweep_spec import sweep_spec

    trust([methods, fields])
    whole = Sweep(
        sweep_spec({"methods": methods, **fields}),
        store=_folder(store),
        settings=settings,
        reporter=reporter or Reporter(),
    )
    whole.run(reporter or Reporter())
    return whole.records()


def evaluate(
    weights: str | Path,
    spec: RunSpec | None = None,
    *,
    name: str | None = None,
    normalize: bool | None = None,
    averaged: bool = True,
    store: str | Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    **fields: Any,
) -> RunRecord:
    """Evaluate existing weights on a suite. The record is marked as external: training unverified.

    Example:
        `bench.evaluate("soup.pt", suite="imagenet-shifts", backbone="open_clip:ViT-B-32/openai")`

    Args:
        weights: a checkpoint of wise-ft, FLYP, model-soups, open_clip, robust-finetuning, Hugging
            Face's CLIPModel or timm with its classifier; a file with the tensors of a classifier
            (`tower.*`, `head.weight`, `head.bias`); or the folder of a fit.
        spec: suite, backbone and data, instead of `fields`; its methods are not run.
        name: label of the row; default: the file's name.
        normalize: whether the head divides features by their norm; None: as the file implies.
        averaged: prefer averaged weights (EMA) if the file has both.
        store: folder of the results; default: BENCH_STORE, else `bench-store`.
        engine: device, threads and batch sizes.
        reporter: receives progress, and is polled for a stop.
        fields: fields of `RunSpec`, such as `suite`, `backbone` and `data_root`.

    Raises:
        BenchError: the file has another format, or does not fit the backbone or the suite.
        UsageError: a name or parameter is wrong.
        MissingPrerequisite: test images or weights are missing; train and id-val may be.
    """
    if spec is not None and fields:
        raise UsageError("give either a spec or its fields, not both", where=", ".join(fields))
    # `external` is the method that such records name.
    spec = spec or run_spec({"methods": ("external",), **fields})
    weights = Path(weights)
    # Checked first: opening the suite may index a million files.
    if not weights.is_dir() and (why := absent(weights)):
        raise MissingPrerequisite(why, fix="give a weights file or a fit's folder")
    # `training=False`: nothing is fitted, so that the training images and id-val may be missing.
    experiment = experiments(
        spec, store=_folder(store), engine=engine, reporter=reporter, training=False
    )[0]
    return execute_external(
        experiment,
        weights,
        name=name or weights.name,
        normalize=normalize,
        averaged=averaged,
        limit=spec.limit,
        keep_logits=spec.keep_logits,
    )


def load_runs(store: str | Path | None = None) -> pd.DataFrame:
    """Return all runs of a store as a table.

    Args:
        store: folder of the results; default: BENCH_STORE, else `bench-store`.

    Returns:
        One row per run, one column per field of the record, and a column `score.SPLIT` per split.
    """
    import pandas as pd

    rows = []
    # Scores become columns of their own; what is nested deeper is left to the record itself.
    for path, record in Store(store_root(_folder(store))).records():
        row = record.model_dump(exclude={"metrics", "provenance", "curve", "factors"})
        row |= {f"score.{split}": metrics.score for split, metrics in record.metrics.items()}
        rows.append({**row, "path": str(path)})
    return pd.DataFrame(rows)


def _folder(store: str | Path | None) -> Path | None:
    return None if store is None else Path(store)
