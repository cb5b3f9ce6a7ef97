"""Test claims of the literature about fine-tuning methods on the runs of a store.

    python scripts/claims.py --store STORE

A claim is one or more inequalities between numbers of the same seed. An inequality holds if the
95 % t-interval of the per-seed differences is above its bound, fails if it is below, and is
undecided otherwise. A claim holds if all of its inequalities hold, and fails if one fails. A claim
"at equal ID" holds if OOD is higher and ID is at most MARGIN lower. It fails if OOD is lower and ID
is at most MARGIN higher.
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
from bench.leaderboard.statistics.tradeoff import ID, above_curve, average, points, references
from bench.results.record import RunRecord
from bench.run_spec import DEFAULT_SUITE
from bench.tables.table import Column, Format, FormatOption, Row, StoreOption, Table, print_tables

ClaimVerdict = Literal["holds", "fails", "undecided", "not measured"]
#: A number of a run; None if the run does not have it.
Number = Callable[[RunRecord], float | None]

#: Difference up to which two ID accuracies count as equal. A convention: the intervals over five
#: seeds are about as wide.
MARGIN = 0.02
#: Numbers that depend on the scores of one run alone.
_OWN = ("ID", "OOD", "OOD - ID")


@dataclass(frozen=True)
class Inequality:
    """The claim that a number is greater for one kind of runs than for another.

    Attributes:
        number: Key of `numbers`.
        more: Name of the runs with the greater number; see `name_of`.
        less: Name of the other runs; empty if the number is compared with zero.
    """

    number: str
    more: str
    less: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim: inequalities that all have to hold.

    Attributes:
        text: The claim in words.
        inequalities: With `at_equal_id`, one on OOD and one on ID, in this order.
        at_equal_id: Whether the claim compares OOD at equal ID.
    """

    text: str
    inequalities: tuple[Inequality, ...]
    at_equal_id: bool = False


def _at_equal_id(text: str, more: str, less: str) -> Claim:
    return Claim(
        text, (Inequality("OOD", more, less), Inequality("ID", more, less)), at_equal_id=True
    )


