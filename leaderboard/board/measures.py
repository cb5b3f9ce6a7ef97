"""The numbers of a run that become columns of a board."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from bench.results.record import RunRecord
from bench.tables.table import Kind

from ..statistics.intervals import Interval, over_images
from ..statistics.tradeoff import ID as ID
from ..statistics.tradeoff import area_under_curve, average, offer_at
from .baseline import Line, effective, matched_id

#: Keys of the columns of the distance above the curve, and of what the curve offers.
ABOVE, OFFERED = "above_curve", "curve_ood"


def when(record: RunRecord) -> str:
    """The time by which runs are ordered: the end, or the start of one without an end."""
    return record.finished or record.started


@dataclass(frozen=True)
class Measure:
    """A number of a run that becomes a column: mean over seeds and, where `spread`, their sample SD
    and intervals.

    Attributes:
        key: name for machines.
        title: heading for people.
        of: the number of a run; shares in [0, 1], seconds, bytes.
        splits: those whose mean score it is, if it is one; only then an interval over images can be
            given.
        human: whether people see it unasked; csv and json always have it.
        among: the runs that it can be asked of. If one of them has no value, the row has none: a
            mean over the others would be
        over runs that were selected by their outcome.
    """

    key: str
    title: str
    kind: Kind
    of: Callable[[RunRecord], float | None]
    better: Literal["high", "low"] = "high"
    spread: bool = True
    splits: tuple[str, ...] = ()
    human: bool = True
    among: Callable[[RunRecord], bool] | None = None


@dataclass(frozen=True)
class Shifts:
    """The shifts of a group.

    Attributes:
        all: every shift of any run, in the cards' order.
        shared: the ones that the OOD average is taken over: declared for it by every run and
            measured in every run.
    """

    all: list[str]
    shared: list[str]


def shifts_of(records: Sequence[RunRecord]) -> Shifts:
    """The shifts that the runs have, and those that all of them have."""
    every = list(
        dict.fromkeys(shift for r in sorted(records, key=when, reverse=True) for shift in r.shifts)
    )
    shared = [s for s in every if all(s in r.averaged and s in r.metrics for r in records)]
    return Shifts(every, shared)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if there are none or one is missing."""
    if not values or None in values:
        return None
    return sum(cast(Sequence[float], values)) / len(values)


def metric(split: str, name: str) -> Callable[[RunRecord], float | None]:
    """A metric of a run on one split; None where it was not measured."""
    return lambda record: getattr(record.metrics[split], name) if split in record.metrics else None


