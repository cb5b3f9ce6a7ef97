"""One file that carries runs from one store to another: records, predictions, and a manifest of
hashes.

A `.shiftpack` is a zip archive whose members are stored, not compressed (Parquet compresses by
itself), so that unpacking never takes more than the file's own size:

    blobs/<SHA-256>     a record (JSON); the images of a split (Parquet: key, label, group);
                        a run's predictions of them
    manifest.json       which blobs make which run; ends with the hash of its own content

A blob's name is its content: equal blobs are stored once (all runs share the images of a split),
and there is no name to choose and no path to leave. The same runs, packed by the same versions of
the libraries, give the same bytes.
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
#: No split of any suite comes near it: 100,000 images with half-precision logits over 1,000 classes
#: are 0.2 GB.
LARGEST_BLOB = 2 * 2**30
LARGEST_MANIFEST = 64 * 2**20
_BLOB = re.compile(r"blobs/[0-9a-f]{64}")
_MANIFEST = "manifest.json"
#: Columns that every image of a split has, whoever looks at it.
IMAGES = ("key", "label", "group")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Packed(_Part):
    """One run in a pack."""

    eval_id: str
    record: str = Field(description="blob of its record")
    images: dict[str, str] = Field(description="split -> blob of its images")
    outcomes: dict[str, str] = Field(
        description="split -> blob of what the run said about them, in the order of the images"
    )
    curve: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "split -> blob of what its curve's points said, likewise; none where that was not kept"
        ),
    )

    def blobs(self) -> list[str]:
        """All that it names."""
        return [self.record, *self.images.values(), *self.outcomes.values(), *self.curve.values()]


class Manifest(_Part):
    """`manifest.json`."""

    shiftpack: int = SCHEMA
    made_by: str
    logits: bool = Field(description="whether the outcomes hold the logits, where a run has them")
    runs: list[Packed]
    digest: str = Field(default="", description="hash of all the above")


class Refused(BenchError):
    """A pack does not add up; nothing of it is taken over."""


def write_pack(
    store: Store, records: Sequence[RunRecord], path: Path, *, logits: bool = True
) -> Manifest:
    """Pack runs into one file.

    Args:
        records: done runs of the store.
        logits: keep the half-precision logits; without them a pack is a tenth of the size, and
            accuracy, NLL and ECE can still be computed anew, Brier score and temperature scaling
            cannot.

    Raises:
        BenchError: a run's predictions are missing or damaged, or its identity is not on record;
            the file cannot be written.
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
    there: set[str] = set()

    def add(content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        if sha not in there:
            there.add(sha)
            archive.writestr(_member(f"blobs/{sha}"), content)
        return sha

    runs = []
    for record in sorted(records, key=lambda r: r.eval_id):
        packed = Packed(
            eval_id=record.eval_id, record=add(_record(store, record)), images={}, outcomes={}
        )
        for split in sorted(record.metrics):
            table = _predictions(store.run_dir(record) / "predictions" / f"{split}.parquet")
            packed.images[split] = add(_parquet(table.select(list(IMAGES))))
            outcomes = table.drop_columns(list(IMAGES))
            whole = (
                logits and "runner_up" in table.column_names
            )  # a run from a pack without logits has no more to give
            packed.outcomes[split] = add(_parquet(outcomes if whole else condensed(table)))
            path = store.run_dir(record) / "curve" / f"{split}.parquet"
            if record.curve and path.exists():
                packed.curve[split] = add(
                    _parquet(_in_order(_predictions(path), table["key"], path))
                )
        if packed.curve.keys() != packed.images.keys():
            packed.curve = {}  # a part of a curve is none
        runs.append(packed)
    manifest = Manifest(made_by=f"shiftbench {version('shiftbench')}", logits=logits, runs=runs)
    manifest.digest = digest(manifest.model_dump(exclude={"digest"}))
    archive.writestr(_member(_MANIFEST), manifest.model_dump_json(indent=1))
    return manifest


def _member(name: str) -> zipfile.ZipInfo:
    # A date and permissions of its own: the same content gives the same file.
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    member.create_system = 3
    return member


def _record(store: Store, record: RunRecord) -> bytes:
    """The record with what its two ids are the hashes of, which runs of earlier versions left to
    the fit's record.
    """
    identity = dict(record.identity)
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
                f"the identity of {record.label}, seed {record.seed}, is not on record: its fit was"
                " removed",
                where=str(store.run_dir(record)),
                fix="`bench run` it again, or leave it out with --method",
            )
    identity.setdefault("evaluation", evaluation_identity(record))
    return (
        record.model_copy(update={"identity": identity, "traceback": ""})
        .model_dump_json(indent=1)
        .encode()
    )


def evaluation_identity(record: RunRecord) -> dict[str, Any]:
    """What the eval_id of a run by an earlier version is the hash of, beside its fit."""
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
            fix="remove the run's folder and run again; the fit is kept",
        ) from error


