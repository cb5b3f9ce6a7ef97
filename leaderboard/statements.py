"""What the field says about these methods, tested on the runs of a store by paired intervals over seeds.

    python -m bench.leaderboard.statements --store STORE

Each statement is one or more inequalities between numbers of the same seed. An inequality holds if the 95 % t-interval of the
per-seed differences lies above zero, fails if it lies below, and is undecided otherwise; a statement holds if all of its
inequalities do, and fails if one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.cli.output import Column, Format, FormatOption, Row, StoreOption, Table, print_tables
from bench.runs.record import RunRecord

from .tradeoff import above_curve, interval_over_seeds, yardsticks

Verdict = Literal["holds", "fails", "undecided", "not measured"]
Number = Callable[[RunRecord], float | None]


@dataclass(frozen=True)
class Inequality:
    """`number` of the runs named `more` exceeds that of the runs named `less`; without `less`, it exceeds zero."""

    number: str
    more: str
    less: str = ""


STATEMENTS: Mapping[str, tuple[str, tuple[Inequality, ...]]] = {
    "a": (
        "zero-shot keeps more under shift, relative to ID, than fine-tuning",
        (Inequality("OOD - ID", "zero-shot", "full-finetune"),),
    ),
    "b": (
        "full fine-tuning gains ID and loses OOD",
        (Inequality("ID", "full-finetune", "zero-shot"), Inequality("OOD", "zero-shot", "full-finetune")),
    ),
    "c": (
        "the best interior point of the WiSE-FT curve has more OOD than both ends",
        (Inequality("best interior OOD - start", "full-finetune"), Inequality("best interior OOD - end", "full-finetune")),
    ),
    "d": (
        "linear probing lies between zero-shot and fine-tuning on ID, and keeps at least fine-tuning's OOD",
        (
            Inequality("ID", "linear-probe", "zero-shot"),
            Inequality("ID", "full-finetune", "linear-probe"),
            Inequality("OOD", "linear-probe", "full-finetune"),
        ),
    ),
    "e, zero-shot head": (
        "LP-FT keeps more OOD at equal ID than fine-tuning from the zero-shot head",
        (Inequality("above curve", "lp-ft", "full-finetune"),),
    ),
    "e, random head": (
        "LP-FT keeps more OOD at equal ID than fine-tuning from a random head",
        (Inequality("above curve", "lp-ft", "full-finetune, random head"),),
    ),
    "f": ("feature distillation lies above the WiSE-FT curve", (Inequality("above curve", "feature-distillation"),)),
    **{
        f"g, {mask} {fill}": (
            f"masked-counterfactual distillation ({mask} mask, {fill} fill) lies above feature distillation at equal ID",
            (Inequality("above curve", f"masked-counterfactual, {mask} {fill}", "feature-distillation"),),
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
    """The name by which statements call a run: the method and, where it matters, its head or its mask and fill."""
    name, parameters = record.method["name"], record.method["parameters"]
    if name == "masked-counterfactual":
        return f"{name}, {parameters['mask']} {parameters['fill']}"
    if name == "full-finetune" and parameters["head_init"] == "random":
        return f"{name}, random head"
    return str(name)


def numbers(records: Sequence[RunRecord]) -> dict[str, Number]:
    """What inequalities are about, as functions of a run; shares in [0, 1]."""
    curves = yardsticks(records)

    def identity(record: RunRecord) -> float | None:
        return record.metrics["id-test"].score if "id-test" in record.metrics else None

    def above(record: RunRecord) -> float | None:
        return above_curve(record, curves[record.seed]) if record.seed in curves else None

    def drop(record: RunRecord) -> float | None:
        at = identity(record)
        return None if at is None or record.ood is None else record.ood - at

    def interior(record: RunRecord, end: int) -> float | None:
        points = [point.ood for point in record.curve if point.ood is not None]
        return max(points[1:-1]) - points[end] if len(points) > 2 else None

    return {
        "ID": identity,
        "OOD": lambda record: record.ood,
        "OOD - ID": drop,
        "above curve": above,
        "best interior OOD - start": lambda record: interior(record, 0),
        "best interior OOD - end": lambda record: interior(record, -1),
    }


def differences(inequality: Inequality, records: Sequence[RunRecord]) -> list[float]:
    """Per-seed differences of an inequality, for the seeds that have both sides."""
    number = numbers(records)[inequality.number]

    def by_seed(name: str) -> dict[int, float]:
        return {r.seed: value for r in records if name_of(r) == name and (value := number(r)) is not None}

    more = by_seed(inequality.more)
    if not inequality.less:
        return list(more.values())
    less = by_seed(inequality.less)
    return [more[seed] - less[seed] for seed in sorted(more.keys() & less.keys())]


def verdict(found: Iterable[Sequence[float]]) -> Verdict:
    """Of a statement, from the differences of each of its inequalities."""
    single: list[Verdict] = []
    for values in found:
        if len(values) < 2:
            return "not measured"
        _, low, high = interval_over_seeds(values)
        single.append("holds" if low > 0 else "fails" if high < 0 else "undecided")
    return "fails" if "fails" in single else "undecided" if "undecided" in single else "holds"


def table(records: Sequence[RunRecord]) -> Table:
    """Every statement with its differences in points, intervals and verdict."""
    done = [r for r in records if r.status == "done" and r.phase == "final" and r.limit is None]
    rows: list[Row] = []
    for key, (text, inequalities) in STATEMENTS.items():
        found = [differences(inequality, done) for inequality in inequalities]
        shown = []
        for inequality, values in zip(inequalities, found, strict=True):
            if len(values) > 1:
                mean, low, high = (100 * value for value in interval_over_seeds(values))
                shown.append(f"{inequality.number} {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        seeds = min((len(values) for values in found), default=0)
        rows.append({"key": key, "text": text, "shown": "; ".join(shown), "seeds": seeds, "verdict": verdict(found)})
    columns = [Column("key", ""), Column("text", "statement"), Column("shown", "difference in points [95 %]")]
    return Table([*columns, Column("seeds", kind="count"), Column("verdict")], rows)


def main(store: StoreOption = None, form: FormatOption = Format.md) -> None:
    """Print every statement with its verdict."""
    from bench.runs.store import Store, store_root

    print_tables([table([record for _, record in Store(store_root(store)).records()])], form)


if __name__ == "__main__":
    import typer

    typer.run(main)
