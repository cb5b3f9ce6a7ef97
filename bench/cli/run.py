"""`bench run`: fine-tune with one or more methods and evaluate on the ID data and every shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import completion
from ..console.options import (
    AllowCodeOption,
    ConfigOption,
    SeedOption,
    SeedsOption,
    seeds_of,
    with_options,
)
from ..plugins import backbone_kinds, entries, trust, unknown
from ..run_spec import RunSpec, Settings, read_config, run_spec
from ..storage.files import toml_of
from ..tables.table import (
    Column,
    Format,
    FormatOption,
    Row,
    StoreOption,
    Table,
    print_json,
    print_tables,
    say,
)

if TYPE_CHECKING:
    from ..results.record import RunRecord


@with_options(RunSpec)
@with_options(Settings)
def command(
    runspec: dict[str, Any],
    settings: dict[str, Any],
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            help="names or .py files of methods",
            show_default=False,
            autocompletion=completion.methods,
        ),
    ] = None,
    seeds: SeedsOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    allow_code: AllowCodeOption = False,
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="print the configuration as TOML and exit")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="discard these fits and runs and start over; merged runs stay",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="show what is done, what would be trained and how long it would take"
        ),
    ] = False,
    store: StoreOption = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="number of runs in parallel; each is a process with --threads threads",
        ),
    ] = 1,
    form: FormatOption = Format.table,
) -> None:
    """Fine-tune a backbone with one or more METHODS and evaluate on the ID data and every shift.

    To resume, run the same command again: finished runs are skipped, interrupted ones continue.

    \b
    Examples:
      bench run wise-ft                                     embedded backbone and suite
      bench run full-finetune wise-ft lp-ft --seeds 3
      bench run wise-ft --of masked-counterfactual --set alpha=0.3
      bench run full-finetune --suite pacs --backbone timm:tf_efficientnet_lite0 --data-root /data
      bench run ./my_method.py --set strength=0.5           your own method
      bench run full-finetune masked-counterfactual --trials 8 --seeds 3
      bench run linear-probe full-finetune --shots 16       16 training images per class
      bench run masked-counterfactual --dry-run

    Exit codes: 0 done, 1 a run failed, 2 usage, 3 data or weights are missing, 130/143 interrupted.
    """
    options = {
        **runspec,
        "methods": tuple(methods) if methods else None,
        "seeds": seeds_of(seeds, seed),
    }
    # Files that the command line names may be executed. Those that only the configuration names
    # may come from somebody else, so they need --allow-code.
    trust([options, read_config(config) if allow_code else {}])
    spec = run_spec(options, config)
    if dump_config:
        typer.echo(toml_of(spec.model_dump(mode="json", exclude_none=True)), nl=False)
        return
    check_names(spec.methods, spec.suite, spec.backbone)

    # Imported only now: these import torch, and a misspelt name should be reported at once.
    from ..console.progress import ConsoleReporter
    from ..console.sweep import SweepConsole
    from ..console.sweep_plan import plan_table
    from ..stopping import stop_if_requested
    from ..sweeps.sweep import run_sweep

    # A single run needs no process of its own, and in this one it reports every step.
    if len(spec.methods) * len(spec.seeds) == 1:
        jobs = 1
    machine = Settings(**{key: value for key, value in settings.items() if value is not None})
    with ConsoleReporter() as reporter:
        sweep = run_sweep(
            spec, jobs=jobs, store=store, settings=machine, reporter=reporter, fresh=fresh
        )
        stop_if_requested(reporter)
        if dry_run:
            print_tables([plan_table(sweep)], form)
            return
        if jobs == 1:
            sweep.run(reporter)
    if jobs > 1:
        with SweepConsole(sweep.queue) as console:
            sweep.run(console)
    _print_records(sweep.records(), form)


def _print_records(records: list[RunRecord], form: Format) -> None:
    """Print the runs, and exit with code 1 if one failed."""
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
    """Check the names of methods, suite and backbone without importing torch.

    Args:
        methods: Names of methods; files that end in .py are not checked here.
        suite: Name of a suite, or path of a card.
        backbone: Name of a backbone; None: the suite's own.

    Raises:
        UsageError: A method, a suite or a kind of backbone is unknown.
    """
    from ..configure import method_names
    from ..data.cards.suite_card import find_card

    for name in methods:
        if not name.endswith(".py") and name not in entries("bench.methods"):
            raise unknown(
                "method",
                name,
                method_names(),
                fix="`bench methods` lists them; the path of a file ends in .py",
            )
    find_card(suite)
    # The rest of the name means something to the library alone, which reports it when it loads.
    if backbone is not None and backbone.partition(":")[0] not in entries("bench.backbones"):
        raise unknown(
            "kind of backbone",
            backbone.partition(":")[0],
            backbone_kinds(),
            fix="`bench backbones` explains the names",
        )


def result_table(records: list[RunRecord]) -> Table:
    """Return a table with a row per run: scores on ID and every shift, and the OOD average."""
    # The union over the runs: one that failed early may list no shifts.
    splits = list(
        dict.fromkeys(name for record in records for name in ("id-val", "id-test", *record.shifts))
    )
    rows: list[Row] = []
    for record in records:
        scores = {name: metrics.score for name, metrics in record.metrics.items()}
        rows.append(
            {
                "method": record.label,
                "seed": record.seed,
                **scores,
                "ood": record.ood,
                "status": record.status,
            }
        )
    columns = [
        Column("method"),
        Column("seed", kind="count"),
        *(Column(name, kind="percent") for name in splits),
    ]
    columns += [Column("ood", "OOD", "percent"), Column("status")]
    notes = [
        f"{name}: {what}"
        for record in records
        for name, what in (record.holes | record.miscounted).items()
    ]
    notes += [note for record in records for note in record.duplicates_reported()]
    # Every run of a suite has the same notes; show each once.
    return Table(columns, rows, notes=[*dict.fromkeys(notes)])
