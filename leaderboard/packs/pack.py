"""Write and read `.shiftpack` files, which carry runs from one store to another.

A pack is a zip archive of records, predictions and a manifest of hashes. Its members are not
compressed (Parquet compresses by itself), so that unpacking never takes more than the file's size:

    blobs/<SHA-256>     a record (JSON); the images of a split (Parquet: key, label, group);
                        a run's predictions on them
    manifest.json       which blobs make which run; ends with the hash of its own content

A blob is named by the hash of its content: equal blobs are saved once (all runs share the images of
a split), and no name can be a path out of the archive. The same runs, packed with the same versions
of the libraries, give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from bench.errors import BenchError, MissingPrerequisite
from bench.identity import digest
from bench.results.record import SCHEMA as RECORD_SCHEMA
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.storage.atomic import write_with
from bench.storage.files import absent, finite_json

#: 2: the curves' predictions, and log-sum-exps at the temperature of id-val where logits were too
#: many to keep.
SCHEMA = 2
#: Bytes of a blob. No split of any suite comes near it: 100,000 images with half-precision logits
#: over 1,000 classes are 0.2 GB.
LARGEST_BLOB = 2 * 2**30
#: Bytes of the manifest, which is read into memory as a whole.
LARGEST_MANIFEST = 64 * 2**20
_BLOB = re.compile(r"blobs/[0-9a-f]{64}")
_MANIFEST = "manifest.json"
#: Columns that do not depend on the run. They are in a blob of their own, which all runs share.
IMAGES = ("key", "label", "group")


class _PackModel(BaseModel):
    # A field that this version does not know could change what the others mean.
    model_config = ConfigDict(extra="forbid")


class Packed(_PackModel):
    """One run in a pack, as an entry of the manifest."""

    eval_id: str
    record: str = Field(description="blob of its record")
    images: dict[str, str] = Field(description="split -> blob of its images")
    outcomes: dict[str, str] = Field(
        description="split -> blob of the run's predictions, in the order of the images"
    )
    curve: dict[str, str] = Field(
        default_factory=dict,
        description="split -> blob of the predictions along its curve; empty if not saved",
    )

    def blobs(self) -> list[str]:
        """Return the names of all its blobs."""
        return [self.record, *self.images.values(), *self.outcomes.values(), *self.curve.values()]


class Manifest(_PackModel):
    """The content of `manifest.json`."""

    shiftpack: int = SCHEMA
    made_by: str
    logits: bool = Field(description="whether outcomes include the logits, where a run has them")
    runs: list[Packed]
    digest: str = Field(default="", description="hash of all fields above")


class InvalidPack(BenchError):
    """An invalid or inconsistent pack; nothing of it is merged."""


def write_pack(
    store: Store, records: Sequence[RunRecord], path: Path, *, logits: bool = True
) -> Manifest:
    """Write runs to one file.

    Args:
        store: the store of the runs.
        records: finished runs of the store.
        path: the file; an existing one is replaced.
        logits: include the half-precision logits. Without them a pack is a fifth of the size, and
            accuracy, NLL and ECE can still be recomputed, but not Brier score and temperature
            scaling.

    Returns:
        The pack's manifest.

    Raises:
        BenchError: predictions are missing or damaged, a run has no identity, or the file cannot be
            written.
    """
    made: list[Manifest] = []

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            made.append(_fill(archive, store, records, logits))

    write_with(path, write)
    return made[0]


def _fill(
    archive: zipfile.ZipFile, store: Store, records: Sequence[RunRecord], logits: bool
) -> Manifest:
    added: set[str] = set()

    def add(content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        if sha not in added:
            added.add(sha)
            archive.writestr(_member(f"blobs/{sha}"), content)
        return sha

    runs = []
    # Sorted, so that the order in which the runs were made does not change the bytes.
    for record in sorted(records, key=lambda r: r.eval_id):
        packed = Packed(
            eval_id=record.eval_id, record=add(_record(store, record)), images={}, outcomes={}
        )
        for split in sorted(record.metrics):
            table = _predictions(store.run_dir(record) / "predictions" / f"{split}.parquet")
            packed.images[split] = add(_parquet(table.select(list(IMAGES))))
            outcomes = table.drop_columns(list(IMAGES))
            # A run that was merged from a pack without logits has only the condensed columns.
            whole = logits and "runner_up" in table.column_names
            packed.outcomes[split] = add(_parquet(outcomes if whole else condensed(table)))
            path = store.run_dir(record) / "curve" / f"{split}.parquet"
            if record.curve and path.exists():
                packed.curve[split] = add(
                    _parquet(_in_order(_predictions(path), table["key"], path))
                )
        # A curve is either complete or left out: its OOD average needs all splits.
        if packed.curve.keys() != packed.images.keys():
            packed.curve = {}
        runs.append(packed)
    manifest = Manifest(made_by=f"shiftbench {version('shiftbench')}", logits=logits, runs=runs)
    manifest.digest = digest(manifest.model_dump(exclude={"digest"}))
    archive.writestr(_member(_MANIFEST), manifest.model_dump_json(indent=1))
    return manifest


def _member(name: str) -> zipfile.ZipInfo:
    # A fixed date, fixed permissions and a fixed system: the same content gives the same file.
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    member.create_system = 3
    return member


def _record(store: Store, record: RunRecord) -> bytes:
    """Serialize a record, with the identity that its ids are hashes of."""
    identity = dict(record.identity)
    # Records of earlier versions do not contain the identity. It is in the record of the fit or,
    # for a checkpoint trained elsewhere, follows from the record itself.
    if "fit" not in identity:
        fit = store.fit(record.fit_id)
        if fit is not None:
            identity["fit"] = fit.identity
        elif record.phase == "external":
            identity["fit"] = {
                "external": record.method["parameters"],
                "backbone": record.backbone_sha256,
            }
        else:
            raise BenchError(
                f"{record.label}, seed {record.seed}, has no identity: its fit was removed",
                where=str(store.run_dir(record)),
                fix="`bench run` it again, or exclude it with --method",
            )
    identity.setdefault("evaluation", evaluation_identity(record))
    # A traceback would contain paths of this machine.
    return (
        record.model_copy(update={"identity": identity, "traceback": ""})
        .model_dump_json(indent=1)
        .encode()
    )


def evaluation_identity(record: RunRecord) -> dict[str, Any]:
    """Return what the eval_id of an earlier version hashes, apart from the fit_id."""
    # The metric of id-test is under "", and other splits are named only if theirs differs.
    metrics = {split: found.metric for split, found in record.metrics.items()}
    usual = metrics.get("id-test", metrics.get("id-val", "accuracy"))
    own = {split: metric for split, metric in metrics.items() if metric != usual}
    return {
        "data": record.data,
        "projection": "identity",
        "pixels": record.pixels,
        "metrics": {"": usual, **own},
    }


def _predictions(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        table.select(list(IMAGES))
        return table
    except (OSError, KeyError, pa.ArrowException) as error:
        raise BenchError(
            f"predictions cannot be read: {error}",
            where=str(path),
            fix="remove the run's folder and run again; the fit is reused",
        ) from error


def _in_order(curve: pa.Table, keys: pa.ChunkedArray, path: Path) -> pa.Table:
    """Return the predictions along a curve in the order of the run's own, without `IMAGES`."""
    at = pc.index_in(keys, value_set=curve["key"])
    if at.null_count or len(curve) != len(keys):
        raise BenchError(
            "the curve has predictions on other images than the run",
            where=str(path),
            fix="remove the folder `curve`",
        )
    return curve.drop_columns(list(IMAGES)).take(at)


