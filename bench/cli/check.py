"""`bench check`: test a method or a suite against the interface that ShiftBench relies on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import completion
from ..console.options import BackboneOption, DataOption, SuiteOption
from ..tables.table import Column, Format, FormatOption, Table, print_tables, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..testing.check import CheckResult


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="method (name or .py file) or suite (name or .toml card)",
            show_default=False,
            autocompletion=completion.methods_and_suites,
        ),
    ],
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    data_root: DataOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Check a method on a few images of a suite, or a suite's card against its data.

    A method must train, give bit-identical results when repeated, resume after a stop, open no test
    image, reject bad parameters, pickle, and not depend on micro-batches. The checks use a
    temporary store.

    A suite's images are compared with each other. Duplicates are counted, and runs record their
    number.

    \b
    Examples:
      bench check ./my_method.py
      bench check masked-counterfactual --backbone timm:test_vit@random --suite mini-shifts
      bench check ./my_suite.toml --data-root /data

    Exit code 1 if a check fails.
    """
    results = []
    # Each result is printed as it arrives: a check may train for minutes.
    for result in _results(name, suite, backbone, data_root):
        results.append(result)
        say(f"{result.status}: {result.check}" + (f" ({result.detail})" if result.detail else ""))
    columns = [
        Column("check"),
        Column("status"),
        Column("detail"),
        Column("seconds", kind="seconds"),
    ]
    if form is not Format.table:
        print_tables([Table(columns, [vars(result) for result in results])], form)
    failed = sum(result.status == "fail" for result in results)
    passed = sum(result.status == "pass" for result in results)
    # On a terminal the lines above are the table already; the summary is the answer on stdout.
    if form is Format.table:
        typer.echo(
            f"{name}: {passed} passed, {failed} failed, {len(results) - passed - failed} not"
            " applicable"
        )
    if failed:
        raise typer.Exit(1)


def _results(
    name: str, suite: str | None, backbone: str | None, data_root: Path | None
) -> Iterator[CheckResult]:
    from ..backbones.backbone import load_backbone
    from ..configure import method_names
    from ..data.cards.inheritance import suite_names
    from ..data.cards.suite_card import find_card
    from ..plugins import unknown
    from ..run_spec import DEFAULT_BACKBONE

    # A file's ending decides, so that a missing file is reported as such and not as an unknown
    # name. A name that both a suite and a method have means the suite.
    if name.endswith(".toml") or name in suite_names():
        from ..testing.suite_contract import SuiteChecks
        from .data import shown_progress

        card, _ = find_card(name)
        # Only the backbone's input size and normalisation are needed to decode the images.
        pixels = load_backbone(backbone or card.backbone or DEFAULT_BACKBONE).pixels
        with shown_progress() as progress:
            checks = SuiteChecks(name, pixels=pixels, data_root=data_root, progress=progress)
            yield from (check.run() for check in checks.checks())
        return
    if not name.endswith(".py") and name not in method_names():
        raise unknown(
            "method or suite",
            name,
            [*method_names(), *suite_names()],
            fix="the name of a file ends in .py (method) or .toml (suite)",
        )
    from ..testing import method_checks

    for check in method_checks(name, suite=suite, backbone=backbone, data_root=data_root):
        yield check.run()
