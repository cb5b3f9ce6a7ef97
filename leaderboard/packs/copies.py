"""Compare duplicate runs: runs of one id that were made here and in packs, of which one counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.results.record import RunRecord
from bench.results.store import Store
from bench.tables.table import Column, Row, Table

from ..statistics.predictions import Predictions


# Duplicates are possible since an id is a hash of the inputs of a run (data, method, seed), not of
# its outputs: another machine gives the same id and, in the last bits, other predictions.
@dataclass(frozen=True)
class Copy:
    """A run that does not count, with the run of the same id that does."""

    counted: RunRecord
    other: RunRecord

    @property
    def splits(self) -> list[str]:
        """Return the splits that both runs have."""
        return [split for split in self.counted.metrics if split in self.other.metrics]

    def difference(self, split: str) -> float:
        """Return the other run's score minus that of the run that counts."""
        return self.other.metrics[split].score - self.counted.metrics[split].score

    @property
    def widest(self) -> tuple[str, float] | None:
        """Return the split with the largest difference, and the difference; None if all are 0."""
        split = max(self.splits, key=lambda one: abs(self.difference(one)), default=None)
        return (
            None
            if split is None or self.difference(split) == 0
            else (split, self.difference(split))
        )


def copies(store: Store, of: Iterable[RunRecord]) -> list[Copy]:
    """Find the duplicates of runs in a store.

    Args:
        store: the store.
        of: the runs that count, as `board.groups.load` returns them.
    """
    counted = {(record.fit_id, record.eval_id): record for record in of}
    found: list[Copy] = []
    for path, record in store.records():
        own = counted.get((record.fit_id, record.eval_id))
        # Compared by folder: the records of a run and of its copy can be equal in every field.
        if own is not None and record.status == "done" and path.parent != store.run_dir(own):
            found.append(Copy(own, record))
    return sorted(
        found, key=lambda copy: (copy.counted.label, copy.counted.seed, place(copy.other))
    )


def place(record: RunRecord) -> str:
    """Return where a run was made: `here`, or the name of the pack it came in."""
    return record.origin["pack"] if record.origin else "here"


def made_twice(store: Store, of: Sequence[RunRecord]) -> list[Table]:
    """Return a table that compares runs with their duplicates split by split; [] without any."""
    found = copies(store, of)
    return [_table(found, Predictions(store))] if found else []


def unequal(found: Sequence[Copy]) -> list[Table]:
    """Return a table of the duplicates with other scores, each on its most different split."""
    rows = [_row(copy, copy.widest[0]) for copy in found if copy.widest is not None]
    note = "Both runs are saved, and one counts. `bench compare ROW` shows every split."
    columns = _columns(Column("split", "largest on"))
    return (
        [Table(columns, rows, "runs of the same id with different scores", [note])] if rows else []
    )


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
    """Return the columns of both tables, so that scripts read them alike."""
    return [
        Column("method"),
        Column("seed", kind="count"),
        where,
        Column("counted", "counts", "percent"),
        Column("other", "the other", "percent"),
        Column("difference", kind="percent"),
        *more,
        Column("made", "counted run from"),
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
    columns = _columns(Column("split", "dataset"), *more)
    equal = sum(copy.widest is None for copy in found)
    worst = max(
        (copy for copy in found if copy.widest),
        key=lambda copy: abs((copy.widest or ("", 0.0))[1]),
        default=None,
    )
    note = f"{equal} of {len(found)} have the same scores on every split."
    if worst is not None and worst.widest is not None:
        split, gap = worst.widest
        note += (
            f" The largest difference: {100 * gap:+.2f} points on {split}, {worst.counted.label},"
            f" seed {worst.counted.seed}."
        )
    return Table(columns, rows, "duplicate runs; one of each id counts", [note])


def _differ(copy: Copy, split: str, predictions: Predictions) -> int | None:
    """Count the images with different predictions; None if that is unknown."""
    # Equal scores do not mean equal predictions: errors can move from one image to another.
    one, other = predictions.outcomes(copy.counted, split), predictions.outcomes(copy.other, split)
    if one is None or other is None or not one.same_images(other):
        return None
    return int((one.predicted != other.predicted).sum())
