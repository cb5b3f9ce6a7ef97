"""`bench clean`: show what takes disk space in the store and the cache, and delete parts of it."""

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
    """A folder that takes disk space.

    Attributes:
        kind: `fit`, `checkpoint` or `cache`.
        path: The folder.
        what: Description for the table, such as the method and the seed of a fit.
        bytes: Size on disk.
        age: Days since anything in the folder changed.
        used_by: Number of runs that refer to the fit, directly or through other fits.
        live: Whether another process is using it.
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
            "--checkpoints", help="free checkpoints of interrupted fits (they will start over)"
        ),
    ] = False,
    unused_fits: Annotated[
        bool, typer.Option("--unused-fits", help="free fits that no run uses")
    ] = False,
    used_fits: Annotated[
        bool,
        typer.Option(
            "--used-fits",
            help="free fits that runs use; results stay, weights are trained again when needed",
        ),
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="free decoded images and frozen features (computed again when needed)"
        ),
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", min=0, metavar="DAYS", help="only what has not changed for this long"
        ),
    ] = 0.0,
    yes: Annotated[
        bool, typer.Option("--yes", help="delete; without it, only show what would be deleted")
    ] = False,
    store: StoreOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Show what takes disk space, and free it.

    Nothing is deleted without --yes. Runs (records and predictions) and fits that another process
    is training are never deleted.

    \b
    Examples:
      bench clean                                       show what takes space
      bench clean --checkpoints --older-than 7          show what this would free
      bench clean --unused-fits --cache --yes           free it
    """
    from ..data.cards.locations import cache_dir
    from ..results.store import Store, store_root

    root = Store(store_root(store))
    items = [*survey_store(root), *survey_cache(cache_dir())]
    # Without an option that chooses, everything is shown and --yes deletes nothing.
    requested = checkpoints or unused_fits or used_fits or cache
    chosen = select(
        items,
        checkpoints=checkpoints,
        unused_fits=unused_fits,
        used_fits=used_fits,
        cache=cache,
        older_than=older_than,
    )
    shown = chosen if requested else [item for item in items if item.age >= older_than]
    total = size(sum(item.bytes for item in shown))
    if not requested:
        print_tables(
            [
                _table(
                    shown,
                    f"{total} in total. Choose what to free with --checkpoints, --unused-fits,"
                    " --used-fits and --cache.",
                )
            ],
            form,
        )
    elif not yes:
        print_tables([_table(shown, f"{total} would be freed. Add --yes to free it.")], form)
    else:
        freed, not_freed = remove(chosen)
        print_tables([_table(freed, f"{size(sum(item.bytes for item in freed))} freed.")], form)
        for item, why in not_freed:
            say(f"not freed: {item.path}: {why}")
        if not_freed:
            raise typer.Exit(1)


def survey_store(store: Store) -> Iterator[Item]:
    """Yield every fit of the store, and every checkpoint of an unfinished fit."""
    from ..storage.lease import is_live

    folders = sorted(path for path in store.fits_dir.glob("*") if path.is_dir())
    records = {folder.name: store.fit(folder.name) for folder in folders}
    uses: Counter[str] = Counter()
    # A set, since one run may have several records: its own, and those merged from packs.
    for run in {(record.eval_id, record.fit_id) for _, record in store.records()}:
        # A run uses its fit and all fits that this one was made from (the end of an interpolation,
        # the probe of a head), so that `--unused-fits` never deletes part of a result.
        reached, pending = set[str](), [run[1]]
        while pending:
            fit_id = pending.pop()
            if fit_id not in reached:
                reached.add(fit_id)
                fit = records.get(fit_id)
                pending += fit.nested if fit is not None else []
        uses.update(reached)
    for folder in folders:
        record, live = records[folder.name], is_live(folder)
        identity = record.identity if record is not None else {}
        name = str(identity.get("method", {}).get("name", "not finished"))
        what = f"{name}, seed {identity['seed']}" if "seed" in identity else name
        # The checkpoint is an item of its own, since it can be deleted without its fit.
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
    """Yield the contents of the cache: an item per dataset, or per backbone's features."""
    for part in sorted(path for path in folder.glob("*") if path.is_dir()):
        below = sorted(path for path in part.glob("*") if path.is_dir())
        # A part without subfolders is one item.
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
    """Return the items that the options choose, without those in use and those too recent."""

    def wanted(item: Item) -> bool:
        if item.kind == "fit":
            return used_fits if item.used_by else unused_fits
        return checkpoints if item.kind == "checkpoint" else cache

    chosen = [item for item in items if wanted(item) and not item.live and item.age >= older_than]
    gone = {item.path for item in chosen if item.kind == "fit"}
    # Deleting a fit deletes its checkpoint; as an item of its own, it would be counted twice.
    with_fit = {
        item.path.parent: item.bytes
        for item in chosen
        if item.kind == "checkpoint" and item.path.parent in gone
    }
    return [
        item for item in chosen if item.path.parent not in with_fit or item.kind != "checkpoint"
    ]


def remove(items: Sequence[Item]) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Delete items, each while no other process can use it.

    Returns:
        The deleted items, and those that could not be deleted with the reason.
    """
    freed: list[Item] = []
    not_freed: list[tuple[Item, str]] = []
    for item in items:
        try:
            with _locked(item):
                if item.kind == "fit":
                    # The record first: if the deletion is cut short, what is left looks like an
                    # unfinished fit, which is trained again, and not like a fit without weights.
                    (item.path / "fit.json").unlink(missing_ok=True)
                shutil.rmtree(item.path)
            freed.append(item)
        except (OSError, BenchError) as error:
            not_freed.append((item, error.what if isinstance(error, BenchError) else str(error)))
    return freed, not_freed


@contextmanager
def _locked(item: Item) -> Iterator[None]:
    """Hold the same lock as the processes that write to the item; never wait for it."""
    from filelock import FileLock, Timeout

    from ..storage.lease import Lease

    def refuse(claim: dict[str, Any]) -> None:
        raise BenchError(f"process {claim.get('pid')} on {claim.get('host')} has started to use it")

    if item.kind == "cache":
        try:
            # An unfinished folder is called `NAME.part-...` and guarded by the lock of NAME.
            with FileLock(str(item.path).partition(".part-")[0] + ".lock", timeout=0):
                yield
        except Timeout as error:
            raise BenchError("another process is writing it") from error
    else:
        # A fit and its checkpoint are guarded by one lease, in the folder of the fit.
        with Lease(item.path if item.kind == "fit" else item.path.parent, waiting=refuse):
            yield


def _table(items: Sequence[Item], note: str) -> Table:
    rows: list[dict[str, Cell]] = [
        {
            "kind": item.kind,
            "what": item.what,
            "size": item.bytes,
            # A checkpoint has its fit's count, which says nothing about the checkpoint itself.
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
    return sum(_map_files(folder, lambda path: path.stat().st_size))


def _age(folder: Path) -> float:
    # By the newest file, since the time of a folder does not change when a file in it is rewritten.
    newest = max(
        _map_files(folder, lambda path: path.stat().st_mtime),
        default=folder.stat().st_mtime if folder.exists() else 0.0,
    )
    return max(0.0, time.time() - newest) / 86400


def _map_files(folder: Path, function: Callable[[Path], Any]) -> Iterator[Any]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield function(path)
        except FileNotFoundError:
            # Another process has renamed a finished file or deleted an old checkpoint meanwhile.
            continue
