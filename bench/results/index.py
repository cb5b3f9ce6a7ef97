"""All records of a large store in one file beside it, so that ten thousand folders are not opened one by one.

The index holds the text of every record under its path, modification time, size and inode. What does not agree with the folder
is read from the folder, as is everything when the index is missing or damaged: it saves time and decides nothing.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..errors import BenchError
from ..plain import plain
from ..storage.atomic import write_with
from .record import RunRecord
from .store import PACKS

if TYPE_CHECKING:
    from .store import Store

#: Smaller stores are read as quickly without one.
WORTH_IT = 300
#: A file that was written this recently (seconds) may be replaced within the clock's resolution: it is not indexed yet.
_SETTLED = 2.0

_log = logging.getLogger(__name__)


def records(store: Store) -> list[tuple[Path, RunRecord]]:
    """Every readable record with its path, in the order of the paths: what `Store.records` yields, from the index where it can.

    A damaged record is told on stderr and left out, every time.
    """
    stamped = stamps(store.runs_dir)
    path = store.root / "runs-index.parquet"
    known = _read(path) if len(stamped) >= WORTH_IT else {}
    kept: dict[str, tuple[str, bytes]] = {}
    found: list[tuple[Path, RunRecord]] = []
    with _without_collector():
        for name, stamp in stamped.items():
            place = store.runs_dir / name
            record = _parsed(known[name][1]) if name in known and known[name][0] == stamp else None
            if record is not None:
                kept[name] = known[name]
            else:
                try:
                    record, text = store.read_run(place), place.read_bytes()
                except (BenchError, OSError) as error:
                    _log.warning("warning: %s", plain(str(error)))
                    continue
                if _stamp(place) == stamp and _settled(stamp):
                    kept[name] = (stamp, text)
            found.append((place, record))
    if len(kept) >= WORTH_IT and kept != known:
        _write(path, kept)
    return found


def _stamp(path: Path | str) -> str:
    """When a file was written, its size, and its inode, which is new after every replacement."""
    status = os.stat(path)
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _settled(stamp: str) -> bool:
    return time.time() - int(stamp.split()[0]) / 1e9 > _SETTLED


def stamps(runs: Path) -> dict[str, str]:
    """Stamp of every record of `<suite>/<backbone>/<method>/<eval_id>/`, and of those from packs below it, sorted by folder."""

    def folders(parent: str, depth: int) -> Iterator[str]:
        try:
            below = sorted((entry for entry in os.scandir(runs / parent) if entry.is_dir()), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in below:
            name = f"{parent}{entry.name}/"
            yield from folders(name, depth - 1) if depth > 1 else (name,)

    found = {}
    for folder in folders("", 4):
        for place in (*folders(f"{folder}{PACKS}/", 1), folder):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[f"{place}record.json"] = _stamp(f"{runs}/{place}record.json")
    return found


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Without Python's cycle collector, which else goes through all records again and again (10,000: 1.1 s, not 0.4 s)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Straight into the oldest generation, which is rarely gone through: what was read stays.
        gc.freeze()
        gc.unfreeze()
        if collecting:
            gc.enable()


def _parsed(text: bytes) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError:
        return None


def _digest(kept: Mapping[str, tuple[str, bytes]]) -> bytes:
    digest = hashlib.sha256("\n".join(f"{name} {stamp} {len(text)}" for name, (stamp, text) in kept.items()).encode())
    for _, text in kept.values():
        digest.update(text)
    return digest.hexdigest().encode()


def _read(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> stamp and text of a whole, unchanged index; else nothing."""
    import pyarrow.parquet as pq

    try:
        table: Any = pq.read_table(path)
        names, stamps, texts = (table.column(name).to_pylist() for name in ("path", "stamp", "record"))
        known = {name: (stamp, text) for name, stamp, text in zip(names, stamps, texts, strict=True)}
        if (table.schema.metadata or {}).get(b"digest") == _digest(known):
            return known
        _log.debug("the index %s has changed and is not used", path)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever damage does to a Parquet file: the folders have everything
        _log.debug("the index %s is not used: %s", path, error)
    return {}


def _write(path: Path, kept: Mapping[str, tuple[str, bytes]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stamps, texts = zip(*kept.values(), strict=True)
    columns = {"path": pa.array(list(kept)), "stamp": pa.array(stamps), "record": pa.array(texts, pa.binary())}
    table = pa.table(columns).replace_schema_metadata({b"digest": _digest(kept)})
    try:
        write_with(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    except BenchError as error:  # a store on a read-only disk is read all the same
        _log.debug("the index is not written: %s", error)
