"""Runs that were made twice: here and in a pack, or in two packs. One of them counts; by how much
they differ is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.results.record import RunRecord
from bench.results.store import Store
from bench.tables.table import Column, Row, Table

from ..statistics.predictions import Predictions


@dataclass(frozen=True)
class Copy:
    """A run that does not count, since another one of its id does."""

    counted: RunRecord
    other: RunRecord

    @property
    def splits(self) -> list[str]:
        """Those that both have."""
        return [split for split in self.counted.metrics if split in self.other.metrics]

    def difference(self, split: str) -> float:
        """The other's score minus that of the one that counts."""
        return self.other.metrics[split].score - self.counted.metrics[split].score

    @property
    def widest(self) -> tuple[str, float] | None:
        """The split on which their scores differ most, and by how much; None if they are equal on
        all.
        """
        split = max(self.splits, key=lambda one: abs(self.difference(one)), default=None)
        return (
            None
            if split is None or self.difference(split) == 0
            else (split, self.difference(split))
        )


def copies(store: Store, of: Iterable[RunRecord]) -> list[Copy]:
    """Find the runs of a store that have the ids of these ones, which count, and do not count
    themselves.
    """
    counted = {(record.fit_id, record.eval_id): record for record in of}
    found: list[Copy] = []
    for path, record in store.records():
        own = counted.get((record.fit_id, record.eval_id))
        if own is not None and record.status == "done" and path.parent != store.run_dir(own):
            found.append(Copy(own, record))
    return sorted(
        found, key=lambda copy: (copy.counted.label, copy.counted.seed, place(copy.other))
    )


def place(record: RunRecord) -> str:
    """Where a run was made: here, or the pack that it came in."""
    return record.origin["pack"] if record.origin else "here"


def made_twice(store: Store, of: Sequence[RunRecord]) -> list[Table]:
    """Set these runs beside their copies, split by split, in a table; none if there are no
    copies.
    """
    found = copies(store, of)
    return [_table(found, Predictions(store))] if found else []


def unequal(found: Sequence[Copy]) -> list[Table]:
    """Tell of copies whose scores differ where they differ most, in a table; none if all are
    equal.
    """
    rows = [_row(copy, copy.widest[0]) for copy in found if copy.widest is not None]
    note = "Both are kept, and one counts. `bench compare ROW` shows every data set."
    columns = _columns(Column("split", "where most"))
    return [Table(columns, rows, "runs of the same id whose scores differ", [note])] if rows else []


def _row(copy: Copy, split: str) -> Row:
    return {
        "method": copy.counted.label,
        "seed": copy.counted.seed,
        "split": split,
        "counted": copy.counted.metrics[split].score,
        "other": copy.other.metrics[split].score,
        "difference": copy.difference(split),
        "made": place(copy.counted),
        "other_made": place(copy.other),
    }


def _columns(where: Column, *more: Column) -> list[Column]:
    return [
        Column("method"),
        Column("seed", kind="count"),
        where,
        Column("counted", "counts", "percent"),
        Column("other", "the other", "percent"),
        Column("difference", kind="percent"),
        *more,
        Column("made", "the one that counts"),
        Column("other_made", "the other from"),
    ]


def _table(found: Sequence[Copy], predictions: Predictions) -> Table:
    rows: list[Row] = [
        {
            **_row(copy, split),
            "differ": _differ(copy, split, predictions),
            "images": copy.counted.metrics[split].images,
        }
        for copy in found
        for split in copy.splits
    ]
    more = Column("differ", "predictions that differ", "count"), Column("images", kind="count")
    columns = _columns(Column("split", "data set"), *more)
    equal = sum(copy.widest is None for copy in found)
    worst = max(
        (copy for copy in found if copy.widest),
        key=lambda copy: abs((copy.widest or ("", 0.0))[1]),
        default=None,
    )
    note = f"{equal} of {len(found)} score the same on every data set."
    if worst is not None and worst.widest is not None:
        split, gap = worst.widest
        note += (
            f" The largest difference: {100 * gap:+.2f} points on {split}, {worst.counted.label},"
            f" seed {worst.counted.seed}."
        )
    return Table(columns, rows, "the same runs, made twice; only one of each counts", [note])


def _differ(copy: Copy, split: str, predictions: Predictions) -> int | None:
    """Images about which the two say otherwise; None where that is not known."""
    one, other = predictions.outcomes(copy.counted, split), predictions.outcomes(copy.other, split)
    if one is None or other is None or not one.same_images(other):
        return None
    return int((one.predicted != other.predicted).sum())
