"""The options by which commands choose runs, and the runs that they choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import NothingMatched

if TYPE_CHECKING:
    from bench.results.record import RunRecord
    from bench.results.store import Store

Patterns = list[str] | None
SuitesOption = Annotated[
    Patterns,
    typer.Option("--suite", help="only this suite; repeat it, or use * and ?", show_default=False),
]
BackbonesOption = Annotated[
    Patterns, typer.Option("--backbone", help="only this backbone, likewise", show_default=False)
]
MethodsOption = Annotated[
    Patterns, typer.Option("--method", help="only this method or row, likewise", show_default=False)
]
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", help="what to write", show_default=False)
]


def results(
    store: Store, suites: Patterns, backbones: Patterns, methods: Patterns
) -> list[RunRecord]:
    """The results of a store that match: done runs on all images that no search made.

    Raises:
        NothingMatched: there are none.
    """
    from ..board.groups import load, select

    everything = [
        r for r in load(store) if r.status == "done" and r.phase != "search" and r.limit is None
    ]
    chosen = select(
        everything, suites=suites or (), backbones=backbones or (), methods=methods or ()
    )
    if not chosen:
        names = sorted({str(r.method.get("name")) for r in everything})
        there = (
            f"there are results of {', '.join(names)}"
            if names
            else "`bench run METHOD` makes one; --store is another folder"
        )
        raise NothingMatched("no result matches", where=str(store.root), fix=there)
    return chosen
