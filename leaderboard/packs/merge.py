"""Runs from others into a store: every pack is checked in full, and nothing is written unless all
of it adds up.

What is checked is that a run is consistent: its ids are the hashes of what it states, and its
predictions are about the images that it names and do not contradict themselves. Its accuracies,
NLL, ECE, OOD average and curve are then computed from its predictions; what its record states of
them is not looked at. What a pack does not hold enough for stays as it is stated, and the merged
record says so beside the pack that it came from: the Brier score, the temperature, and scores on a
part of the classes. That its weights were trained as stated cannot be seen from here, nor can its
times be measured anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.data.cards.inheritance import suite_names
from bench.data.cards.suite_card import find_card
from bench.errors import BenchError
from bench.evaluation.metrics import relative_scores, shares
from bench.identity import canonical_json, digest
from bench.plain import NAME, plain
from bench.results.predictions import alpha_column
from bench.results.record import CurvePoint, RunRecord, SplitMetrics
from bench.results.store import Store
from bench.storage.atomic import write_with
from bench.storage.lease import Lease

from .copies import Copy
from .pack import Pack, Packed, Refused, open_pack
from .rescoring import contradiction, derived, said_by
from .truths import DataOfSuite, Truths, columns_of, truth_of

_ID = re.compile(r"[0-9a-f]{24}")
_LONGEST_KEY = 1024
#: More than any label space has; bounds what a pack can make a reader allocate.
_MOST_CLASSES = 100_000
#: Images that a byte names at most (a million of ImageNet's names take 0.68 bytes each, packed),
#: and how far names shrink at most (those: by 67).
_ROWS_A_BYTE, _FACTOR = 8, 200

#: What a merged record takes over without a look.
_AS_STATED = "Brier score, temperature, id_matched, times"

Fate = Literal["new", "already here", "kept beside the one that is here"]


@dataclass
class Merged:
    """What became of one pack: runs by what happened to them, and those that score otherwise than
    others of the same id.
    """

    path: Path
    digest: str
    runs: dict[Fate, list[RunRecord]] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)


def merge(
    paths: Sequence[Path], store: Store, *, dry_run: bool = False, data: DataOfSuite | None = None
) -> list[Merged]:
    """Take over the runs of packs that a store does not have yet.

    Of a run that the store has, or that two packs have, with other scores (the same fit on another
    machine, say) both are kept and one counts (`RunRecord.precedence`): two machines are never
    averaged into a spread of seeds.

    Args:
        dry_run: check everything, write nothing.
        data: the suites' own images, to hold labels against.

    Raises:
        Refused: a pack does not add up; the store is as it was.
        BenchError: the store cannot be written.
        MissingPrerequisite: the images that `data` should hold labels against are not here.
    """
    truths = Truths(store, data)
    plan: list[tuple[Merged, list[tuple[Packed, RunRecord]]]] = []
    planned: dict[str, list[RunRecord]] = {}
    for path in paths:
        with open_pack(path) as pack:
            merged, fresh = Merged(path, pack.manifest.digest), []
            for packed in pack.manifest.runs:
                record = checked(pack, packed, truths)
                origin = {"pack": path.name, "digest": merged.digest, "as_stated": _AS_STATED}
                record = record.model_copy(update={"origin": origin})
                here = [*_done(store, record), *planned.get(record.eval_id, [])]
                fate = _fate(here, record)
                merged.runs.setdefault(fate, []).append(record)
                if fate != "already here":
                    planned.setdefault(record.eval_id, []).append(record)
                    fresh.append((packed, record))
                if fate != "new" and (copy := _copy(here, record)).widest:
                    merged.copies.append(copy)
            plan.append((merged, fresh))
    for merged, fresh in plan:
        if fresh and not dry_run:
            with open_pack(merged.path) as pack:
                for packed, record in fresh:
                    _write(store, pack, packed, record)
    return [merged for merged, _ in plan]


def _done(store: Store, record: RunRecord) -> list[RunRecord]:
    """The done runs that the store has of this id."""
    folder = store.run_dir(record.model_copy(update={"origin": {}}))
    return [one for one in store.runs_of(folder) if one.status == "done"]


def _fate(here: Sequence[RunRecord], record: RunRecord) -> Fate:
    if not here:
        return "new"
    known = any(Copy(one, record).widest is None for one in here)
    return "already here" if known else "kept beside the one that is here"


def _copy(here: Sequence[RunRecord], record: RunRecord) -> Copy:
    """The run beside the others of its id: beside the one that counts or, if it does itself, the
    one that did.
    """
    first = max(here, key=lambda one: one.precedence)
    return Copy(record, first) if record.precedence > first.precedence else Copy(first, record)


def _write(store: Store, pack: Pack, packed: Packed, record: RunRecord) -> None:
    """Predictions first, the record last: until then there is no run."""

    def taken(claim: dict[str, Any]) -> None:
        what = f"process {claim.get('pid')} on {claim.get('host')} is making this very run"
        raise BenchError(what, where=str(folder), fix="merge again when it is done")

    folder = store.room_for(record)
    with Lease(folder, waiting=taken) as lease:
        for split in record.metrics:
            images, outcomes = _tables(pack, packed, record, split)
            table = _whole(images, outcomes)
            write_with(
                folder / "predictions" / f"{split}.parquet",
                lambda path, t=table: pq.write_table(t, path),  # type: ignore[misc]
            )
            if packed.curve:
                table = _whole(images, _curve_table(pack, packed, record, split))
                write_with(
                    folder / "curve" / f"{split}.parquet",
                    lambda path, t=table: pq.write_table(t, path),  # type: ignore[misc]
                )
        lease.check()
        store.save_run(record)


def _whole(images: pa.Table, outcomes: pa.Table) -> pa.Table:
    """Predictions as the store keeps them: in one table, an empty `label_logit` filled in."""
    columns = {name: images[name] for name in images.column_names}
    columns |= {name: outcomes[name] for name in outcomes.column_names}
    if "prediction" in columns:
        columns["prediction"] = columns["prediction"].cast(pa.int64())
        columns["label_logit"] = pc.coalesce(columns["label_logit"], columns["maximum"])
        columns["log_sum_exp"] = columns["log_sum_exp"].cast(pa.float64())
    return pa.table(columns)


def checked(pack: Pack, packed: Packed, truths: Truths) -> RunRecord:
    """The record of a packed run, once all that it states holds together, with the metrics of its
    predictions.

    Raises:
        Refused: something does not add up; said in one sentence.
    """
    record = pack.record(packed)
    for problem in _problems(packed, record):
        raise pack.refused(problem, f"{record.label[:80]}, seed {record.seed}")
    metrics: dict[str, SplitMetrics] = {}
    scores = {point.alpha: dict(point.scores) for point in record.curve}
    for split, stated in record.metrics.items():
        where = f"{record.label[:80]}, seed {record.seed}, {split}"
        images, outcomes = map(columns_of, _tables(pack, packed, record, split))
        truth = truth_of(images)
        if len(truth) < stated.images:
            raise pack.refused("an image occurs twice among the predictions", where)
        if differs := truths.differs(record, split, truth):
            raise pack.refused(
                f"its labels are not those of the data that it names: {differs}", where
            )
        said = said_by(images, outcomes)
        if why := contradiction(said):
            raise pack.refused(f"its predictions contradict themselves: {why}", where)
        try:
            metrics[split] = derived(said, stated)
        except ValueError as error:
            raise pack.refused(str(error), where) from error
        points = columns_of(_curve_table(pack, packed, record, split)) if packed.curve else {}
        for alpha in scores if points else ():
            predicted = points[alpha_column(alpha)]
            if (predicted < 0).any():
                raise pack.refused(
                    f"a class has a negative number on its curve at alpha {alpha:g}", where
                )
            scores[alpha][split] = shares(said.labels, said.groups, predicted)[stated.metric] or 0.0
    curve = [
        CurvePoint(alpha=alpha, scores=found, ood=record.average(found))
        for alpha, found in scores.items()
    ]
    record = record.model_copy(update={"metrics": metrics, "curve": curve})
    record.ood = record.average(record.scores())
    card = _card(record.suite)
    if card is not None and [shift.name for shift in card.shifts] == record.shifts:
        record.relative = relative_scores(card, record)
    return record


def _problems(packed: Packed, record: RunRecord) -> Iterable[str]:
    """What is wrong with a record by itself, the first thing first."""
    if record.status != "done" or record.phase == "search" or record.limit is not None:
        yield "it is not the result of a whole run"
    names = {
        "suite": record.suite,
        "method": str(record.method.get("name")),
        **{f"split {s}": s for s in record.metrics},
    }
    for what, name in names.items():
        if not re.fullmatch(NAME, name):
            yield f"the {what} has a name that cannot be a folder's or a file's: {name[:80]!r}"
    shown = [
        record.label,
        record.backbone,
        record.shifts,
        record.averaged,
        list(record.holes),
        record.method,
    ]
    if odd := next((name for name in _texts(shown) if not name.isprintable()), ""):
        yield f"it has a name that does not print: {plain(odd)[:80]}"
    if len(record.backbone) > 200 or not any(c.isalnum() for c in record.backbone):
        yield f"the backbone has a name that cannot be a folder's: {record.backbone[:80]!r}"
    if not (_ID.fullmatch(record.fit_id) and _ID.fullmatch(record.eval_id)):
        yield "an id is not one of 24 hexadecimal digits"
    yield from _identity_problems(packed, record)
    yield from _split_problems(packed, record)
    yield from _number_problems(record)


def _identity_problems(packed: Packed, record: RunRecord) -> Iterable[str]:
    fit, evaluation = record.identity.get("fit"), record.identity.get("evaluation")
    if not isinstance(fit, dict) or not isinstance(evaluation, dict):
        yield "its record does not say what its ids are the hashes of"
        return
    if packed.eval_id != record.eval_id:
        yield "its manifest and its record give it different ids"
    if digest(fit)[:24] != record.fit_id:
        yield "its fit_id is not the hash of the fit that it states"
    if digest({"fit": record.fit_id, **evaluation})[:24] != record.eval_id:
        yield "its eval_id is not the hash of the evaluation that it states"
    if "external" in fit:
        stated: dict[str, Any] = {
            "external": record.method.get("parameters"),
            "backbone": record.backbone_sha256,
        }
        said = fit
    else:
        stated = {
            "method": record.method,
            "backbone": record.backbone_sha256,
            "pixels": record.pixels,
            "seed": record.seed,
            "protocol": record.protocol,
        }
        if fit.get("train") is not None:  # a method that trains nothing chooses nothing on id-val
            stated["id_val"] = record.data.get("id-val")
        said = {key: fit.get(key) for key in stated}
    stated |= {"data of the evaluation": record.data, "pixels of the evaluation": record.pixels}
    said = {
        **said,
        "data of the evaluation": evaluation.get("data"),
        "pixels of the evaluation": evaluation.get("pixels"),
    }
    for key, value in stated.items():
        if canonical_json(said[key]) != canonical_json(value):
            yield f"its record and its identity differ in the {key}"
    name = str(
        (record.method.get("parameters") or {}).get("name")
        if "external" in fit
        else record.method.get("name")
    )
    if ("external" in fit) != (record.phase == "external") or not (
        record.label == name or record.label.startswith(f"{name} (")
    ):
        yield f"its label, {record.label[:80]!r}, is not that of the method {name[:80]!r}"


def _split_problems(packed: Packed, record: RunRecord) -> Iterable[str]:
    measured = record.metrics.keys()
    if (
        not measured
        or not measured == record.data.keys() == packed.images.keys() == packed.outcomes.keys()
    ):
        yield "its metrics, its data and its predictions are not of the same splits"
    if packed.curve and (not record.curve or packed.curve.keys() != measured):
        yield "what its curve predicts and its curve are not of the same splits"
    if unknown := measured - {"id-val", "id-test", *record.shifts}:
        yield f"{min(unknown)} is not a split of its suite"
    if silent := [
        split for split in record.shifts if split not in measured and split not in record.holes
    ]:
        yield f"{silent[0]} is missing without a reason"
    metrics = record.identity.get("evaluation", {}).get("metrics", {})
    for split, found in record.metrics.items():
        if found.metric != metrics.get(split, metrics.get("")):
            yield f"the metric of {split} is {found.metric}, which its identity does not say"
    card = _card(record.suite)
    if card is not None and [s.name for s in card.shifts] == record.shifts:
        usual = [shift.name for shift in card.shifts if shift.in_average]
        if record.averaged != usual:
            yield (
                f"its OOD average is over {', '.join(record.averaged)}, and the suite's card says"
                f" {', '.join(usual)}"
            )
    elif not set(record.averaged) <= set(record.shifts):
        yield "its OOD average is over something else than its shifts"


def _card(suite: str) -> Any:
    return find_card(suite)[0] if suite in suite_names() else None


def _number_problems(record: RunRecord) -> Iterable[str]:
    for key in ("fit_seconds", "eval_seconds", "search_seconds", "peak_memory_mb", "search_trials"):
        if (getattr(record, key) or 0) < 0:
            yield f"{key} is negative"
    if record.temperature is not None and record.temperature <= 0:
        yield f"its temperature is {record.temperature:g}"
    if any(not 0 <= found.brier <= 2 for found in record.metrics.values()):
        yield "a Brier score lies outside of 0 to 2"
    for point in record.curve:
        if not all(0 <= value <= 1 for value in (*point.scores.values(), point.alpha)):
            yield f"its curve at alpha {point.alpha:g} is not made of shares"
        if point.scores.keys() != record.metrics.keys():
            yield f"its curve at alpha {point.alpha:g} and its metrics are not of the same splits"


def _texts(value: Any) -> Iterable[str]:
    """Every text in tables and lists, their keys as well."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(str(key)), *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _tables(pack: Pack, packed: Packed, record: RunRecord, split: str) -> tuple[pa.Table, pa.Table]:
    """Images and outcomes of a split, their columns of the known kinds and as many rows as the
    record states.

    Raises:
        Refused: they are not.
    """
    rows = record.metrics[split].images
    where = f"{record.label[:80]}, seed {record.seed}, {split}"
    images = {"key": pa.string(), "label": pa.int64(), "group": pa.int64()}
    condensed = {
        "prediction": pa.int32(),
        "label_logit": pa.float32(),
        "maximum": pa.float32(),
        "log_sum_exp": pa.float32(),
    }
    whole = condensed | {
        "prediction": pa.int64(),
        "runner_up": pa.float32(),
        "log_sum_exp": pa.float64(),
    }
    outcomes = [whole, condensed] if pack.manifest.logits else [condensed]
    return (
        _table(pack, packed.images[split], [images], rows, where),
        _table(pack, packed.outcomes[split], outcomes, rows, where),
    )


