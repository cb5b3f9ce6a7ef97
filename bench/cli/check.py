"""`bench check`: does a method or a suite keep the contract?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console.options import BackboneOption, DataOption, SuiteOption
from ..tables.table import Column, Format, FormatOption, Table, print_tables, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..testing.outcome import Outcome


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="a method (name or .py file) or a suite (name or .toml card)", show_default=False
        ),
    ],
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    data_root: DataOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Try NAME against the contract: a method on a few images of a suite, or a suite's card against
    its data.

    A method must fit, repeat itself to the bit, resume after a stop, open no test image, refuse bad
    parameters, pickle, and not depend on micro-batches. Everything happens in a temporary store.

    A suite's images are compared with each other: equal ones are counted, and runs record how many
    there are.

    \b
    Examples:
      bench check ./my_method.py
      bench check masked-counterfactual --backbone timm:test_vit@random --suite mini-shifts
      bench check ./my_suite.toml --data-root /data

    Exit code 1 if a check fails.
    """
    outcomes = []
    for outcome in _outcomes(name, suite, backbone, data_root):
        outcomes.append(outcome)
        say(
            f"{outcome.status}: {outcome.check}"
            + (f" ({outcome.detail})" if outcome.detail else "")
        )
    columns = [
        Column("check"),
        Column("status"),
        Column("detail"),
        Column("seconds", kind="seconds"),
    ]
    if form is not Format.table:
        print_tables([Table(columns, [vars(outcome) for outcome in outcomes])], form)
    failed = sum(outcome.status == "fail" for outcome in outcomes)
    passed = sum(outcome.status == "pass" for outcome in outcomes)
    if form is Format.table:
        typer.echo(
            f"{name}: {passed} passed, {failed} failed, {len(outcomes) - passed - failed} not"
            " applicable"
        )
    if failed:
        raise typer.Exit(1)


def _outcomes(
    name: str, suite: str | None, backbone: str | None, data_root: Path | None
) -> Iterator[Outcome]:
    from ..backbones.backbone import load_backbone
    from ..configure import method_names
    from ..data.cards.inheritance import suite_names
    from ..data.cards.suite_card import find_card
    from ..plugins import unknown
    from ..spec import DEFAULT_BACKBONE, DEFAULT_SUITE

    if name.endswith(".toml") or name in suite_names():
        from ..testing.suite_checks import SuiteChecks
        from .data import shown_progress

        card, _ = find_card(name)
        pixels = load_backbone(backbone or card.backbone or DEFAULT_BACKBONE).pixels
        with shown_progress() as progress:
            yield from SuiteChecks(
                name, pixels=pixels, data_root=data_root, progress=progress
            ).run()
        return
    if not name.endswith(".py") and name not in method_names():
        raise unknown(
            "method or suite",
            name,
            [*method_names(), *suite_names()],
            fix="files end in .py (method) or .toml (suite)",
        )
    from ..testing.method_checks import MethodChecks

    yield from MethodChecks(
        name, suite=suite or DEFAULT_SUITE, backbone=backbone, data_root=data_root
    ).run()
