"""The index saves time and decides nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.results import index
from bench.results.record import RunRecord
from bench.results.store import Store

NAME = "runs-index.parquet"


def record(number: int, label: str = "a") -> RunRecord:
    method = {"name": "m", "version": 1, "parameters": {"lr": number}}
    names = {"backbone": "tiny", "backbone_sha256": "b", "suite": "pets", "seed": number}
    return RunRecord(status="done", method=method, label=label, **names, fit_id=f"f{number}", eval_id=f"e{number}")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Six records, old enough to be indexed."""
    monkeypatch.setattr(index, "WORTH_IT", 2)
    made = Store(tmp_path)
    for number in range(6):
        settle(made.save_run(record(number)))
    return made


def settle(path: Path) -> None:
    os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that were read from their folders."""
    read: list[str] = []
    original = Store.read_run

    def spy(self: Store, path: Path) -> RunRecord:
        read.append(path.parent.name)
        return original(self, path)

    monkeypatch.setattr(Store, "read_run", spy)
    return read


def test_the_second_time_no_record_is_opened(store: Store, opened: list[str]) -> None:
    first = index.records(store)
    assert len(opened) == 6
    opened.clear()
    assert index.records(store) == first
    assert opened == []
    assert first == list(store.records())


@pytest.mark.parametrize("what", ["changed", "added", "removed", "replaced by one of the same size and time"])
def test_what_changed_is_seen(store: Store, opened: list[str], what: str) -> None:
    index.records(store)
    opened.clear()
    path = store.run_dir(record(3)) / "record.json"
    if what == "changed":
        settle(store.save_run(record(3, "changed")))
    elif what == "added":
        settle(store.save_run(record(7)))
    elif what == "removed":
        path.unlink()
    else:
        settle(store.save_run(record(3, "b")))
    found = index.records(store)
    assert found == list(store.records())
    assert opened[0] in ("e3", "e7") if what != "removed" else len(found) == 5


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x"), lambda p: p.write_bytes(p.read_bytes()[:99])]
)
def test_a_lost_or_damaged_index_costs_only_time(store: Store, opened: list[str], damage: Callable[[Path], object]) -> None:
    first = index.records(store)
    damage(store.root / NAME)
    assert index.records(store) == first
    opened.clear()
    assert index.records(store) == first
    assert opened == []  # made anew


def test_no_flipped_byte_changes_a_record(store: Store) -> None:
    first = index.records(store)
    path = store.root / NAME
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert index.records(store) == first


def test_a_damaged_record_is_told_every_time(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    bad = store.run_dir(record(3)) / "record.json"
    bad.write_text("{", encoding="utf-8")
    settle(bad)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(index.records(store)) == 5
        assert "damaged" in caplog.text


def test_a_record_that_was_just_written_is_not_indexed_yet(
    store: Store, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_SETTLED", 3600.0)  # however slow the machine, it was just written
    store.save_run(record(9))
    index.records(store)
    opened.clear()
    assert len(index.records(store)) == 7
    assert opened == ["e9"]


def test_a_store_that_cannot_be_written_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise index.BenchError("a file cannot be written: disk full")

    monkeypatch.setattr(index, "write_with", full)
    assert len(index.records(store)) == 6
    assert not (store.root / NAME).exists()


def test_small_stores_have_no_index(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_run(record(0))
    assert len(index.records(store)) == 1
    assert index.records(Store(tmp_path / "none")) == []
    assert not (tmp_path / NAME).exists()
