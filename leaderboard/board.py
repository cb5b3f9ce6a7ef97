"""Run records to comparable groups, and a group to rows averaged over seeds. Pure functions; nothing here prints or ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from bench.cli.output import Kind, Row
from bench.identity import canonical_json
from bench.runs.record import RunRecord, SplitMetrics

from .tradeoff import above_curve, yardsticks

if TYPE_CHECKING:
    from bench.runs.store import Store

ID = "id-test"


def _when(record: RunRecord) -> str:
    return record.finished or record.started


def load(store: Store) -> list[RunRecord]:
    """The records that count: per (fit_id, eval_id) the latest done one; unfinished ones where nothing done has replaced them."""
    newest: dict[tuple[str, str, bool], RunRecord] = {}
    for _, record in store.records():
        key = (record.fit_id, record.eval_id, record.status == "done")
        if key not in newest or _when(record) >= _when(newest[key]):
            newest[key] = record
    done: dict[str, str] = {}
    for record in newest.values():
        if record.status == "done":
            done[record.fit_id] = max(done.get(record.fit_id, ""), _when(record))
    return [r for r in newest.values() if r.status == "done" or r.fit_id not in done or _when(r) > done[r.fit_id]]


def frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per run and split, with every metric: for analyses of one's own."""
    keys = ("status", "label", "backbone", "suite", "seed", "phase", "limit", "pixels", "fit_id", "eval_id", "fit_seconds")
    rows = [
        {**{key: getattr(r, key) for key in keys}, "method": r.method.get("name"), "split": split, **metrics.model_dump()}
        for r in records
        for split, metrics in r.metrics.items()
    ]
    return pd.DataFrame(rows, columns=[*keys, "method", "split", *SplitMetrics.model_fields])


def select(
    records: Iterable[RunRecord], *, suites: Sequence[str] = (), backbones: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[RunRecord]:
    """Records that match one of the patterns (`*` and `?`) of every filter; a method by its name or its row's label."""

    def matches(patterns: Sequence[str], *names: str) -> bool:
        return not patterns or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)

    return [
        r
        for r in records
        if matches(suites, r.suite) and matches(backbones, r.backbone) and matches(methods, str(r.method.get("name")), r.label)
    ]


@dataclass
class Group:
    """Runs that may stand in one ranking: all that they state about data, pixels and weights agrees.

    Attributes:
        facts: what was compared, field -> value. A run that says nothing on a field (a shift that it has not measured) fits in.
        apart: field -> (value of the suite's and backbone's main group, value here); empty for the main group.
    """

    suite: str
    backbone: str
    records: list[RunRecord]
    facts: dict[str, str]
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)


def _facts(record: RunRecord) -> dict[str, str]:
    facts = {"backbone weights": record.backbone_sha256, "pixels": record.pixels, "protocol": str(record.protocol)}
    facts |= {f"data of {split}": fingerprint for split, fingerprint in record.data.items()}
    facts |= {f"metric of {split}": metrics.metric for split, metrics in record.metrics.items()}
    facts["images per split"] = "all" if record.limit is None else f"at most {record.limit}"
    return {key: value for key, value in facts.items() if value}


def row_key(record: RunRecord) -> str:
    """What a row is: the method's identity without the seed. Checkpoints from elsewhere are never averaged: one row each."""
    return canonical_json([record.method, record.phase, record.fit_id if record.phase == "external" else ""])


def groups(records: Iterable[RunRecord]) -> list[Group]:
    """Comparable groups, one suite and backbone after the other, the main group (most rows, then most recent) of each first."""
    places: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        places.setdefault((record.suite, record.backbone), []).append(record)
    found: list[Group] = []
    for (suite, backbone), here in sorted(places.items()):
        found += _split(suite, backbone, here)
    return found


def _split(suite: str, backbone: str, records: list[RunRecord]) -> list[Group]:
    alike: dict[str, list[RunRecord]] = {}
    for record in records:
        alike.setdefault(canonical_json(_facts(record)), []).append(record)
    made: list[Group] = []
    # Runs that leave a field open could join several groups; the largest kind of run founds the first one, so that the
    # outcome does not depend on the order of the folders.
    for kind in sorted(alike.values(), key=_weight, reverse=True):
        facts = _facts(kind[0])
        home = next((g for g in made if all(g.facts.get(key, value) == value for key, value in facts.items())), None)
        if home is None:
            made.append(Group(suite, backbone, list(kind), facts))
        else:
            home.records += kind
            home.facts = {**facts, **home.facts}
    made.sort(key=lambda group: _weight(group.records), reverse=True)
    main = made[0].facts
    for group in made[1:]:
        group.apart = {key: (main[key], value) for key, value in group.facts.items() if main.get(key, value) != value}
    return made


