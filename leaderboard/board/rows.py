"""A group of comparable runs to a board: rows averaged over seeds, with spreads, intervals, holes.
Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.results.record import RunRecord
from bench.spec import REFERENCE

from ..statistics.intervals import Interval, mean_and_sd, over_seeds
from ..statistics.tradeoff import on_front, yardsticks
from .baseline import Line, chosen
from .groups import Group, by_row, deterministic, labels, one_per_seed
from .measures import ABOVE, OFFERED, Measure, Shifts, image_interval, measures, shifts_of

Kind = Literal["ranked", "apart", "limited"]


@dataclass(frozen=True)
class Cell:
    """One number of one row.

    Attributes:
        value: mean over the row's runs, shares in [0, 1]; None is a hole.
        sd: sample SD over them (ddof = 1), None for one
        and for what no seed changes.
        seeds, images: 95 % intervals over seeds and over images, where they are defined.
        hole: why there is no value.
    """

    value: float | None
    sd: float | None = None
    seeds: Interval | None = None
    images: Interval | None = None
    hole: str = ""


@dataclass
class BoardRow:
    """One method with its parameters, over its seeds.

    Attributes:
        key: what identifies the row (`row_key`).
        name: what people call it, unique on its board.
        records: one per seed.
        cells: `Measure.key` -> number.
        deterministic: whether no seed changes it.
        front: on the Pareto front of mean ID and mean
        OOD; None without both.
        tie: `best` for the row with the highest estimate of `Board.ties_about`, `tie` for one that
            is not shown to be worse,
        empty for one that is; None where that was not tested. ranks: simultaneous 95 % interval of
            the row's rank.
    """

    key: str
    name: str
    records: list[RunRecord]
    cells: dict[str, Cell]
    deterministic: bool
    front: bool | None = None
    tie: Literal["best", "tie", ""] | None = None
    ranks: tuple[int, int] | None = None

    @property
    def family(self) -> str:
        """What the row is a variant of, which is what colours tell apart where there are many rows:
        its method.
        """
        return str(self.records[0].method.get("name"))

    @property
    def trials(self) -> int:
        """Search trials in which the parameters were chosen."""
        return max(r.search_trials for r in self.records)

    @property
    def search_seconds(self) -> float | None:
        """Training time of those trials."""
        return max(
            (r.search_seconds for r in self.records if r.search_seconds is not None), default=None
        )

    @property
    def search_rule(self) -> str:
        """How those trials were drawn (`random`, `grid`, `tpe`), and whether they were cut short
        (`, asha`); empty if unknown.
        """
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
        """Whether the parameters were chosen in a search that depends on the order in which results
        arrived.
        """
        return any(r.search_cut_short for r in self.records)

    @property
    def candidates(self) -> int:
        """Classifiers that one run compared on id-val along a path (strengths, alphas, epochs), its
        nested fits' included.
        """
        return max(
            sum(int(chosen.get("among", 0)) for chosen in r.selection.values())
            for r in self.records
        )

    @property
    def external(self) -> bool:
        """Whether the weights were trained elsewhere."""
        return self.records[0].phase == "external"


@dataclass
class Board:
    """Rows that may be ranked together, best first.

    Attributes:
        kind: `ranked`; `apart` for what is not comparable with the ranked board of the same suite
            and backbone; `limited` for
        trials on a part of the images. apart: field -> (value of the ranked board, value here).
        columns: the measures, in order.
        shifts: all, and those that the OOD average is over.
        aside: runs not counted, because
        a newer one of the same row and seed is. sort: key of the column that the rows are sorted
            by.
        lines: shift -> the baseline line behind the column of effective robustness.
        ties_about: key of the column of `BoardRow.tie`; ties_question: `models` or `method`;
            ties_missing: why there are none.
        ties_untested: name of a row -> why it was left out of the test.
        curves: seed -> the run whose curve runs of that seed are measured against; it need not be
            on the board.
        above_unspread: name of a row -> why its distance above the curve has no interval over
            images.
    """

    kind: Kind
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
        """The runs of all rows."""
        return [record for row in self.rows for record in row.records]

    def measure(self, key: str) -> Measure | None:
        """The column of that key."""
        return next((m for m in self.columns if m.key == key), None)


def board(
    group: Group,
    kind: Kind = "ranked",
    *,
    by: str = "shift",
    extras: Sequence[str] = (),
    sort: str = "ood",
    lines: Mapping[str, Sequence[Line]] | None = None,
    beside: Iterable[RunRecord] = (),
) -> Board:
    """The board of one group: its newest run of every row and seed, measured, averaged and sorted.

    Args:
        by, extras: see `measures`.
        sort: key of a column.
        lines: shift -> baseline lines of effective robustness.
        beside: runs
        that are not shown; the curve that rows are measured against may be one of theirs.
    """
    records = one_per_seed(group.records)
    candidates = [r for r in (*group.records, *beside) if r.method["name"] == REFERENCE]
    curves = yardsticks(one_per_seed(group.comparable(candidates)))
    shifts = shifts_of(records)
    baseline = chosen(lines or {}, records)
    columns = measures(records, shifts, by=by, extras=extras, lines=baseline, curves=curves)
    named = labels(records)
    rows = []
    for key, runs in by_row(records).items():
        fixed = deterministic(runs)
        rows.append(
            BoardRow(key, named[key], runs, {m.key: _cell(m, runs, fixed) for m in columns}, fixed)
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


def _cell(measure: Measure, records: Sequence[RunRecord], fixed: bool) -> Cell:
    """The number of a row, which no seed changes if it is `fixed`; what it is measured against may
    still vary.
    """
    found = [
        measure.of(record) for record in records if measure.among is None or measure.among(record)
    ]
    if measure.among is not None and None in found:
        found = []
    known = [value for value in found if value is not None]
    if not known:
        return Cell(None, hole=_why(measure, records))
    mean, sd = mean_and_sd(known)
    if not measure.spread:
        return Cell(mean)
    if fixed and measure.among is None:
        return Cell(mean, images=image_interval(measure, records))
    seeds = None if records[0].phase == "external" else over_seeds(known)
    return Cell(mean, sd, seeds, image_interval(measure, records))


def _why(measure: Measure, records: Sequence[RunRecord]) -> str:
    for split in measure.splits:
        for record in records:
            if split not in record.metrics:
                return f"{split}: " + (
                    record.holes.get(split) or "not evaluated; the same `bench run` again adds it"
                )
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
            "its ID lies outside the curve's range at one seed or more, and nothing is extrapolated"
        )
    if measure.key == "curve_area":
        return "no curve: `bench run --curve` measures it"
    return "not recorded"


def ranked(made: Board, by: str) -> list[BoardRow]:
    """Rows with the best first (names from A to Z, smaller is better for losses and costs); holes
    last.
    """
    measure = made.measure(by)
    rows = sorted(made.rows, key=lambda row: row.name)
    if measure is None:
        values: dict[str, Any] = {
            "trials": lambda r: -r.trials,
            "runs": lambda r: -len(r.records),
            "method": lambda r: r.name,
        }
        return sorted(rows, key=values.get(by, lambda r: r.name))
    sign = -1 if measure.better == "high" else 1

    def place(row: BoardRow) -> tuple[bool, float]:
        value = row.cells[by].value
        return (True, 0.0) if value is None else (False, sign * value)

    return sorted(rows, key=place)
