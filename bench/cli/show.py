"""`bench show`: print the record of one run, or render its masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import completion
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
#: Fields of the record that only `--verbose` shows.
_HASHES = ("record_schema", "protocol", "backbone_sha256", "identity", "origin")
#: Fields of the record that have a table, a column or a note of their own, and so are not repeated
#: in the table `run`. A field that is added to the record appears there by itself.
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
            help="folder, start of the fit_id or eval_id, or name on the leaderboard of a run",
            autocompletion=completion.rows,
        ),
    ],
    seed: Annotated[
        int | None, typer.Option("--seed", help="the seed, if the name has several")
    ] = None,
    store: StoreOption = None,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks",
            help="render what the method does to training images: maps, masks and fills",
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="show hashes and the identity of the run too")
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="with --masks: the image file to write")
    ] = Path("masks.png"),
    suite: SuiteOption = None,
    data_root: DataOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Show one run: its scores, parameters, selection on id-val and provenance.

    csv contains the metrics only. json is the record itself.

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
    # The record and not the tables, which are made for reading: their rows have other names.
    if form is Format.json:
        print_json({"record": record.model_dump(mode="json")})
        return
    # csv is one table, and the metrics are the one that a program can use.
    described = describe(record, verbose=verbose)
    print_tables(
        [table for table in described if form is not Format.csv or table.title == "metrics"], form
    )


def find_run(store: Store, name: str, seed: int | None = None) -> RunRecord:
    """Return the run that `name` refers to.

    Args:
        store: Where names and ids are looked up; a folder may be outside it.
        name: Folder of a run, its record.json, the start of a fit_id or eval_id, or a name.
        seed: Only runs with this seed.

    Raises:
        NothingMatched: No run matches.
        UsageError: Several runs match; they are listed on stderr.
        BenchError: The record is damaged.
    """
    folder = Path(name)
    if folder.is_dir() or folder.name == "record.json":
        path = folder if folder.name == "record.json" else folder / "record.json"
        if not path.is_file():
            raise NothingMatched(
                "this is not the folder of a run",
                where=name,
                fix="give a folder that contains a record.json",
            )
        return store.read_run(path)
    # `records(name)` reads only the folders of a method of that name, if there are any.
    found = [
        record
        for _, record in store.records(name)
        if name in (record.label, record.method.get("name"))
        or record.fit_id.startswith(name)
        or record.eval_id.startswith(name)
        if seed is None or record.seed == seed
    ]
    # `full-finetune` is the plain row, where there is one, and not also `full-finetune (lr=1)`.
    found = [record for record in found if record.label == name] or found
    if not found:
        raise NothingMatched(
            f"no run matches `{name}`" + ("" if seed is None else f" with seed {seed}"),
            where=str(store.root),
            fix="`bench leaderboard --format csv` lists names and fits",
        )
    # A run may have several records: a failed attempt and a good one, or its own and one that was
    # merged from a pack. That is no ambiguity; show the one that the leaderboard uses.
    whole = {(record.fit_id, record.eval_id) for record in found}
    if len(whole) == 1:
        return max(found, key=lambda record: (record.status == "done", record.precedence))
    # An interactive choice would block scripts; the ids are printed to be copied.
    if len(found) > 1:
        for record in found:
            say(
                f"{record.eval_id[:12]}  {record.label}, seed {record.seed}, {record.suite},"
                f" {record.backbone}, {record.status}"
            )
        raise UsageError(
            f"`{name}` matches {len(found)} runs",
            where=str(store.root),
            fix="give one of the ids above, or --seed",
        )
    return found[0]


def describe(record: RunRecord, *, verbose: bool) -> list[Table]:
    """Return a record as tables, without the empty ones: what a reader wants first comes first.

    Args:
        record: The run.
        verbose: Add what only programs compare: hashes, versions of formats, the identity.
    """
    stated = {
        key: value
        for key, value in record.model_dump(mode="json").items()
        if key not in _APART and value not in (None, "", {}, [])
    }
    tables = [
        Table([Column("error")], [{"error": line} for line in record.error.splitlines()], "error"),
        _metrics(record),
        _pairs("run", {key: value for key, value in stated.items() if key not in _HASHES}),
        _pairs("method", flat(record.method)),
        _pairs("selection on id-val", flat(record.selection)),
        _pairs("measured constants", record.facts),
        _curve(record),
        _pairs("provenance", flat(record.provenance)),
    ]
    if verbose:
        tables += [
            _pairs("identity", {key: stated[key] for key in _HASHES if key in stated}),
            _pairs("data (fingerprints)", record.data),
        ]
    return [table for table in tables if table.rows]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Flatten nested mappings to dotted keys, and convert lists to text."""
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
    # ID first, then the shifts in the card's order. A split without metrics is listed where the
    # suite expects it, so that missing data can be seen.
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
    # NLL and the Brier score are no shares, so they are not shown as percentages.
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
        else "OOD average: none, because a shift is missing"
    )
    notes = [note] if record.averaged else []
    notes += [f"{name}: {value:.1f}" for name, value in record.relative.items()]
    notes += [f"{name}: {how}" for name, how in record.miscounted.items()]
    notes += [
        f"{name}: {count} files ignored that are not an image of a class"
        for name, count in record.ignored.items()
    ]
    notes += record.duplicates_reported()
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
