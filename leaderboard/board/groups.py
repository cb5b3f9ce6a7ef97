"""Run records to groups that may be ranked together, and a group to rows: which runs are one method
over its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from bench.identity import canonical_json
from bench.results.record import RunRecord
from bench.results.store import Store

from .measures import when


def load(store: Store) -> list[RunRecord]:
    """The records that count: per (fit_id, eval_id) one done run (`precedence`); unfinished ones
    that nothing has replaced.
    """
    newest: dict[tuple[str, str, bool], RunRecord] = {}
    for _, record in store.records():
        key = (record.fit_id, record.eval_id, record.status == "done")
        if key not in newest or record.precedence >= newest[key].precedence:
            newest[key] = record
    done: dict[str, str] = {}
    for record in newest.values():
        if record.status == "done":
            done[record.fit_id] = max(done.get(record.fit_id, ""), when(record))
    return [
        r
        for r in newest.values()
        if r.status == "done" or r.fit_id not in done or when(r) > done[r.fit_id]
    ]


def select(
    records: Iterable[RunRecord],
    *,
    suites: Sequence[str] = (),
    backbones: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> list[RunRecord]:
    """Records that match one of the patterns (`*` and `?`) of every filter; a method by its name or
    its row's label.
    """

    def matches(patterns: Sequence[str], *names: str) -> bool:
        return not patterns or any(
            name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names
        )

    return [
        r
        for r in records
        if matches(suites, r.suite)
        and matches(backbones, r.backbone)
        and matches(methods, str(r.method.get("name")), r.label)
    ]


#: By how much, relatively, the NLLs of one computation may differ between two machines.
ROUNDING = 1e-6


@dataclass
class Group:
    """Runs that may stand in one ranking: all that they state about data, pixels and weights
    agrees.

    Attributes:
        facts: what was compared, field -> value. A run that says nothing on a field (a shift that
            it has not measured) fits in.
        apart: field -> (value of the suite's and backbone's main group, value here); empty for the
            main group.
    """

    suite: str
    backbone: str
    records: list[RunRecord]
    facts: dict[str, str]
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)

    def admits(self, facts: Mapping[str, str]) -> bool:
        """Whether nothing that is stated contradicts the group."""
        return all(self.facts.get(key, value) == value for key, value in facts.items())

    def comparable(self, records: Iterable[RunRecord]) -> list[RunRecord]:
        """Those of its suite and backbone that could stand in it, the group's own included."""
        here = (r for r in records if (r.suite, r.backbone) == (self.suite, self.backbone))
        return [r for r in here if self.admits(_facts(r))]


def _facts(record: RunRecord) -> dict[str, str]:
    facts = {
        "backbone weights": record.backbone_sha256,
        "pixels": record.pixels,
        "protocol": str(record.protocol),
    }
    facts |= {f"data of {split}": fingerprint for split, fingerprint in record.data.items()}
    facts |= {f"metric of {split}": metrics.metric for split, metrics in record.metrics.items()}
    facts |= {f"projection of {split}": name for split, name in record.projections.items()}
    facts["images per split"] = "all" if record.limit is None else f"at most {record.limit}"
    return {key: value for key, value in facts.items() if value}


def row_key(record: RunRecord) -> str:
    """What a row is: the method's identity without the seed. Checkpoints from elsewhere are never
    averaged: one row each.
    """
    return canonical_json(
        [record.method, record.phase, record.fit_id if record.phase == "external" else ""]
    )


def groups(records: Iterable[RunRecord]) -> list[Group]:
    """Comparable groups, one suite and backbone after the other, the main group (most rows, then
    most recent) of each first.
    """
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
    # Runs that leave a field open could join several groups; the largest kind of run founds the
    # first one, so that the outcome does not depend on the order of the folders.
    for kind in sorted(alike.values(), key=_weight, reverse=True):
        facts = _facts(kind[0])
        home = next((g for g in made if g.admits(facts)), None)
        if home is None:
            made.append(Group(suite, backbone, list(kind), facts))
        else:
            home.records += kind
            home.facts = {**facts, **home.facts}
    made.sort(key=lambda group: _weight(group.records), reverse=True)
    main = made[0].facts
    for group in made[1:]:
        group.apart = {
            key: (main[key], value)
            for key, value in group.facts.items()
            if main.get(key, value) != value
        }
    return made


def _weight(records: Sequence[RunRecord]) -> tuple[int, int, str, str]:
    last = max(map(when, records))
    return (
        len({row_key(r) for r in records}),
        len(records),
        last,
        min(r.fit_id + r.eval_id for r in records),
    )


def one_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The newest run of every row and seed: a seed that was fitted or evaluated twice must not
    count twice.
    """
    newest: dict[tuple[str, int], RunRecord] = {}
    for record in sorted(records, key=lambda r: (when(r), r.fit_id, r.eval_id)):
        newest[row_key(record), record.seed] = record
    return list(newest.values())


def deterministic(runs: Sequence[RunRecord]) -> bool:
    """Whether the seed changes nothing about two or more runs of a row, by what was measured and
    not by what the method says.

    Their scores are equal on every split that all have, and so are their NLLs but for the rounding
    of machines: scores alone can be equal by coincidence.
    """
    first, *others = runs
    shared = [split for split in first.metrics if all(split in run.metrics for run in others)]
    same = (
        run.metrics[split].score == first.metrics[split].score
        and math.isclose(run.metrics[split].nll, first.metrics[split].nll, rel_tol=ROUNDING)
        for run in others
        for split in shared
    )
    return bool(others and shared) and all(same)


def by_row(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs of every row, in the order of their seeds."""
    members: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        members.setdefault(row_key(record), []).append(record)
    return members


def labels(records: Iterable[RunRecord]) -> dict[str, str]:
    """A name for every row; rows of one label that are different methods get what differs behind
    it.
    """
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
    flat = [
        _flat({**r.method, **({"fit": r.fit_id} if r.phase == "external" else {})}) for r in twins
    ]
    own = flat[[r is record for r in twins].index(True)]
    keys = [
        key
        for key in dict.fromkeys(k for f in flat for k in f)
        if len({str(f.get(key, "")) for f in flat}) > 1
    ]
    shown = ", ".join(
        f"{key.replace('parameters.', '')}={str(own.get(key, ''))[:12]}" for key in keys
    )
    return f" [{shown}]" if shown else ""


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
