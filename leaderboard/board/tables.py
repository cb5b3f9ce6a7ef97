"""Groups of runs as titled tables with notes: what a row's numbers mean, what is missing and why,
what stands apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import UsageError
from bench.plain import plain
from bench.results.record import RunRecord
from bench.spec import REFERENCE
from bench.tables.table import Cell, Column, Row, Table

from ..statistics.predictions import Predictions
from ..statistics.tradeoff import ID
from .above import spread
from .baseline import FEWEST, baselines, standard_models
from .groups import Group, groups
from .measures import ABOVE, ENDINGS, Measure
from .printed import bold, caption, printed
from .rows import Board, BoardRow, Kind, board
from .ties import Question, mark

Spread = Literal["sd", "seeds", "images"]
NAMES = [
    Column("group", human=False),
    Column("suite", human=False),
    Column("backbone", human=False),
    Column("method"),
]


@dataclass(frozen=True)
class View:
    """What is shown and how.

    Attributes:
        sort: key of a column.
        by: middle columns, `shift` or `factor`.
        extras: names of `EXTRAS`.
        limited: whether runs on
        a part of the images are shown, apart. ties: the question that marks of ties answer; None
            for no marks.
        baseline: a file that declares standard backbones (see baselines.toml), for suites without
            published lines.
        spread: what people see behind a number, its sample SD over seeds or a 95 % interval over
            `seeds` or `images`.
    """

    sort: str = "ood"
    by: str = "shift"
    extras: Sequence[str] = ()
    limited: bool = False
    ties: Question | None = None
    baseline: Path | None = None
    spread: Spread = "sd"


@dataclass(frozen=True)
class Boards:
    """What a selection of runs amounts to.

    Attributes:
        boards: ranked, apart and limited ones, by suite and backbone.
        unfinished: runs without a result.
    """

    boards: list[Board]
    unfinished: list[RunRecord]


def boards(
    records: Sequence[RunRecord],
    view: View,
    predictions: Predictions | None = None,
    everything: Sequence[RunRecord] = (),
) -> Boards:
    """The board of every suite and backbone, and what is not comparable with it or has no result.

    Search runs never count; runs on a part of the images (`--limit`) only where the view asks for
    them, apart.

    Args:
        everything: all runs of the store, where `records` are a selection: what rows are measured
            against (the curve of full fine-tuning, standard models) is found there too, so that a
            row's numbers do not depend on which rows are shown.

    Raises:
        UsageError: no board has a column `view.sort`.
    """
    final = [r for r in records if r.phase != "search"]
    whole = [r for r in final if r.limit is None]
    parts = [r for r in final if r.limit is not None] if view.limited else []
    made: list[Board] = []
    beside = [
        r for r in everything if r.status == "done" and r.phase == "final" and r.limit is None
    ]
    lines = {
        suite: baselines(suite, beside or whole, view.baseline)
        for suite in {r.suite for r in final}
    }
    for limited, chosen in ((False, whole), (True, parts)):
        for group in groups(r for r in chosen if r.status == "done"):
            kind: Kind = "limited" if limited else "apart" if group.apart else "ranked"
            lined = lines[group.suite]
            made.append(
                board(
                    group,
                    kind,
                    by=view.by,
                    extras=view.extras,
                    sort=view.sort,
                    lines=lined,
                    beside=beside,
                )
            )
    sortable = list(
        dict.fromkeys(
            key
            for one in made
            for key in ("method", "trials", "runs", *(m.key for m in one.columns))
        )
    )
    if made and view.sort not in sortable:
        raise UsageError(
            f"there is no column `{view.sort}` to sort by",
            where="--sort",
            fix=f"one of: {', '.join(sortable)}",
        )
    for one in made:
        if view.ties and one.kind != "limited":
            mark(one, view.ties, predictions)
        if predictions is not None and one.kind != "limited":
            spread(one, predictions)
    made.sort(key=lambda one: (one.group.suite, one.group.backbone, one.kind == "limited"))
    return Boards(made, [r for r in (*whole, *parts) if r.status != "done"])


def tables(
    records: Sequence[RunRecord],
    view: View,
    predictions: Predictions | None = None,
    everything: Sequence[RunRecord] = (),
) -> list[Table]:
    """The boards as tables: the ranked one of every suite and backbone, what is apart from it, and
    what has no result.

    Raises:
        UsageError: no board has a column `view.sort`.
    """
    found = boards(records, view, predictions, everything)
    made = [
        ((one.group.suite, one.group.backbone, 0), board_table(one, view)) for one in found.boards
    ]
    for suite, backbone in dict.fromkeys((r.suite, r.backbone) for r in found.unfinished):
        here = [r for r in found.unfinished if (r.suite, r.backbone) == (suite, backbone)]
        made.append(((suite, backbone, 1), _unfinished(here)))
    return [table for _, table in sorted(made, key=lambda item: item[0])]


def title(of: Board) -> str:
    """What a board is about and, for one that is not ranked with the main one, why."""
    name = f"{of.group.suite} · {of.group.backbone}"
    if of.kind == "limited":
        return (
            name
            + f": {of.group.facts['images per split']} images per split, a trial of the machinery"
            " and not a result"
        )
    return name + (
        f": not comparable with the table above: {_differences(of.group)}"
        if of.kind == "apart"
        else ""
    )


def notes(of: Board, view: View) -> list[str]:
    """Sentences that stand below a board: what its numbers mean, what is missing and why, what
    makes rows uneven.

    The first one is about accuracies alone, and stands in print as well.
    """
    return [
        _reading(of, view),
        "Training = mean wall time with nested fits.",
        *_ties(of),
        *_front(of),
        *_baseline(of, view),
        *_off_curve(of, view),
        *_missing(of),
        *unvaried(of),
        *_seeds(of),
        *_marks(of.records),
    ]


def board_table(of: Board, view: View) -> Table:
    """A board as a table, under the view that it was made with."""
    records = of.records
    shown = [
        *NAMES,
        Column("external", human=False),
        Column("tie", "vs best", human=any(row.tie is not None for row in of.rows), printed=False),
        Column("rank", human=any(row.ranks is not None for row in of.rows), printed=False),
        *(_column(m, view.spread, printed(m, of)) for m in of.columns),
        Column("rank_low", kind="count", human=False),
        Column("rank_high", kind="count", human=False),
        Column("front", human=False),
        *(
            Column(m.key + ending, human=False)
            for m in of.columns
            if m.spread
            for ending in ENDINGS[1:]
        ),
        Column(
            "trials",
            "search trials",
            "count",
            human=any(r.search_trials for r in records),
            printed=False,
        ),
        Column(
            "search_seconds",
            "search",
            "seconds",
            human=any(r.search_seconds is not None for r in records),
            printed=False,
        ),
        Column(
            "search_rule",
            "drawn",
            human=any(row.search_rule not in ("", "random") for row in of.rows),
            printed=False,
        ),
        Column(
            "candidates",
            "path candidates",
            "count",
            human=any(row.candidates for row in of.rows),
            printed=False,
        ),
        Column("runs", kind="count", printed=False),
        Column("over_seeds", "over seeds", human=any(row.deterministic for row in of.rows)),
        Column("deterministic", human=False),
        Column("seeds", human=False),
        Column("fits", human=False),
    ]
    below = notes(of, view)
    rows = [_row(row, of) for row in of.rows]
    return Table(shown, rows, title(of), below, caption(of, title(of), below), bold(of))


def _column(measure: Measure, spread: Spread, printed: bool) -> Column:
    interval = (
        (f"{measure.key}_{spread}_low", f"{measure.key}_{spread}_high")
        if spread != "sd" and measure.spread
        else None
    )
    deviation = f"{measure.key}_sd" if measure.spread else ""
    return Column(
        measure.key,
        measure.title,
        measure.kind,
        spread=deviation,
        interval=interval,
        human=measure.human,
        printed=printed,
    )


def _row(row: BoardRow, of: Board) -> Row:
    found: dict[str, Cell] = {
        "group": of.kind,
        "suite": of.group.suite,
        "backbone": of.group.backbone,
        "method": row.name,
        "external": row.external,
        "tie": row.tie,
        "front": row.front,
        "trials": row.trials,
        "search_seconds": row.search_seconds,
        "search_rule": row.search_rule,
        "candidates": row.candidates,
        "runs": len(row.records),
        "over_seeds": "deterministic" if row.deterministic else "",
        "deterministic": row.deterministic,
        "seeds": " ".join(str(r.seed) for r in row.records),
        "fits": " ".join(r.fit_id for r in row.records),
    }
    if row.ranks:
        low, high = row.ranks
        found |= {
            "rank": str(low) if low == high else f"{low}-{high}",
            "rank_low": low,
            "rank_high": high,
        }
    for measure in of.columns:
        cell = row.cells[measure.key]
        found[measure.key] = cell.value
        if measure.spread:
            found[f"{measure.key}_sd"] = cell.sd
            for name, interval in (("seeds", cell.seeds), ("images", cell.images)):
                if interval:
                    found |= {
                        f"{measure.key}_{name}_low": interval.low,
                        f"{measure.key}_{name}_high": interval.high,
                    }
    return found


def _ties(of: Board) -> list[str]:
    if not of.ties_question:
        return []
    measure = of.measure(of.ties_about)
    assert measure is not None
    if of.ties_missing:
        return [f"Ties with the best are not marked: {of.ties_missing}."]
    if of.ties_question == "models":
        what = (
            "these trained models (test images vary; their outcomes paired by image; max-t over all"
            " pairs of rows"
        )
    else:
        what = "the methods over seeds (seeds vary; paired t-tests; Holm over all pairs of rows"
    return [
        (
            f"vs best: `tie` for rows not shown to be below the best {measure.title}, as {what},"
            " family-wise error 5 %). A row with no mark is shown to be below another one. rank:"
            " interval, for all tested rows at once."
        ),
        *(f"{name} is not tested: {why}." for name, why in of.ties_untested.items()),
    ]


def _front(of: Board) -> list[str]:
    names = [row.name for row in of.rows if row.front]
    return (
        [f"On the Pareto front of mean ID and mean OOD: {', '.join(names)}."]
        if len(of.rows) > 1 and names
        else []
    )


def _off_curve(of: Board, view: View) -> list[str]:
    blank = _by_reason(
        {
            row.name: row.cells[ABOVE].hole
            for row in of.rows
            if ABOVE in row.cells and row.cells[ABOVE].hole
        }
    )
    notes = [f"Above curve is blank for {who}: {why}." for why, who in blank.items()]
    if view.spread == "images":
        notes += [
            f"Above curve has no interval over images for {who}: {why}."
            for why, who in _by_reason(of.above_unspread).items()
        ]
    return notes


def _by_reason(found: Mapping[str, str]) -> dict[str, str]:
    """Reason -> the names of the rows that have it, or how many they are."""
    made: dict[str, list[str]] = {}
    for name, why in found.items():
        made.setdefault(why, []).append(name)
    return {
        why: ", ".join(names) if len(names) <= 3 else f"{len(names)} rows"
        for why, names in made.items()
    }


def _baseline(of: Board, view: View) -> list[str]:
    if view.baseline and not of.lines:
        named = standard_models(of.group.suite, view.baseline)
        return [
            f"There is no effective robustness: of the {len(named)} backbone(s) that"
            f" {view.baseline.name} declares standard for {of.group.suite}, fewer than {FEWEST}"
            f" have {REFERENCE} runs here on the same data."
        ]
    if of.measure("effective") is None:
        return []
    of_id = ", ".join(f"{shift} in {line.id}" for shift, line in of.lines.items())
    return [
        "Effective = mean over the OOD average's shifts of the accuracy above the line of standard"
        f" models in logit space, at the row's own ID accuracy ({of_id};"
        f" {'; '.join(dict.fromkeys(line.source for line in of.lines.values()))})."
    ]


def _differences(group: Group, most: int = 3) -> str:
    parts = [
        f"{key} is {here[:16]} here and {above[:16]} above"
        for key, (above, here) in group.apart.items()
    ]
    return "; ".join(parts[:most]) + (
        f"; and {len(parts) - most} more fields" if len(parts) > most else ""
    )


def _reading(of: Board, view: View) -> str:
    records, shifts = of.records, of.shifts
    metric = next((r.metrics[ID].metric for r in records if ID in r.metrics), "accuracy")
    over = (
        f"mean over {', '.join(shifts.shared)}"
        if shifts.shared
        else "empty, since no shift was measured in every run"
    )
    counts = sorted({len(row.records) for row in of.rows})
    seeds = (
        "1 seed"
        if counts == [1]
        else f"{counts[0]} seeds"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds"
    )
    spread = f"mean ± sample SD over {seeds}" if counts[-1] > 1 else "one seed, so no spread"
    if view.spread == "seeds":
        spread = (
            f"mean over {seeds} with its 95 % t-interval over seeds (without width where accuracies"
            " coincide: no certainty)"
        )
    elif view.spread == "images":
        spread = (
            f"mean over {seeds} with its 95 % Wilson interval over images (MOVER for means over"
            " shifts)"
        )
    above = ""
    if of.curves:
        curve = next(iter(of.curves.values())).label
        above = (
            f" Above curve = OOD minus what the interpolation curve of the same seed's {curve}"
            " offers at that ID"
        )
        above += ", interval by a paired bootstrap of both." if view.spread == "images" else "."
    factors = (
        " In brackets: the number of shifts behind a factor, those outside the OOD average"
        " included."
        if view.by == "factor"
        else ""
    )
    metrics = {
        r.metrics[s].metric for r in records for s in (ID, *shifts.all) if s in r.metrics
    } - {metric}
    other = f" (some shifts: {', '.join(sorted(metrics))})" if metrics else ""
    return f"ID = {metric} on {ID}, OOD = {over}, in percent{other}; {spread}.{factors}{above}"


def _missing(of: Board) -> list[str]:
    records, shifts = of.records, of.shifts
    notes, outside = [], []
    runs = [(row, record) for row in of.rows for record in row.records]
    for split in (ID, *shifts.all):
        reasons: dict[str, list[str]] = {}
        for row, record in runs:
            if split not in record.metrics:
                why = record.holes.get(split) or "not evaluated; the same `bench run` again adds it"
                reasons.setdefault(plain(why), []).append(f"{row.name} (seed {record.seed})")
        for why, who in reasons.items():
            listed = ", ".join(who[:4]) + (f" and {len(who) - 4} more" if len(who) > 4 else "")
            notes.append(f"{split} is missing for {listed}: {why}.")
        if split != ID and reasons and any(split in r.averaged for r in records):
            notes.append(
                f"{split} is left out of the OOD average of every row, since not every run has it."
            )
        elif (
            split != ID and split not in shifts.shared and any(split in r.averaged for r in records)
        ):
            notes.append(
                f"{split} is left out of the OOD average of every row, since not every run's card"
                " declares it."
            )
        elif split != ID and split not in shifts.shared:
            outside.append(split)
    if outside:
        notes.append(
            f"Not in the OOD average, since the suite's card leaves it out: {', '.join(outside)}."
        )
    return notes


def unvaried(of: Board) -> list[str]:
    """The sentence on the rows that no seed changes."""
    who = _by_reason({row.name: "" for row in of.rows if row.deterministic}).get("")
    curve = "; above curve varies with the curve alone" if of.curves else ""
    said = (
        f"Deterministic, so that there is no spread over seeds: {who}; all seeds score the same on"
        f" every split{curve}."
    )
    return [said] if who else []


def _seeds(of: Board) -> list[str]:
    seeds = [frozenset(r.seed for r in row.records) for row in of.rows if not row.external]
    notes = []
    if len({len(own) for own in seeds}) > 1:
        notes.append("The rows have unequal numbers of seeds: their means are not equally certain.")
    elif len(set(seeds)) > 1:
        notes.append("The rows have different seeds.")
    if of.aside:
        notes.append(
            f"{of.aside} earlier run(s) of the same method and seed are not counted: the newest is."
        )
    return notes


def _marks(records: Sequence[RunRecord]) -> list[str]:
    notes = []
    trials = sorted({r.search_trials for r in records if r.phase != "external"})
    if len(trials) > 1:
        none = " (0: parameters of the recipe, or given by hand)" if trials[0] == 0 else ""
        notes.append(
            f"The rows had unequal search budgets: {trials[0]} to {trials[-1]} trials{none}."
        )
    cut = sorted({r.label for r in records if r.search_cut_short})
    if cut:
        notes.append(
            f"ASHA cut the search short that chose the parameters of {', '.join(cut)}: it favours"
            " what learns fast early, and another order in which results arrive may choose others."
        )
    if any(r.id_val_seen for r in records):
        notes.append(
            "id-val is seen data: this backbone was pre-trained on the suite's own training images,"
            " so what is selected on id-val is selected with optimism."
        )
    merged = sum(bool(r.origin) for r in records)
    if merged:
        notes.append(
            f"{merged} run(s) come from packs of others: re-scored from their predictions, not"
            " trained again here."
        )
    for split, how in dict.fromkeys(item for r in records for item in r.miscounted.items()):
        notes.append(f"{split}: {how}; published numbers are of other images.")
    notes += [
        f"{told}." for told in dict.fromkeys(told for r in records for told in r.duplicates_told())
    ]
    skipped = sum(metrics.skipped_unreadable for r in records for metrics in r.metrics.values())
    if skipped:
        notes.append(
            f"{skipped} unreadable image(s) were skipped, over all runs and splits (`bench show`"
            " names the splits)."
        )
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
