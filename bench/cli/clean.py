"""`bench clean`: what takes space in the store and in the cache, and freeing it by policy."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal as size

from ..errors import BenchError
from ..tables.table import Cell, Column, Format, FormatOption, StoreOption, Table, print_tables, say

if TYPE_CHECKING:
    from ..results.store import Store


@dataclass(frozen=True)
class Item:
    """A folder that takes space.

    Attributes:
        kind: `fit`, `checkpoint` or `cache`.
        bytes: on disk.
        used_by: runs that refer to the fit, by way of other fits too.
        live: another process holds it.
        age: days since anything in it changed.
    """

    kind: str
    path: Path
    what: str
    bytes: int
    age: float
    used_by: int = 0
    live: bool = False


def command(
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints", help="free checkpoints of interrupted fits (they start over)"
        ),
    ] = False,
    unused_fits: Annotated[
        bool, typer.Option("--unused-fits", help="free fits that no run refers to")
    ] = False,
    used_fits: Annotated[
        bool,
        typer.Option(
            "--used-fits",
            help=(
                "free fits that runs refer to: the numbers stay, the weights are trained again if"
                " needed"
            ),
        ),
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="free decoded images and frozen features (made again if needed)"
        ),
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", min=0, metavar="DAYS", help="only what has not changed for so long"
        ),
    ] = 0.0,
    yes: Annotated[
        bool, typer.Option("--yes", help="do it; without this, it is only shown")
    ] = False,
    store: StoreOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Show what takes space, and free it.

    Nothing is removed without --yes. Run folders (records and predictions) are never touched, nor a
    fit that another process is training.

    \b
    Examples:
      bench clean                                       what takes space
      bench clean --checkpoints --older-than 7          what that would free
      bench clean --unused-fits --cache --yes           free it
    """
    from ..data.cards.locations import cache_dir
    from ..results.store import Store, store_root

    root = Store(store_root(store))
    items = [*survey_store(root), *survey_cache(cache_dir())]
    asked = checkpoints or unused_fits or used_fits or cache
    chosen = select(
        items,
        checkpoints=checkpoints,
        unused_fits=unused_fits,
        used_fits=used_fits,
        cache=cache,
        older_than=older_than,
    )
    shown = chosen if asked else [item for item in items if item.age >= older_than]
    total = size(sum(item.bytes for item in shown))
    if not asked:
        print_tables(
            [
                _table(
                    shown,
                    f"{total} in all; --checkpoints, --unused-fits, --used-fits and --cache choose"
                    " what to free",
                )
            ],
            form,
        )
    elif not yes:
        print_tables([_table(shown, f"{total} would be freed; add --yes to do it")], form)
    else:
        freed, left = remove(chosen)
        print_tables([_table(freed, f"{size(sum(item.bytes for item in freed))} freed")], form)
        for item, why in left:
            say(f"kept {item.path}: {why}")
        if left:
            raise typer.Exit(1)


def survey_store(store: Store) -> Iterator[Item]:
    """Every fit and every left checkpoint of the store."""
    from ..storage.lease import is_live

    folders = sorted(path for path in store.fits_dir.glob("*") if path.is_dir())
    records = {folder.name: store.fit(folder.name) for folder in folders}
    uses: Counter[str] = Counter()
    for run in {(record.eval_id, record.fit_id) for _, record in store.records()}:
        # A fit that another fit was made from (the end of an interpolation, a probe) is used by the
        # other's runs.
        reached, ahead = set[str](), [run[1]]
        while ahead:
            fit_id = ahead.pop()
            if fit_id not in reached:
                reached.add(fit_id)
                fit = records.get(fit_id)
                ahead += fit.nested if fit is not None else []
        uses.update(reached)
    for folder in folders:
        record, live = records[folder.name], is_live(folder)
        identity = record.identity if record is not None else {}
        name = str(identity.get("method", {}).get("name", "not finished"))
        what = f"{name}, seed {identity['seed']}" if "seed" in identity else name
        checkpoint = folder / "checkpoint"
        inside = _bytes(checkpoint)
        yield Item(
            "fit", folder, what, _bytes(folder) - inside, _age(folder), uses[folder.name], live
        )
        if inside:
            yield Item(
                "checkpoint", checkpoint, what, inside, _age(checkpoint), uses[folder.name], live
            )


