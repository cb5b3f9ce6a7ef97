"""The store: fits (trained weights) and runs (their evaluations) as folders on disk.

There is no index or database. All state is derived from the folders, so that they can be copied,
deleted and shared between machines.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BenchError, UsageError
from ..identity import digest
from ..plain import plain
from ..storage.atomic import write_text, write_with
from ..storage.files import read_json
from .record import SCHEMA, RunRecord

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..storage.lease import Lease


def store_root(given: Path | None = None) -> Path:
    """Return the store's folder.

    Args:
        given: value of `--store`; default: BENCH_STORE, or `bench-store` in the working directory.

    Raises:
        UsageError: the path, or a parent of it, is a file.
    """
    root = given or Path(os.environ.get("BENCH_STORE") or "bench-store")
    # Reading below a file fails like reading a folder that is missing, so a store that is a file
    # would pass for an empty one.
    if any(os.path.isfile(place) for place in (root, *root.parents)):
        raise UsageError(
            "the store is not a folder: it is a file, or inside one",
            where=str(root),
            fix="pass --store FOLDER",
        )
    return root


#: File in a fit's folder with one line per epoch and resumption, also while the fit is trained.
LOG = "log.jsonl"

#: Folder in a run's folder, for runs of the same id that were merged from packs.
PACKS = "packs"
#: What stays when a fit's or run's folder is emptied: the lease, which the caller may hold, and
#: runs from packs, which cannot be made again here.
_STAYS = ("lease", PACKS)
#: Longest name of a folder in bytes, on all usual file systems.
_LONGEST = 255
#: Threads that read records.
_READERS = 32

#: No handler is installed: Python prints warnings on stderr, and a program that embeds ShiftBench
#: can redirect them.
_log = logging.getLogger(__name__)


class FitRecord(BaseModel):
    """The content of a fit's `fit.json`: what was trained, and what was measured in training."""

    model_config = ConfigDict(extra="ignore")

    record_schema: int = SCHEMA
    fit_id: str
    identity: dict[str, Any] = Field(description="what the fit_id is the hash of")
    weights: str = Field(description="file name of the weights, in the same folder")
    weights_sha256: str = Field(description="hash of the tensors' content")
    normalize: bool = Field(description="whether the head normalises features")
    seconds: float = Field(description="wall time of this fit alone, over all its attempts")
    nested: list[str] = Field(default_factory=list, description="fit_ids of the fits that it used")
    total_seconds: float = Field(
        description="wall time including nested fits, whenever they were made"
    )
    facts: dict[str, float] = Field(default_factory=dict)
    selection: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, Any]] = Field(default_factory=list, description="one entry per epoch")
    retries: list[dict[str, int]] = Field(
        default_factory=list,
        description="steps repeated after running out of memory, with the micro-batch from then on",
    )
    micro_batch: int | None = Field(
        default=None,
        description="images per forward pass in training; None: a device's whole share of a batch",
    )
    peak_memory_mb: float | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)