def _ood(name: str, shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    every = [metric(shift, name) for shift in shifts]
    return every[0] if len(every) == 1 else lambda record: mean([of(record) for of in every])


def _scores(key: str, title: str, splits: Sequence[str], *, human: bool = True) -> Measure:
    return Measure(key, title, "percent", _ood("score", splits), splits=tuple(splits), human=human)


_KINDS: dict[str, tuple[str, Kind, Literal["high", "low"]]] = {
    "accuracy": ("accuracy", "percent", "high"),
    "class_mean": ("class mean", "percent", "high"),
    "macro_f1": ("macro F1", "percent", "high"),
    "worst_group": ("worst group", "percent", "high"),
    "nll": ("NLL", "number", "low"),
    "ece": ("ECE", "percent", "low"),
    "brier": ("Brier", "number", "low"),
}
#: What machines get unasked; people name them with `--columns`.
_QUIET = ("nll", "ece", "id_matched", "worst_shift", "curve_area", "memory")
#: What `--columns` accepts.
EXTRAS = (*_KINDS, "id_matched", "worst_shift", "curve_area", "id_val", "memory", "eval_seconds")


def extra_measures(name: str, shifts: Sequence[str], *, human: bool = True) -> list[Measure]:
    """The columns behind one name of `EXTRAS`; a metric gives one for ID and one for the mean over
    `shifts`.
    """
    single: dict[str, Measure] = {
        "id_val": Measure("id_val", "id-val", "percent", metric("id-val", "score"), human=human),
        "id_matched": Measure(
            "id_matched", "ID on the shifts' classes", "percent", _id_matched(shifts), human=human
        ),
        "worst_shift": Measure(
            "worst_shift", "worst shift", "percent", _worst(shifts), human=human
        ),
        "curve_area": Measure(
            "curve_area", "area under curve", "percent", _area(shifts), human=human
        ),
        "memory": Measure(
            "memory_bytes", "peak memory", "bytes", _memory, "low", spread=False, human=human
        ),
        "eval_seconds": Measure(
            "eval_seconds",
            "evaluation",
            "seconds",
            lambda r: r.eval_seconds,
            "low",
            spread=False,
            human=human,
        ),
    }
    if name in single:
        return [single[name]]
    title, kind, better = _KINDS[name]
    return [
        Measure(f"{name}_id", f"{title} ID", kind, metric(ID, name), better, human=human),
        Measure(f"{name}_ood", f"{title} OOD", kind, _ood(name, shifts), better, human=human),
    ]


def _memory(record: RunRecord) -> float | None:
    return None if record.peak_memory_mb is None else record.peak_memory_mb * 2**20


def _area(shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    return lambda record: area_under_curve(record, shifts)


def _worst(shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    def worst(record: RunRecord) -> float | None:
        scores = [record.metrics[shift].score for shift in shifts if shift in record.metrics]
        return min(scores) if scores and len(scores) == len(shifts) else None

    return worst


def _id_matched(shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    """Mean over the shifts of ID scored on the shift's classes only; where a shift has all classes,
    that is ID itself.
    """

    def matched(record: RunRecord) -> float | None:
        everything = metric(ID, "score")(record)
        return mean([matched_id(record, shift, everything) for shift in shifts])

    return matched


def factor_measures(records: Sequence[RunRecord], measured: Sequence[str]) -> list[Measure]:
    """One column per declared combination of factors: the mean over the shifts that declare exactly
    it.

    Args:
        measured: shifts that every run has, whether the OOD average includes them or not: crossing
            the factors needs both.
    """
    declared: dict[str, dict[str, str]] = {}
    for record in sorted(records, key=when):
        declared |= record.factors
    members: dict[str, list[str]] = {}
    for shift in measured:
        combination = ", ".join(
            f"{key} {value}" for key, value in sorted(declared.get(shift, {}).items())
        )
        members.setdefault(combination or "no declared factor", []).append(shift)
    return [_scores(name, f"{name} ({len(of)})", of) for name, of in members.items()]


def _above(curves: Mapping[int, RunRecord], shifts: Sequence[str]) -> list[Measure]:
    """OOD above the interpolation curve of the same seed's full fine-tuning, where such a curve was
    measured.
    """
    known: dict[tuple[str, str], float | None] = {}

    def offer(record: RunRecord) -> float | None:
        key = (record.fit_id, record.eval_id)
        if key not in known:
            curve = curves.get(record.seed)
            known[key] = None if curve is None else offer_at(record, curve, shifts)
        return known[key]

    def distance(record: RunRecord) -> float | None:
        # The average as of the curve's points, so that the curve's end is above itself by nothing,
        # to the last bit.
        reached = average(
            {split: metrics.score for split, metrics in record.metrics.items()}, shifts
        )
        offered = offer(record)
        return None if reached is None or offered is None else reached - offered

    def among(record: RunRecord) -> bool:
        return record.seed in curves

    made = [
        Measure(ABOVE, "above curve", "percent", distance, among=among),
        Measure(OFFERED, "curve at that ID", "percent", offer, among=among, human=False),
    ]
    return made if curves else []


_TAKEN = {
    "group",
    "suite",
    "backbone",
    "method",
    "external",
    "runs",
    "seeds",
    "fits",
    "id",
    "ood",
    ABOVE,
    OFFERED,
    "cost",
}
_TAKEN |= {
    "status",
    "seed",
    "error",
    "started",
    "trials",
    "search_seconds",
    "search_rule",
    "candidates",
    "tie",
    "rank",
    "rank_low",
    "rank_high",
    "front",
    "deterministic",
    "over_seeds",
    "effective",
}


def _relative(records: Sequence[RunRecord]) -> list[Measure]:
    """Scores relative to a reference's, such as mCE, where the suite's card defines one."""
    names = dict.fromkeys(name for r in records for name in r.relative)

    def of(name: str) -> Callable[[RunRecord], float | None]:
        return lambda record: record.relative.get(name)

    return [Measure(f"relative {name}", name, "number", of(name), "low") for name in names]


def _effective(lines: Mapping[str, Line], shifts: Sequence[str]) -> list[Measure]:
    """Effective robustness on every shift that has a line and, where all of the OOD average do,
    their mean.
    """

    def of(shift: str) -> Callable[[RunRecord], float | None]:
        return lambda record: effective(record, shift, lines[shift])

    single = [
        Measure(f"effective {s}", f"effective, {s}", "percent", of(s), human=False) for s in lines
    ]
    if not shifts or any(shift not in lines for shift in shifts):
        return single
    return [
        Measure("effective", "effective", "percent", lambda r: mean([of(s)(r) for s in shifts])),
        *single,
    ]


def measures(
    records: Sequence[RunRecord],
    shifts: Shifts,
    *,
    by: str = "shift",
    extras: Sequence[str] = (),
    lines: Mapping[str, Line] | None = None,
    curves: Mapping[int, RunRecord] | None = None,
) -> list[Measure]:
    """All columns of a group: ID, its shifts (or factors), the OOD average, effective robustness,
    extras, cost.

    Args:
        curves: seed -> the run whose curve runs of that seed are measured against (`yardsticks`).
        lines: shift -> baseline line of effective robustness. Without any, there are no such
            columns.
    """
    taken = _TAKEN | {m.key for name in EXTRAS for m in extra_measures(name, ())}
    if by == "factor":
        middle = factor_measures(
            records, [s for s in shifts.all if all(s in r.metrics for r in records)]
        )
    else:
        # A shift may have any name, also that of another column or of another column's SD or
        # interval.
        keys = {
            s: (
                f"shift {s}"
                if s in taken or s.endswith(ENDINGS) or s.startswith(("effective ", "relative "))
                else s
            )
            for s in shifts.all
        }
        middle = [_scores(keys[s], s, [s]) for s in shifts.all]
    return [
        _scores("id", "ID", [ID]),
        *middle,
        _scores("ood", "OOD", shifts.shared),
        *_above(curves or {}, shifts.shared),
        *_effective(lines or {}, shifts.shared),
        *_relative(records),
        *(
            m
            for name in dict.fromkeys((*extras, *_QUIET))
            for m in extra_measures(name, shifts.shared, human=name in extras)
        ),
        Measure("cost", "training", "seconds", lambda r: r.fit_seconds, "low", spread=False),
    ]


#: What is put behind a column's key for its sample SD and its intervals.
ENDINGS = ("_sd", "_seeds_low", "_seeds_high", "_images_low", "_images_high")


def image_interval(measure: Measure, records: Sequence[RunRecord]) -> Interval | None:
    """Interval over images of a measure that is an accuracy or a mean of accuracies; None for any
    other.
    """
    shares = []
    for split in measure.splits:
        found = [r.metrics[split] for r in records if split in r.metrics]
        if len(found) < len(records) or any(m.metric != "accuracy" for m in found):
            return None
        shares.append((sum(m.score for m in found) / len(found), min(m.images for m in found)))
    return over_images(shares)