def _in_order(curve: pa.Table, keys: pa.ChunkedArray, path: Path) -> pa.Table:
    """What a curve's points said, without the columns that all share, about these images."""
    at = pc.index_in(keys, value_set=curve["key"])
    if at.null_count or len(curve) != len(keys):
        raise BenchError(
            "the curve's predictions are about other images than the run's",
            where=str(path),
            fix="remove the folder `curve`",
        )
    return curve.drop_columns(list(IMAGES)).take(at)


def condensed(table: pa.Table) -> pa.Table:
    """What accuracy, NLL and ECE need of every image, without the logits: 8 bytes instead of 2 per
    class and 20 more.

    `label_logit` is empty where it is the maximum.
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
    # The bytes of a float differ in how much they vary: split apart, they compress by a quarter.
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
    """A pack that is open for reading; every byte that it gives was checked against its hash."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.path = path
        self._archive = archive
        self._members = self._checked_members()
        self.manifest = self._checked_manifest()

    def refused(self, why: str, run: str = "") -> Refused:
        """The error that names this pack, and the run that it is about."""
        where = f"{self.path}, run {run}" if run else str(self.path)
        return Refused(
            f"the pack is refused: {why}",
            where=where,
            fix="ask its maker for a new one; nothing was written",
        )

    def blob(self, sha: str) -> bytes:
        """The content of a blob.

        Raises:
            Refused: it is missing, or is not what its name says.
        """
        member = self._members.get(f"blobs/{sha}")
        if member is None:
            raise self.refused(f"the blob {sha[:12]} is missing")
        content = self._read(member)
        if hashlib.sha256(content).hexdigest() != sha:
            raise self.refused(f"the blob {sha[:12]} was changed: its content has another hash")
        return content

    def record(self, run: Packed) -> RunRecord:
        """The record of a run.

        Raises:
            Refused: it is no record of a known schema, or holds a number that is not finite.
        """
        try:
            content = finite_json(self.blob(run.record))
            if content.get("record_schema", 0) > RECORD_SCHEMA:
                newer = (
                    f"its record has schema {content['record_schema']}, and this version reads up"
                    f" to {RECORD_SCHEMA}"
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
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            name = member.filename
            kind = stat.S_IFMT(member.external_attr >> 16)
            if name in members:
                raise self.refused(f"it holds {name[:80]!r} twice")
            if name != _MANIFEST and not _BLOB.fullmatch(name):
                raise self.refused(
                    f"it holds a file that does not belong into a pack: {name[:80]!r}"
                )
            if kind not in (0, stat.S_IFREG):
                raise self.refused(f"{name} is a link or a device, not a file")
            if (
                member.compress_type != zipfile.ZIP_STORED
                or member.file_size != member.compress_size
                or member.flag_bits & 1
            ):
                raise self.refused(f"{name} is compressed or encrypted, and packs are neither")
            if member.file_size > (LARGEST_MANIFEST if name == _MANIFEST else LARGEST_BLOB):
                raise self.refused(f"{name} is too large: {member.file_size} bytes")
            members[name] = member
        if _MANIFEST not in members:
            raise self.refused("it has no manifest")
        if sum(member.file_size for member in members.values()) > self.path.stat().st_size:
            raise self.refused("its files overlap: together they are larger than the pack")
        return members

    def _checked_manifest(self) -> Manifest:
        try:
            content = json.loads(self._read(self._members[_MANIFEST]))
            schema = content.get("shiftpack")
            if not isinstance(schema, int):
                raise self.refused("its manifest is not that of a pack")
            if schema > SCHEMA:
                raise self.refused(
                    f"it has schema {schema}, and this version reads up to {SCHEMA}; use a newer"
                    " ShiftBench"
                )
            manifest = Manifest.model_validate(content)
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.refused(f"its manifest is damaged: {type(error).__name__}") from error
        # Of what is written there: a manifest of an earlier schema has fewer fields.
        if manifest.digest != digest(
            {key: value for key, value in content.items() if key != "digest"}
        ):
            raise self.refused("its manifest was edited: the hash of its content is another one")
        named = {f"blobs/{sha}" for run in manifest.runs for sha in run.blobs()}
        if unnamed := sorted(self._members.keys() - named - {_MANIFEST}):
            raise self.refused(
                f"it holds {len(unnamed)} blob(s) that its manifest does not name, such as"
                f" {unnamed[0]}"
            )
        ids = [run.eval_id for run in manifest.runs]
        if len(set(ids)) < len(ids):
            raise self.refused("it holds a run twice")
        return manifest


@contextmanager
def open_pack(path: Path) -> Iterator[Pack]:
    """Open a pack and check its form: members, hashes of the manifest, schema.

    Raises:
        MissingPrerequisite: there is no such file. Refused: it is not a pack, or not one that adds
            up.
    """
    if why := absent(path, what="pack"):
        raise MissingPrerequisite(why, fix="`bench pack -o FILE` makes one")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Refused(
            f"the pack cannot be opened: {why}",
            where=str(path),
            fix="name a file that `bench pack` made",
        ) from error
    with archive:
        yield Pack(archive, path)
