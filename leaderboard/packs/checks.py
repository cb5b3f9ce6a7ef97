"""Check that a packed run adds up, and derive its metrics from its predictions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.data.cards.inheritance import suite_names
from bench.data.cards.suite_card import find_card
from bench.evaluation.metrics import relative_scores, shares
from bench.identity import canonical_json, digest
from bench.plain import NAME, plain
from bench.results.predictions import alpha_column
from bench.results.record import CurvePoint, RunRecord, SplitMetrics

from .pack import Pack, Packed
from .rescoring import contradiction, derived, image_scores
from .true_labels import TrueLabels, columns_of, labels_of_images

_ID = re.compile(r"[0-9a-f]{24}")
#: Characters of an image's key.
_LONGEST_KEY = 1024
#: More than any label space has; bounds the memory that a pack can make a reader allocate.
_MOST_CLASSES = 100_000
#: At most so many images per byte of a blob, and at most so many unpacked bytes per byte. A million
#: ImageNet keys take 0.68 bytes each and unpack to 67 times their size; a pack beyond these limits
#: is a decompression bomb.
_ROWS_A_BYTE, _FACTOR = 8, 200


def checked(pack: Pack, packed: Packed, known_labels: TrueLabels) -> RunRecord:
    """Check a packed run, and return its record with the metrics of its predictions.

    Args:
        pack: the open pack.
        packed: the run's entry in the manifest.
        known_labels: what is known of the data; it remembers the labels of this run.

    Raises:
        InvalidPack: the run is inconsistent.
    """
    # The record by itself first: it is small, and what it states is used as names of files below.
    record = pack.record(packed)
    for problem in _problems(packed, record):
        raise pack.refused(problem, f"{record.label[:80]}, seed {record.seed}")
    # Then the predictions, split by split, from which its scores are recomputed.
    metrics: dict[str, SplitMetrics] = {}
    scores = {point.alpha: dict(point.scores) for point in record.curve}
    for split, stated in record.metrics.items():
        where = f"{record.label[:80]}, seed {record.seed}, {split}"
        images, outcomes = map(columns_of, run_tables(pack, packed, record, split))
        labels = labels_of_images(images)
        if len(labels) < stated.images:
            raise pack.refused("an image occurs twice among the predictions", where)
        if differs := known_labels.differs(record, split, labels):
            raise pack.refused(
                f"its labels are not those of the data that it names: {differs}", where
            )
        found = image_scores(images, outcomes)
        if why := contradiction(found):
            raise pack.refused(f"its predictions contradict themselves: {why}", where)
        try:
            metrics[split] = derived(found, stated)
        except ValueError as error:
            raise pack.refused(str(error), where) from error
        points = columns_of(curve_table(pack, packed, record, split)) if packed.curve else {}
        for alpha in scores if points else ():
            predicted = points[alpha_column(alpha)]
            if (predicted < 0).any():
                raise pack.refused(
                    f"a class has a negative number on its curve at alpha {alpha:g}", where
                )
            point = shares(found.labels, found.groups, predicted)
            scores[alpha][split] = point[stated.metric] or 0.0
    # Last what follows from these scores: curve, OOD average and relative scores.
    curve = [
        CurvePoint(alpha=alpha, scores=by_split, ood=record.average(by_split))
        for alpha, by_split in scores.items()
    ]
    record = record.model_copy(update={"metrics": metrics, "curve": curve})
    record.ood = record.average(record.scores())
    # The card says relative to what a shift is scored. It applies only if it is the one that the
    # run had: an installed suite may have other shifts than the maker's version.
    card = _card(record.suite)
    if card is not None and [shift.name for shift in card.shifts] == record.shifts:
        record.relative = relative_scores(card, record)
    return record


def _problems(packed: Packed, record: RunRecord) -> Iterable[str]:
    """Yield what is wrong with a record by itself; names first, since later messages print them."""
    if record.status != "done" or record.phase == "search" or record.limit is not None:
        yield "it is not the result of a finished run on all images"
    # These become folders and files of the store; `NAME` admits no separators and no `..`.
    names = {
        "suite": record.suite,
        "method": str(record.method.get("name")),
        **{f"split {s}": s for s in record.metrics},
    }
    for what, name in names.items():
        if not re.fullmatch(NAME, name):
            yield f"the {what} has a name that cannot be a folder or a file: {name[:80]!r}"
    # These are printed: a control character could rewrite the reader's terminal.
    shown = [
        record.label,
        record.backbone,
        record.shifts,
        record.averaged,
        list(record.holes),
        record.method,
    ]
    if odd := next((name for name in _texts(shown) if not name.isprintable()), ""):
        yield f"it has a name with unprintable characters: {plain(odd)[:80]}"
    # A backbone's name may have colons and slashes, which the store replaces by underscores.
    if len(record.backbone) > 200 or not any(c.isalnum() for c in record.backbone):
        yield f"the backbone has a name that cannot be a folder: {record.backbone[:80]!r}"
    if not (_ID.fullmatch(record.fit_id) and _ID.fullmatch(record.eval_id)):
        yield "an id is not one of 24 hexadecimal digits"
    yield from _identity_problems(packed, record)
    yield from _split_problems(packed, record)
    yield from _number_problems(record)


def _identity_problems(packed: Packed, record: RunRecord) -> Iterable[str]:
    """Yield contradictions between a record, its identity and its ids.

    The ids are hashes of the identity, and the identity repeats what the record states: a record
    that was edited no longer fits its ids, and one with new ids is another run.
    """
    fit, evaluation = record.identity.get("fit"), record.identity.get("evaluation")
    if not isinstance(fit, dict) or not isinstance(evaluation, dict):
        yield "its record has no identity that its ids are hashes of"
        return
    if packed.eval_id != record.eval_id:
        yield "its manifest and its record have different ids"
    if digest(fit)[:24] != record.fit_id:
        yield "its fit_id is not the hash of the fit that it states"
    if digest({"fit": record.fit_id, **evaluation})[:24] != record.eval_id:
        yield "its eval_id is not the hash of the evaluation that it states"
    # A checkpoint trained elsewhere has no training to identify, only weights.
    if "external" in fit:
        stated: dict[str, Any] = {
            "external": record.method.get("parameters"),
            "backbone": record.backbone_sha256,
        }
        hashed = fit
    else:
        stated = {
            "method": record.method,
            "backbone": record.backbone_sha256,
            "pixels": record.pixels,
            "seed": record.seed,
            "protocol": record.protocol,
        }
        # A method that trains nothing selects nothing on id-val, and does not depend on it.
        if fit.get("train") is not None:
            stated["id_val"] = record.data.get("id-val")
        hashed = {key: fit.get(key) for key in stated}
    stated |= {"data of the evaluation": record.data, "pixels of the evaluation": record.pixels}
    hashed = {
        **hashed,
        "data of the evaluation": evaluation.get("data"),
        "pixels of the evaluation": evaluation.get("pixels"),
    }
    for key, value in stated.items():
        if canonical_json(hashed[key]) != canonical_json(value):
            yield f"its record and its identity differ in the {key}"
    # A label is the method's name with its parameters in brackets. It is not hashed, but it is what
    # people read: one method must not appear under the name of another.
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
    """Yield contradictions between the splits of a record's parts, and with the suite's card."""
    measured = record.metrics.keys()
    if (
        not measured
        or not measured == record.data.keys() == packed.images.keys() == packed.outcomes.keys()
    ):
        yield "its metrics, data and predictions do not have the same splits"
    if packed.curve and (not record.curve or packed.curve.keys() != measured):
        yield "its curve and the curve's predictions do not have the same splits"
    if unknown := measured - {"id-val", "id-test", *record.shifts}:
        yield f"{min(unknown)} is not a split of its suite"
    if silent := [
        split for split in record.shifts if split not in measured and split not in record.holes
    ]:
        yield f"{silent[0]} is missing without a reason"
    # The key "" is the metric of every split that has none of its own.
    metrics = record.identity.get("evaluation", {}).get("metrics", {})
    for split, found in record.metrics.items():
        if found.metric != metrics.get(split, metrics.get("")):
            yield f"the metric of {split} is {found.metric}, which its identity does not state"
    # The shifts in the average decide the ranking: those of an installed suite are not negotiable.
    # Of a suite that is not installed, or has other shifts here, only the form can be checked.
    card = _card(record.suite)
    if card is not None and [s.name for s in card.shifts] == record.shifts:
        usual = [shift.name for shift in card.shifts if shift.in_average]
        if record.averaged != usual:
            yield (
                f"its OOD average is over {', '.join(record.averaged)}, but the suite's is over"
                f" {', '.join(usual)}"
            )
    elif not set(record.averaged) <= set(record.shifts):
        yield "its OOD average is over splits that are not its shifts"


def _card(suite: str) -> Any:
    return find_card(suite)[0] if suite in suite_names() else None


def _number_problems(record: RunRecord) -> Iterable[str]:
    """Yield numbers out of range, of those that are not recomputed from the predictions."""
    for key in ("fit_seconds", "eval_seconds", "search_seconds", "peak_memory_mb", "search_trials"):
        if (getattr(record, key) or 0) < 0:
            yield f"{key} is negative"
    if record.temperature is not None and record.temperature <= 0:
        yield f"its temperature is {record.temperature:g}"
    # 2 is the squared distance of two different one-hot vectors.
    if any(not 0 <= found.brier <= 2 for found in record.metrics.values()):
        yield "a Brier score is outside of 0 to 2"
    for point in record.curve:
        if not all(0 <= value <= 1 for value in (*point.scores.values(), point.alpha)):
            yield f"its curve at alpha {point.alpha:g} has a value outside of 0 to 1"
        if point.scores.keys() != record.metrics.keys():
            yield f"its metrics and its curve at alpha {point.alpha:g} do not have the same splits"


def _texts(value: Any) -> Iterable[str]:
    """Yield every string in nested dictionaries and lists, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(str(key)), *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def run_tables(
    pack: Pack, packed: Packed, record: RunRecord, split: str
) -> tuple[pa.Table, pa.Table]:
    """Read the images and the outcomes of a split.

    Raises:
        InvalidPack: they have other columns, or another number of rows than the record states.
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
    # Even a pack with logits has condensed runs: those that were merged from a pack without.
    outcomes = [whole, condensed] if pack.manifest.logits else [condensed]
    return (
        _table(pack, packed.images[split], [images], rows, where),
        _table(pack, packed.outcomes[split], outcomes, rows, where),
    )


def curve_table(pack: Pack, packed: Packed, record: RunRecord, split: str) -> pa.Table:
    """Read the predictions on a split along the run's curve, one column per alpha.

    Raises:
        InvalidPack: they have other columns, or another number of rows than the record states.
    """
    columns = {alpha_column(point.alpha): pa.int32() for point in record.curve}
    where = f"{record.label[:80]}, seed {record.seed}, curve on {split}"
    return _table(pack, packed.curve[split], [columns], record.metrics[split].images, where)


def _names_few(group: pq.RowGroupMetaData) -> bool:
    """Return whether a row group encodes keys by a dictionary, which repeats a few long names."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return any(
        "DICTIONARY" in kind
        for column in columns
        if column.path_in_schema == "key"
        for kind in column.encodings
    )


