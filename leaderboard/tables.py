"""Groups of runs as titled tables with notes: what a row's numbers mean, what is missing and why, what stands apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.cli.output import Column, Table, plain
from bench.errors import UsageError
from bench.runs.record import RunRecord

from .board import ID, Group, Measure, Shifts, by_row, groups, labels, measures, one_per_seed, ranked, row_key, rows, shifts_of
from .tradeoff import YARDSTICK

NAMES = [Column("group", human=False), Column("suite", human=False), Column("backbone", human=False), Column("method")]


@dataclass(frozen=True)
class View:
    """What is shown and how.

    Attributes:
        sort: key of a column. by: middle columns, `shift` or `factor`. extras: names of `EXTRAS`. limited: whether runs on
        a part of the images are shown, apart.
    """

    sort: str = "ood"
    by: str = "shift"
    extras: Sequence[str] = ()
    limited: bool = False


def tables(records: Sequence[RunRecord], view: View) -> list[Table]:
    """The board of every suite and backbone: the ranked table, what is not comparable with it, and what has no result.

    Raises:
        UsageError: no table has a column `view.sort`.
    """
    final = [r for r in records if r.phase != "search"]
    whole = [r for r in final if r.limit is None]
    parts = [r for r in final if r.limit is not None] if view.limited else []
    sortable: dict[str, None] = {}
    made: list[tuple[tuple[str, str, int], Table]] = []
    for kind, chosen in ((0, whole), (1, parts)):
        for group in groups(r for r in chosen if r.status == "done"):
            table = _board(group, view, "limited" if kind else "apart" if group.apart else "ranked", sortable)
            made.append(((group.suite, group.backbone, kind), table))
    if sortable and view.sort not in sortable:
        raise UsageError(f"there is no column `{view.sort}` to sort by", where="--sort", fix=f"one of: {', '.join(sortable)}")
    unfinished = [r for r in (*whole, *parts) if r.status != "done"]
    for suite, backbone in dict.fromkeys((r.suite, r.backbone) for r in unfinished):
        here = [r for r in unfinished if (r.suite, r.backbone) == (suite, backbone)]
        made.append(((suite, backbone, 2), _unfinished(here)))
    return [table for _, table in sorted(made, key=lambda item: item[0])]


def _board(group: Group, view: View, kind: str, sortable: dict[str, None]) -> Table:
    records = one_per_seed(group.records)
    shifts = shifts_of(records)
    columns = measures(records, shifts, by=view.by, extras=view.extras)
    keys = ["method", "trials", "runs", *(m.key for m in columns)]
    sortable.update(dict.fromkeys(keys))
    found = [{"group": kind, **row} for row in rows(records, columns)]
    title = f"{group.suite} · {group.backbone}"
    if kind == "limited":
        title += f": {group.facts['images per split']} images per split, a trial of the machinery and not a result"
    elif kind == "apart":
        title += f": not comparable with the table above: {_differences(group)}"
    notes = [
        _reading(records, shifts, columns, view),
        *_missing(records, shifts),
        *_seeds(records, len(group.records) - len(records)),
        *_marks(records),
    ]
    shown = [
        *NAMES,
        Column("external", human=False),
        *(Column(m.key, m.title, m.kind, spread=f"{m.key}_sd" if m.spread else "") for m in columns),
        Column("trials", "search trials", "count", human=any(r.search_trials for r in records)),
        Column("search_seconds", "search", "seconds", human=any(r.search_seconds is not None for r in records)),
        Column("runs", kind="count"),
        Column("seeds", human=False),
        Column("fits", human=False),
    ]
    return Table(shown, ranked(found, columns, view.sort if view.sort in keys else "ood"), title, notes)


def _differences(group: Group, most: int = 3) -> str:
    parts = [f"{key} is {here[:16]} here and {above[:16]} above" for key, (above, here) in group.apart.items()]
    return "; ".join(parts[:most]) + (f"; and {len(parts) - most} more fields" if len(parts) > most else "")


def _reading(records: Sequence[RunRecord], shifts: Shifts, columns: Sequence[Measure], view: View) -> str:
    metric = next((r.metrics[ID].metric for r in records if ID in r.metrics), "accuracy")
    over = f"mean over {', '.join(shifts.shared)}" if shifts.shared else "empty, since no shift was measured in every run"
    counts = sorted({len(runs) for runs in by_row(records).values()})
    seeds = "1 seed" if counts == [1] else f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    spread = f"mean ± sample SD over {seeds}" if counts[-1] > 1 else "one seed, so no spread"
    above = (
        f" Above curve = OOD minus what the interpolation curve of the same seed's {YARDSTICK} offers at that ID."
        if any(column.key == "above_curve" for column in columns)
        else ""
    )
    factors = (
        " In brackets: the number of shifts behind a factor, those outside the OOD average included."
        if view.by == "factor"
        else ""
    )
    metrics = {r.metrics[s].metric for r in records for s in (ID, *shifts.all) if s in r.metrics} - {metric}
    other = f" (some shifts: {', '.join(sorted(metrics))})" if metrics else ""
    return (
        f"ID = {metric} on {ID}, OOD = {over}, in percent{other}; {spread}. "
        f"Training = mean wall time with nested fits.{factors}{above}"
    )


def _missing(records: Sequence[RunRecord], shifts: Shifts) -> list[str]:
    notes = []
    named = labels(records)
    for split in (ID, *shifts.all):
        reasons: dict[str, list[str]] = {}
        for record in records:
            if split not in record.metrics:
                why = record.holes.get(split) or "not evaluated; the same `bench run` again adds it"
                reasons.setdefault(plain(why), []).append(f"{named[row_key(record)]} (seed {record.seed})")
        for why, who in reasons.items():
            listed = ", ".join(who[:4]) + (f" and {len(who) - 4} more" if len(who) > 4 else "")
            notes.append(f"{split} is missing for {listed}: {why}.")
        if split != ID and reasons and any(split in r.averaged for r in records):
            notes.append(f"{split} is left out of the OOD average of every row, since not every run has it.")
        elif split != ID and split not in shifts.shared and any(split in r.averaged for r in records):
            notes.append(f"{split} is left out of the OOD average of every row, since not every run's card declares it.")
        elif split != ID and split not in shifts.shared:
            notes.append(f"{split} is not in the OOD average: the suite's card leaves it out.")
    return notes


def _seeds(records: Sequence[RunRecord], aside: int) -> list[str]:
    seeds = [frozenset(r.seed for r in runs) for runs in by_row(r for r in records if r.phase != "external").values()]
    notes = []
    if len({len(own) for own in seeds}) > 1:
        notes.append("The rows have unequal numbers of seeds: their means are not equally certain.")
    elif len(set(seeds)) > 1:
        notes.append("The rows have different seeds.")
    if aside:
        notes.append(f"{aside} earlier run(s) of the same method and seed are not counted: the newest is.")
    return notes


def _marks(records: Sequence[RunRecord]) -> list[str]:
    notes = []
    trials = sorted({r.search_trials for r in records if r.phase != "external"})
    if len(trials) > 1:
        notes.append(f"The rows had unequal search budgets: {trials[0]} to {trials[-1]} trials (0: the recipe as it stands).")
    if any(r.id_val_seen for r in records):
        notes.append(
            "id-val is seen data: this backbone was pre-trained on the suite's own training images, so what is selected "
            "on id-val is selected with optimism."
        )
    skipped = sum(metrics.skipped_unreadable for r in records for metrics in r.metrics.values())
    if skipped:
        notes.append(f"{skipped} unreadable image(s) were skipped, over all runs and splits (`bench show` names the splits).")
    return notes


def _unfinished(records: Sequence[RunRecord]) -> Table:
    found = [
        {
            "group": "unfinished",
            "suite": r.suite,
            "backbone": r.backbone,
            "method": r.label,
            "seed": r.seed,
            "status": r.status,
            "error": next(iter(r.error.splitlines()), ""),
            "started": r.started,
            "fits": r.fit_id,
        }
        for r in sorted(records, key=lambda r: (r.label, r.seed))
    ]
    columns = [
        *NAMES,
        Column("seed", kind="count"),
        Column("status"),
        Column("error"),
        Column("started"),
        Column("fits", human=False),
    ]
    return Table(columns, found, f"{records[0].suite} · {records[0].backbone}: without a result")
