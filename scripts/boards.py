"""Write the leaderboards in leaderboard/boards, or check them against the packs there.

    python scripts/boards.py                      write boards, page and report from the packs
    python scripts/boards.py --store STORE        first pack a store's runs on the default suite
    ... --store STORE --suite pacs-subset         first pack a store's runs on another suite
    python scripts/boards.py --check              score the packs and compare with the boards

The boards are made from the packs and not from the store, so that everything on them can be
computed again from the repository.
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
from bench.run_spec import DEFAULT_BACKBONE, DEFAULT_SUITE
from bench.tables.table import Format, render, say

#: Relative to this file and not to the package: an installed package has no boards.
BOARDS = Path(__file__).resolve().parents[1] / "leaderboard" / "boards"


@contextmanager
def merged(packs: list[Path]) -> Iterator[Store]:
    """Yield a temporary store with the runs of packs.

    Raises:
        InvalidPack: A pack contradicts itself.
    """
    # The leaderboard is imported in the functions, so that `--help` and wrong options are quick.
    from bench.leaderboard.packs.merge import merge

    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        merge(packs, store)
        yield store


def boards_of(store: Store) -> tuple[str, dict[str, Any]]:
    """Return the boards of a store as Markdown, and as JSON with full precision."""
    from bench.leaderboard.board.groups import load
    from bench.leaderboard.board.tables import View, tables
    from bench.leaderboard.statistics.predictions import Predictions

    made = tables(load(store), View(ties="models"), Predictions(store))
    content: dict[str, Any] = json.loads(render(made, Format.json))
    return render(made, Format.md), content


def repack(store: Store, folder: Path = BOARDS, suite: str = DEFAULT_SUITE) -> None:
    """Replace the pack of a suite by a store's results on the suite.

    Args:
        store: Where the runs are.
        folder: Folder of the packs.
        suite: Name of the suite.
    """
    from bench.leaderboard.commands.selection import results
    from bench.leaderboard.packs.pack import write_pack

    # Without logits a pack is a fifth of the size; accuracy, NLL and ECE can still be computed.
    pack = folder / f"{suite}.shiftpack"
    chosen = results(store, [suite], [DEFAULT_BACKBONE] if suite == DEFAULT_SUITE else None, None)
    write_pack(store, chosen, pack, logits=False)
    say(f"{len(chosen)} runs in {pack} ({size(pack.stat().st_size)})")


def regenerate(folder: Path = BOARDS) -> None:
    """Write the boards of the packs in a folder, their report (report/) and page (page.html).

    Raises:
        InvalidPack: A pack contradicts itself.
        BenchError: There is no pack.
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
        # The page is mostly the chart library, so it is not committed.
        runs = load(store)
        Source(store, View(ties="models"), tell=say).write(runs, folder / "page.html")
        for missing in write_report(runs, store, folder / "report", figures=(".svg",)):
            say(missing)
        say(f"report in {folder / 'report'}")


def _packs(folder: Path) -> list[Path]:
    packs = sorted(folder.glob("*.shiftpack"))
    if not packs:
        raise BenchError(
            "there is no pack",
            where=str(folder),
            fix="run `python scripts/boards.py --store STORE`",
        )
    return packs


def differences(folder: Path = BOARDS) -> list[str]:
    """Return where the board in a folder differs from what its packs give.

    Raises:
        InvalidPack: A pack contradicts itself.
        BenchError: There is no pack or no board.
    """
    packs = _packs(folder)
    if not (folder / "board.json").is_file():
        raise BenchError(
            "there is no board", where=str(folder), fix="run `python scripts/boards.py`"
        )
    with merged(packs) as store:
        text, content = boards_of(store)
    found = list(
        _compared(
            json.loads((folder / "board.json").read_text(encoding="utf-8")), content, "board.json"
        )
    )
    if (folder / "board.md").read_text(encoding="utf-8") != text:
        found.append("board.md differs")
    return found


def _compared(stated: Any, found: Any, where: str) -> list[str]:
    """Return the differences between two JSON values, with their paths."""
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
    # NLL and ECE are computed from columns in single precision, which may have been in double
    # precision when the board was written.
    if (
        isinstance(stated, float)
        and isinstance(found, float)
        and math.isclose(stated, found, rel_tol=1e-6, abs_tol=1e-7)
    ):
        return []
    return (
        []
        if stated == found
        else [f"{where}: the board has {str(stated)[:60]}, the packs give {str(found)[:60]}"]
    )


def main(
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="store whose runs are packed first",
            show_default="none: the packs stay as they are",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(help="folder of the boards and packs")] = BOARDS,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="with --store: suite whose runs are packed; may be repeated",
            show_default=DEFAULT_SUITE,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="compare only; write nothing")] = False,
) -> None:
    """Write the boards, or check them against the packs."""
    try:
        if suite and (store is None or check):
            raise UsageError(
                "--suite selects the runs of a store that is packed",
                where="--suite",
                fix="add --store, and leave out --check",
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
