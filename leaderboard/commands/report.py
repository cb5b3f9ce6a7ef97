"""`bench report`: write a folder with the tables, figures and protocol of a leaderboard."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.tables.table import StoreOption, say

from .selection import BackbonesOption, MethodsOption, OutputOption, SuitesOption


def report(
    output: OutputOption,
    store: StoreOption = None,
    suite: SuitesOption = None,
    backbone: BackbonesOption = None,
    method: MethodsOption = None,
    dark: Annotated[bool, typer.Option("--dark", help="colours for a dark background")] = False,
) -> None:
    """Write a report of a board that is ready to quote: tables, figures and the protocol.

    report.md describes the results and the protocol in sentences, with tables and figures. Next to
    it are references.bib and, per suite and backbone, the board as LaTeX, Markdown, CSV and JSON
    and every figure as SVG, PDF, PNG and HTML. An earlier report is replaced; any other folder is
    not touched.

    \b
    Examples:
      bench report -o report
      bench report --suite pacs-subset --method 'wise-ft*' --method full-finetune -o pacs-report

    Exit codes: 0 done, 2 the folder is not a report, 5 nothing matched.
    """
    from bench.results.store import Store, store_root

    from ..page.report import check_folder, write_report
    from .selection import results

    # Before the figures are rendered, which takes seconds; `write_report` checks again.
    check_folder(output)
    root = Store(store_root(store))
    missing = write_report(results(root, suite, backbone, method), root, output, dark=dark)
    for why in missing:
        say(f"note: {why}")
    say(f"report: {output / 'report.md'}")
