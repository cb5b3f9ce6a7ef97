"""Compute the rows of a board: means over seeds, spreads, intervals, and reasons for gaps.

Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.results.record import RunRecord
from bench.run_spec import REFERENCE

from ..statistics.intervals import Interval, mean_and_sd, over_seeds
from ..statistics.tradeoff import on_front, references
from .baseline import Line, chosen
from .groups import Group, by_row, deterministic, labels, one_per_seed
from .measures import ABOVE, OFFERED, Measure, Shifts, image_interval, measures, shifts_of

#: See `Board.kind`.
BoardKind = Literal["ranked", "apart", "limited"]


@dataclass(frozen=True)
class ScoreCell:
    """One number of one row.

    Attributes:
        value: mean over the row's runs; shares are in [0, 1]. None if it is missing.
        sd: sample SD over the runs (ddof = 1). None for one run, and for what no seed changes.
        seeds: 95 % interval over seeds, where it is defined.
        images: 95 % interval over images, where it is defined.
        missing: why there is no value.
    """

    value: float | None
    sd: float | None = None
    seeds: Interval | None = None
    images: Interval | None = None
    missing: str = ""


@dataclass
class BoardRow:
    """One method with its parameters, over its seeds.

    Attributes:
        key: identifies the row (`groups.row_key`).
        name: name of the row, unique on its board.
        records: one run per seed.
        cells: `Measure.key` -> number.
        deterministic: whether no seed changes the row.
        front: whether it is on the Pareto front of mean ID and mean OOD; None if it lacks one of
            them.
        tie: `best` for the row with the highest estimate of `Board.ties_about`, `tie` for a row
            that is not shown to be below any other, empty for one that is. None if it was not
            tested.
        ranks: simultaneous 95 % interval of the row's rank.
    """

    key: str
    name: str
    records: list[RunRecord]
    cells: dict[str, ScoreCell]
    deterministic: bool
    front: bool | None = None
    tie: Literal["best", "tie", ""] | None = None
    ranks: tuple[int, int] | None = None

    @property
    def family(self) -> str:
        """Return the name of the method, of which the row is a variant.

        Where there are more rows than colours, rows of one family share theirs.
        """
        return str(self.records[0].method.get("name"))

    @property
    def trials(self) -> int:
        """Return the number of search trials in which the parameters were chosen."""
        return max(r.search_trials for r in self.records)

    @property
    def search_seconds(self) -> float | None:
        """Return the training time of these trials."""
        return max(
            (r.search_seconds for r in self.records if r.search_seconds is not None), default=None
        )

    @property
    def search_rule(self) -> str:
        """Return how the trials were sampled, such as `random` or `tpe, asha`; empty if unknown.

        `, asha` means that trials were cut short.
        """
        # The seeds of a row may come from several searches.
        return "; ".join(
            sorted(
                {
                    r.search_rule + ", asha" * r.search_cut_short
                    for r in self.records
                    if r.search_rule
                }
            )
        )

    @property
    def cut_short(self) -> bool:
        """Return whether ASHA cut the search short.

        What such a search chooses depends on the order in which results arrived.
        """
        return any(r.search_cut_short for r in self.records)

    @property
    def candidates(self) -> int:
        """Return the number of classifiers that one run compared on id-val along a path.

        A path is over strengths, alphas or epochs; those of nested fits count as well.
        """
        return max(
            sum(int(chosen.get("among", 0)) for chosen in r.selection.values())
            for r in self.records
        )

    @property
    def external(self) -> bool:
        """Return whether the weights were trained elsewhere."""
        return self.records[0].phase == "external"


@dataclass
class Board:
    """Rows that may be ranked together, best first.

    Attributes:
        kind: `ranked`; `apart` for runs that are not comparable with the ranked board of the same
            suite and backbone; `limited` for runs on a part of the images.
        group: the runs, and what they agree in.
        columns: the measures, in order.
        rows: sorted by `sort`.
        shifts: all shifts, and those that the OOD average is over.
        aside: number of runs that do not count, since a newer one of the same row and seed does.
        sort: key of the column that the rows are sorted by.
        lines: shift -> baseline line behind the column of effective robustness.
        ties_about: key of the column that `BoardRow.tie` is about.
        ties_question: `models` or `method`; empty if no ties were requested.
        ties_missing: why there are none.
        ties_untested: name of a row -> why it was left out of the test.
        curves: seed -> run whose curve the runs of that seed are measured against. It need not be
            on the board.
        above_unspread: name of a row -> why its distance above the curve has no interval over
            images.
    """

    kind: BoardKind
    group: Group
    columns: list[Measure]
    rows: list[BoardRow]
    shifts: Shifts
    aside: int = 0
    sort: str = "ood"
    lines: dict[str, Line] = field(default_factory=dict)
    ties_about: str = ""
    ties_question: Literal["models", "method", ""] = ""
    ties_missing: str = ""
    ties_untested: dict[str, str] = field(default_factory=dict)
    curves: dict[int, RunRecord] = field(default_factory=dict)
    above_unspread: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> list[RunRecord]:
        """Return the runs of all rows."""
        return [record for row in self.rows for record in row.records]

    def measure(self, key: str) -> Measure | None:
        """Return the column with that key, or None."""
        return next((m for m in self.columns if m.key == key), None)


def board(
    group: Group,
    kind: BoardKind = "ranked",
    *,
    by: str = "shift",
    extras: Sequence[str] = (),
    sort: str = "ood",
    lines: Mapping[str, Sequence[Line]] | None = None,
    others: Iterable[RunRecord] = (),
) -> Board:
    """Return the board of a group: its newest run of every row and seed, averaged and sorted.

    Args:
        group: comparable runs.
        kind: what the board is.
        by: see `measures`.
        extras: see `measures`.
        sort: key of a column.
        lines: shift -> baseline lines of effective robustness.
        others: runs that are not shown. The curve that rows are measured against may be one of
            theirs.
    """
    records = one_per_seed(group.records)
    # A curve of another run may be newer than that of the group's own, so that the newest is chosen
    # of all of them: a row's distance must not depend on which rows are shown.
    candidates = [r for r in (*group.records, *others) if r.method["name"] == REFERENCE]
    curves = references(one_per_seed(group.comparable(candidates)))
    shifts = shifts_of(records)
    baseline = chosen(lines or {}, records)
    columns = measures(records, shifts, by=by, extras=extras, lines=baseline, curves=curves)
    named = labels(records)
    rows = []
    for key, runs in by_row(records).items():
        # Decided for the whole row, on all splits: a column alone may have equal values by
        # coincidence.
        constant = deterministic(runs)
        rows.append(
            BoardRow(
                key, named[key], runs, {m.key: _cell(m, runs, constant) for m in columns}, constant
            )
        )
    points = [(row.cells["id"].value, row.cells["ood"].value) for row in rows]
    for row, own in zip(rows, on_front(points), strict=True):
        row.front = own
    made = Board(
        kind,
        group,
        columns,
        rows,
        shifts,
        len(group.records) - len(records),
        sort,
        baseline,
        curves=curves,
    )
    made.rows = ranked(made, sort)
    return made


def _cell(measure: Measure, records: Sequence[RunRecord], constant: bool) -> ScoreCell:
    """Return the number of a row in one column.

    Args:
        measure: the column.
        records: runs of the row.
        constant: whether no seed changes them. What they are measured against (`Measure.among`) may
            still vary.
    """
    found = [
        measure.of(record) for record in records if measure.among is None or measure.among(record)
    ]
    # Whether a run leaves the curve's range is an outcome: see `Measure.among`.
    if measure.among is not None and None in found:
        found = []
    known = [value for value in found if value is not None]
    if not known:
        return ScoreCell(None, missing=_why(measure, records))
    mean, sd = mean_and_sd(known)
    # Costs depend on the machine as much as on the method, and have no spread.
    if not measure.spread:
        return ScoreCell(mean)
    # Without variation over seeds, an SD of zero would look like a certain result. What remains is
    # the spread over images.
    if constant and measure.among is None:
        return ScoreCell(mean, images=image_interval(measure, records))
    # Nothing shows that external checkpoints are seeds of one recipe.
    seeds = None if records[0].phase == "external" else over_seeds(known)
    return ScoreCell(mean, sd, seeds, image_interval(measure, records))


def _why(measure: Measure, records: Sequence[RunRecord]) -> str:
    """Return why a row has no number in a column, with what to do about it."""
    for split in measure.splits:
        for record in records:
            if split not in record.metrics:
                return f"{split}: " + (
                    record.holes.get(split) or "not evaluated; the same `bench run` again adds it"
                )
    # From here on the gap is of the whole column or of the curve, and not of one split.
    if measure.key == "ood" or measure.key.endswith("_ood"):
        return "no shift was measured in every run"
    if measure.key in (ABOVE, OFFERED):
        assert measure.among is not None
        alone = [record.seed for record in records if not measure.among(record)]
        if len(alone) == len(records):
            return (
                f"no curve of the same seed: `bench run {REFERENCE} --seed {alone[0]} --curve`"
                " measures one"
            )
        return (
            "its ID is outside the curve's range at one seed or more, and nothing is extrapolated"
        )
    if measure.key == "curve_area":
        return "no curve: `bench run --curve` measures it"
    return "not recorded"


def ranked(made: Board, by: str) -> list[BoardRow]:
    """Return the rows sorted by a column, the best first and rows without a value last.

    Names are sorted from A to Z, which also breaks ties.
    """
    measure = made.measure(by)
    # Sorting is stable: equal values keep the order of the names.
    rows = sorted(made.rows, key=lambda row: row.name)
    if measure is None:
        # These three are properties of a row and not columns with cells.
        values: dict[str, Any] = {
            "trials": lambda r: -r.trials,
            "runs": lambda r: -len(r.records),
            "method": lambda r: r.name,
        }
        return sorted(rows, key=values.get(by, lambda r: r.name))
    # `sorted` is ascending, and the best row comes first.
    sign = -1 if measure.better == "high" else 1

    def place(row: BoardRow) -> tuple[bool, float]:
        value = row.cells[by].value
        return (True, 0.0) if value is None else (False, sign * value)

    return sorted(rows, key=place)
