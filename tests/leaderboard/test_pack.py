"""Packs: what goes in comes out, the same runs give the same bytes, and what was tampered with is
refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.errors import BenchError
from bench.leaderboard.board.tables import View, boards
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import InvalidPack, write_pack
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import RunRecord
from bench.results.store import Store

from support.packs import Forger, stored_run
from support.tampering import STATED, TAMPERING, swap


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of two methods with two seeds each; not to be changed by a test."""
    store = Store(tmp_path_factory.mktemp("ours"))
    for method in ("lp-ft", "wise-ft"):
        for seed in (0, 1):
            stored_run(store, method, seed, curve=True)
    return store


def runs(store: Store) -> list[RunRecord]:
    return [record for _, record in store.records()]


@pytest.fixture(scope="module", params=[True, False], ids=["logits", "without-logits"])
def pack(
    ours: Store, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("packs") / "ours.shiftpack"
    write_pack(ours, runs(ours), path, logits=request.param)
    return path


@pytest.fixture(scope="module")
def slim(ours: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slim") / "ours.shiftpack"
    write_pack(ours, runs(ours), path, logits=False)
    return path


@pytest.fixture(scope="module")
def full(ours: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "ours.shiftpack"
    write_pack(ours, runs(ours), path)
    return path


def assert_same(got: RunRecord, mine: RunRecord) -> None:
    """To the last digit but for NLL and ECE, whose columns a pack may have in single precision."""
    for split, metrics in mine.metrics.items():
        found = got.metrics[split]
        assert (found.nll, found.ece) == (
            pytest.approx(metrics.nll, rel=1e-6),
            pytest.approx(metrics.ece, abs=1e-6),
        )
        assert found.model_copy(update={"nll": 0, "ece": 0}) == metrics.model_copy(
            update={"nll": 0, "ece": 0}
        )
    assert got.model_copy(update={"origin": {}, "metrics": {}}) == mine.model_copy(
        update={"metrics": {}}
    )


def test_merged_runs_are_the_packed_ones_and_say_where_they_come_from(
    ours: Store, pack: Path, tmp_path: Path
) -> None:
    theirs = Store(tmp_path / "theirs")
    (merged,) = merge([pack], theirs)
    assert {outcome: len(records) for outcome, records in merged.runs.items()} == {"new": 4}
    for mine, got in zip(runs(ours), runs(theirs), strict=True):
        assert got.origin["pack"] == "ours.shiftpack"
        assert got.origin["digest"] == merged.digest
        assert "Brier" in got.origin["as_stated"]
        assert_same(got, mine)
    rows = [[row.name, row.cells["ood"].value] for row in boards(runs(ours), View()).boards[0].rows]
    assert rows == [
        [row.name, row.cells["ood"].value] for row in boards(runs(theirs), View()).boards[0].rows
    ]


def test_predictions_survive(ours: Store, pack: Path, tmp_path: Path) -> None:
    theirs = Store(tmp_path / "theirs")
    merge([pack], theirs)
    record = runs(ours)[0]
    mine = pq.read_table(ours.run_dir(record) / "predictions" / "art.parquet")
    got = pq.read_table(theirs.run_dir(record) / "predictions" / "art.parquet")
    for name in got.column_names:
        assert got[name].type == mine[name].type
        if name == "log_sum_exp":
            np.testing.assert_allclose(got[name].to_numpy(), mine[name].to_numpy(), rtol=1e-6)
        else:
            assert got[name].to_pylist() == mine[name].to_pylist()
    assert set(mine.column_names) - set(got.column_names) in (set(), {"logits", "runner_up"})


def test_what_came_without_logits_can_be_passed_on_next_to_what_has_them(
    slim: Path, tmp_path: Path
) -> None:
    theirs, third = Store(tmp_path / "theirs"), Store(tmp_path / "third")
    merge([slim], theirs)
    own = stored_run(theirs, "linear-probe")
    write_pack(theirs, runs(theirs), tmp_path / "all.shiftpack")
    (merged,) = merge([tmp_path / "all.shiftpack"], third)
    assert {outcome: len(records) for outcome, records in merged.runs.items()} == {"new": 5}
    assert (
        "logits" in pq.read_table(third.run_dir(own) / "predictions" / "art.parquet").column_names
    )


def test_merging_again_changes_nothing(pack: Path, tmp_path: Path) -> None:
    theirs = Store(tmp_path / "theirs")
    merge([pack], theirs)
    before = {path: path.read_bytes() for path in theirs.root.rglob("*") if path.is_file()}
    (again,) = merge([pack], theirs)
    assert {outcome: len(records) for outcome, records in again.runs.items()} == {"already here": 4}
    assert {path: path.read_bytes() for path in theirs.root.rglob("*") if path.is_file()} == before


def test_the_same_runs_give_the_same_bytes(ours: Store, full: Path, tmp_path: Path) -> None:
    other = tmp_path / "again.shiftpack"
    write_pack(ours, runs(ours)[::-1], other)
    assert other.read_bytes() == full.read_bytes()


def test_a_curve_travels_with_what_its_points_predict(
    ours: Store, pack: Path, tmp_path: Path
) -> None:
    theirs = Store(tmp_path / "theirs")
    merge([pack], theirs)
    for record in runs(ours):
        own, came = (
            pq.read_table(store.run_dir(record) / "curve" / "sketch.parquet")
            for store in (ours, theirs)
        )
        assert came.equals(own)


def test_images_are_stored_once(ours: Store, full: Path) -> None:
    forger = Forger(full)
    assert len({run["images"]["art"] for run in forger.manifest["runs"]}) == 1


def test_a_pack_of_an_earlier_version_states_its_identity_through_the_fit(tmp_path: Path) -> None:
    store = Store(tmp_path / "old")
    record = stored_run(store)
    fit = record.identity["fit"]
    store.save_run(record.model_copy(update={"identity": {}}))
    with pytest.raises(BenchError, match="its fit was removed"):
        write_pack(store, runs(store), tmp_path / "old.shiftpack")
    folder = store.fit_dir(record.fit_id)
    folder.mkdir(parents=True)
    known = {
        "fit_id": record.fit_id,
        "identity": fit,
        "weights": "w",
        "weights_sha256": "0",
        "normalize": True,
    }
    (folder / "fit.json").write_text(
        __import__("json").dumps({**known, "seconds": 1, "total_seconds": 1})
    )
    write_pack(store, runs(store), tmp_path / "old.shiftpack")
    (merged,) = merge([tmp_path / "old.shiftpack"], Store(tmp_path / "new"))
    assert merged.runs["new"][0].identity["evaluation"]["metrics"] == {"": "accuracy"}


def test_one_bad_pack_keeps_the_good_ones_out(full: Path, tmp_path: Path) -> None:
    forger = Forger(full)
    forger.record(lambda r: r.update(seed=99))
    bad = forger.write(tmp_path / "bad.shiftpack")
    theirs = Store(tmp_path / "theirs")
    with pytest.raises(InvalidPack):
        merge([full, bad], theirs)
    assert not theirs.root.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", TAMPERING)
def test_what_was_tampered_with_is_refused_with_the_reason_and_nothing_is_written(
    kind: str, slim: Path, tmp_path: Path
) -> None:
    tamper, reason = TAMPERING[kind]
    forger = Forger(slim)
    tamper(forger)
    theirs = Store(tmp_path / "theirs")
    with pytest.raises(InvalidPack, match=reason) as refused:
        merge([forger.write(tmp_path / "forged.shiftpack")], theirs)
    assert "forged.shiftpack" in refused.value.where
    assert not theirs.root.exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", STATED)
def test_what_a_record_states_of_its_predictions_is_computed_from_them(
    what: str, pack: Path, tmp_path: Path
) -> None:
    forger = Forger(pack)
    STATED[what](forger)
    honest, theirs = Store(tmp_path / "honest"), Store(tmp_path / "theirs")
    merge([pack], honest)
    merge([forger.write(tmp_path / "forged.shiftpack")], theirs)
    for mine, got in zip(runs(honest), runs(theirs), strict=True):
        assert got.model_copy(update={"origin": {}}) == mine.model_copy(update={"origin": {}})


def test_predictions_of_another_run_give_the_numbers_of_that_run(
    slim: Path, tmp_path: Path
) -> None:
    forger = Forger(slim)
    swap(forger)
    theirs = Store(tmp_path / "theirs")
    merge([forger.write(tmp_path / "swapped.shiftpack")], theirs)
    for record in runs(theirs):
        outcomes = Predictions(theirs).outcomes(record, "art")
        assert outcomes is not None
        assert record.metrics["art"].accuracy == outcomes.correct.mean()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prediction", 3),
        ("label_logit", -9.0),
        ("log_sum_exp", 50.0),
        ("logits", [9.0, 9.0, 9.0, 9.0]),
    ],
)
def test_columns_are_held_against_the_logits(
    column: str, value: Any, full: Path, tmp_path: Path
) -> None:
    forger = Forger(full)

    def change(columns: dict[str, Any]) -> None:
        wrong = next(
            i
            for i, (p, m) in enumerate(zip(columns["prediction"], columns["logits"], strict=True))
            if p != 3 and len(m)
        )
        columns[column][wrong] = value

    forger.table("outcomes", change)
    with pytest.raises(InvalidPack, match="its predictions contradict themselves"):
        merge([forger.write(tmp_path / "forged.shiftpack")], Store(tmp_path / "theirs"))


def test_labels_are_held_against_the_stores_own_runs(full: Path, tmp_path: Path) -> None:
    mine = Store(tmp_path / "mine")
    stored_run(mine, "zero-shot", 0)
    forger = Forger(full)
    # One story, told by every run of the pack: only somebody who has the data can tell.
    for run in range(4):
        forger.table(
            "images", lambda c: c.update(label=[(label + 1) % 4 for label in c["label"]]), run=run
        )
    with pytest.raises(
        InvalidPack, match=r"labels or groups differ, such as that of 'art/000\.png'"
    ):
        merge([forger.write(tmp_path / "forged.shiftpack")], mine)


def test_labels_are_held_against_the_data_where_it_is_requested(full: Path, tmp_path: Path) -> None:
    def data(record: RunRecord, split: str) -> tuple[str, dict[str, tuple[int, int]]]:
        return record.data[split], {f"{split}/{i:03d}.png": (0, 0) for i in range(60)}

    with pytest.raises(InvalidPack, match="labels are not those of the data"):
        merge([full], Store(tmp_path / "theirs"), data=data)
    with pytest.raises(InvalidPack, match="here have the fingerprint"):
        merge([full], Store(tmp_path / "theirs"), data=lambda record, split: ("another", {}))


@pytest.fixture(params=["text", "cut"])
def not_a_pack(request: pytest.FixtureRequest, full: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "no.shiftpack"
    path.write_bytes(b"hello" if request.param == "text" else full.read_bytes()[:-100])
    return path


def test_a_file_that_is_no_pack_is_refused(not_a_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidPack, match="cannot be opened"):
        merge([not_a_pack], Store(tmp_path / "theirs"))
