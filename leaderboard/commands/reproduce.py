"""`bench reproduce`: run the recipe of a published result and compare the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.console.options import DataOption, DeviceOption, ThreadsOption
from bench.errors import UsageError
from bench.plugins import unknown
from bench.run_spec import RunSpec, Settings, run_spec
from bench.tables.table import (
    Column,
    Format,
    FormatOption,
    Row,
    StoreOption,
    Table,
    print_tables,
    say,
)

if TYPE_CHECKING:
    from bench.results.record import RunRecord

    from ..reported import Reported, ReportedFile


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="such as mini-shifts/full-finetune; if omitted, lists the rows with a recipe"
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="your own TOML file of reported rows")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be run")] = False,
    data_root: DataOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 2,
    form: FormatOption = Format.table,
) -> None:
    """Run the recipe of a reported row, and compare the measured numbers with the reported ones.

    Runs that were trained here are reused. Runs that were merged from a pack are trained again, and
    the differences between the two are reported. Each number is within or outside of the tolerance
    that the row states.

    \b
    Examples:
      bench reproduce
      bench reproduce mini-shifts/full-finetune
      bench reproduce imagenet-shifts/b32-zero-shot --data-root /data --dry-run

    Exit codes: 0 within, 1 outside or a run failed, 2 usage, 3 data or weights are missing.
    """
    from bench.results.store import Store, store_root

    from ..packs.copies import made_twice
    from ..reported import read, shipped

    # Step 1: find the row, or list those that have a recipe.
    files = {source.stem: read(source)} if source is not None else shipped()
    if name is None:
        print_tables([_listing(files)], form)
        return
    file, row = _find(files, name)
    spec, suite = _spec(file, row, source), file.suite
    assert row.recipe is not None
    say(
        f"reported: {row.method} on {suite}, {row.backbone}, by {file.sources[row.source]}"
        f" ({row.certainty})"
    )
    if row.recipe.note:
        say(f"known to differ: {row.recipe.note}")
    say(f"its recipe: {_command(spec)}")
    # Step 2: run it. These imports load PyTorch, which the listing above does not need.
    from bench.console.progress import ConsoleReporter
    from bench.console.sweep_plan import plan_table
    from bench.sweeps.sweep import run_sweep

    spec = spec.model_copy(update={"data_root": data_root})
    settings = Settings(device=device, threads=threads, workers=0)
    # `own`: a merged run does not count as done, since the numbers have to be measured here.
    with ConsoleReporter() as reporter:
        sweep = run_sweep(spec, store=store, settings=settings, reporter=reporter, own=True)
        if dry_run:
            print_tables([plan_table(sweep)], form)
            return
        sweep.run(reporter)
    records = sweep.records()
    # Without all seeds there is no verdict, and the errors say more than a table.
    failed = [record for record in records if record.status != "done"]
    for record in failed:
        say(f"error: {record.label}, seed {record.seed}: {record.error}")
    if failed:
        raise typer.Exit(1)
    # Step 3: compare with what was reported, and with merged runs of the same ids.
    table = verdict(row, records)
    print_tables([table, *made_twice(Store(store_root(store)), records)], form)
    # "no tolerance stated" is not a failure: there is nothing to fail.
    if any(line["verdict"] in ("outside", "not measured") for line in table.rows):
        raise typer.Exit(1)


def verdict(row: Reported, records: list[RunRecord]) -> Table:
    """Compare every reported number with the mean over the runs, against the row's tolerance.

    Args:
        row: the reported row; it has a recipe.
        records: the runs of the recipe, one per seed.

    Returns:
        A table with a row per number, in per cent and points.
    """
    assert row.recipe is not None
    rows: list[Row] = []
    for key, stated in row.quantities().items():
        values = [_measured(record, key) for record in records]
        known = [value for value in values if value is not None]
        allowed = row.recipe.allowed(key)
        # A mean over some of the seeds would not be the reported quantity.
        found = 100 * sum(known) / len(known) if known and len(known) == len(values) else None
        gap = None if found is None else found - stated
        if gap is None:
            word = "not measured"
        elif allowed is None:
            word = "no tolerance stated"
        else:
            word = "within" if abs(gap) <= allowed else "outside"
        rows.append(
            {
                "number": key,
                "reported": stated,
                "measured": found,
                "gap": gap,
                "tolerance": allowed,
                "verdict": word,
            }
        )
    columns = [
        Column("number"),
        *(Column(key, kind="number") for key in ("reported", "measured", "gap", "tolerance")),
        Column("verdict"),
    ]
    seeds = " ".join(str(record.seed) for record in records)
    outside = [
        str(line["number"]) for line in rows if line["verdict"] in ("outside", "not measured")
    ]
    word = (
        f"not reproduced: {', '.join(outside)}"
        if outside
        else "reproduced: every number is within its tolerance"
    )
    return Table(columns, rows, notes=[f"per cent and points; mean over seed(s) {seeds}; {word}"])


def _measured(record: RunRecord, key: str) -> float | None:
    if key == "ood":
        return record.ood
    split = "id-test" if key == "id" else key
    return record.metrics[split].score if split in record.metrics else None


def _find(files: dict[str, ReportedFile], name: str) -> tuple[ReportedFile, Reported]:
    """Find a reported row by `<file>/<row>`."""
    rows = {f"{stem}/{row.name}": (file, row) for stem, file in files.items() for row in file.rows}
    if name not in rows:
        raise unknown(
            "reported row",
            name,
            [n for n, (_, row) in rows.items() if row.recipe],
            fix="`bench reproduce` lists them",
        )
    if rows[name][1].recipe is None:
        raise UsageError(
            f"{name} has no recipe: its source does not state enough, or the method is not"
            " implemented",
            fix="`bench reproduce` lists the rows with a recipe",
        )
    return rows[name]


def _spec(file: ReportedFile, row: Reported, source: Path | None) -> RunSpec:
    assert row.recipe is not None
    card = file.suite
    # A card is relative to the file that names it, like an include, not to the working directory.
    if source is not None and card.endswith(".toml"):
        card = str(source.parent / card)
    backbone = file.backbones[row.backbone]
    recipe = row.recipe
    return run_spec(
        {
            "methods": (recipe.method,),
            "suite": card,
            "backbone": backbone,
            "seeds": recipe.seeds,
            "set": recipe.set,
        }
    )


def _command(spec: RunSpec) -> str:
    """Return the `bench run` command of a recipe, quoted for a shell."""
    import json
    import shlex

    # `--set` parses JSON and takes what is not JSON as text.
    def shown(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    parts = [
        "bench",
        "run",
        *spec.methods,
        "--suite",
        spec.suite,
        "--backbone",
        spec.backbone or "",
    ]
    parts += [part for seed in spec.seeds for part in ("--seed", str(seed))]
    parts += [
        part for key, value in spec.set.items() for part in ("--set", f"{key}={shown(value)}")
    ]
    return shlex.join(parts)


def _listing(files: dict[str, ReportedFile]) -> Table:
    # Files state per cent, as papers do; columns of kind "percent" are shares.
    rows: list[Row] = [
        {
            "name": f"{stem}/{row.name}",
            "backbone": file.backbones[row.backbone],
            "id": None if row.id is None else row.id / 100,
            "ood": None if row.ood is None else row.ood / 100,
            "seeds": len(row.recipe.seeds),
            "source": row.source,
        }
        for stem, file in files.items()
        for row in file.rows
        if row.recipe
    ]
    columns = [
        Column("name"),
        Column("backbone"),
        Column("id", "reported ID", "percent"),
        Column("ood", "reported OOD", "percent"),
    ]
    return Table([*columns, Column("seeds", kind="count"), Column("source")], rows)
