"""Define the columns of a board: what they take from a run, and how they are shown."""

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
    """Return the time by which runs are ordered: their end, or their start if they have no end."""
    return record.finished or record.started


@dataclass(frozen=True)
class Measure:
    """A column of a board: a number of each run, averaged over the seeds of a row.

    Attributes:
        key: name in csv and json.
        title: heading of the column.
        kind: how the number is formatted.
        of: returns the number of a run (shares in [0, 1], seconds, bytes), or None.
        better: whether high or low values are better.
        spread: whether the column has a sample SD and intervals.
        splits: the splits whose mean score it is, if it is one. Only these have intervals over
            images.
        human: whether people see the column without requesting it; csv and json always have it.
        among: which runs can have the number at all. If one of these has none, the row has none: a
            mean over the others would be over runs that were selected by their outcome.
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
        shared: the shifts of the OOD average: declared for it by every run, and measured in every
            run.
    """

    all: list[str]
    shared: list[str]


def shifts_of(records: Sequence[RunRecord]) -> Shifts:
    """Return all shifts that the runs have, and those that the OOD average is over."""
    # The newest card decides the order, where a suite's card has changed.
    shifts = list(
        dict.fromkeys(shift for r in sorted(records, key=when, reverse=True) for shift in r.shifts)
    )
    shared = [s for s in shifts if all(s in r.averaged and s in r.metrics for r in records)]
    return Shifts(shifts, shared)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing or there are none."""
    if not values or None in values:
        return None
    return sum(cast(Sequence[float], values)) / len(values)


def metric(split: str, name: str) -> Callable[[RunRecord], float | None]:
    """Return a function that reads a metric of a run on one split, or None if not measured."""
    return lambda record: getattr(record.metrics[split], name) if split in record.metrics else None


def _ood(name: str, shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    metrics = [metric(shift, name) for shift in shifts]
    # One shift needs no mean. A board of thousands of runs calls this for every cell.
    return metrics[0] if len(metrics) == 1 else lambda record: mean([of(record) for of in metrics])


def _scores(key: str, title: str, splits: Sequence[str], *, human: bool = True) -> Measure:
    return Measure(key, title, "percent", _ood("score", splits), splits=tuple(splits), human=human)


#: Metric in a record -> (title, kind, which values are better).
_KINDS: dict[str, tuple[str, Kind, Literal["high", "low"]]] = {
    "accuracy": ("accuracy", "percent", "high"),
    "class_mean": ("class mean", "percent", "high"),
    "macro_f1": ("macro F1", "percent", "high"),
    "worst_group": ("worst group", "percent", "high"),
    "nll": ("NLL", "number", "low"),
    "ece": ("ECE", "percent", "low"),
    "brier": ("Brier", "number", "low"),
}
#: Columns that csv and json always have, and tables only with `--columns`.
_QUIET = ("nll", "ece", "id_matched", "worst_shift", "curve_area", "memory")
#: Names that `--columns` accepts.
EXTRAS = (*_KINDS, "id_matched", "worst_shift", "curve_area", "id_val", "memory", "eval_seconds")


def extra_measures(name: str, shifts: Sequence[str], *, human: bool = True) -> list[Measure]:
    """Return the columns behind one name of `EXTRAS`.

    A metric gives two columns, one for ID and one for the mean over `shifts`.
    """
    # Names that are one column each. All others are metrics, which `_KINDS` describes.
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
    # Records count mebibytes, and columns of bytes count bytes.
    return None if record.peak_memory_mb is None else record.peak_memory_mb * 2**20


def _area(shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    return lambda record: area_under_curve(record, shifts)


def _worst(shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    def worst(record: RunRecord) -> float | None:
        scores = [record.metrics[shift].score for shift in shifts if shift in record.metrics]
        # The lowest of the shifts that were measured would look better where a hard one is missing.
        return min(scores) if scores and len(scores) == len(shifts) else None

    return worst


def _id_matched(shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    """Return a function that averages ID on the shift's classes over the shifts.

    Where a shift has all classes, that is ID itself.
    """

    def matched(record: RunRecord) -> float | None:
        everything = metric(ID, "score")(record)
        return mean([matched_id(record, shift, everything) for shift in shifts])

    return matched


def factor_measures(records: Sequence[RunRecord], measured: Sequence[str]) -> list[Measure]:
    """Return one column per declared combination of factors.

    A column is the mean over the shifts that declare exactly this combination.

    Args:
        records: runs, of which the newest card's factors count.
        measured: shifts that every run has. Those outside the OOD average are included, since
            crossing two factors needs all combinations.
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
    """Return the columns of OOD above the curve of the same seed's full fine-tuning, if any."""
    # Both columns need the same offer, which takes an envelope per run.
    known: dict[tuple[str, str], float | None] = {}

    def offer(record: RunRecord) -> float | None:
        key = (record.fit_id, record.eval_id)
        if key not in known:
            curve = curves.get(record.seed)
            known[key] = None if curve is None else offer_at(record, curve, shifts)
        return known[key]

    def distance(record: RunRecord) -> float | None:
        # `average` is what the curve's points use. With another order of summation the end of the
        # curve would not be exactly zero above itself.
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


#: Keys that a shift's column may not have, since another column or field of the table has them.
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
    """Return columns of scores relative to a reference, such as mCE, where the card defines one."""
    names = dict.fromkeys(name for r in records for name in r.relative)

    def of(name: str) -> Callable[[RunRecord], float | None]:
        return lambda record: record.relative.get(name)

    return [Measure(f"relative {name}", name, "number", of(name), "low") for name in names]


def _effective(lines: Mapping[str, Line], shifts: Sequence[str]) -> list[Measure]:
    """Return columns of effective robustness.

    Every shift with a line has one, and so has their mean if all shifts of the OOD average have
    lines: a mean over some of them could not be read next to OOD.
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
    """Return all columns of a group, in their order.

    Args:
        records: runs of the group.
        shifts: its shifts.
        by: what stands between ID and OOD: a column per `shift` or per `factor`.
        extras: names of `EXTRAS` that tables show.
        lines: shift -> baseline line of effective robustness; without any, there are no such
            columns.
        curves: seed -> run whose curve the runs of that seed are measured against
            (`tradeoff.references`).
    """
    # The keys of all extras are reserved, so that a shift's key does not depend on `--columns`.
    taken = _TAKEN | {m.key for name in EXTRAS for m in extra_measures(name, ())}
    if by == "factor":
        middle = factor_measures(
            records, [s for s in shifts.all if all(s in r.metrics for r in records)]
        )
    else:
        # Cards name shifts freely. A name that another column has, or that ends like the key of its
        # SD or interval, gets a prefix.
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


#: Endings of the keys of a column's sample SD and intervals.
ENDINGS = ("_sd", "_seeds_low", "_seeds_high", "_images_low", "_images_high")


def image_interval(measure: Measure, records: Sequence[RunRecord]) -> Interval | None:
    """Return the interval over images of an accuracy, or of a mean of accuracies; else None."""
    shares = []
    for split in measure.splits:
        found = [r.metrics[split] for r in records if split in r.metrics]
        # Wilson's interval is of a share of images, which macro F1 and the worst group are not.
        if len(found) < len(records) or any(m.metric != "accuracy" for m in found):
            return None
        # More seeds are not more images: the count is that of one run, and the smallest where they
        # differ.
        shares.append((sum(m.score for m in found) / len(found), min(m.images for m in found)))
    return over_images(shares)
