"""The options --suite, --backbone and --method, and the results that they select."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.console import completion
from bench.errors import NothingMatched

if TYPE_CHECKING:
    from bench.results.record import RunRecord
    from bench.results.store import Store

# Shared by `plot`, `report` and `pack`, so that their help is the same.
Patterns = list[str] | None
SuitesOption = Annotated[
    Patterns,
    typer.Option(
        "--suite",
        help="only this suite; repeat it, or use * and ?",
        show_default=False,
        autocompletion=completion.suites,
    ),
]
BackbonesOption = Annotated[
    Patterns,
    typer.Option(
        "--backbone",
        help="only this backbone, likewise",
        show_default=False,
        autocompletion=completion.backbones,
    ),
]
MethodsOption = Annotated[
    Patterns,
    typer.Option(
        "--method",
        help="only this method or row, likewise",
        show_default=False,
        autocompletion=completion.rows,
    ),
]
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", help="the file or folder to write", show_default=False)
]


def results(
    store: Store, suites: Patterns, backbones: Patterns, methods: Patterns
) -> list[RunRecord]:
    """Return the matching results of a store: finished runs on all images, without search runs.

    Args:
        store: the store.
        suites: names or patterns (`*`, `?`); None for all.
        backbones: likewise.
        methods: likewise, of methods or row labels.

    Raises:
        NothingMatched: no result matches.
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
        available = (
            f"there are results of {', '.join(names)}"
            if names
            else "run `bench run METHOD` first, or pass another folder with --store"
        )
        raise NothingMatched("no result matches", where=str(store.root), fix=available)
    return chosen
