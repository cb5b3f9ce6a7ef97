"""`bench suites`: list the installed suites, or show the splits and defaults of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..console import completion
from ..data.cards.inheritance import suite_names
from ..data.cards.locations import data_roots, find_root
from ..data.cards.suite_card import SuiteCard, find_card
from ..errors import BenchError, MissingPrerequisite
from ..plain import plain
from ..tables.table import Cell, Column, Format, FormatOption, Table, print_tables
from .show import flat

app = typer.Typer(rich_markup_mode=None)

#: Most shifts that a row of the list names. Suites of corruptions have 15 and more, which would
#: make the row taller than a screen.
_MOST_SHIFTS = 5

DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", help="search for data here, then in BENCH_DATA")
]


@app.callback(invoke_without_command=True)
def suites(
    context: typer.Context, data_root: DataRootOption = None, form: FormatOption = Format.table
) -> None:
    """List the suites (an ID dataset and its shifts), or show one.

    \b
    Examples:
      bench suites
      bench suites show pacs-subset
      bench suites show ./my_suite.toml --data-root ~/data
    """
    if context.invoked_subcommand is None:
        print_suites(data_root, form)


@app.command("list")
def print_suites(data_root: DataRootOption = None, form: FormatOption = Format.table) -> None:
    """List the installed suites."""
    # The table fits a terminal; other formats have every column in full.
    brief = form is Format.table
    rows = [_row(name, data_root, brief=brief) for name in suite_names()]
    columns = [
        Column("name", whole=True),
        Column("title", human=not brief),
        Column("classes", kind="count"),
        Column("shifts"),
        Column("licence", human=not brief),
        Column("data"),
    ]
    print_tables(
        [Table(columns, rows, notes=["`bench suites show NAME` lists the splits and classes."])],
        form,
    )


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="name of a suite, or a card of your own (.toml)",
            autocompletion=completion.suites,
        ),
    ],
    data_root: DataRootOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Show a suite's splits, counts, classes, prompts, licence and training defaults."""
    card, path = find_card(name)
    found = data_state(card, path, data_root)
    about: dict[str, Cell] = {
        **{
            key: getattr(card, key)
            for key in (
                "name",
                "title",
                "licence",
                "citation",
                "homepage",
                "get",
                "metric",
                "backbone",
            )
        },
        "data": found,
        "card": str(path),
        "classes": ", ".join(card.classes),
        "templates": "; ".join(card.templates),
    }
    pairs: list[dict[str, Cell]] = [
        {"field": key, "value": value} for key, value in about.items() if value
    ]
    recipe: list[dict[str, Cell]] = [
        {"parameter": key, "value": value} for key, value in flat(card.recipe).items()
    ]
    splits = Table(
        [
            Column("split"),
            Column("role"),
            Column("images", kind="count"),
            Column("path"),
            Column("metric"),
            Column("factors"),
        ],
        _splits(card),
        "splits",
    )
    tables = [Table([Column("field"), Column("value")], pairs, card.title), splits]
    if recipe:
        tables.append(Table([Column("parameter"), Column("value")], recipe, "training defaults"))
    print_tables(tables if form is not Format.csv else [splits], form)


def data_state(card: SuiteCard, path: Path, data_root: Path | None = None) -> str:
    """Return where a suite's images are, or how to obtain them.

    Args:
        card: The suite's card.
        path: File of the card; paths in the card are relative to it.
        data_root: Folder to search before those of the configuration.
    """
    if card.source is None:
        return _datasets(card, path, data_root)
    if card.source.kind == "rendered":
        return "rendered here, nothing to download"
    try:
        return str(find_root(card, data_roots(data_root), card_path=path))
    except MissingPrerequisite as error:
        return f"missing: {error.fix or error.where or error.what}"


def _datasets(card: SuiteCard, path: Path, data_root: Path | None) -> str:
    """Return where the suite's ID dataset is, and which of its datasets are missing."""
    from ..data.readers.located import open_dataset

    roots = data_roots(data_root)
    found = {name: open_dataset(name, roots, card_folder=path.parent) for name in card.datasets}
    missing = [
        name
        for name, dataset in found.items()
        if dataset.folder is None and not dataset.card.is_made
    ]
    # Without its ID data nothing can run; without one of the shifts, the rest can.
    if card.id.data in missing:
        return f"missing: {card.id.data}; `bench data` shows how to get {', '.join(missing)}"
    return f"{found[card.id.data].folder}" + (f"; without {', '.join(missing)}" if missing else "")


def _row(name: str, data_root: Path | None, *, brief: bool) -> dict[str, Cell]:
    """Return the suite's row of the list; `brief` shortens the names of the shifts."""
    try:
        card, path = find_card(name)
        data = data_state(card, path, data_root)
    except BenchError as error:
        # An invalid card must not hide the other suites.
        return {"name": name, "data": f"the card is invalid: {plain(error.what)}"}
    # The severities of a corruption are one family: 15 corruptions are 15 entries and not 75.
    shifts = list(dict.fromkeys(shift.family or shift.name for shift in card.shifts))
    if brief and len(shifts) > _MOST_SHIFTS:
        shifts = [*shifts[: _MOST_SHIFTS - 1], f"{len(shifts) - _MOST_SHIFTS + 1} more"]
    return {
        "name": name,
        "title": card.title,
        "classes": len(card.classes),
        "shifts": ", ".join(shifts),
        # The kind of licence and whether the data is here; `show` has the whole sentences.
        "licence": re.split(r"[:;]|\. ", card.licence)[0],
        "data": re.split(r"[:,]", data)[0] if data.startswith(("missing", "rendered")) else data,
    }


def _splits(card: SuiteCard) -> list[dict[str, Cell]]:
    # A card either names one place whose images ShiftBench divides into train, id-val and id-test,
    # or ready splits.
    own = card.id
    if own.path is not None:
        path = own.path if isinstance(own.path, str) else ", ".join(own.path)
        train = 1 - own.val_fraction - own.test_fraction
        shares = (("train", train), ("id-val", own.val_fraction), ("id-test", own.test_fraction))
        # Counts are estimates: the division is stratified by class, and rounds in each of them.
        rows: list[dict[str, Cell]] = [
            {
                "split": split,
                "role": f"{100 * share:.0f} % of ID",
                "images": _share(own.count, share),
                "path": path,
                "metric": card.metric,
            }
            for split, share in shares
        ]
    else:
        rows = [
            {"split": split, "role": "ID", "path": path, "metric": card.metric, "images": count}
            for split, path, count in (
                ("train", own.train, None),
                ("id-val", own.val or f"of {own.train}", own.val_count),
                ("id-test", own.test, None),
            )
            if split == "id-test" or not own.test_only
        ]
    for shift in card.shifts:
        role = "shift" if shift.in_average else "shift, not in the OOD average"
        factors = ", ".join(f"{key} {value}" for key, value in shift.factors.items())
        row: dict[str, Cell] = {"split": shift.name, "role": role, "images": shift.count}
        row["path"] = shift.path or " ".join([shift.data, shift.part])
        rows.append({**row, "metric": shift.metric or card.metric, "factors": factors})
    return rows


def _share(count: int | None, share: float) -> int | None:
    return None if count is None else round(count * share)