def _weight(records: Sequence[RunRecord]) -> tuple[int, int, str, str]:
    last = max(map(_when, records))
    return len({row_key(r) for r in records}), len(records), last, min(r.fit_id + r.eval_id for r in records)


@dataclass(frozen=True)
class Measure:
    """A number of a run that becomes a column: mean over seeds and, where `spread`, their sample SD."""

    key: str
    title: str
    kind: Kind
    of: Callable[[RunRecord], float | None]
    better: Literal["high", "low"] = "high"
    spread: bool = True


@dataclass(frozen=True)
class Shifts:
    """The shifts of a group.

    Attributes:
        all: every shift of any run, in the cards' order. shared: the ones that the OOD average is taken over: declared for
            it by every run and measured in every run.
    """

    all: list[str]
    shared: list[str]


def shifts_of(records: Sequence[RunRecord]) -> Shifts:
    """The shifts that the runs have, and those that all of them have."""
    every = list(dict.fromkeys(shift for r in sorted(records, key=_when, reverse=True) for shift in r.shifts))
    shared = [s for s in every if all(s in r.averaged and s in r.metrics for r in records)]
    return Shifts(every, shared)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _metric(split: str, name: str) -> Callable[[RunRecord], float | None]:
    return lambda record: getattr(record.metrics[split], name) if split in record.metrics else None


def _ood(name: str, shifts: Sequence[str]) -> Callable[[RunRecord], float | None]:
    return lambda record: _mean([_metric(shift, name)(record) for shift in shifts])


_KINDS: dict[str, tuple[str, Kind, Literal["high", "low"]]] = {
    "accuracy": ("accuracy", "percent", "high"),
    "class_mean": ("class mean", "percent", "high"),
    "macro_f1": ("macro F1", "percent", "high"),
    "worst_group": ("worst group", "percent", "high"),
    "nll": ("NLL", "number", "low"),
    "ece": ("ECE", "percent", "low"),
    "brier": ("Brier", "number", "low"),
}
#: What `--columns` accepts.
EXTRAS = (*_KINDS, "id_val", "memory", "eval_seconds")


def extra_measures(name: str, shifts: Sequence[str]) -> list[Measure]:
    """The columns behind one name of `EXTRAS`; a metric gives one for ID and one for the mean over `shifts`."""
    if name == "id_val":
        return [Measure("id_val", "id-val", "percent", _metric("id-val", "score"))]
    if name == "memory":
        return [Measure("memory_bytes", "peak memory", "bytes", _memory, "low", spread=False)]
    if name == "eval_seconds":
        return [Measure("eval_seconds", "evaluation", "seconds", lambda r: r.eval_seconds, "low", spread=False)]
    title, kind, better = _KINDS[name]
    return [
        Measure(f"{name}_id", f"{title} ID", kind, _metric(ID, name), better),
        Measure(f"{name}_ood", f"{title} OOD", kind, _ood(name, shifts), better),
    ]


def _memory(record: RunRecord) -> float | None:
    return None if record.peak_memory_mb is None else record.peak_memory_mb * 2**20


def factor_measures(records: Sequence[RunRecord], measured: Sequence[str]) -> list[Measure]:
    """One column per declared combination of factors: the mean over the shifts that declare exactly it.

    Args:
        measured: shifts that every run has, whether the OOD average includes them or not: crossing the factors needs both.
    """
    declared: dict[str, dict[str, str]] = {}
    for record in sorted(records, key=_when):
        declared |= record.factors
    members: dict[str, list[str]] = {}
    for shift in measured:
        combination = ", ".join(f"{key} {value}" for key, value in sorted(declared.get(shift, {}).items()))
        members.setdefault(combination or "no declared factor", []).append(shift)
    return [Measure(name, f"{name} ({len(of)})", "percent", _ood("score", of)) for name, of in members.items()]


def _above(records: Sequence[RunRecord]) -> list[Measure]:
    """OOD above the interpolation curve of the same seed's full fine-tuning, where such a curve was measured."""
    curves = yardsticks(records)

    def distance(record: RunRecord) -> float | None:
        curve = curves.get(record.seed)
        return None if curve is None else above_curve(record, curve)

    return [Measure("above_curve", "above curve", "percent", distance)] if curves else []


_TAKEN = {"group", "suite", "backbone", "method", "external", "runs", "seeds", "fits", "id", "ood", "above_curve", "cost"}
_TAKEN |= {"status", "seed", "error", "started", "trials", "search_seconds"}