class Store:
    """The fits and runs in one folder.

    Args:
        root: the folder; created on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fits_dir = root / "fits"
        self.runs_dir = root / "runs"

    def fit_dir(self, fit_id: str) -> Path:
        """Return the folder of a fit."""
        return self.fits_dir / fit_id

    def fit(self, fit_id: str) -> FitRecord | None:
        """Return the record of a finished fit, or None.

        Raises:
            BenchError: the record exists but cannot be read.
        """
        path = self.fit_dir(fit_id) / "fit.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return FitRecord.model_validate_json(text)
        except ValidationError as error:
            raise BenchError(
                "the fit's record is damaged",
                where=str(path),
                fix=f"delete the folder {path.parent} and train again",
            ) from error

    def epochs(self, fit_id: str) -> list[dict[str, Any]]:
        """Return the `epoch`, `loss`, `id_val` and `id_val_nll` of every epoch of a fit so far.

        For an unfinished fit, also `seconds`, the training time up to there over all attempts
        (absent in old logs).
        """
        record = self.fit(fit_id)
        if record is not None:
            return record.history
        try:
            lines = (self.fit_dir(fit_id) / LOG).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        # Keyed by epoch: a resumed fit logs an epoch again that it had begun after its checkpoint.
        found: dict[int, dict[str, Any]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
            # Its writer was killed in the middle of the line; the same epoch is logged again.
            except json.JSONDecodeError:
                continue
            if entry.get("event") == "epoch":
                found[entry["epoch"]] = entry
        return [found[epoch] for epoch in sorted(found)]

    def commit_fit(self, record: FitRecord, classifier: Classifier, lease: Lease) -> None:
        """Write the weights and then the record of a fit; the first record wins.

        Raises:
            LeaseLost: another process has taken over the fit.
        """
        # Imported here, as below: commands that only read records need not wait for torch.
        from safetensors.torch import save_file

        folder = self.fit_dir(record.fit_id)
        tensors = {
            name: tensor.cpu().contiguous() for name, tensor in classifier.named_weights().items()
        }
        # The record last and exclusively: a fit is finished if and only if its record exists, and a
        # process that stalls between check and write cannot replace the record of its successor.
        lease.check()
        write_with(folder / record.weights, lambda path: save_file(tensors, path))
        lease.check()
        first = write_text(folder / "fit.json", record.model_dump_json(indent=1), exclusive=True)
        # Delete the weights of holders that were killed or stalled before they wrote the record, or
        # our own if one of those woke up and was first.
        for file in folder.glob("weights-*.safetensors"):
            if (file.name == record.weights) != first:
                file.unlink(missing_ok=True)

    def forget(self, fit_id: str, *, waiting: Callable[[dict[str, Any]], None]) -> None:
        """Delete a fit, its checkpoint and its runs, except those from packs.

        Wait if another process trains the fit.

        Args:
            fit_id: of the fit.
            waiting: called with the claim of the other process about once a second; may raise.
        """
        from ..storage.lease import Lease

        folder = self.fit_dir(fit_id)
        if folder.exists():
            with Lease(folder, waiting=waiting):
                _empty(folder, but=_STAYS)
        for path, record in list(self.records()):
            if record.fit_id == fit_id and not record.origin:
                _empty(path.parent, but=_STAYS)

    def load_weights(self, record: FitRecord, like: Classifier) -> Classifier:
        """Return a copy of the classifier `like` with the fit's weights.

        Raises:
            BenchError: the weights are missing, or differ from the recorded hash.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from ..identity import tensors_sha256

        path = self.fit_dir(record.fit_id) / record.weights
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BenchError(
                f"the weights of a fit cannot be read: {error}",
                where=str(path),
                fix=f"delete the folder {path.parent} and train again",
            ) from error
        # A damaged tensor still loads and would silently give other results.
        if tensors_sha256(tensors) != record.weights_sha256:
            raise BenchError(
                "the weights of a fit differ from the hash in its record",
                where=str(path),
                fix=f"delete the folder {path.parent} and train again",
            )
        return like.with_weights(tensors)

    def run_dir(self, record: RunRecord) -> Path:
        """Return the folder of a run: `runs/<suite>/<backbone>/<method>/<eval_id>`.

        For a run from a pack it is `packs/<digest of the pack>` below that, if this folder exists.
        """
        # Backbone names contain `/`, `:` and `?`, and may contain a long path.
        backbone = "".join(c if c.isalnum() or c in "-_." else "_" for c in record.backbone)
        if len(backbone.encode()) > _LONGEST:
            backbone = f"{backbone[:50]}-{digest(record.backbone)[:24]}"
        folder = (
            self.runs_dir / record.suite / backbone / str(record.method["name"]) / record.eval_id
        )
        return (
            _below(folder, record) if record.origin and _below(folder, record).is_dir() else folder
        )

    def room_for(self, record: RunRecord) -> Path:
        """Return the folder in which to save a run from a pack.

        The folder of its id, or one below it if that has another run or one is being made there.
        """
        folder = self.run_dir(record)
        taken = (folder / "record.json").exists() or (folder / "lease").exists()
        return _below(folder, record) if taken else folder

    def runs_of(self, folder: Path) -> list[RunRecord]:
        """Return the runs of one id; at most one of them was made here.

        Raises:
            BenchError: see `read_run`.
        """
        paths = [folder / "record.json", *sorted(folder.glob(f"{PACKS}/*/record.json"))]
        return [self.read_run(path) for path in paths if path.exists()]

    def run_at(self, folder: Path) -> RunRecord | None:
        """Return the run of an id that counts, or None if there is none.

        The store's own run comes first, whatever its status, then the runs from packs by their
        `precedence`.

        Raises:
            BenchError: see `read_run`.
        """
        found = self.runs_of(folder)
        return next(
            (one for one in found if not one.origin),
            max(found, key=lambda one: one.precedence, default=None),
        )

    def set_aside(self, folder: Path) -> None:
        """Move a run from a pack out of the way, so that the store's own run can use the folder.

        The caller holds the folder's lease.
        """
        path = folder / "record.json"
        record = self.read_run(path) if path.exists() else None
        if record is None or not record.origin:
            return
        below = _below(folder, record)
        below.mkdir(parents=True, exist_ok=True)
        # The record moves last. If this process is killed before, the next call finds it and moves
        # the rest.
        for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
            if item.name not in _STAYS:
                os.replace(item, below / item.name)

    def save_run(self, record: RunRecord) -> Path:
        """Write a run's record and return its path."""
        path = self.run_dir(record) / "record.json"
        write_text(path, record.model_dump_json(indent=1))
        return path

    def read_run(self, path: Path) -> RunRecord:
        """Read one record, of this or any earlier schema.

        Raises:
            FileNotFoundError: there is no such file.
            BenchError: it is not a record, is damaged, or was written by a newer ShiftBench.
        """
        try:
            content = read_json(path)
            if content.get("record_schema", 0) > SCHEMA:
                raise BenchError(
                    f"the record has schema {content['record_schema']}, but this version reads"
                    f" schemas up to {SCHEMA}",
                    where=str(path),
                    fix="upgrade ShiftBench",
                )
            return RunRecord.model_validate(content)
        except FileNotFoundError:
            raise
        # The last two: the file is JSON, but not an object, or its schema is not a number.
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BenchError(
                "the run's record is damaged",
                where=str(path),
                fix="delete its folder and run again; the fit stays",
            ) from error

    def records(self, method: str = "") -> Iterator[tuple[Path, RunRecord]]:
        """Yield every readable record with its path, sorted by path; warn about damaged ones.

        Args:
            method: read only the runs of this method, if it has any.
        """
        folders = sorted(self.runs_dir.glob(f"*/*/{glob.escape(method)}/*")) if method else []
        # Every operation on a file server takes about a millisecond. One after another, 10,000 runs
        # would take 50 s instead of 6 s.
        with ThreadPoolExecutor(_READERS) as pool:
            for found in pool.map(
                self._records_in, folders or sorted(self.runs_dir.glob("*/*/*/*"))
            ):
                yield from found

    def _records_in(self, folder: Path) -> list[tuple[Path, RunRecord]]:
        found = []
        for path in (*sorted((folder / PACKS).glob("*/record.json")), folder / "record.json"):
            try:
                found.append((path, self.read_run(path)))
            # Deleted meanwhile, or a stray file between the folders.
            except (FileNotFoundError, NotADirectoryError):
                continue
            except BenchError as error:
                _log.warning("warning: %s", plain(str(error)))
        return found

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Return the modification time (ns), size and inode of every record by its path.

        Two equal results mean that no record has changed in between.
        """
        runs, found = self.runs_dir, {}
        for path in (
            *runs.glob("*/*/*/*/record.json"),
            *runs.glob(f"*/*/*/*/{PACKS}/*/record.json"),
        ):
            with contextlib.suppress(FileNotFoundError):
                # The inode is new after every replacement, even one within the clock's resolution.
                status = path.stat()
                found[str(path)] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _below(folder: Path, record: RunRecord) -> Path:
    return folder / PACKS / record.origin["digest"][:12]


def _empty(folder: Path, *, but: tuple[str, ...]) -> None:
    for item in folder.iterdir():
        if item.name not in but:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
