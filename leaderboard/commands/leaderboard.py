"""`bench leaderboard`: the ID and OOD accuracy of every method, in a terminal or as a web page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.console import completion
from bench.errors import Interrupted, NothingMatched, UsageError
from bench.tables.table import Format, FormatOption, StoreOption, Table, print_tables, say

from .selection import BackbonesOption, MethodsOption, SuitesOption

if TYPE_CHECKING:
    from bench.results.record import RunRecord
    from bench.results.store import Store

    from ..board.tables import View
    from ..page.source import Source


#: `measures.EXTRAS`, which takes SciPy to import: help and completion must not wait for it.
COLUMNS = (
    "accuracy",
    "class_mean",
    "macro_f1",
    "worst_group",
    "nll",
    "ece",
    "brier",
    "id_matched",
    "worst_shift",
    "curve_area",
    "id_val",
    "memory",
    "eval_seconds",
)


def _complete_columns(incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in completion.starting(("all", *COLUMNS), last)]


class Ties(StrEnum):
    """The question that a tie with the best row answers."""

    models = "models"
    method = "method"
    none = "none"


class SpreadOption(StrEnum):
    """The uncertainty printed after a score."""

    sd = "sd"
    seeds = "seeds"
    images = "images"


class By(StrEnum):
    """The columns between ID and OOD."""

    shift = "shift"
    factor = "factor"


def leaderboard(
    store: StoreOption = None,
    suite: SuitesOption = None,
    backbone: BackbonesOption = None,
    method: MethodsOption = None,
    sort: Annotated[
        str,
        typer.Option("--sort", help="column to sort by, best first: ood, id, a shift, cost ..."),
    ] = "ood",
    by: Annotated[
        By,
        typer.Option(
            "--by", help="columns between ID and OOD: shifts, or means over their factors"
        ),
    ] = By.shift,
    columns: Annotated[
        str,
        typer.Option(
            "--columns",
            help=(
                "additional columns, comma-separated, or `all` those that a terminal has no room"
                f" for: {', '.join(COLUMNS)}"
            ),
            autocompletion=_complete_columns,
        ),
    ] = "",
    ties: Annotated[
        Ties,
        typer.Option(
            "--ties",
            help=(
                "mark rows that do not differ significantly from the best: as trained models, or as"
                " methods over seeds"
            ),
        ),
    ] = Ties.models,
    spread: Annotated[
        SpreadOption,
        typer.Option(
            "--spread",
            help=(
                "uncertainty after each score: SD over seeds, 95 % interval over seeds, or over"
                " images"
            ),
        ),
    ] = SpreadOption.sd,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help=(
                "TOML file that lists standard backbones, for effective robustness on your own"
                " suite"
            ),
        ),
    ] = None,
    include_limited: Annotated[
        bool,
        typer.Option(
            "--include-limited", help="show runs made with --limit too, in separate tables"
        ),
    ] = False,
    reported: Annotated[
        bool, typer.Option("--reported", help="show published numbers too, in separate tables")
    ] = False,
    bibtex: Annotated[
        bool,
        typer.Option(
            "--bibtex",
            help="print the references of the methods shown as BibTeX, instead of scores",
        ),
    ] = False,
    form: FormatOption = Format.table,
    html: Annotated[
        Path | None, typer.Option("--html", help="write an interactive page to this file")
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="serve the page on this machine and update it with new runs; stop with Ctrl-C",
        ),
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="with --serve: the port", show_default="a free one")
    ] = None,
) -> None:
    """Show the measured trade-off: ID and OOD accuracy of every method, or the same as a web page.

    ID, every shift, the OOD average and the cost of every method, averaged over seeds. Only
    comparable rows share a table: same suite, backbone weights, images and pixels. Other runs are
    listed in separate tables, whose titles name the difference. Rows that do not differ
    significantly from the best are marked as ties; `bench compare` tests two rows. csv and json
    contain intervals over seeds and over images for every score. Exit code 5 if nothing matched.

    \b
    Examples:
      bench leaderboard
      bench leaderboard --suite pacs-subset --sort id
      bench leaderboard --method 'wise-ft*' --columns nll,ece --by factor
      bench leaderboard --format csv > board.csv
      bench leaderboard --format latex > board.tex; bench leaderboard --bibtex > board.bib
      bench leaderboard --reported --suite imagenet-shifts
      bench leaderboard --format json | jq '.tables[0].rows[] | {method, id, ood}'
      bench leaderboard --html board.html
      bench leaderboard --serve
    """
    from bench.results.store import Store, store_root

    from ..board.groups import load, select
    from ..board.tables import View

    # Options are checked before the store is read, which takes seconds where there are many runs.
    extras, every = _extra_columns(columns)
    _check_outputs(form, html, serve, bibtex, port)
    root = Store(store_root(store))
    suites, backbones, methods = suite or (), backbone or (), method or ()
    # The whole store, since a row is measured against runs that the filters may exclude: the curve
    # of full fine-tuning and the standard models.
    everything = load(root)
    chosen = select(everything, suites=suites, backbones=backbones, methods=methods)
    shown: Literal["sd", "seeds", "images"] = spread.value
    view = View(sort, by.value, extras, include_limited, _question(ties), baseline, shown)
    if bibtex and chosen:
        _print_bibtex(chosen)
        return
    if serve or html is not None:
        # Imported here: it loads Altair, which a table in a terminal does not need.
        from ..page.source import Source

        page = Source(root, view, suites, backbones, methods, say)
        # A served page may start empty and fill up with runs; a file would stay empty.
        if serve:
            _serve(page, port or 0)
            return
        if html is not None and page.write(chosen, html):
            typer.echo(html)
            return
    else:
        made = _tables(chosen, view, root, everything)
        if reported:
            made += _reported_tables(chosen, view, everything, suites, backbones)
        if made:
            # Without leading columns a terminal that is too narrow gets all, at their full width.
            print_tables([replace(table, lead=()) for table in made] if every else made, form)
            return
    raise _nothing(chosen, everything, root)


def _extra_columns(columns: str) -> tuple[list[str], bool]:
    """Parse `--columns`; `id-val` and `id_val` are the same column.

    Returns:
        The additional columns, and whether a narrow terminal shows all columns.
    """
    named = [name.strip().replace("-", "_") for name in columns.split(",") if name.strip()]
    extras = [name for name in named if name != "all"]
    for name in extras:
        if name not in COLUMNS:
            raise UsageError(
                f"there is no column `{name}`",
                where="--columns",
                fix=f"one of: all, {', '.join(COLUMNS)}",
            )
    return extras, "all" in named


def _check_outputs(
    form: Format, html: Path | None, serve: bool, bibtex: bool, port: int | None
) -> None:
    """Check that one kind of output is requested.

    Raises:
        UsageError: two kinds are requested, --html is a folder, or --port is given without --serve.
    """
    # Each of these replaces the table on stdout. --html prints the path of its file there.
    ways = (
        ("--html", html),
        ("--serve", serve),
        ("--bibtex", bibtex),
        ("--format", form is not Format.table),
    )
    requested = [name for name, given in ways if given]
    if len(requested) > 1:
        raise UsageError(
            "the board is shown in one way at a time",
            where=" and ".join(requested),
            fix=f"remove {requested[1]}",
        )
    if html is not None and html.is_dir():
        raise UsageError(
            "--html needs a file, and this is a folder",
            where=f"--html {html}",
            fix=f"--html {html / 'board.html'}",
        )
    if port is not None and not serve:
        raise UsageError("--port needs --serve", where="--port", fix="add --serve")


def _question(ties: Ties) -> Literal["models", "method"] | None:
    # An option cannot be None, so `none` stands for no marks.
    return "models" if ties is Ties.models else "method" if ties is Ties.method else None


def _print_bibtex(chosen: Sequence[RunRecord]) -> None:
    from ..board.typesetting import bibtex

    # Not `typer.echo`: entries end with a newline of their own.
    sys.stdout.write(bibtex(chosen))


def _tables(
    chosen: Sequence[RunRecord], view: View, store: Store, everything: Sequence[RunRecord]
) -> list[Table]:
    from ..board.tables import tables
    from ..statistics.predictions import Predictions

    return tables(chosen, view, Predictions(store), everything)


def _reported_tables(
    chosen: Sequence[RunRecord],
    view: View,
    everything: Sequence[RunRecord],
    suites: Sequence[str],
    backbones: Sequence[str],
) -> list[Table]:
    from ..board.tables import boards
    from ..reported import tables

    # Published numbers are compared with the means of measured rows, for which the tests of ties
    # and the predictions behind them are not needed.
    measured = boards(chosen, replace(view, ties=None), None, everything).boards
    return tables(measured, suites, backbones)


# An empty table would leave open whether there are no runs, no results or no matches.
def _nothing(
    chosen: Sequence[RunRecord], everything: Sequence[RunRecord], store: Store
) -> NothingMatched:
    """Explain an empty board: only trials and search runs match, there are no runs, or a filter."""
    where = str(store.root)
    if chosen:
        limited = any(record.limit is not None for record in chosen)
        return NothingMatched(
            f"{len(chosen)} run(s) match, but none is a result: they are trials (--limit) or search"
            " runs",
            where=where,
            fix=(
                "add --include-limited to see the trials"
                if limited
                else "`bench run` the selected configuration"
            ),
        )
    if not everything:
        return NothingMatched(
            "there are no runs yet",
            where=where,
            fix="run `bench run METHOD` first, or pass another folder with --store",
        )
    # All values of all filters, since it is unknown which of them was wrong.
    available = {
        "--suite": {record.suite for record in everything},
        "--backbone": {record.backbone for record in everything},
        "--method": {str(record.method.get("name")) for record in everything},
    }
    would = "; ".join(f"{option} {', '.join(sorted(names))}" for option, names in available.items())
    return NothingMatched(
        "no run matches these filters", where=where, fix=f"these would match: {would}"
    )


def _serve(page: Source, port: int) -> None:
    from ..page.source import Server, serve

    server = Server(port)
    try:
        serve(
            server,
            make=lambda: page.page(page.records(), live=True),
            stamp=page.store.stamps,
            ready=typer.echo,
            tell=say,
        )
    # Ctrl-C is how a server ends, not an interrupted command: exit code 0.
    except Interrupted:
        say("stopped")
