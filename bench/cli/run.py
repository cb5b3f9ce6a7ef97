"""`bench run`: fine-tune with a method, measure ID and every shift, record it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console.options import (
    BackboneOption,
    DataOption,
    DeviceOption,
    DevicesOption,
    LimitOption,
    LogitsOption,
    SkipOption,
    SuiteOption,
    ThreadsOption,
    engine,
)
from ..tables.table import Column, Format, FormatOption, Row, StoreOption, Table, print_json, print_tables, say

if TYPE_CHECKING:
    from ..results.record import RunRecord


def command(
    methods: Annotated[
        list[str] | None, typer.Argument(help="names of methods, or files that end in .py", show_default=False)
    ] = None,
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="run seeds 0 .. N-1", show_default="1")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="run this seed; may be repeated", show_default=False)] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a parameter, such as lr=1e-4 or of.epochs=3")
    ] = None,
    of: Annotated[
        str | None, typer.Option("--of", help="the method that a wrapper wraps (wise-ft --of lp-ft)", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="TOML file with the fields methods, suite, backbone, seeds, of, set, ...; options override it"
        ),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="run the methods' files (.py) that the --config file names: read them first")
    ] = False,
    curve: Annotated[
        bool | None,
        typer.Option(
            "--curve/--no-curve", show_default=False, help="also the interpolation curve start -> fine-tuned, 11 points"
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="fit and score id-val only, for choosing parameters; no shift is looked at")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=0, help="choose parameters first: this many trials per method on id-val, with a seed of their own"
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="forget these fits and runs, and start over; what was merged stays beside")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what is done, what would be trained, and what it cost before")
    ] = False,
    limit: LimitOption = None,
    shots: Annotated[
        int | None,
        typer.Option("--shots", min=1, help="train on this many images per class, drawn by the seed", show_default="all"),
    ] = None,
    keep_logits: LogitsOption = None,
    skip_unreadable: SkipOption = None,
    data_root: DataOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = 1,
    threads: ThreadsOption = 2,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="threads that decode and augment training images ahead",
            show_default="as many as decoding needs",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="runs side by side, a process each, --threads threads each")
    ] = 1,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="images per forward pass in training; same result, less memory")
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic/--no-deterministic", help="refuse operations that do not repeat to the bit (GPUs have some)"
        ),
    ] = True,
    checkpoint_every: Annotated[float, typer.Option("--checkpoint-every", min=0, help="seconds between checkpoints")] = 60.0,
    form: FormatOption = Format.table,
) -> None:
    """Fine-tune a backbone with one or more METHODS, measure ID and every shift, and record it.

    What is done is skipped, what was interrupted continues: the same command again is the resume.

    \b
    Examples:
      bench run wise-ft                                     embedded backbone and suite
      bench run full-finetune wise-ft lp-ft --seeds 3
      bench run wise-ft --of masked-counterfactual --set alpha=0.3
      bench run full-finetune --suite pacs --backbone timm:tf_efficientnet_lite0 --data-root /data
      bench run ./my_method.py --set strength=0.5           a method of your own
      bench run full-finetune masked-counterfactual --trials 8 --seeds 3
      bench run linear-probe full-finetune --shots 16       16 training images per class
      bench run masked-counterfactual --dry-run

    Exit codes: 0 done, 1 a run failed, 2 usage, 3 data or weights are missing, 130/143 interrupted.
    """
    from ..errors import UsageError
    from ..plugins import trust
    from ..spec import parse_assignments, read_config, run_spec

    if seeds is not None and seed:
        raise UsageError("give either --seeds N or --seed K, not both")
    chosen = tuple(seed) if seed else tuple(range(seeds)) if seeds else None
    options = {
        "methods": tuple(methods) if methods else None,
        "suite": suite,
        "backbone": backbone,
        "seeds": chosen,
        "of": of,
        "set": parse_assignments(assignments or []),
        "data_root": data_root,
        "limit": limit,
        "shots": shots,
        "skip_unreadable": skip_unreadable,
        "keep_logits": keep_logits,
        "curve": curve,
        "search": search or None,
        "trials": trials,
    }
    trust([options, read_config(config) if allow_code else {}])
    spec = run_spec(options, config)
    check_names(spec.methods, spec.suite, spec.backbone)
    from ..console.progress import ConsoleReporter
    from ..console.sweep import SweepConsole
    from ..console.sweep_plan import plan_table
    from ..stopping import stop_if_asked
    from ..sweeps.sweep import run_sweep

    if len(spec.methods) * len(spec.seeds) == 1:
        jobs = 1
    machine = engine(device, threads, workers, micro_batch, checkpoint_every, deterministic, devices)
    with ConsoleReporter() as reporter:
        sweep = run_sweep(spec, jobs=jobs, store=store, engine=machine, reporter=reporter, fresh=fresh)
        stop_if_asked(reporter)
        if dry_run:
            print_tables([plan_table(sweep)], form)
            return
        if jobs == 1:
            sweep.run(reporter)
    if jobs > 1:
        with SweepConsole(sweep.queue) as console:
            sweep.run(console)
    records = sweep.records()
    if form is Format.json:
        print_json({"runs": [record.model_dump(mode="json") for record in records]})
    else:
        print_tables([result_table(records)], form)
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        say(f"error: {record.label}, seed {record.seed}: {record.error}")
    if failed:
        raise typer.Exit(1)


def check_names(methods: tuple[str, ...], suite: str, backbone: str | None) -> None:
    """Wrong names are told at once, before torch is imported."""
    from ..configure import method_names
    from ..data.cards.suite_card import find_card
    from ..plugins import backbone_kinds, entries, unknown

    for name in methods:
        if not name.endswith(".py") and name not in entries("bench.methods"):
            raise unknown("method", name, method_names(), fix="`bench methods` lists them; a file of your own ends in .py")
    find_card(suite)
    if backbone is not None and backbone.partition(":")[0] not in entries("bench.backbones"):
        raise unknown(
            "kind of backbone", backbone.partition(":")[0], backbone_kinds(), fix="`bench backbones` explains the names"
        )


def result_table(records: list[RunRecord]) -> Table:
    """One row per run: ID, every shift, their mean."""
    splits = list(dict.fromkeys(name for record in records for name in ("id-val", "id-test", *record.shifts)))
    rows: list[Row] = []
    for record in records:
        scores = {name: metrics.score for name, metrics in record.metrics.items()}
        rows.append({"method": record.label, "seed": record.seed, **scores, "ood": record.ood, "status": record.status})
    columns = [Column("method"), Column("seed", kind="count"), *(Column(name, kind="percent") for name in splits)]
    columns += [Column("ood", "OOD", "percent"), Column("status")]
    notes = [f"{name}: {what}" for record in records for name, what in (record.holes | record.miscounted).items()]
    notes += [told for record in records for told in record.duplicates_told()]
    return Table(columns, rows, notes=[*dict.fromkeys(notes)])