def _table(pack: Pack, sha: str, kinds: list[dict[str, Any]], rows: int, where: str) -> pa.Table:
    """Read a blob as a table of one of several kinds.

    A pack comes from a stranger, and a few kilobytes can unpack to gigabytes. The Parquet metadata
    (rows, types, unpacked size) is therefore checked before any data is read.

    Args:
        pack: the open pack.
        sha: name of the blob.
        kinds: column -> type, of the tables that are allowed.
        rows: how many rows it has to have.
        where: the run and split, for messages.

    Raises:
        InvalidPack: the table is of no such kind, or cannot be read.
    """
    try:
        blob = pack.blob(sha)
        with pq.ParquetFile(pa.BufferReader(blob)) as file:
            if file.metadata.num_rows != rows:
                raise pack.refused(
                    f"the record states {rows} images, but the pack has {file.metadata.num_rows}",
                    where,
                )
            found = {field.name: field.type for field in file.schema_arrow}
            columns = next((kind for kind in kinds if kind.keys() <= found.keys()), kinds[0])
            classes = 0
            # `runner_up` marks outcomes as a run writes them. They come with the logits or, where
            # images times classes are too many for logits, with log-sum-exps at the temperature of
            # id-val. Either is optional, so both are removed before the columns are compared.
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
                raise pack.refused("its predictions do not have the expected columns", where)
            # Two bounds on the unpacked size: what so many rows can need at most, and what Parquet
            # can compress at best. The mebibyte admits small tables, which are mostly overhead.
            groups = [
                file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)
            ]
            unpacked = sum(group.total_byte_size for group in groups)
            needed = rows * (_LONGEST_KEY + 64 + 4 * (classes + len(columns)))
            if unpacked > min(needed, _FACTOR * len(blob)) + 2**20:
                raise pack.refused(f"its predictions would unpack to {unpacked} bytes", where)
            # Metadata states the size of a dictionary once, whatever number of rows refers to it.
            if "key" in columns and (
                rows > _ROWS_A_BYTE * len(blob) or any(map(_names_few, groups))
            ):
                raise pack.refused(f"{len(blob)} bytes cannot name {rows} images", where)
            table = file.read()
    except (OSError, ValueError, pa.ArrowException, OverflowError) as error:
        raise pack.refused(
            f"its predictions cannot be read: {type(error).__name__}", where
        ) from error
    # Only a condensed `label_logit` may be empty (`pack.condensed`).
    empty = [
        name for name in table.column_names if table[name].null_count and name != "label_logit"
    ]
    if len(table) != rows or empty or ("runner_up" in columns and table["label_logit"].null_count):
        raise pack.refused("its predictions have missing values", where)
    if "key" in columns and any(len(key) > _LONGEST_KEY for key in table["key"].to_pylist()):
        raise pack.refused(f"an image has a name of more than {_LONGEST_KEY} characters", where)
    return table
