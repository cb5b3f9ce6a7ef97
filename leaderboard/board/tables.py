"""Turn groups of runs into titled tables with notes, as `bench leaderboard` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import UsageError
from bench.results.record import RunRecord
from bench.tables.table import Cell, Column, Row, Table

from ..statistics.predictions import Predictions
from .above_curve import spread
from .baseline import baselines
from .groups import groups
from .measures import ENDINGS, Measure
from .notes import notes, title
from .rows import Board, BoardKind, BoardRow, board
from .ties import Question, mark
from .typesetting import bold, caption, printed

#: See `View.spread`.
Spread = Literal["sd", "seeds", "images"]
#: Columns that name a row. Titles name suite and backbone for people, so that only machines get
#: them as columns.
NAMES = [
    Column("group", human=False),
    Column("suite", human=False),
    Column("backbone", human=False),
    Column("method"),
]


@dataclass(frozen=True)
class View:
    """What is shown, and how.

    Attributes:
        sort: key of the column to sort by.
        by: columns between ID and OOD, per `shift` or per `factor`.
        extras: names of `EXTRAS`.
        limited: whether runs on a part of the images are shown, on boards of their own.
        ties: the question that the marks of ties answer; None for no marks.
        baseline: file that declares standard backbones (see baselines.toml), for suites without
            published lines.
        spread: what tables show behind a number: the sample SD over seeds, or a 95 % interval over
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
    """The boards of a selection of runs.

    Attributes:
        boards: ranked, apart and limited ones, ordered by suite and backbone.
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
    """Return the boards of every suite and backbone, and the runs without a result.

    Search runs never count. Runs on a part of the images (`--limit`) have boards of their own, if
    the view shows them.

    Args:
        records: runs to show.
        view: what is shown, and how.
        predictions: outcomes of single images; without them there are no ties over images and no
            intervals of the distance above the curve.
        everything: all runs of the store, where `records` are a selection. What rows are measured
            against (the curve of full fine-tuning, standard models) is found there too, so that a
            row's numbers do not depend on which rows are shown.

    Raises:
        UsageError: no board has a column `view.sort`.
    """
    final = [r for r in records if r.phase != "search"]
    whole = [r for r in final if r.limit is None]
    parts = [r for r in final if r.limit is not None] if view.limited else []
    made: list[Board] = []
    # Unlike the rows that are shown, what they are measured against has to be a finished, complete
    # run.
    others = [
        r for r in everything if r.status == "done" and r.phase == "final" and r.limit is None
    ]
    lines = {
        suite: baselines(suite, others or whole, view.baseline)
        for suite in {r.suite for r in final}
    }
    for limited, chosen in ((False, whole), (True, parts)):
        for group in groups(r for r in chosen if r.status == "done"):
            kind: BoardKind = "limited" if limited else "apart" if group.apart else "ranked"
            lined = lines[group.suite]
            made.append(
                board(
                    group,
                    kind,
                    by=view.by,
                    extras=view.extras,
                    sort=view.sort,
                    lines=lined,
                    others=others,
                )
            )
    # Known only now: each board has the columns of its own shifts. A column of any board will do,
    # since boards without it are sorted by name.
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
            fix=f"choose one of: {', '.join(sortable)}",
        )
    for one in made:
        # Runs on a part of the images are trials, of which nothing is claimed.
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
    """Return the boards as tables, followed by a table of the runs without a result.

    Args:
        records: see `boards`.
        view: see `boards`.
        predictions: see `boards`.
        everything: see `boards`.

    Raises:
        UsageError: no board has a column `view.sort`.
    """
    found = boards(records, view, predictions, everything)
    made = [
        # The third part puts what is unfinished below the boards of its suite and backbone.
        ((one.group.suite, one.group.backbone, 0), board_table(one, view))
        for one in found.boards
    ]
    for suite, backbone in dict.fromkeys((r.suite, r.backbone) for r in found.unfinished):
        here = [r for r in found.unfinished if (r.suite, r.backbone) == (suite, backbone)]
        made.append(((suite, backbone, 1), _unfinished(here)))
    return [table for _, table in sorted(made, key=lambda item: item[0])]


def board_table(of: Board, view: View) -> Table:
    """Return a board as a table, under the view that it was made with."""
    records = of.records
    shown = [
        *NAMES,
        Column("external", human=False),
        # A column that is empty in every row is hidden from people, and stays in csv and json,
        # whose columns do not depend on the rows.
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
            # The first ending is the SD, which `_column` attaches to the value.
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
            "search rule",
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
    return Table(
        shown,
        rows,
        title(of),
        below,
        caption(of, title(of), below),
        bold(of),
        # The trade-off itself: on a terminal it is on the line of the name, whatever the width.
        lead=("method", "id", "ood", "tie", "rank"),
        more="--columns all, --format csv, or --html FILE",
    )


def _column(measure: Measure, spread: Spread, printed: bool) -> Column:
    # `Table` shows the SD of a column, unless it has an interval to show instead.
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
    # Text for people, and both ends as numbers for machines.
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


def _unfinished(records: Sequence[RunRecord]) -> Table:
    """Return the table of runs without a result, with the first lines of their errors."""
    found = [
        {
            "group": "unfinished",
            "suite": r.suite,
            "backbone": r.backbone,
            "method": r.label,
            "seed": r.seed,
            "status": r.status,
            # The lines below the first say where and how to fix it, see `UserFacingError`.
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