def _curve_table(pack: Pack, packed: Packed, record: RunRecord, split: str) -> pa.Table:
    """What the points of the record's curve said about a split, a column each.

    Raises:
        Refused: it is something else.
    """
    columns = {alpha_column(point.alpha): pa.int32() for point in record.curve}
    where = f"{record.label[:80]}, seed {record.seed}, curve on {split}"
    return _table(pack, packed.curve[split], [columns], record.metrics[split].images, where)


def _names_few(group: pq.RowGroupMetaData) -> bool:
    """Whether a row group names its images out of a dictionary: of a few long names any number of
    rows can be made.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    return any(
        "DICTIONARY" in kind
        for column in columns
        if column.path_in_schema == "key"
        for kind in column.encodings
    )


def _table(pack: Pack, sha: str, kinds: list[dict[str, Any]], rows: int, where: str) -> pa.Table:
    try:
        blob = pack.blob(sha)
        with pq.ParquetFile(pa.BufferReader(blob)) as file:
            if file.metadata.num_rows != rows:
                raise pack.refused(
                    f"the record states {rows} images, and the pack holds {file.metadata.num_rows}",
                    where,
                )
            found = {field.name: field.type for field in file.schema_arrow}
            classes, columns = (
                0,
                next((kind for kind in kinds if kind.keys() <= found.keys()), kinds[0]),
            )
            # A run keeps no logits where images times classes are too many.
            kind = found.get("logits", pa.null())
            if (
                "runner_up" in columns
                and "logits" not in found
                and found.get("log_sum_exp_scaled") == pa.float64()
            ):
                del found["log_sum_exp_scaled"]
            if (
                "runner_up" in columns
                and pa.types.is_fixed_size_list(kind)
                and kind.value_type == pa.float16()
            ):
                classes = min(found.pop("logits").list_size, _MOST_CLASSES)
            if found != columns:
                raise pack.refused(
                    "its predictions have other columns than predictions have", where
                )
            # What a blob unpacks to is bounded by what that many rows can need, and by what it
            # holds.
            groups = [
                file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)
            ]
            unpacked = sum(group.total_byte_size for group in groups)
            if (
                unpacked
                > min(
                    rows * (_LONGEST_KEY + 64 + 4 * (classes + len(columns))), _FACTOR * len(blob)
                )
                + 2**20
            ):
                raise pack.refused(f"its predictions would unpack to {unpacked} bytes", where)
            if "key" in columns and (
                rows > _ROWS_A_BYTE * len(blob) or any(map(_names_few, groups))
            ):
                raise pack.refused(f"{len(blob)} bytes cannot name {rows} images", where)
            table = file.read()
    except (OSError, ValueError, pa.ArrowException, OverflowError) as error:
        raise pack.refused(
            f"its predictions cannot be read: {type(error).__name__}", where
        ) from error
    holes = [
        name for name in table.column_names if table[name].null_count and name != "label_logit"
    ]
    if len(table) != rows or holes or ("runner_up" in columns and table["label_logit"].null_count):
        raise pack.refused("its predictions have holes", where)
    if "key" in columns and any(len(key) > _LONGEST_KEY for key in table["key"].to_pylist()):
        raise pack.refused("an image has a name of over a thousand characters", where)
    return table


__all__ = ["Merged", "Refused", "merge"]
