"""The boards that this repository carries: made by one command, and held against their own packs.

    python scripts/boards.py                      write boards, page and report from the packs here
    python scripts/boards.py --store STORE        the same, with a store's runs on the default suite
    ... --store STORE --suite pacs-subset         the same, with another suite's runs
    python scripts/boards.py --check              re-score the packs, and compare with the board

The board is made from the packs and not from the store, so that everything on it can be computed
again from what is here.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.filesize import decimal as size

from bench.errors import BenchError, UsageError
from bench.results.store import Store, store_root
from bench.spec import DEFAULT_BACKBONE, DEFAULT_SUITE
from bench.tables.table import Format, render, say

#: An installed package carries no boards.
BOARDS = Path(__file__).resolve().parents[1] / "leaderboard" / "boards"


@contextmanager
def merged(packs: list[Path]) -> Iterator[Store]:
    """A store, for as long as it is needed, of what is in packs.

    Raises:
        Refused: a pack does not add up.
    """
    from bench.leaderboard.packs.merge import merge

    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        merge(packs, store)
        yield store


def boards_of(store: Store) -> tuple[str, dict[str, Any]]:
    """The boards of a store: as Markdown, and as JSON with full precision."""
    from bench.leaderboard.board.groups import load
    from bench.leaderboard.board.tables import View, tables
    from bench.leaderboard.statistics.predictions import Predictions

    made = tables(load(store), View(ties="models"), Predictions(store))
    content: dict[str, Any] = json.loads(render(made, Format.json))
    return render(made, Format.md), content


def repack(store: Store, folder: Path = BOARDS, suite: str = DEFAULT_SUITE) -> None:
    """Put a store's results on a suite in place of the suite's pack."""
    from bench.leaderboard.commands.selection import results
    from bench.leaderboard.packs.pack import write_pack

    pack = folder / f"{suite}.shiftpack"
    chosen = results(store, [suite], [DEFAULT_BACKBONE] if suite == DEFAULT_SUITE else None, None)
    write_pack(store, chosen, pack, logits=False)
    say(f"{len(chosen)} runs in {pack} ({size(pack.stat().st_size)})")


def regenerate(folder: Path = BOARDS) -> None:
    """Write the boards that the packs in a folder give, their report (report/), and their page
    (page.html, which is not kept).

    Raises:
        Refused: a pack does not add up.
        BenchError: there is none.
    """
    from bench.leaderboard.board.groups import load
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.report import write_report
    from bench.leaderboard.page.source import Source
    from bench.storage.atomic import write_text

    with merged(_packs(folder)) as store:
        text, content = boards_of(store)
        write_text(folder / "board.md", text)
        write_text(folder / "board.json", json.dumps(content, indent=1) + "\n")
        say(f"{len(content['tables'])} tables in {folder / 'board.md'} and board.json")
        runs = load(store)
        Source(store, View(ties="models"), tell=say).write(runs, folder / "page.html")
        for missing in write_report(runs, store, folder / "report", figures=(".svg",)):
            say(missing)
        say(f"the report in {folder / 'report'}")


def _packs(folder: Path) -> list[Path]:
    packs = sorted(folder.glob("*.shiftpack"))
    if not packs:
        raise BenchError(
            "there is no pack", where=str(folder), fix="`python scripts/boards.py --store STORE`"
        )
    return packs


def differences(folder: Path = BOARDS) -> list[str]:
    """Where the board in a folder differs from what its packs give; empty if nowhere.

    Raises:
        Refused: a pack does not add up.
        BenchError: there is no board.
    """
    packs = _packs(folder)
    if not (folder / "board.json").is_file():
        raise BenchError("there is no board", where=str(folder), fix="`python scripts/boards.py`")
    with merged(packs) as store:
        text, content = boards_of(store)
    found = list(
        _compared(
            json.loads((folder / "board.json").read_text(encoding="utf-8")), content, "board.json"
        )
    )
    if (folder / "board.md").read_text(encoding="utf-8") != text:
        found.append("board.md is another text")
    return found


def _compared(stated: Any, found: Any, where: str) -> list[str]:
    if isinstance(stated, dict) and isinstance(found, dict) and stated.keys() == found.keys():
        return [
            line for key in stated for line in _compared(stated[key], found[key], f"{where}.{key}")
        ]
    if isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        return [
            line
            for i, pair in enumerate(zip(stated, found, strict=True))
            for line in _compared(*pair, f"{where}[{i}]")
        ]
    # NLL and ECE come from columns in single precision, where the board's maker had double.
    if (
        isinstance(stated, float)
        and isinstance(found, float)
        and math.isclose(stated, found, rel_tol=1e-6, abs_tol=1e-7)
    ):
        return []
    return (
        []
        if stated == found
        else [f"{where}: {str(stated)[:60]} is stated, {str(found)[:60]} by the packs"]
    )


def main(
    store: Annotated[
        Path | None,
        typer.Option("--store", help="pack its runs first", show_default="none: the packs stay"),
    ] = None,
    folder: Annotated[Path, typer.Option(help="where the board lies")] = BOARDS,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="with --store: whose results; repeat it", show_default=DEFAULT_SUITE),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="compare only")] = False,
) -> None:
    """Make the board anew, or check the one that is here."""
    try:
        if suite and (store is None or check):
            raise UsageError(
                "a suite is chosen of a store that is packed",
                where="--suite",
                fix="add --store, without --check",
            )
        if not check:
            for name in (suite or [DEFAULT_SUITE]) if store is not None else []:
                repack(Store(store_root(store)), folder, name)
            regenerate(folder)
        elif found := differences(folder):
            print("\n".join(found))
            sys.exit(1)
    except BenchError as error:
        from bench.tables.table import print_error

        print_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    typer.run(main)
