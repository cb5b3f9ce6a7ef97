"""Check the runs of packs and merge them into a store, all or none.

A run has to be consistent: its ids are the hashes of what it states, and its predictions are of the
images that it names and do not contradict themselves. Its accuracies, NLL, ECE, OOD average and
curve are then recomputed from its predictions; those that its record states are ignored. What
cannot be recomputed from a pack (the Brier score, the temperature, scores on a part of the classes,
times) is taken over, and the merged record lists it with the name of the pack. Whether the weights
were trained as stated cannot be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import BenchError
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.storage.atomic import write_with
from bench.storage.lease import Lease

from .checks import checked, curve_table, run_tables
from .copies import Copy
from .pack import InvalidPack, Pack, Packed, open_pack
from .true_labels import DataOfSuite, TrueLabels

#: Fields of a merged record that are not recomputed; saved in the record as `origin.as_stated`.
_AS_STATED = "Brier score, temperature, id_matched, times"

# Part of the output of `bench merge --format json`.
MergeStatus = Literal["new", "already here", "saved next to the run that is here"]


@dataclass
class Merged:
    """The result of merging one pack.

    Attributes:
        path: the pack's file.
        digest: hash of its manifest.
        runs: its runs by status.
        copies: its runs with other scores than a run of the same id in the store or another pack.
    """

    path: Path
    digest: str
    runs: dict[MergeStatus, list[RunRecord]] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)


def merge(
    paths: Sequence[Path], store: Store, *, dry_run: bool = False, data: DataOfSuite | None = None
) -> list[Merged]:
    """Merge the runs of packs into a store that does not have them yet.

    If the store or another pack has a run of the same id with other scores (such as the same fit on
    another machine), both are saved and one counts (`RunRecord.precedence`). They are never
    averaged: the difference between two machines is not a spread over seeds.

    Args:
        paths: the packs.
        store: the store to write to.
        dry_run: check everything, write nothing.
        data: the suites' own images, to check labels against.

    Returns:
        The result of every pack, in the order of `paths`.

    Raises:
        InvalidPack: a pack is inconsistent; nothing was written.
        BenchError: the store cannot be written.
        MissingPrerequisite: the images to check labels against are missing.
    """
    known_labels = TrueLabels(store, data)
    plan: list[tuple[Merged, list[tuple[Packed, RunRecord]]]] = []
    planned: dict[str, list[RunRecord]] = {}
    # First pass: check all packs before the first write, so that an invalid one leaves the store as
    # it was. `planned` has the runs of earlier packs, which are not in the store yet.
    for path in paths:
        with open_pack(path) as pack:
            merged, fresh = Merged(path, pack.manifest.digest), []
            for packed in pack.manifest.runs:
                record = checked(pack, packed, known_labels)
                origin = {"pack": path.name, "digest": merged.digest, "as_stated": _AS_STATED}
                record = record.model_copy(update={"origin": origin})
                here = [*_done(store, record), *planned.get(record.eval_id, [])]
                status = _status(here, record)
                merged.runs.setdefault(status, []).append(record)
                if status != "already here":
                    planned.setdefault(record.eval_id, []).append(record)
                    fresh.append((packed, record))
                if status != "new" and (copy := _copy(here, record)).widest:
                    merged.copies.append(copy)
            plan.append((merged, fresh))
    # Second pass: write. Every blob is compared with its hash again as it is read, so that a file
    # which was replaced in between is noticed.
    for merged, fresh in plan:
        if fresh and not dry_run:
            with open_pack(merged.path) as pack:
                for packed, record in fresh:
                    _write(store, pack, packed, record)
    return [merged for merged, _ in plan]


def _done(store: Store, record: RunRecord) -> list[RunRecord]:
    """Return the finished runs of this id in the store."""
    # Without an origin, the folder is that of the id itself and not one of a pack below it.
    folder = store.run_dir(record.model_copy(update={"origin": {}}))
    return [one for one in store.runs_of(folder) if one.status == "done"]


def _status(here: Sequence[RunRecord], record: RunRecord) -> MergeStatus:
    if not here:
        return "new"
    # A run with equal scores is a repetition, whoever made it: merging a pack twice adds nothing.
    known = any(Copy(one, record).widest is None for one in here)
    return "already here" if known else "saved next to the run that is here"


def _copy(here: Sequence[RunRecord], record: RunRecord) -> Copy:
    """Pair a run with the one of its id that counts or, if it counts itself, that did before."""
    first = max(here, key=lambda one: one.precedence)
    return Copy(record, first) if record.precedence > first.precedence else Copy(first, record)


def _write(store: Store, pack: Pack, packed: Packed, record: RunRecord) -> None:
    """Write a run to the store."""

    def taken(claim: dict[str, Any]) -> None:
        what = f"process {claim.get('pid')} on {claim.get('host')} is writing this run"
        raise BenchError(what, where=str(folder), fix="merge again when it is done")

    folder = store.room_for(record)
    # Predictions first, the record last: a folder without a record is not a run, so that a merge
    # that is interrupted leaves no run without predictions.
    with Lease(folder, waiting=taken) as lease:
        for split in record.metrics:
            images, outcomes = run_tables(pack, packed, record, split)
            table = _whole(images, outcomes)
            write_with(
                folder / "predictions" / f"{split}.parquet",
                lambda path, t=table: pq.write_table(t, path),  # type: ignore[misc]
            )
            if packed.curve:
                table = _whole(images, curve_table(pack, packed, record, split))
                write_with(
                    folder / "curve" / f"{split}.parquet",
                    lambda path, t=table: pq.write_table(t, path),  # type: ignore[misc]
                )
        # Another process may have taken the folder over while this one was suspended.
        lease.check()
        store.save_run(record)


def _whole(images: pa.Table, outcomes: pa.Table) -> pa.Table:
    """Join a pack's two tables into the store's format, with the types that a run writes."""
    columns = {name: images[name] for name in images.column_names}
    columns |= {name: outcomes[name] for name in outcomes.column_names}
    # Packs leave `label_logit` empty where it equals the maximum (`pack.condensed`).
    if "prediction" in columns:
        columns["prediction"] = columns["prediction"].cast(pa.int64())
        columns["label_logit"] = pc.coalesce(columns["label_logit"], columns["maximum"])
        columns["log_sum_exp"] = columns["log_sum_exp"].cast(pa.float64())
    return pa.table(columns)


__all__ = ["Merged", "InvalidPack", "merge"]