def measures(records: Sequence[RunRecord], shifts: Shifts, *, by: str = "shift", extras: Sequence[str] = ()) -> list[Measure]:
    """All columns of a group: ID, its shifts (or factors), the OOD average, extras, cost."""
    taken = _TAKEN | {m.key for name in extras for m in extra_measures(name, ())}
    if by == "factor":
        middle = factor_measures(records, [s for s in shifts.all if all(s in r.metrics for r in records)])
    else:
        # A shift may have any name, also that of another column or of another column's SD.
        keys = {s: f"shift {s}" if s in taken or s.endswith("_sd") else s for s in shifts.all}
        middle = [Measure(keys[s], s, "percent", _metric(s, "score")) for s in shifts.all]
    return [
        Measure("id", "ID", "percent", _metric(ID, "score")),
        *middle,
        Measure("ood", "OOD", "percent", _ood("score", shifts.shared)),
        *_above(records),
        *(measure for name in dict.fromkeys(extras) for measure in extra_measures(name, shifts.shared)),
        Measure("cost", "training", "seconds", lambda r: r.fit_seconds, "low", spread=False),
    ]


def one_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The newest run of every row and seed: a seed that was fitted or evaluated twice must not count twice."""
    newest: dict[tuple[str, int], RunRecord] = {}
    for record in sorted(records, key=lambda r: (_when(r), r.fit_id, r.eval_id)):
        newest[row_key(record), record.seed] = record
    return list(newest.values())


def by_row(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs of every row, in the order of their seeds."""
    members: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        members.setdefault(row_key(record), []).append(record)
    return members


def rows(records: Sequence[RunRecord], columns: Sequence[Measure]) -> list[dict[str, Any]]:
    """Rows of one group (from `one_per_seed`): what names them, and per measure the mean and sample SD over seeds."""
    named = labels(records)
    numbers = pd.DataFrame([[m.of(r) for m in columns] for r in records], columns=[m.key for m in columns], dtype="float64")
    seeds = numbers.groupby([row_key(r) for r in records], sort=False)
    # pandas divides by n - 1 (ddof = 1), and leaves the SD of a single seed empty.
    means, deviations = seeds.mean().to_dict("index"), seeds.std(ddof=1).to_dict("index")
    found = []
    for key, runs in by_row(records).items():
        row: dict[str, Any] = {
            "suite": runs[0].suite,
            "backbone": runs[0].backbone,
            "method": named[key],
            "external": runs[0].phase == "external",
            "trials": max(r.search_trials for r in runs),
            "search_seconds": max((r.search_seconds for r in runs if r.search_seconds is not None), default=None),
            "runs": len(runs),
            "seeds": " ".join(str(r.seed) for r in runs),
            "fits": " ".join(r.fit_id for r in runs),
        }
        for measure in columns:
            row[measure.key] = _known(means[key][measure.key])
            if measure.spread:
                row[f"{measure.key}_sd"] = _known(deviations[key][measure.key])
        found.append(row)
    return found


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def ranked(found: list[dict[str, Any]], columns: Sequence[Measure], by: str) -> list[Row]:
    """Rows with the best first (texts from A to Z, smaller is better for losses and costs); holes last."""
    low = {measure.key for measure in columns if measure.better == "low"}
    order = sorted((row for row in found if row.get(by) is not None), key=lambda row: row["method"])
    descending = by not in low and not isinstance(order[0][by] if order else "", str)
    order.sort(key=lambda row: row[by], reverse=descending)
    return [*order, *sorted((row for row in found if row.get(by) is None), key=lambda row: row["method"])]


def labels(records: Iterable[RunRecord]) -> dict[str, str]:
    """A name for every row; rows of one label that are different methods get what differs behind it."""
    first: dict[str, RunRecord] = {}
    for record in records:
        first.setdefault(row_key(record), record)
    twins: dict[str, list[RunRecord]] = {}
    for record in first.values():
        twins.setdefault(record.label, []).append(record)
    named = {}
    for key, record in first.items():
        mark = " (external, training unverified)" if record.phase == "external" else ""
        alike = twins[record.label]
        named[key] = record.label + (_difference(record, alike) if len(alike) > 1 else "") + mark
    return named


def _difference(record: RunRecord, twins: Sequence[RunRecord]) -> str:
    flat = [_flat({**r.method, **({"fit": r.fit_id} if r.phase == "external" else {})}) for r in twins]
    own = flat[[r is record for r in twins].index(True)]
    keys = [key for key in dict.fromkeys(k for f in flat for k in f) if len({str(f.get(key, "")) for f in flat}) > 1]
    shown = ", ".join(f"{key.replace('parameters.', '')}={str(own.get(key, ''))[:12]}" for key in keys)
    return f" [{shown}]" if shown else ""


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
