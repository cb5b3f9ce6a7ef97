"""All records of a store: every readable one, in the order of their places, whatever else lies
there.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.results.record import RunRecord
from bench.results.store import Store


def record(number: int, label: str = "a") -> RunRecord:
    method = {"name": "m", "version": 1, "parameters": {"lr": number}}
    names = {"backbone": "tiny", "backbone_sha256": "b", "suite": "pets", "seed": number}
    return RunRecord(
        status="done",
        method=method,
        label=label,
        **names,
        fit_id=f"f{number}",
        eval_id=f"e{number}",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    for number in (3, 0, 2, 1):
        made.save_run(record(number))
    return made


def test_records_come_in_the_order_of_their_places(store: Store) -> None:
    assert [one.seed for _, one in store.records()] == [0, 1, 2, 3]
    assert [path for path, _ in store.records()] == [
        store.run_dir(record(n)) / "record.json" for n in range(4)
    ]
    assert list(Store(store.root / "none").records()) == []


def test_a_damaged_record_is_reported_every_time(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    (store.run_dir(record(2)) / "record.json").write_text("{", encoding="utf-8")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert [one.seed for _, one in store.records()] == [0, 1, 3]
        assert "damaged" in caplog.text


def test_what_is_no_run_is_passed_over(store: Store) -> None:
    (store.runs_dir / "pets" / "tiny" / "m" / "notes.txt").write_text("mine", encoding="utf-8")
    (store.runs_dir / "pets" / "tiny" / "m" / "begun").mkdir()
    assert len(list(store.records())) == 4


@pytest.mark.parametrize(
    "what", ["changed", "added", "removed", "replaced by one of the same size and time"]
)
def test_a_stamp_changes_with_a_record(store: Store, what: str) -> None:
    path = store.run_dir(record(3)) / "record.json"
    os.utime(path, (1_700_000_000, 1_700_000_000))
    before = store.stamps()
    assert store.stamps() == before
    if what == "changed":
        store.save_run(record(3, "changed"))
    elif what == "added":
        store.save_run(record(7))
    elif what == "removed":
        path.unlink()
    else:
        os.utime(store.save_run(record(3, "b")), (1_700_000_000, 1_700_000_000))
    assert store.stamps() != before


def test_a_long_name_of_a_backbone_is_shortened_for_its_folder(store: Store) -> None:
    long = record(9).model_copy(update={"backbone": "timm:resnet18@" + "/folder" * 60})
    other = long.model_copy(update={"backbone": long.backbone + "s"})
    assert store.read_run(store.save_run(long)).backbone == long.backbone
    assert store.run_dir(long) != store.run_dir(other)
    assert "é" * 127 in str(store.run_dir(record(9).model_copy(update={"backbone": "é" * 127})))


@pytest.mark.parametrize(
    "odd",
    [
        '"provenance": {"versions": "\\u001b[31m"}',
        '"selection": {"C": ""}',
        '"selection": {"C": {"among": 1e999}}',
        '"method": {"name": "m", "parameters": {"clip": Infinity}}',
        '"method": {"name": "m", "parameters": {"warmup": NaN}}',
        '"fit_seconds": 1e999',
    ],
)
def test_a_record_of_other_values_than_records_have_is_damaged(odd: str, store: Store) -> None:
    path = store.run_dir(record(2)) / "record.json"
    path.write_text(f"{path.read_text().rstrip().removesuffix('}')}, {odd}}}", encoding="utf-8")
    with pytest.raises(BenchError, match="record is damaged"):
        store.read_run(path)


def test_a_record_of_an_earlier_version_says_how_its_search_ended(store: Store) -> None:
    path = store.run_dir(record(2)) / "record.json"
    content = json.loads(path.read_text())
    del content["search_cut_short"]
    path.write_text(json.dumps(content | {"search_rule": "grid, asha"}), encoding="utf-8")
    found = store.read_run(path)
    assert (found.search_rule, found.search_cut_short) == ("grid", True)