def survey_cache(folder: Path) -> Iterator[Item]:
    """What the cache holds, one item per folder of its second level (one data set, one backbone's
    features).
    """
    for part in sorted(path for path in folder.glob("*") if path.is_dir()):
        below = sorted(path for path in part.glob("*") if path.is_dir())
        for entry in below or [part]:
            yield Item("cache", entry, str(entry.relative_to(folder)), _bytes(entry), _age(entry))


def select(
    items: Iterable[Item],
    *,
    checkpoints: bool,
    unused_fits: bool,
    used_fits: bool,
    cache: bool,
    older_than: float,
) -> list[Item]:
    """The items that a policy frees; never a live one."""

    def wanted(item: Item) -> bool:
        if item.kind == "fit":
            return used_fits if item.used_by else unused_fits
        return checkpoints if item.kind == "checkpoint" else cache

    chosen = [item for item in items if wanted(item) and not item.live and item.age >= older_than]
    gone = {item.path for item in chosen if item.kind == "fit"}
    # A checkpoint goes with its fit; as an item of its own it would be counted and removed twice.
    with_fit = {
        item.path.parent: item.bytes
        for item in chosen
        if item.kind == "checkpoint" and item.path.parent in gone
    }
    return [
        item for item in chosen if item.path.parent not in with_fit or item.kind != "checkpoint"
    ]


def remove(items: Sequence[Item]) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Remove items, fits under their lease. Returns what was removed, and what was kept with the
    reason.
    """
    freed: list[Item] = []
    left: list[tuple[Item, str]] = []
    for item in items:
        try:
            with _held(item):
                if item.kind == "fit":
                    # The record first: a removal that is cut short leaves an unfinished fit, never
                    # one without weights.
                    (item.path / "fit.json").unlink(missing_ok=True)
                shutil.rmtree(item.path)
            freed.append(item)
        except (OSError, BenchError) as error:
            left.append((item, error.what if isinstance(error, BenchError) else str(error)))
    return freed, left


@contextmanager
def _held(item: Item) -> Iterator[None]:
    from filelock import FileLock, Timeout

    from ..storage.lease import Lease

    def refuse(claim: dict[str, Any]) -> None:
        raise BenchError(f"process {claim.get('pid')} on {claim.get('host')} has just taken it")

    if item.kind == "cache":
        try:
            # A folder in the making, `NAME.part-...`, is guarded by the lock of NAME.
            with FileLock(str(item.path).partition(".part-")[0] + ".lock", timeout=0):
                yield
        except Timeout as error:
            raise BenchError("another process is making it") from error
    else:
        with Lease(item.path if item.kind == "fit" else item.path.parent, waiting=refuse):
            yield


def _table(items: Sequence[Item], note: str) -> Table:
    rows: list[dict[str, Cell]] = [
        {
            "kind": item.kind,
            "what": item.what,
            "size": item.bytes,
            "used_by": item.used_by if item.kind == "fit" else None,
            "age_days": item.age,
            "state": "in use by another process" if item.live else "",
            "path": str(item.path),
        }
        for item in sorted(items, key=lambda item: item.bytes, reverse=True)
    ]
    columns = [
        Column("kind"),
        Column("what"),
        Column("size", kind="bytes"),
        Column("used_by", "runs", "count"),
        Column("age_days", "days", "number"),
        Column("state"),
        Column("path"),
    ]
    return Table(columns, rows, notes=[note])


def _bytes(folder: Path) -> int:
    return sum(_over_files(folder, lambda path: path.stat().st_size))


def _age(folder: Path) -> float:
    newest = max(
        _over_files(folder, lambda path: path.stat().st_mtime),
        default=folder.stat().st_mtime if folder.exists() else 0.0,
    )
    return max(0.0, time.time() - newest) / 86400


def _over_files(folder: Path, of: Callable[[Path], Any]) -> Iterator[Any]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield of(path)
        except FileNotFoundError:
            continue  # Another process finished a file or dropped a checkpoint in the meantime.
