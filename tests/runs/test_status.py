"""What a plan says of a run is what the run then does, whatever the store holds of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.errors import Interrupted
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import write_pack
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.run_spec import Settings, run_spec
from bench.runs.execute import make_here
from bench.runs.status import RunStatus, status_of
from bench.stopping import Reporter
from bench.storage.lease import Lease
from bench.sweeps.sweep import Sweep, run_sweep

from support.runs import NAN, Listener, run

pytestmark = pytest.mark.waits


@dataclass
class Place:
    """A suite, a store, and what is held there."""

    suite: Path
    root: Path
    held: list[Lease] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.root / "mine")

    def run(self, *methods: str, **fields: Any) -> list[RunRecord]:
        records, _ = run(*methods, suite=self.suite, store=self.store.root, **fields)
        return records

    def came(self, *methods: str, **fields: Any) -> None:
        """Make runs elsewhere, and merge them from a pack."""
        records, _ = run(*methods, suite=self.suite, store=self.root / "theirs", **fields)
        write_pack(
            Store(self.root / "theirs"),
            records,
            self.root / "theirs.shiftpack",
            logits=fields.get("keep_logits", True),
        )
        merge([self.root / "theirs.shiftpack"], self.store)

    def stopped(self, *methods: str, at: int) -> None:
        with pytest.raises(Interrupted):
            run(*methods, suite=self.suite, store=self.store.root, stop_at=at)

    def hold(self, *methods: str) -> None:
        """Hold the run's folder, as a process that is at it does, until somebody waits for it."""
        (record,) = self.run(*methods)
        folder = self.store.run_dir(record)
        self.store.forget(record.fit_id, waiting=lambda claim: None)
        lease = Lease(folder)
        lease.__enter__()
        self.held.append(lease)

    def method(self, text: str) -> str:
        path = self.root / "plugin.py"
        path.write_text(text, encoding="utf-8")
        return str(path)


class Reports(Listener):
    """Lets go of what is held as soon as it is waited for."""

    def __init__(self, held: list[Lease]) -> None:
        super().__init__()
        self._held = held

    def event(self, kind: str, **fields: Any) -> None:
        super().event(kind, **fields)
        if kind == "waiting":
            while self._held:
                self._held.pop().__exit__(None, None, None)


