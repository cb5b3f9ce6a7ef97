"""The store: fits (trained weights) and runs (their measurements) as folders on disk; all state is
derived from them.
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
    """The store's folder: `--store`, else BENCH_STORE, else `bench-store` in the working directory.

    Raises:
        UsageError: there is a file in its place.
    """
    root = given or Path(os.environ.get("BENCH_STORE") or "bench-store")
    if any(os.path.isfile(place) for place in (root, *root.parents)):
        raise UsageError(
            "a store is a folder, and this is a file or lies in one",
            where=str(root),
            fix="--store FOLDER",
        )
    return root


#: In a fit's folder: one line per epoch and resumption, whether the fit is finished or not.
LOG = "log.jsonl"

#: In a run's folder: runs of the same id from packs, where the folder is another run's.
PACKS = "packs"
_STAYS = ("lease", PACKS)
#: Bytes that a folder's name may have.
_LONGEST = 255
#: Threads that read records.
_READERS = 32

#: Without a handler, Python prints warnings on stderr.
_log = logging.getLogger(__name__)


class FitRecord(BaseModel):
    """`fit.json`: what was trained and what was measured while training."""

    model_config = ConfigDict(extra="ignore")

    record_schema: int = SCHEMA
    fit_id: str
    identity: dict[str, Any] = Field(description="everything that the fit_id is the hash of")
    weights: str = Field(description="file name of the weights, beside this file")
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
        description="steps that were repeated for want of memory, and the micro-batch from then on",
    )
    micro_batch: int | None = Field(
        default=None,
        description="images per forward pass in training; None: a device's whole share",
    )
    peak_memory_mb: float | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)


class Store:
    """Fits and runs below one folder.

    Args:
        root: the folder; created when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fits_dir = root / "fits"
        self.runs_dir = root / "runs"

    def fit_dir(self, fit_id: str) -> Path:
        """Folder of a fit."""
        return self.fits_dir / fit_id

    def fit(self, fit_id: str) -> FitRecord | None:
        """The record of a finished fit, or None.

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
                "a fit's record is damaged",
                where=str(path),
                fix=f"remove the folder {path.parent} and train again",
            ) from error

    def epochs(self, fit_id: str) -> list[dict[str, Any]]:
        """What is known of every epoch of a fit, finished or not: `epoch`, `loss`, `id_val`,
        `id_val_nll`.

        Of one that is not finished, also `seconds`: of training up to there, over all attempts
        (absent in old logs).
        """
        record = self.fit(fit_id)
        if record is not None:
            return record.history
        try:
            lines = (self.fit_dir(fit_id) / LOG).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found: dict[int, dict[str, Any]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # its writer died in the midst of it, and the same epoch is logged again
            if entry.get("event") == "epoch":
                found[entry["epoch"]] = entry
        return [found[epoch] for epoch in sorted(found)]

    def commit_fit(self, record: FitRecord, classifier: Classifier, lease: Lease) -> None:
        """Write weights and record; the record appears last and only once, whoever is first.

        Raises:
            LeaseLost: another process has taken the fit over.
        """
        from safetensors.torch import save_file

        folder = self.fit_dir(record.fit_id)
        tensors = {
            name: tensor.cpu().contiguous() for name, tensor in classifier.named_weights().items()
        }
        lease.check()
        write_with(folder / record.weights, lambda path: save_file(tensors, path))
        lease.check()
        first = write_text(folder / "fit.json", record.model_dump_json(indent=1), exclusive=True)
        # Those of holders that were killed or stood still on the way to their record, or our own if
        # one of them woke up first.
        for file in folder.glob("weights-*.safetensors"):
            if (file.name == record.weights) != first:
                file.unlink(missing_ok=True)

    def forget(self, fit_id: str, *, waiting: Callable[[dict[str, Any]], None]) -> None:
        """Remove a fit, its checkpoint and its runs, but for those from packs; waits for a process
        that trains it.

        Args:
            waiting: called with that process's claim while it is waited for.
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
        """A copy of `like` with the fit's weights.

        Raises:
            BenchError: the weights are missing or are not those of the record.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from ..identity import tensors_sha256

        path = self.fit_dir(record.fit_id) / record.weights
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BenchError(
                f"a fit's weights cannot be read: {error}",
                where=str(path),
                fix=f"remove the folder {path.parent} and train again",
            ) from error
        if tensors_sha256(tensors) != record.weights_sha256:
            raise BenchError(
                "a fit's weights are not those that were recorded",
                where=str(path),
                fix=f"remove the folder {path.parent} and train again",
            )
        return like.with_weights(tensors)

    def run_dir(self, record: RunRecord) -> Path:
        """Folder of a run: `runs/<suite>/<backbone>/<method>/<eval_id>`.

        One from a pack that is not the first run of its id lies below it, in `packs/<digest of the
        pack>`.
        """
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
        """Folder for a run from a pack: that of its id, unless another run has it or is being made
        there.
        """
        folder = self.run_dir(record)
        taken = (folder / "record.json").exists() or (folder / "lease").exists()
        return _below(folder, record) if taken else folder

    def runs_of(self, folder: Path) -> list[RunRecord]:
        """The runs of one id: at most one is the store's own.

        Raises:
            BenchError: see `read_run`.
        """
        paths = [folder / "record.json", *sorted(folder.glob(f"{PACKS}/*/record.json"))]
        return [self.read_run(path) for path in paths if path.exists()]

    def run_at(self, folder: Path) -> RunRecord | None:
        """The run of an id: the store's own, whatever has become of it, else the one from a pack
        that counts.

        Raises:
            BenchError: see `read_run`.
        """
        found = self.runs_of(folder)
        return next(
            (one for one in found if not one.origin),
            max(found, key=lambda one: one.precedence, default=None),
        )

    def set_aside(self, folder: Path) -> None:
        """Clear a run's folder, of which the caller holds the lease, for the store's own: what came
        in a pack moves below it.
        """
        path = folder / "record.json"
        record = self.read_run(path) if path.exists() else None
        if record is None or not record.origin:
            return
        below = _below(folder, record)
        below.mkdir(parents=True, exist_ok=True)
        # The record last: until then what is left is moved by the next attempt.
        for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
            if item.name not in _STAYS:
                os.replace(item, below / item.name)

    def save_run(self, record: RunRecord) -> Path:
        """Write a run's record and return its path."""
        path = self.run_dir(record) / "record.json"
        write_text(path, record.model_dump_json(indent=1))
        return path

    def read_run(self, path: Path) -> RunRecord:
        """One record; every earlier schema is accepted.

        Raises:
            BenchError: not a record, damaged, or written by a newer ShiftBench.
        """
        try:
            content = read_json(path)
            if content.get("record_schema", 0) > SCHEMA:
                raise BenchError(
                    f"the record has schema {content['record_schema']}, and this version reads up"
                    f" to {SCHEMA}",
                    where=str(path),
                    fix="use a newer ShiftBench",
                )
            return RunRecord.model_validate(content)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BenchError(
                "a run's record is damaged",
                where=str(path),
                fix="remove its folder and run again; the fit is kept",
            ) from error

    def records(self, method: str = "") -> Iterator[tuple[Path, RunRecord]]:
        """Every readable record with its path, in the order of the paths; a damaged one is told on
        stderr and left out.

        Args:
            method: only the runs of this one, if it has any.
        """
        folders = sorted(self.runs_dir.glob(f"*/*/{glob.escape(method)}/*")) if method else []
        # On a file server every operation takes a millisecond: one after another, 10,000 runs would
        # take 50 s instead of 6.
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
            except (FileNotFoundError, NotADirectoryError):
                continue
            except BenchError as error:
                _log.warning("warning: %s", plain(str(error)))
        return found

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """When every record was written, its size, and its inode, which is new after every
        replacement.
        """
        runs, found = self.runs_dir, {}
        for path in (
            *runs.glob("*/*/*/*/record.json"),
            *runs.glob(f"*/*/*/*/{PACKS}/*/record.json"),
        ):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found[str(path)] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _below(folder: Path, record: RunRecord) -> Path:
    return folder / PACKS / record.origin["digest"][:12]


def _empty(folder: Path, *, but: tuple[str, ...]) -> None:
    for item in folder.iterdir():
        if item.name not in but:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
