"""`bench show`: everything that a run's record says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console.options import DataOption, SuiteOption
from ..errors import NothingMatched, UsageError
from ..tables.table import (
    Cell,
    Column,
    Format,
    FormatOption,
    StoreOption,
    Table,
    print_json,
    print_tables,
    say,
)

if TYPE_CHECKING:
    from ..results.record import RunRecord
    from ..results.store import Store

_SCORES = ("score", "accuracy", "class_mean", "macro_f1", "nll", "ece", "brier", "worst_group")
_APART = {
    "method",
    "projections",
    "id_matched",
    "relative",
    "data",
    "metrics",
    "holes",
    "miscounted",
    "ignored",
    "duplicates",
    "factors",
    "selection",
    "facts",
    "curve",
    "provenance",
    "error",
    "shifts",
    "averaged",
}


def command(
    run: Annotated[
        str,
        typer.Argument(
            help="a run's folder, the beginning of its fit_id or eval_id, or its name on the board"
        ),
    ],
    seed: Annotated[
        int | None, typer.Option("--seed", help="which seed, where a name has several")
    ] = None,
    store: StoreOption = None,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks", help="draw what the method does to training images: maps, masks, fills"
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="with --masks: the picture's file")
    ] = Path("masks.png"),
    suite: SuiteOption = None,
    data_root: DataOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Show one run.

    What was asked, what came out, what was selected, and where it was made. csv holds the metrics
    alone; json is the record.

    \b
    Examples:
      bench show wise-ft --seed 0
      bench show 3f9c1a
      bench show 3f9c1a --format json | jq .record.metrics
      bench show masked-counterfactual --masks -o masks.png
    """
    from ..results.store import Store, store_root

    record = find_run(Store(store_root(store)), run, seed)
    if masks:
        from ..runs.illustrate import illustrate

        illustrate(record, output, suite=suite or record.suite, store=store, data_root=data_root)
        say(f"wrote {output}")
        return
    if form is Format.json:
        print_json({"record": record.model_dump(mode="json")})
        return
    described = describe(record)
    print_tables(
        [table for table in described if form is not Format.csv or table.title == "metrics"], form
    )


def find_run(store: Store, name: str, seed: int | None = None) -> RunRecord:
    """The one run that `name` means.

    Raises:
        NothingMatched: none.
        UsageError: several; they are listed on stderr.
        BenchError: the record is damaged.
    """
    folder = Path(name)
    if folder.is_dir() or folder.name == "record.json":
        path = folder if folder.name == "record.json" else folder / "record.json"
        if not path.is_file():
            raise NothingMatched(
                "this is not a run's folder", where=name, fix="a run's folder holds a record.json"
            )
        return store.read_run(path)
    found = [
        record
        for _, record in store.records(name)
        if name in (record.label, record.method.get("name"))
        or record.fit_id.startswith(name)
        or record.eval_id.startswith(name)
        if seed is None or record.seed == seed
    ]
    if not found:
        raise NothingMatched(
            f"no run is called `{name}`" + ("" if seed is None else f" with seed {seed}"),
            where=str(store.root),
            fix="`bench leaderboard --format csv` lists names and fits",
        )
    whole = {(record.fit_id, record.eval_id) for record in found}
    if len(whole) == 1:  # of a run that was made twice the one that counts
        return max(found, key=lambda record: (record.status == "done", record.precedence))
    if len(found) > 1:
        for record in found:
            say(
                f"{record.eval_id[:12]}  {record.label}, seed {record.seed}, {record.suite},"
                f" {record.backbone}, {record.status}"
            )
        raise UsageError(
            f"`{name}` means {len(found)} runs",
            where=str(store.root),
            fix="give one of the numbers above, or --seed",
        )
    return found[0]


def describe(record: RunRecord) -> list[Table]:
    """A record as tables for people; empty parts are left out."""
    whole = record.model_dump(mode="json")
    tables = [
        _pairs(
            "run",
            {
                key: value
                for key, value in whole.items()
                if key not in _APART and value not in (None, "")
            },
        ),
        _pairs("method", flat(record.method)),
        _metrics(record),
        _pairs("selection on id-val", flat(record.selection)),
        _pairs("measured constants", record.facts),
        _curve(record),
        _pairs("data (fingerprints)", record.data),
        _pairs("provenance", flat(record.provenance)),
        Table([Column("error")], [{"error": line} for line in record.error.splitlines()], "error"),
    ]
    return [table for table in tables if table.rows]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Nested tables as dotted keys; lists as texts."""
    found: dict[str, Cell] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = (
                value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
            )
    return found


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    return Table(
        [Column("field"), Column("value")],
        [{"field": key, "value": value} for key, value in flat(values).items()],
        title,
    )


def _metrics(record: RunRecord) -> Table:
    splits = list(
        dict.fromkeys(["id-val", "id-test", *record.shifts, *record.metrics, *record.holes])
    )
    rows: list[dict[str, Cell]] = []
    for split in splits:
        metrics = record.metrics.get(split)
        if metrics is None and split not in record.holes and split not in record.shifts:
            continue
        row: dict[str, Cell] = {
            "split": split,
            "averaged": split in record.averaged,
            "missing": record.holes.get(split, ""),
        }
        matched = record.id_matched.get(split)
        row |= {
            "projection": record.projections.get(split),
            "id_matched": matched.accuracy if matched else None,
        }
        rows.append(row if metrics is None else {**row, **metrics.model_dump()})
    columns = [Column("split"), Column("images", kind="count"), Column("metric")]
    columns += [
        Column(name, kind="number" if name in ("nll", "brier") else "percent") for name in _SCORES
    ]
    if record.projections:
        columns += [Column("projection"), Column("id_matched", "ID on its classes", "percent")]
    columns += [
        Column("averaged", "in OOD average"),
        Column("skipped_unreadable", "skipped", kind="count"),
        Column("missing"),
    ]
    note = (
        f"OOD average: {100 * record.ood:.1f}"
        if record.ood is not None
        else "OOD average: none, since a shift is missing"
    )
    notes = [note] if record.averaged else []
    notes += [f"{name}: {value:.1f}" for name, value in record.relative.items()]
    notes += [f"{name}: {how}" for name, how in record.miscounted.items()]
    notes += [
        f"{name}: files left out that are no image of a class: {count}"
        for name, count in record.ignored.items()
    ]
    notes += record.duplicates_told()
    return Table(columns, rows, "metrics", notes)


def _curve(record: RunRecord) -> Table:
    splits = list(dict.fromkeys(split for point in record.curve for split in point.scores))
    rows: list[dict[str, Cell]] = [
        {"alpha": point.alpha, **point.scores, "ood": point.ood} for point in record.curve
    ]
    columns = [
        Column("alpha", kind="number"),
        *(Column(split, kind="percent") for split in splits),
        Column("ood", "OOD", "percent"),
    ]
    return Table(columns, rows, "interpolation curve")
