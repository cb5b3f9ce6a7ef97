"""What the field says about these methods, tested on the runs of a store by paired intervals over
seeds.

    python scripts/statements.py --store STORE

Each statement is one or more inequalities between numbers of the same seed. An inequality holds if
the 95 % t-interval of the per-seed differences lies above its bound, fails if it lies below, and is
undecided otherwise; a statement holds if all of its inequalities do, and fails if one fails. "At
equal ID" asks for more OOD with at most MARGIN less ID to hold, and fails only where OOD is lower
without MARGIN more ID to show for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

import typer

from bench.leaderboard.board.groups import deterministic, groups, load, one_per_seed
from bench.leaderboard.board.measures import shifts_of
from bench.leaderboard.statistics.intervals import over_seeds
from bench.leaderboard.statistics.tradeoff import ID, above_curve, average, points, yardsticks
from bench.results.record import RunRecord
from bench.spec import DEFAULT_SUITE
from bench.tables.table import Column, Format, FormatOption, Row, StoreOption, Table, print_tables

Verdict = Literal["holds", "fails", "undecided", "not measured"]
Number = Callable[[RunRecord], float | None]

#: Two ID accuracies count as equal within this: a convention, of the size of the intervals over
#: five seeds.
MARGIN = 0.02
#: Numbers that are made of a run's own scores.
_OWN = ("ID", "OOD", "OOD - ID")


@dataclass(frozen=True)
class Inequality:
    """`number` of the runs named `more` exceeds that of the runs named `less`; without `less`, it
    exceeds zero.
    """

    number: str
    more: str
    less: str = ""


@dataclass(frozen=True)
class Statement:
    """Inequalities that all have to hold; with `at_equal_id` they are one on OOD and one on ID, in
    this order.
    """

    text: str
    inequalities: tuple[Inequality, ...]
    at_equal_id: bool = False


def _at_equal_id(text: str, more: str, less: str) -> Statement:
    return Statement(
        text, (Inequality("OOD", more, less), Inequality("ID", more, less)), at_equal_id=True
    )


STATEMENTS: Mapping[str, Statement] = {
    "a": Statement(
        "zero-shot keeps more under shift, relative to ID, than fine-tuning",
        (Inequality("OOD - ID", "zero-shot", "full-finetune"),),
    ),
    "b": Statement(
        "full fine-tuning gains ID and loses OOD",
        (
            Inequality("ID", "full-finetune", "zero-shot"),
            Inequality("OOD", "zero-shot", "full-finetune"),
        ),
    ),
    "c": Statement(
        "the best interior point of the WiSE-FT curve has more OOD than both ends",
        (
            Inequality("best interior OOD - start", "full-finetune"),
            Inequality("best interior OOD - end", "full-finetune"),
        ),
    ),
    "d": Statement(
        "linear probing lies between zero-shot and fine-tuning on ID, and keeps at least"
        " fine-tuning's OOD",
        (
            Inequality("ID", "linear-probe", "zero-shot"),
            Inequality("ID", "full-finetune", "linear-probe"),
            Inequality("OOD", "linear-probe", "full-finetune"),
        ),
    ),
    "e, zero-shot head": _at_equal_id(
        "LP-FT keeps more OOD at equal ID than fine-tuning from the zero-shot head",
        "lp-ft",
        "full-finetune",
    ),
    "e, random head": _at_equal_id(
        "LP-FT keeps more OOD at equal ID than fine-tuning from a random head",
        "lp-ft",
        "full-finetune, random head",
    ),
    "f": Statement(
        "feature distillation lies above the WiSE-FT curve",
        (Inequality("above curve", "feature-distillation"),),
    ),
    **{
        f"g, {mask} {fill}": _at_equal_id(
            f"masked-counterfactual distillation ({mask} mask, {fill} fill) keeps more OOD at equal"
            " ID than feature distillation with the same rate and weight",
            f"masked-counterfactual, {mask} {fill}",
            "the same without masks",
        )
        for mask, fill in (
            ("object", "single"),
            ("context", "single"),
            ("random", "single"),
            ("object", "multi"),
            ("object", "none"),
        )
    },
}


def name_of(record: RunRecord) -> str:
    """The name by which statements call a run: the method and, where it matters, its head or its
    mask and fill.
    """
    name, parameters = record.method["name"], record.method["parameters"]
    if name == "masked-counterfactual":
        return f"{name}, {parameters['mask']} {parameters['fill']}"
    if name == "full-finetune" and parameters["head_init"] == "random":
        return f"{name}, random head"
    return str(name)


def partner(record: RunRecord, name: str, records: Sequence[RunRecord]) -> RunRecord | None:
    """The run of the same seed that `record` is held against.

    Of several parameter choices the one that a search made is taken; `the same without masks` is
    the feature distillation that shares every one of its parameters with `record`.
    """
    same = [r for r in records if r.seed == record.seed]
    if name == "the same without masks":
        mine = record.method["parameters"]
        found = [
            r
            for r in same
            if r.method["name"] == "feature-distillation"
            and r.method["parameters"].items() <= mine.items()
        ]
    else:
        found = [r for r in same if name_of(r) == name]
    return max(found, key=lambda r: r.search_trials, default=None)


def numbers(records: Sequence[RunRecord]) -> dict[str, Number]:
    """What inequalities are about, as functions of a run; shares in [0, 1]."""
    curves, shared = yardsticks(records), shifts_of(records).shared

    def identity(record: RunRecord) -> float | None:
        return record.metrics[ID].score if ID in record.metrics else None

    def ood(record: RunRecord) -> float | None:
        return average({split: metrics.score for split, metrics in record.metrics.items()}, shared)

    def above(record: RunRecord) -> float | None:
        return above_curve(record, curves[record.seed], shared) if record.seed in curves else None

    def drop(record: RunRecord) -> float | None:
        at, shifted = identity(record), ood(record)
        return None if at is None or shifted is None else shifted - at

    def interior(record: RunRecord, end: int) -> float | None:
        heights = [height for _, height in points(record, shared)]
        return max(heights[1:-1]) - heights[end] if len(heights) > 2 else None

    return {
        "ID": identity,
        "OOD": ood,
        "OOD - ID": drop,
        "above curve": above,
        "best interior OOD - start": lambda record: interior(record, 0),
        "best interior OOD - end": lambda record: interior(record, -1),
    }


@dataclass(frozen=True)
class Found:
    """The per-seed differences of an inequality, and whether no seed changes either side."""

    values: list[float]
    deterministic: bool

    def shown(self) -> str:
        """In points, with the interval over seeds."""
        mean, interval = f"{100 * fmean(self.values):+.1f}", over_seeds(self.values)
        if self.deterministic:
            return f"{mean}, deterministic"
        return (
            mean
            if interval is None
            else f"{mean} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
        )


def differences(inequality: Inequality, records: Sequence[RunRecord]) -> Found:
    """The differences of an inequality for the seeds that have both sides."""
    number = numbers(records)[inequality.number]
    found: list[float] = []
    sides: tuple[list[RunRecord], list[RunRecord]] = ([], [])
    for seed in sorted({record.seed for record in records}):
        runs = [r for r in records if r.seed == seed and name_of(r) == inequality.more]
        # The search's choice first, then any that can be compared: for another mask, parameters
        # were given by hand.
        for run in sorted(runs, key=lambda r: -r.search_trials):
            other = partner(run, inequality.less, records) if inequality.less else None
            more, less = number(run), number(other) if other else None if inequality.less else 0.0
            if more is not None and less is not None:
                found.append(more - less)
                sides[0].append(run)
                sides[1].append(other or run)
                break
    # A curve, and so what is measured against one, is not among the scores by which a row is
    # judged.
    fixed = inequality.number in _OWN and bool(found) and all(map(deterministic, sides))
    return Found(found, fixed)


def verdict(found: Sequence[Sequence[float]], *, at_equal_id: bool = False) -> Verdict:
    """Of a statement, from the differences of each of its inequalities."""
    if any(len(values) < 2 for values in found):
        return "not measured"
    intervals = [
        (interval.low, interval.high) for values in found if (interval := over_seeds(values))
    ]
    if at_equal_id:
        (ood_low, ood_high), (id_low, id_high) = intervals
        if ood_low > 0 and id_low > -MARGIN:
            return "holds"
        return "fails" if ood_high < 0 and id_high < MARGIN else "undecided"
    if any(high < 0 for _, high in intervals):
        return "fails"
    return "holds" if all(low > 0 for low, _ in intervals) else "undecided"


def table(records: Iterable[RunRecord], suite: str = DEFAULT_SUITE) -> Table:
    """Every statement with its differences in points, intervals and verdict, on the runs that share
    the suite's main board.
    """
    whole = [
        r
        for r in records
        if r.suite == suite and r.status == "done" and r.phase == "final" and r.limit is None
    ]
    done = one_per_seed(groups(whole)[0].records) if whole else []
    rows: list[Row] = []
    for key, statement in STATEMENTS.items():
        every = [
            (inequality, differences(inequality, done)) for inequality in statement.inequalities
        ]
        found = [one.values for _, one in every]
        shown = [
            f"{inequality.number} {one.shown()}" for inequality, one in every if len(one.values) > 1
        ]
        seeds = min((len(values) for values in found), default=0)
        decided = verdict(found, at_equal_id=statement.at_equal_id)
        rows.append(
            {
                "key": key,
                "text": statement.text,
                "shown": "; ".join(shown),
                "seeds": seeds,
                "verdict": decided,
            }
        )
    columns = [
        Column("key", ""),
        Column("text", "statement"),
        Column("shown", "difference in points [95 %]"),
    ]
    return Table([*columns, Column("seeds", kind="count"), Column("verdict")], rows)


def main(
    suite: Annotated[str, typer.Option(help="whose runs")] = DEFAULT_SUITE,
    store: StoreOption = None,
    form: FormatOption = Format.md,
) -> None:
    """Print every statement with its verdict."""
    from bench.results.store import Store, store_root

    print_tables([table(load(Store(store_root(store))), suite)], form)


if __name__ == "__main__":
    typer.run(main)