def segments(
    events: list[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[list[tuple[str, dict[str, Any]]], RunRecord]]:
    """The events of every run, and its record."""
    own: list[tuple[str, dict[str, Any]]] = []
    for kind, fields in events:
        own.append((kind, fields))
        if kind in ("run", "done-before"):
            yield own, fields["record"]
            own = []


def deed(
    events: list[tuple[str, dict[str, Any]]], record: RunRecord
) -> tuple[str, tuple[str, ...]]:
    """What was done, in the words of a plan, and the fits that were made for it."""
    kinds = [kind for kind, _ in events]
    fits = tuple(sorted(fields["method"] for kind, fields in events if kind == "fit"))
    trained = "step" in kinds or any(name in ("linear-probe", "nan-at-the-end") for name in fits)
    if "waiting" in kinds:
        return "running", fits
    if "resumed" in kinds:
        return "to continue", fits
    if trained:
        return "to train", fits
    if "run" in kinds or "evaluate" in kinds:
        return "to evaluate", fits
    return "merged" if record.origin else "done", fits


def stated(one: RunStatus | None) -> tuple[str, tuple[str, ...]]:
    assert one is not None
    return one.state, tuple(sorted(fit.name for fit in one.fits))


def without_fits(place: Place) -> None:
    shutil.rmtree(place.store.fits_dir)


def without_logits(place: Place, *methods: str) -> None:
    """As where images times classes are too many."""
    for record in place.run(*methods):
        for path in (place.store.run_dir(record) / "predictions").iterdir():
            import pyarrow.parquet as pq

            pq.write_table(pq.read_table(path).drop_columns(["logits"]), path)


def failed_once(place: Place) -> None:
    (record,) = place.run(place.method(NAN))
    assert record.status == "failed"


def curve_dropped(place: Place, *methods: str) -> None:
    for record in place.run(*methods, curve=True):
        shutil.rmtree(place.store.run_dir(record) / "curve")


FULL, WISE = "full-finetune", "wise-ft"
#: With it, full fine-tuning is the very fit that `wise-ft` wraps on a backbone without a text
#: tower.
PROBE = {"head_init": "probe"}
Prepare = Callable[[Place], Any]
#: What was done before, what is asked for, and what a plan says of each run in the order in which
#: they are done.
CASES: dict[str, tuple[Prepare, dict[str, Any], list[str]]] = {
    "nothing": (lambda p: None, {"methods": [FULL]}, ["to train"]),
    "a probe's head": (lambda p: None, {"methods": [FULL], "set": PROBE}, ["to train"]),
    "a wrapper of nothing": (lambda p: None, {"methods": [WISE]}, ["to train"]),
    "both": (lambda p: None, {"methods": [FULL, WISE], "set": PROBE}, ["to train", "to evaluate"]),
    "several seeds": (
        lambda p: p.run(FULL),
        {"methods": [FULL], "seeds": [0, 1]},
        ["done", "to train"],
    ),
    "done": (lambda p: p.run(FULL), {"methods": [FULL]}, ["done"]),
    "done, its fits freed": (
        lambda p: (p.run(FULL), without_fits(p)),
        {"methods": [FULL]},
        ["done"],
    ),
    "done, anew": (lambda p: p.run(FULL), {"methods": [FULL], "fresh": True}, ["to train"]),
    "a wrapper, anew": (lambda p: p.run(WISE), {"methods": [WISE], "fresh": True}, ["to evaluate"]),
    "failed": (failed_once, {"methods": ["plugin"]}, ["to train"]),
    "cancelled": (lambda p: p.stopped(FULL, at=4), {"methods": [FULL]}, ["to continue"]),
    "cancelled, anew": (
        lambda p: p.stopped(FULL, at=4),
        {"methods": [FULL], "fresh": True},
        ["to train"],
    ),
    "live": (lambda p: p.hold(FULL), {"methods": [FULL]}, ["running"]),
    "fitted, its run removed": (
        lambda p: [shutil.rmtree(p.store.run_dir(one)) for one in p.run(FULL)],
        {"methods": [FULL]},
        ["to evaluate"],
    ),
    "a curve besides": (lambda p: p.run(FULL), {"methods": [FULL], "curve": True}, ["to evaluate"]),
    "a curve, the fits freed": (
        lambda p: (p.run(FULL), without_fits(p)),
        {"methods": [FULL], "curve": True},
        ["to train"],
    ),
    "a wrapper's curve": (
        lambda p: p.run(WISE),
        {"methods": [WISE], "curve": True},
        ["to evaluate"],
    ),
    "what a curve predicts": (
        lambda p: curve_dropped(p, FULL),
        {"methods": [FULL], "curve": True},
        ["to evaluate"],
    ),
    "what a curve predicts, the fits freed": (
        lambda p: (curve_dropped(p, FULL), without_fits(p)),
        {"methods": [FULL], "curve": True},
        ["done"],
    ),
    "logits besides": (
        lambda p: without_logits(p, FULL),
        {"methods": [FULL], "keep_logits": True},
        ["to evaluate"],
    ),
    "logits, the fits freed": (
        lambda p: (without_logits(p, FULL), without_fits(p)),
        {"methods": [FULL], "keep_logits": True},
        ["done"],
    ),
    "merged": (lambda p: p.came(FULL), {"methods": [FULL]}, ["merged"]),
    "merged, anew": (lambda p: p.came(FULL), {"methods": [FULL], "fresh": True}, ["to train"]),
    "merged, without its curve": (
        lambda p: p.came(FULL),
        {"methods": [FULL], "curve": True},
        ["to train"],
    ),
    "merged, with its curve": (
        lambda p: p.came(FULL, curve=True),
        {"methods": [FULL], "curve": True},
        ["merged"],
    ),
    "merged, without logits": (
        lambda p: p.came(FULL, keep_logits=False),
        {"methods": [FULL], "keep_logits": True},
        ["merged"],
    ),
    "merged, without logits, its fit made here": (
        lambda p: (p.came(FULL, keep_logits=False, set=PROBE), p.run(WISE)),
        {"methods": [FULL], "keep_logits": True, "set": PROBE},
        ["to evaluate"],
    ),
    "a wrapper of what was merged": (
        lambda p: p.came(FULL, set=PROBE),
        {"methods": [FULL, WISE], "set": PROBE},
        ["merged", "to train"],
    ),
    "a merged wrapper": (
        lambda p: p.came(WISE),
        {"methods": [WISE, FULL], "set": PROBE},
        ["merged", "to train"],
    ),
    "merged and begun here": (
        lambda p: (p.came(FULL), begun(p)),
        {"methods": [FULL]},
        ["to train"],
    ),
    "merged and made here": (
        lambda p: (p.came(FULL), p.run(FULL, fresh=True)),
        {"methods": [FULL]},
        ["done"],
    ),
    "trials to come": (
        lambda p: None,
        {"methods": [FULL], "trials": 2},
        ["to train", "to train", "waits"],
    ),
    "a trial done": (
        lambda p: p.run(FULL, trials=1),
        {"methods": [FULL], "trials": 2},
        ["done", "to train", "waits"],
    ),
    "trials done": (
        lambda p: p.run(FULL, trials=2),
        {"methods": [FULL], "trials": 2, "seeds": [0, 1]},
        ["done", "done", "done", "to train"],
    ),
    "trials of a wrapper": (
        lambda p: p.run(FULL, trials=2, set=PROBE),
        {"methods": [WISE], "trials": 2, "set": {"of.head_init": "probe"}},
        ["to evaluate", "to evaluate", "waits"],
    ),
    "a search's final run was merged": (
        lambda p: (p.run(FULL, search=True, seeds=[0]), p.came(FULL)),
        {"methods": [FULL]},
        ["merged"],
    ),
}


def begun(place: Place) -> None:
    (entry,) = planned(place, {"methods": (FULL,)}).queue
    make_here(entry.planned.experiment, entry.planned.method)


def planned(
    place: Place,
    requested: dict[str, Any],
    reporter: Reporter | None = None,
    *,
    fresh: bool = False,
) -> Sweep:
    spec = run_spec({**requested, "suite": str(place.suite)})
    return run_sweep(
        spec,
        store=place.store.root,
        settings=Settings(threads=1),
        reporter=reporter or Reporter(),
        fresh=fresh,
    )


def outlook(sweep: Sweep) -> list[tuple[RunStatus | None, bool]]:
    """What is said of every run (None: its parameters are still searched for), and whether it is
    told of when it is done.
    """
    made: set[str] = set()
    found: list[tuple[RunStatus | None, bool]] = []
    for entry in sweep.queue:
        one, final = entry.planned, entry.planned.final
        if one.path is not None:
            logits, fresh = sweep.spec.keep_logits and final, sweep.queue.fresh and final
            folder, curve = one.path.parent, one.job.curve
            now = status_of(
                one.experiment,
                one.method,
                folder,
                curve=curve,
                keep_logits=logits,
                fresh=fresh,
                made=made,
            )
            found.append((now, final or now.state != "done"))
    return [*found, *[(None, False)] * sweep.queue.finals_to_come]


@pytest.mark.parametrize("case", CASES)
def test_plan_and_deed_agree(case: str, tiny_suite: Path, tmp_path: Path) -> None:
    prepare, requested, states = CASES[case]
    place = Place(tiny_suite, tmp_path)
    prepare(place)
    requested = dict(requested)
    fresh = requested.pop("fresh", False)
    requested["methods"] = tuple(
        str(tmp_path / "plugin.py") if name == "plugin" else name for name in requested["methods"]
    )
    shown = Reports(place.held)
    sweep = planned(place, requested, shown, fresh=fresh)
    before = sorted(path for path in place.store.root.rglob("*") if path.is_file())
    found = outlook(sweep)
    assert sorted(path for path in place.store.root.rglob("*") if path.is_file()) == before, (
        "looking changes nothing"
    )
    assert [one.state if one else "waits" for one, _ in found] == states
    sweep.run(shown)
    done = [deed(events, record) for events, record in segments(shown.events)]
    known = [stated(one) for one, notified in found if notified]
    assert sorted(done[: len(known)]) == sorted(known)
    # Whatever was done, the same plan then says that nothing is left to do.
    left = {one.state for one, _ in outlook(planned(place, requested)) if one is not None}
    assert left <= ({"done", "merged"} if case != "failed" else {"to train", "to continue"})


def scores(record: RunRecord) -> dict[str, float]:
    return {split: metrics.score for split, metrics in record.metrics.items()}


@pytest.mark.parametrize(
    "case",
    ["merged, anew", "merged, without its curve", "merged, without logits, its fit made here"],
)
def test_what_is_made_next_to_a_merged_run_leaves_it_as_it_is_and_counts(
    case: str, tiny_suite: Path, tmp_path: Path
) -> None:
    from bench.leaderboard.board.groups import load

    prepare, requested, _ = CASES[case]
    place = Place(tiny_suite, tmp_path)
    prepare(place)
    (before,) = [record for _, record in place.store.records() if record.origin]
    requested = dict(requested)
    (own,) = place.run(*requested.pop("methods"), **requested)
    assert not own.origin
    saved = [
        (path, record) for path, record in place.store.records() if record.eval_id == own.eval_id
    ]
    assert [record for _, record in saved if record.origin] == [before]
    assert len(saved) == 2
    for path, record in saved:
        assert path.parent == place.store.run_dir(record)
        assert (path.parent / "predictions" / "id-test.parquet").exists()
    assert [record for record in load(place.store) if record.eval_id == own.eval_id] == [own]
    assert place.store.run_at(place.store.run_dir(own)) == own


def test_anew_twice_keeps_what_came(tiny_suite: Path, tmp_path: Path) -> None:
    place = Place(tiny_suite, tmp_path)
    place.came(FULL)
    (came,) = [record for _, record in place.store.records()]
    for _ in range(2):
        (own,) = place.run(FULL, fresh=True)
        assert (own.status, own.origin, scores(own)) == ("done", {}, scores(came))
        assert [record for _, record in place.store.records() if record.origin] == [came]


def test_an_interrupted_run_next_to_a_merged_one_is_continued_by_the_same_command(
    tiny_suite: Path, tmp_path: Path
) -> None:
    place = Place(tiny_suite, tmp_path)
    place.came(FULL)
    with pytest.raises(Interrupted):
        place.run(FULL, fresh=True, stop_at=4)
    records, listener = run(FULL, suite=tiny_suite, store=place.store.root)
    assert [fields["step"] for kind, fields in listener.events if kind == "resumed"] == [4]
    assert [(record.status, record.origin) for record in records] == [("done", {})]
