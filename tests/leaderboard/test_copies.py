"""A run of which two machines say otherwise: both stay, one counts, and by how much they differ is
said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.errors import NothingMatched, UsageError
from bench.leaderboard.board.groups import load
from bench.leaderboard.board.tables import View, boards
from bench.leaderboard.packs.copies import copies
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import open_pack, write_pack
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import RunRecord
from bench.results.store import Store

from support.packs import SPLITS, stored_run


def made_by(
    root: Path, skill: float, *, methods: tuple[str, ...] = ("wise-ft",), **fields: Any
) -> Path:
    """The pack of a machine, of which runs of one id on another machine differ by skill."""
    store = Store(root / "store")
    for method in methods:
        for seed in (0, 1):
            stored_run(store, method, seed, skill=skill, **fields)
    path = root / f"{root.name}.shiftpack"
    write_pack(store, [record for _, record in store.records()], path)
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_by(tmp_path_factory.mktemp("theirs"), 2.0, methods=("lp-ft", "wise-ft"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a third machine, and newer."""
    return made_by(tmp_path_factory.mktemp("others"), 1.0, finished="2026-02-01T00:00:00")


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Store, RunRecord]:
    """A store with one run of its own."""
    store = Store(tmp_path / "mine")
    return store, stored_run(store, "wise-ft", 0, skill=0.5)


def command(store: Store, *words: str) -> Result:
    return CliRunner().invoke(build_app(), [*words, "--store", str(store.root)])


def run_of(path: Path, method: str, seed: int) -> RunRecord:
    with open_pack(path) as opened:
        records = [opened.record(run) for run in opened.manifest.runs]
    (found,) = [record for record in records if (record.label, record.seed) == (method, seed)]
    return found


def widest(one: RunRecord, two: RunRecord) -> tuple[str, float]:
    """The split on which two records differ most, by hand."""
    gaps = {split: two.metrics[split].score - one.metrics[split].score for split in SPLITS}
    return max(gaps.items(), key=lambda item: abs(item[1]))


def test_both_stay_and_the_stores_own_counts(mine: tuple[Store, RunRecord], pack: Path) -> None:
    store, own = mine
    (merged,) = merge([pack], store)
    assert {outcome: len(found) for outcome, found in merged.runs.items()} == {
        "new": 3,
        "saved next to the run that is here": 1,
    }
    theirs = run_of(pack, "wise-ft", 0)
    assert theirs.finished == own.finished
    (copy,) = merged.copies
    assert copy.counted == own
    assert {s: m.score for s, m in copy.other.metrics.items()} == {
        s: m.score for s, m in theirs.metrics.items()
    }
    assert copy.widest == widest(own, theirs)
    saved = [(path, record) for path, record in store.records() if record.eval_id == own.eval_id]
    assert sorted(bool(record.origin) for _, record in saved) == [False, True]
    for path, record in saved:
        assert path.parent == store.run_dir(record)
        outcomes = Predictions(store).outcomes(record, "art")
        assert outcomes is not None
        assert outcomes.correct.mean() == pytest.approx(record.metrics["art"].accuracy)
    (counted,) = [record for record in load(store) if record.eval_id == own.eval_id]
    assert counted == own
    (board,) = boards(load(store), View()).boards
    (row,) = [row for row in board.rows if row.name == "wise-ft"]
    seeds = [own.metrics["art"].score, run_of(pack, "wise-ft", 1).metrics["art"].score]
    assert (row.cells["art"].value, len(row.records)) == (pytest.approx(np.mean(seeds)), 2)


def test_merging_it_again_changes_nothing_and_says_it_again(
    mine: tuple[Store, RunRecord], pack: Path
) -> None:
    store, own = mine
    (first,) = merge([pack], store)
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    (again,) = merge([pack], store)
    assert {outcome: len(found) for outcome, found in again.runs.items()} == {"already here": 4}
    assert [(copy.counted, copy.widest) for copy in again.copies] == [(own, first.copies[0].widest)]
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before


def test_equal_scores_are_the_same_run(pack: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "same")
    stored_run(store, "wise-ft", 0)
    (merged,) = merge([pack], store)
    assert {outcome: len(found) for outcome, found in merged.runs.items()} == {
        "new": 3,
        "already here": 1,
    }
    assert merged.copies == []


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_of_two_packs_the_newer_run_counts_whatever_the_order(
    pack: Path, other: Path, at_once: bool, turned: bool, tmp_path: Path
) -> None:
    store, order = Store(tmp_path / "both"), [other, pack] if turned else [pack, other]
    found = merge(order, store) if at_once else [*merge(order[:1], store), *merge(order[1:], store)]
    assert found[0].copies == []
    message = sorted((copy.counted.seed, copy.counted.origin["pack"]) for copy in found[1].copies)
    assert message == [(0, other.name), (1, other.name)]
    assert {r.origin["pack"] for r in load(store) if r.label == "wise-ft"} == {other.name}
    assert len([record for _, record in store.records() if record.label == "wise-ft"]) == 4
    assert [copy.other.origin["pack"] for copy in copies(store, load(store))] == [
        pack.name,
        pack.name,
    ]


