"""`bench report`: a folder of tables, figures and a paragraph on the protocol."""

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
    dark: Annotated[bool, typer.Option("--dark", help="figures for a dark ground")] = False,
) -> None:
    """Write a folder that is ready to quote.

    report.md says what the board shows and how it came about, in sentences, with the tables and the
    figures; beside it lie references.bib and, per suite and backbone, the board as LaTeX, Markdown,
    CSV and JSON and every figure as SVG, PDF, PNG and HTML. An earlier report is replaced, any
    other folder is left alone.

    \b
    Examples:
      bench report -o report
      bench report --suite pacs-subset --method 'wise-ft*' --method full-finetune -o pacs-report

    Exit codes: 0 done, 2 the folder holds something else, 5 nothing matched.
    """
    from bench.results.store import Store, store_root

    from ..page.report import check_folder, write_report
    from .selection import results

    check_folder(output)
    root = Store(store_root(store))
    missing = write_report(results(root, suite, backbone, method), root, output, dark=dark)
    for why in missing:
        say(f"note: {why}")
    say(f"report: {output / 'report.md'}")
