"""`bench leaderboard`: the measured trade-off between ID and OOD, from the run folders of a
store.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.errors import Interrupted, NothingMatched, UsageError
from bench.tables.table import Format, FormatOption, StoreOption, print_tables, say

if TYPE_CHECKING:
    from ..page.source import Source


class Ties(StrEnum):
    """What a tie with the best is about."""

    models = "models"
    method = "method"
    none = "none"


class Spread(StrEnum):
    """What stands behind a number."""

    sd = "sd"
    seeds = "seeds"
    images = "images"


class By(StrEnum):
    """What stands between ID and OOD."""

    shift = "shift"
    factor = "factor"


def leaderboard(
    store: StoreOption = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="only this suite; repeat it, or use * and ?")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option("--backbone", help="only this backbone, likewise")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="only this method or row, likewise")
    ] = None,
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
                "more columns, with commas: accuracy, class_mean, macro_f1, worst_group, nll, ece,"
                " brier, id_matched, "
                "worst_shift, curve_area, id_val, memory, eval_seconds"
            ),
        ),
    ] = "",
    ties: Annotated[
        Ties,
        typer.Option(
            "--ties",
            help=(
                "mark what cannot be told from the best: these trained models, or the method over"
                " seeds"
            ),
        ),
    ] = Ties.models,
    spread: Annotated[
        Spread,
        typer.Option(
            "--spread",
            help=(
                "what stands behind a number: SD over seeds, 95 % interval over seeds, or over"
                " images"
            ),
        ),
    ] = Spread.sd,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help=(
                "TOML file that names standard backbones, for effective robustness on a suite of"
                " yours"
            ),
        ),
    ] = None,
    include_limited: Annotated[
        bool, typer.Option("--include-limited", help="show runs made with --limit too, apart")
    ] = False,
    reported: Annotated[
        bool, typer.Option("--reported", help="published numbers too, in tables of their own")
    ] = False,
    bibtex: Annotated[
        bool,
        typer.Option("--bibtex", help="the literature of the methods shown, instead of the board"),
    ] = False,
    form: FormatOption = Format.table,
    html: Annotated[
        Path | None, typer.Option("--html", help="write the interactive page into this file")
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="serve the page on this machine; it follows the runs, Ctrl-C ends it"
        ),
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="with --serve: the port", show_default="a free one")
    ] = None,
) -> None:
    """Show the measured trade-off.

    ID, every shift, the OOD average and the cost of every method, averaged over seeds. Only
    comparable rows share a table: same suite, backbone weights, images and pixels. What differs is
    listed apart, under a title that says in what. Rows that cannot be told from the best are marked
    as ties; two rows are told apart by `bench compare`. csv and json have intervals over seeds and
    over images for every number. Exit code 5 if nothing matched.

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
    from ..board.measures import EXTRAS
    from ..board.tables import View, boards, tables
    from ..statistics.predictions import Predictions

    extras = [name.strip().replace("-", "_") for name in columns.split(",") if name.strip()]
    for name in extras:
        if name not in EXTRAS:
            raise UsageError(
                f"there is no column `{name}`",
                where="--columns",
                fix=f"one of: {', '.join(EXTRAS)}",
            )
    _check_outputs(form, html, serve, bibtex, port)
    root = store_root(store)
    everything = load(Store(root))
    chosen = select(everything, suites=suite or (), backbones=backbone or (), methods=method or ())
    asked: Literal["models", "method"] | None = (
        "models" if ties is Ties.models else "method" if ties is Ties.method else None
    )
    shown: Literal["sd", "seeds", "images"] = spread.value
    view = View(sort, by.value, extras, include_limited, asked, baseline, shown)
    if bibtex and chosen:
        from ..board.printed import bibtex as literature

        sys.stdout.write(literature(chosen))
        return
    if serve or html is not None:
        from ..page.source import Source

        page = Source(Store(root), view, suite or (), backbone or (), method or (), say)
        if serve:
            _serve(page, port or 0)
            return
        if html is not None and page.write(chosen, html):
            typer.echo(html)
            return
    made = [] if html is not None else tables(chosen, view, Predictions(Store(root)), everything)
    if reported and html is None:
        from ..reported import tables as reported_tables

        made += reported_tables(
            boards(chosen, replace(view, ties=None), None, everything).boards,
            suite or (),
            backbone or (),
        )
    if made:
        print_tables(made, form)
        return
    if chosen:
        limited = any(record.limit is not None for record in chosen)
        raise NothingMatched(
            f"{len(chosen)} run(s) match, and none is a result: they are trials (--limit) or search"
            " runs",
            where=str(root),
            fix=(
                "add --include-limited to see the trials"
                if limited
                else "`bench run` the selected configuration"
            ),
        )
    if not everything:
        raise NothingMatched(
            "there are no runs yet",
            where=str(root),
            fix="`bench run METHOD` makes one; --store is another folder",
        )
    there = {
        "--suite": {record.suite for record in everything},
        "--backbone": {record.backbone for record in everything},
        "--method": {str(record.method.get("name")) for record in everything},
    }
    would = "; ".join(f"{option} {', '.join(sorted(names))}" for option, names in there.items())
    raise NothingMatched(
        "no run matches these filters", where=str(root), fix=f"these would match: {would}"
    )


def _check_outputs(
    form: Format, html: Path | None, serve: bool, bibtex: bool, port: int | None
) -> None:
    """One way of showing the board at a time.

    Raises:
        UsageError: two of them, a folder for a file, or a port for none.
    """
    ways = (
        ("--html", html),
        ("--serve", serve),
        ("--bibtex", bibtex),
        ("--format", form is not Format.table),
    )
    asked = [name for name, given in ways if given]
    if len(asked) > 1:
        raise UsageError(
            "the board is shown in one way at a time",
            where=" and ".join(asked),
            fix=f"leave {asked[1]} out",
        )
    if html is not None and html.is_dir():
        raise UsageError(
            "the page is one file, and this is a folder",
            where=f"--html {html}",
            fix=f"--html {html / 'board.html'}",
        )
    if port is not None and not serve:
        raise UsageError(
            "there is a port, and nothing is served", where="--port", fix="add --serve"
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
    except Interrupted:
        say("stopped")  # the way in which a server ends