def test_a_dry_run_says_it_and_writes_nothing(mine: tuple[Store, RunRecord], pack: Path) -> None:
    store, own = mine
    message = command(store, "merge", str(pack), "--dry-run", "--format", "json")
    assert message.exit_code == 0, message.output
    _, unequal = json.loads(message.stdout)["tables"]
    (row,) = unequal["rows"]
    split, gap = widest(own, run_of(pack, "wise-ft", 0))
    assert (row["method"], row["seed"], row["split"], row["made"], row["other_made"]) == (
        "wise-ft",
        0,
        split,
        "here",
        pack.name,
    )
    assert row["difference"] == pytest.approx(gap)
    assert row["counted"] == own.metrics[split].score
    assert [record for _, record in store.records()] == [own]


def test_people_read_by_how_much_they_differ(mine: tuple[Store, RunRecord], pack: Path) -> None:
    store, own = mine
    text = command(store, "merge", str(pack)).stdout
    split, gap = widest(own, run_of(pack, "wise-ft", 0))
    assert "runs of the same id with different scores" in text
    line = next(line for line in text.splitlines() if line.startswith("wise-ft"))
    assert line.split()[1:3] == ["0", split]
    assert f"{100 * gap:.1f}" in line
    assert "scores differ" not in command(Store(store.root / "empty"), "merge", str(pack)).stdout


def test_a_comparison_names_the_splits_and_the_images_that_differ(
    mine: tuple[Store, RunRecord], pack: Path
) -> None:
    store, own = mine
    merge([pack], store)
    (table,) = json.loads(command(store, "compare", "wise-ft", "--format", "json").stdout)["tables"]
    theirs = next(
        record for _, record in store.records() if record.eval_id == own.eval_id and record.origin
    )
    predictions = Predictions(store)
    for row, split in zip(table["rows"], SPLITS, strict=True):
        pair = [predictions.outcomes(record, split) for record in (own, theirs)]
        stated = [
            dict(zip(one.keys.tolist(), one.predicted.tolist(), strict=True))
            for one in pair
            if one is not None
        ]
        assert (row["split"], row["seed"], row["images"]) == (split, 0, 60)
        assert row["differ"] == sum(stated[0][key] != stated[1][key] for key in stated[0]) > 0
        assert row["difference"] == pytest.approx(
            theirs.metrics[split].score - own.metrics[split].score
        )
    _, gap = widest(own, theirs)
    assert f"{100 * gap:+.2f} points" in table["notes"][0]
    *_, last = json.loads(command(store, "compare", "wise-ft", "lp-ft", "--format", "json").stdout)[
        "tables"
    ]
    assert last == table


def test_what_was_made_once_has_nothing_to_be_compared_with(mine: tuple[Store, RunRecord]) -> None:
    store, _ = mine
    assert isinstance(command(store, "compare", "wise-ft").exception, NothingMatched)
    unknown = command(store, "compare", "wise").exception
    assert isinstance(unknown, NothingMatched)
    assert "no row is called `wise`" in str(unknown)
    same = command(store, "compare", "wise-ft", "wise-ft").exception
    assert isinstance(same, UsageError)
    assert "bench compare 'wise-ft'" in str(same)


def test_one_is_shown_and_one_is_packed(
    mine: tuple[Store, RunRecord], pack: Path, tmp_path: Path
) -> None:
    store, own = mine
    merge([pack], store)
    shown = json.loads(command(store, "show", "wise-ft", "--seed", "0", "--format", "json").stdout)[
        "record"
    ]
    assert RunRecord.model_validate(shown) == own
    command(store, "pack", "-o", str(tmp_path / "all.shiftpack"))
    with open_pack(tmp_path / "all.shiftpack") as opened:
        records = [opened.record(run) for run in opened.manifest.runs]
    assert [record for record in records if record.eval_id == own.eval_id] == [own]
    assert len(records) == 4


def test_a_run_that_failed_here_stays_next_to_one_that_came(pack: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    failed = stored_run(store, "wise-ft", 0).model_copy(update={"status": "failed", "metrics": {}})
    store.save_run(failed)
    (merged,) = merge([pack], store)
    assert {outcome: len(found) for outcome, found in merged.runs.items()} == {"new": 4}
    saved = [record for _, record in store.records() if record.eval_id == failed.eval_id]
    assert sorted(record.status for record in saved) == ["done", "failed"]
    assert [
        r.status for r in load(store) if r.eval_id == failed.eval_id and r.status == "done"
    ] == ["done"]