#: The claims by their key. docs/mini.md discusses the verdicts under these keys.
CLAIMS: Mapping[str, Claim] = {
    "a": Claim(
        "zero-shot keeps more under shift, relative to ID, than fine-tuning",
        (Inequality("OOD - ID", "zero-shot", "full-finetune"),),
    ),
    "b": Claim(
        "full fine-tuning gains ID and loses OOD",
        (
            Inequality("ID", "full-finetune", "zero-shot"),
            Inequality("OOD", "zero-shot", "full-finetune"),
        ),
    ),
    "c": Claim(
        "the best interior point of the WiSE-FT curve has more OOD than both ends",
        (
            Inequality("best interior OOD - start", "full-finetune"),
            Inequality("best interior OOD - end", "full-finetune"),
        ),
    ),
    "d": Claim(
        "linear probing is between zero-shot and fine-tuning on ID, and has at least the OOD of"
        " fine-tuning",
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
    "f": Claim(
        "feature distillation is above the WiSE-FT curve",
        (Inequality("above curve", "feature-distillation"),),
    ),
    # `object single` is the method's default. The others show whether mask and fill matter: if they
    # do as well, the gain does not come from covering the object.
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
    """Return the name of a run in claims: its method and, if relevant, head, mask and fill."""
    name, parameters = record.method["name"], record.method["parameters"]
    if name == "masked-counterfactual":
        return f"{name}, {parameters['mask']} {parameters['fill']}"
    if name == "full-finetune" and parameters["head_init"] == "random":
        return f"{name}, random head"
    return str(name)


def partner(record: RunRecord, name: str, records: Sequence[RunRecord]) -> RunRecord | None:
    """Return the run of the same seed that `record` is compared with; None if there is none.

    Args:
        record: A run.
        name: Name of the other run. `the same without masks` is the feature distillation all of
            whose parameters `record` has too.
        records: The runs to choose from.
    """
    same = [r for r in records if r.seed == record.seed]
    if name == "the same without masks":
        # The masked method has all parameters of feature distillation and some of its own.
        mine = record.method["parameters"]
        found = [
            r
            for r in same
            if r.method["name"] == "feature-distillation"
            and r.method["parameters"].items() <= mine.items()
        ]
    else:
        found = [r for r in same if name_of(r) == name]
    # Of several choices of parameters, the one that a search made.
    return max(found, key=lambda r: r.search_trials, default=None)


def numbers(records: Sequence[RunRecord]) -> dict[str, Number]:
    """Return the numbers that inequalities compare, as functions of a run, by their names.

    Accuracies are in [0, 1].

    Args:
        records: Runs that share a board: their common shifts make the OOD average, and their
            interpolation curves are the reference of the same seed.
    """
    curves, shared = references(records), shifts_of(records).shared

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
class Differences:
    """The per-seed differences of an inequality.

    Attributes:
        values: The differences, in [-1, 1].
        deterministic: Whether both sides are the same for every seed.
    """

    values: list[float]
    deterministic: bool

    def shown(self) -> str:
        """Return the mean in percentage points with the 95 % interval over seeds."""
        mean, interval = f"{100 * fmean(self.values):+.1f}", over_seeds(self.values)
        if self.deterministic:
            return f"{mean}, deterministic"
        return (
            mean
            if interval is None
            else f"{mean} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
        )


def differences(inequality: Inequality, records: Sequence[RunRecord]) -> Differences:
    """Return the differences of an inequality for the seeds that have both sides."""
    number = numbers(records)[inequality.number]
    found: list[float] = []
    sides: tuple[list[RunRecord], list[RunRecord]] = ([], [])
    for seed in sorted({record.seed for record in records}):
        runs = [r for r in records if r.seed == seed and name_of(r) == inequality.more]
        # The search's choice first, then any that has a partner: the controls had no search, their
        # parameters were given by hand.
        for run in sorted(runs, key=lambda r: -r.search_trials):
            other = partner(run, inequality.less, records) if inequality.less else None
            more, less = number(run), number(other) if other else None if inequality.less else 0.0
            if more is not None and less is not None:
                found.append(more - less)
                sides[0].append(run)
                sides[1].append(other or run)
                break
    # `deterministic` compares the scores of rows. A curve is no score, so nothing that is measured
    # against one is known to be deterministic.
    fixed = inequality.number in _OWN and bool(found) and all(map(deterministic, sides))
    return Differences(found, fixed)


def verdict(found: Sequence[Sequence[float]], *, at_equal_id: bool = False) -> ClaimVerdict:
    """Return the verdict on a claim.

    Args:
        found: Per-seed differences of each of its inequalities.
        at_equal_id: Whether these are one on OOD and one on ID, to be judged at equal ID.
    """
    # One seed has no interval.
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
    """Return a table of all claims with differences in points, intervals and verdicts.

    It uses the runs on the suite's main board: the group of comparable runs with the most rows.
    """
    whole = [
        r
        for r in records
        if r.suite == suite and r.status == "done" and r.phase == "final" and r.limit is None
    ]
    done = one_per_seed(groups(whole)[0].records) if whole else []
    rows: list[Row] = []
    for key, claim in CLAIMS.items():
        every = [(inequality, differences(inequality, done)) for inequality in claim.inequalities]
        found = [one.values for _, one in every]
        shown = [
            f"{inequality.number} {one.shown()}" for inequality, one in every if len(one.values) > 1
        ]
        seeds = min((len(values) for values in found), default=0)
        decided = verdict(found, at_equal_id=claim.at_equal_id)
        rows.append(
            {
                "key": key,
                "text": claim.text,
                "shown": "; ".join(shown),
                "seeds": seeds,
                "verdict": decided,
            }
        )
    columns = [
        Column("key", ""),
        Column("text", "claim"),
        Column("shown", "difference in points [95 %]"),
    ]
    return Table([*columns, Column("seeds", kind="count"), Column("verdict")], rows)


def main(
    suite: Annotated[str, typer.Option(help="suite of the runs")] = DEFAULT_SUITE,
    store: StoreOption = None,
    form: FormatOption = Format.md,
) -> None:
    """Print every claim with its verdict."""
    from bench.results.store import Store, store_root

    print_tables([table(load(Store(store_root(store))), suite)], form)


if __name__ == "__main__":
    typer.run(main)
