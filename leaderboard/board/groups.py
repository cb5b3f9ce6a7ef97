"""Group run records that may be ranked together, and collect the seeds of each row."""

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
    """Return the records of a store that count.

    Of the done runs with the same fit_id and eval_id, the one that counts is that of the highest
    `precedence`. An unfinished run counts as long as no later run of the same fit is done.
    """
    # Done or not is part of the key: a later failure does not replace a result.
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
    """Return the records that match a pattern of every filter.

    Args:
        records: any records.
        suites: patterns with `*` and `?`; none match everything.
        backbones: the same.
        methods: the same, for the method's name or its label on the board.
    """

    def matches(patterns: Sequence[str], *names: str) -> bool:
        return not patterns or any(
            # A label may itself contain brackets, which fnmatch would read as a set of characters.
            name == pattern or fnmatchcase(name, pattern)
            for pattern in patterns
            for name in names
        )

    return [
        r
        for r in records
        if matches(suites, r.suite)
        and matches(backbones, r.backbone)
        and matches(methods, str(r.method.get("name")), r.label)
    ]


#: Relative difference that the NLLs of one computation may have between two machines.
ROUNDING = 1e-6


@dataclass
class Group:
    """Runs that may be ranked together: they agree in data, pixels, weights and protocol.

    Attributes:
        suite: name of the suite.
        backbone: name of the backbone.
        records: the runs.
        facts: field -> value that all runs agree in. A run that does not state a field, such as the
            data of a shift that it has not measured, does not contradict it.
        apart: field -> (value of the main group of this suite and backbone, value here); empty for
            the main group.
    """

    suite: str
    backbone: str
    records: list[RunRecord]
    facts: dict[str, str]
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)

    def admits(self, facts: Mapping[str, str]) -> bool:
        """Return whether none of these facts contradicts the group."""
        return all(self.facts.get(key, value) == value for key, value in facts.items())

    def comparable(self, records: Iterable[RunRecord]) -> list[RunRecord]:
        """Return the records of this suite and backbone that the group admits."""
        here = (r for r in records if (r.suite, r.backbone) == (self.suite, self.backbone))
        return [r for r in here if self.admits(_facts(r))]


def _facts(record: RunRecord) -> dict[str, str]:
    """Return what a run states about itself that comparable runs have to agree in."""
    facts = {
        "backbone weights": record.backbone_sha256,
        "pixels": record.pixels,
        "protocol": str(record.protocol),
    }
    # Facts are per split, so that runs which measured different shifts stay comparable on the
    # shifts that they share.
    facts |= {f"data of {split}": fingerprint for split, fingerprint in record.data.items()}
    facts |= {f"metric of {split}": metrics.metric for split, metrics in record.metrics.items()}
    facts |= {f"projection of {split}": name for split, name in record.projections.items()}
    # A score on fewer images is another quantity, whatever the rest agrees in.
    facts["images per split"] = "all" if record.limit is None else f"at most {record.limit}"
    # Runs of earlier versions leave some fields empty, which contradicts nothing.
    return {key: value for key, value in facts.items() if value}


def row_key(record: RunRecord) -> str:
    """Return the key of a record's row: the identity of the method without the seed.

    External checkpoints are never averaged, since nothing shows that they are of one recipe: each
    has its own row.
    """
    return canonical_json(
        [record.method, record.phase, record.fit_id if record.phase == "external" else ""]
    )


def groups(records: Iterable[RunRecord]) -> list[Group]:
    """Return the comparable groups, ordered by suite and backbone.

    Of one suite and backbone, the main group comes first: the one with the most rows, then with the
    newest run.
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
    # A run that leaves a field open could join several groups. Runs with the same facts are taken
    # from the most to the fewest, so that the groups do not depend on the order of the folders.
    for kind in sorted(alike.values(), key=_weight, reverse=True):
        facts = _facts(kind[0])
        home = next((g for g in made if g.admits(facts)), None)
        if home is None:
            made.append(Group(suite, backbone, list(kind), facts))
        else:
            home.records += kind
            # What the new runs state beyond the group's facts holds for the group from now on.
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
    """Return the rank of a group: its rows, its runs, its newest run; ids break ties."""
    last = max(map(when, records))
    return (
        len({row_key(r) for r in records}),
        len(records),
        last,
        min(r.fit_id + r.eval_id for r in records),
    )


def one_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the newest run of every row and seed.

    A seed that was fitted or evaluated twice would count twice in means and tests.
    """
    newest: dict[tuple[str, int], RunRecord] = {}
    for record in sorted(records, key=lambda r: (when(r), r.fit_id, r.eval_id)):
        newest[row_key(record), record.seed] = record
    return list(newest.values())


def deterministic(runs: Sequence[RunRecord]) -> bool:
    """Return whether the seed changes nothing about two or more runs of one row.

    This is decided by what was measured, and not by what the method claims: the scores are equal on
    every split that all runs have, and so are the NLLs up to `ROUNDING`. Equal scores alone can be
    a coincidence.
    """
    first, *others = runs
    shared = [split for split in first.metrics if all(split in run.metrics for run in others)]
    # Scores are counts of images, which machines agree in exactly. NLLs are sums of floating-point
    # numbers, whose order differs between machines.
    same = (
        run.metrics[split].score == first.metrics[split].score
        and math.isclose(run.metrics[split].nll, first.metrics[split].nll, rel_tol=ROUNDING)
        for run in others
        for split in shared
    )
    return bool(others and shared) and all(same)


def by_row(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return the runs of every row, ordered by seed."""
    members: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        members.setdefault(row_key(record), []).append(record)
    return members


def labels(records: Iterable[RunRecord]) -> dict[str, str]:
    """Return a name for every row, unique on its board.

    Rows that share a label but differ in their method get the difference appended in brackets.
    """
    first: dict[str, RunRecord] = {}
    for record in records:
        first.setdefault(row_key(record), record)
    twins: dict[str, list[RunRecord]] = {}
    for record in first.values():
        twins.setdefault(record.label, []).append(record)
    named = {}
    for key, record in first.items():
        # A checkpoint states what it was trained on, and nothing here can verify it.
        mark = " (external, training unverified)" if record.phase == "external" else ""
        alike = twins[record.label]
        named[key] = record.label + (_difference(record, alike) if len(alike) > 1 else "") + mark
    return named


def _difference(record: RunRecord, twins: Sequence[RunRecord]) -> str:
    """Return the parameters in which a record differs from others of its label."""
    flat = [
        # External checkpoints may differ in nothing but their weights, which the fit_id stands for.
        _flat({**r.method, **({"fit": r.fit_id} if r.phase == "external" else {})})
        for r in twins
    ]
    own = flat[[r is record for r in twins].index(True)]
    keys = [
        key
        for key in dict.fromkeys(k for f in flat for k in f)
        if len({str(f.get(key, "")) for f in flat}) > 1
    ]
    # Hashes are long, and their first characters tell them apart.
    shown = ", ".join(
        f"{key.replace('parameters.', '')}={str(own.get(key, ''))[:12]}" for key in keys
    )
    return f" [{shown}]" if shown else ""


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters with dotted keys, such as `of.lr`."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
