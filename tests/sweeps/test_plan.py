"""What `bench sweep --dry-run` lists as done, merged, to do or waiting is what the sweep then skips
or starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.console.sweep_plan import plan_table
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import write_pack
from bench.results.store import Store
from bench.storage.lease import Lease

from support.runs import run
from support.tiny_sweeps import Listener, plan

FULL, WISE = "full-finetune", "wise-ft"
#: With it, full fine-tuning is the very fit that `wise-ft` wraps on a backbone without a text
#: tower.
PROBE = {"head_init": "probe"}


def here(suite: Path, root: Path, *methods: str, **fields: Any) -> None:
    run(*methods, suite=suite, store=root / "mine", **fields)


def came(suite: Path, root: Path, *methods: str, **fields: Any) -> None:
    records, _ = run(*methods, suite=suite, store=root / "theirs", **fields)
    write_pack(Store(root / "theirs"), records, root / "theirs.shiftpack")
    merge([root / "theirs.shiftpack"], Store(root / "mine"))


def failed(suite: Path, root: Path) -> None:
    store = Store(root / "mine")
    here(suite, root, FULL, set=PROBE)
    ((_, record),) = store.records()
    store.forget(record.fit_id, waiting=lambda claim: None)
    store.save_run(
        record.model_copy(update={"status": "failed", "metrics": {}, "error": "no room\nat all"})
    )


def without_what_it_said(suite: Path, root: Path) -> None:
    here(suite, root, FULL, set=PROBE, curve=True)
    shutil.rmtree(root / "mine" / "fits")
    for folder in (root / "mine").glob("runs/*/*/*/*/curve"):
        shutil.rmtree(folder)


#: What was done before, what is asked for, and what is said of (phase, method).
Stated = dict[tuple[str, str], str]
CASES: dict[str, tuple[Callable[[Path, Path], None], dict[str, Any], Stated]] = {
    "nothing": (
        lambda s, r: None,
        {},
        {("stage", "linear-probe"): "to do", ("final", FULL): "waits", ("final", WISE): "waits"},
    ),
    "done": (
        lambda s, r: here(s, r, FULL, WISE, set=PROBE),
        {},
        {("final", FULL): "done", ("final", WISE): "done"},
    ),
    "merged": (
        lambda s, r: came(s, r, FULL, WISE, set=PROBE),
        {},
        {("final", FULL): "merged", ("final", WISE): "merged"},
    ),
    "a wrapper of what was merged": (
        lambda s, r: came(s, r, FULL, set=PROBE),
        {},
        {
            ("stage", "linear-probe"): "to do",
            ("stage", FULL): "waits",
            ("final", FULL): "merged",
            ("final", WISE): "waits",
        },
    ),
    "done, and what its curve's points said is gone": (
        without_what_it_said,
        {"methods": (FULL,), "curve": "baseline"},
        {("final", FULL): "done"},
    ),
    "merged, without its curve": (
        lambda s, r: came(s, r, FULL, WISE, set=PROBE),
        {"curve": "baseline"},
        {("stage", "linear-probe"): "to do", ("final", FULL): "waits", ("final", WISE): "merged"},
    ),
    "failed": (
        failed,
        {"methods": (FULL,)},
        {("stage", "linear-probe"): "done", ("final", FULL): "to do"},
    ),
    "its trial done": (
        lambda s, r: here(s, r, FULL, trials=1, set=PROBE, search=True),
        {"methods": (FULL,), "trials": 1},
        {("search", FULL): "done", ("final", FULL): "to do"},
    ),
    "merged, its trial to come": (
        lambda s, r: came(s, r, FULL, set=PROBE),
        {"methods": (FULL,), "trials": 1},
        {("stage", "linear-probe"): "to do", ("search", FULL): "waits", ("final", FULL): "waits"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_plan_and_deed_agree(case: str, tiny_suite: Path, tmp_path: Path) -> None:
    prepare, requested, stated = CASES[case]
    prepare(tiny_suite, tmp_path)
    fields = {
        "methods": (FULL, WISE),
        "set": PROBE,
        "seeds": (0,),
        "curve": "none",
        "trials": 0,
    } | requested
    methods = fields.pop("methods")
    planned = plan(tiny_suite, tmp_path / "mine", *methods, **fields)
    rows = {
        (str(row["phase"]), str(row["method"]).partition(" ")[0]): row
        for row in plan_table(planned, probe=False).rows
    }
    assert {key: row["state"] for key, row in rows.items()} == {
        key: state for key, state in stated.items() if key in rows
    }
    assert rows.keys() | {key for key, state in stated.items() if state == "done"} == stated.keys()
    listener = Listener()
    planned.run(listener)
    started = {(job.phase, job.label.partition(" ")[0]) for job in listener.starts}
    assert started == {key for key, row in rows.items() if row["state"] in ("to do", "waits")}
    assert all(outcome.status == "done" for _, outcome in listener.ends)
    merged = {record.method["name"] for record in planned.records() if record.origin}
    assert merged == {
        name
        for (phase, name), row in rows.items()
        if row["state"] == "merged" or row["why"] == "for its search"
    }
    again = plan(tiny_suite, tmp_path / "mine", *methods, **fields)
    assert {row["state"] for row in plan_table(again, probe=False).rows} <= {"done", "merged"}
    if case == "failed":
        assert rows["final", FULL]["why"] == "failed before: no room"
    if case == "merged":
        assert rows["final", FULL]["why"] == "from theirs.shiftpack"
    if case == "merged, without its curve":
        assert (
            len(
                [
                    record
                    for _, record in Store(tmp_path / "mine").records()
                    if record.method["name"] == FULL
                ]
            )
            == 2
        )


def test_what_another_process_is_at_is_waited_for(tiny_suite: Path, tmp_path: Path) -> None:
    requested = {"seeds": (0,), "curve": "none", "trials": 0}
    planned = plan(tiny_suite, tmp_path, "linear-probe", **requested)
    (entry,) = planned.queue
    assert entry.planned.path is not None
    with Lease(entry.planned.path.parent):
        (row,) = plan_table(planned, probe=False).rows
        assert row["state"] == "to do"
        assert "another process" in row["why"]
    planned.run(Listener())
    assert [record.status for record in planned.records()] == ["done"]