def condensed(table: pa.Table) -> pa.Table:
    """Reduce predictions to the columns that accuracy, NLL and ECE need.

    An image takes 8 bytes, instead of 20 and another 2 per class. `label_logit` is empty where it
    equals `maximum`, which is the case for every correct prediction.
    """
    label, top = table["label_logit"].to_numpy(), table["maximum"].to_numpy()
    return pa.table(
        {
            "prediction": table["prediction"].cast(pa.int32()),
            "label_logit": pa.array(label, mask=label == top),
            "maximum": table["maximum"],
            "log_sum_exp": pa.array(table["log_sum_exp"].to_numpy().astype(np.float32)),
        }
    )


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    # The exponents of floats vary less than their last digits: stored in separate streams, they
    # compress by a quarter more.
    floats = {
        field.name: "BYTE_STREAM_SPLIT"
        for field in table.schema
        if pa.types.is_floating(field.type)
    }
    words = [field.name for field in table.schema if pa.types.is_integer(field.type)]
    pq.write_table(
        table, buffer, compression="zstd", compression_level=9, use_dictionary=words,
        column_encoding=floats,
        write_statistics=False, row_group_size=2**17,
    )  # fmt: skip
    return buffer.getvalue()


class Pack:
    """A pack that is open for reading; everything read from it is checked against its hash."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.path = path
        self._archive = archive
        self._members = self._checked_members()
        self.manifest = self._checked_manifest()

    def refused(self, why: str, run: str = "") -> InvalidPack:
        """Return the error for this pack, to be raised.

        Args:
            why: what is wrong.
            run: the run that it concerns.
        """
        where = f"{self.path}, run {run}" if run else str(self.path)
        return InvalidPack(
            f"invalid pack: {why}",
            where=where,
            fix="request a new pack from its author; nothing was written",
        )

    def blob(self, sha: str) -> bytes:
        """Read a blob by its hash.

        Raises:
            InvalidPack: the blob is missing, or its content has another hash.
        """
        member = self._members.get(f"blobs/{sha}")
        if member is None:
            raise self.refused(f"the blob {sha[:12]} is missing")
        content = self._read(member)
        if hashlib.sha256(content).hexdigest() != sha:
            raise self.refused(f"the blob {sha[:12]} was changed: its content has another hash")
        return content

    def record(self, run: Packed) -> RunRecord:
        """Read the record of a run.

        Raises:
            InvalidPack: the record is damaged, of a newer schema, or contains NaN or infinity.
        """
        try:
            content = finite_json(self.blob(run.record))
            if content.get("record_schema", 0) > RECORD_SCHEMA:
                newer = (
                    f"its record has schema {content['record_schema']}, but this version reads up"
                    f" to {RECORD_SCHEMA}; use a newer ShiftBench"
                )
                raise self.refused(newer, run.eval_id)
            return RunRecord.model_validate(content)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise self.refused(
                f"a record is damaged: {type(error).__name__}", run.eval_id
            ) from error

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        try:
            return self._archive.read(member)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise self.refused(f"{member.filename} cannot be read: {error}") from error

    def _checked_members(self) -> dict[str, zipfile.ZipInfo]:
        """List the archive's members, and check everything about them that needs no reading."""
        # Member names are never used as paths. What is checked here is that the archive has one
        # meaning for every tool (no duplicates, nothing unnamed) and cannot exhaust memory.
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            name = member.filename
            kind = stat.S_IFMT(member.external_attr >> 16)
            if name in members:
                raise self.refused(f"it contains {name[:80]!r} twice")
            if name != _MANIFEST and not _BLOB.fullmatch(name):
                raise self.refused(
                    f"it contains a file that does not belong in a pack: {name[:80]!r}"
                )
            if kind not in (0, stat.S_IFREG):
                raise self.refused(f"{name} is a link or a device, not a file")
            if (
                member.compress_type != zipfile.ZIP_STORED
                or member.file_size != member.compress_size
                or member.flag_bits & 1
            ):
                raise self.refused(f"{name} is compressed or encrypted")
            if member.file_size > (LARGEST_MANIFEST if name == _MANIFEST else LARGEST_BLOB):
                raise self.refused(f"{name} is too large: {member.file_size} bytes")
            members[name] = member
        if _MANIFEST not in members:
            raise self.refused("it has no manifest")
        # Members of a zip archive may refer to the same bytes, which multiplies its size when read.
        if sum(member.file_size for member in members.values()) > self.path.stat().st_size:
            raise self.refused("its files overlap: their sizes add up to more than the pack's")
        return members

    def _checked_manifest(self) -> Manifest:
        try:
            content = json.loads(self._read(self._members[_MANIFEST]))
            schema = content.get("shiftpack")
            if not isinstance(schema, int):
                raise self.refused("its manifest is not that of a pack")
            # Before validation, which would reject a newer manifest for its new fields.
            if schema > SCHEMA:
                raise self.refused(
                    f"it has schema {schema}, but this version reads up to {SCHEMA}; use a newer"
                    " ShiftBench"
                )
            manifest = Manifest.model_validate(content)
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.refused(f"its manifest is damaged: {type(error).__name__}") from error
        # The hash of the JSON as it is in the file, not of the model: a manifest of an earlier
        # schema has fewer fields than this version's.
        if manifest.digest != digest(
            {key: value for key, value in content.items() if key != "digest"}
        ):
            raise self.refused("its manifest was edited: its content has another hash")
        named = {f"blobs/{sha}" for run in manifest.runs for sha in run.blobs()}
        if unnamed := sorted(self._members.keys() - named - {_MANIFEST}):
            raise self.refused(
                f"it contains {len(unnamed)} blob(s) that its manifest does not name, such as"
                f" {unnamed[0]}"
            )
        ids = [run.eval_id for run in manifest.runs]
        if len(set(ids)) < len(ids):
            raise self.refused("it contains a run twice")
        return manifest


@contextmanager
def open_pack(path: Path) -> Iterator[Pack]:
    """Open a pack, and check its members and its manifest.

    Raises:
        MissingPrerequisite: the file does not exist.
        InvalidPack: the file is not a pack, or its members or manifest are invalid.
    """
    if why := absent(path, what="pack"):
        raise MissingPrerequisite(why, fix="write one with `bench pack -o FILE`")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidPack(
            f"the pack cannot be opened: {why}",
            where=str(path),
            fix="pass a file written by `bench pack`",
        ) from error
    with archive:
        yield Pack(archive, path)
