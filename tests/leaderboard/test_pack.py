"""Packs: what goes in comes out, the same runs give the same bytes, and what was tampered with is
refused with the reason.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.errors import BenchError
from bench.leaderboard.board.tables import View, boards
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import Refused, write_pack
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import RunRecord
from bench.results.store import Store

from .packs import Forger, stored_run


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
    assert {fate: len(records) for fate, records in merged.runs.items()} == {"new": 4}
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


def test_what_came_without_logits_can_be_passed_on_beside_what_has_them(
    slim: Path, tmp_path: Path
) -> None:
    theirs, third = Store(tmp_path / "theirs"), Store(tmp_path / "third")
    merge([slim], theirs)
    own = stored_run(theirs, "linear-probe")
    write_pack(theirs, runs(theirs), tmp_path / "all.shiftpack")
    (merged,) = merge([tmp_path / "all.shiftpack"], third)
    assert {fate: len(records) for fate, records in merged.runs.items()} == {"new": 5}
    assert (
        "logits" in pq.read_table(third.run_dir(own) / "predictions" / "art.parquet").column_names
    )


def test_merging_again_changes_nothing(pack: Path, tmp_path: Path) -> None:
    theirs = Store(tmp_path / "theirs")
    merge([pack], theirs)
    before = {path: path.read_bytes() for path in theirs.root.rglob("*") if path.is_file()}
    (again,) = merge([pack], theirs)
    assert {fate: len(records) for fate, records in again.runs.items()} == {"already here": 4}
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
    with pytest.raises(Refused):
        merge([full, bad], theirs)
    assert not theirs.root.exists()


Tamper = Callable[[Forger], Any]


def _ood(point: dict[str, Any]) -> float:
    return float(np.mean([point["scores"][split] for split in ("art", "sketch")]))


def _metric(name: str, value: float) -> Tamper:
    return lambda f: f.record(lambda r: r["metrics"]["art"].update({name: value}))


def _everywhere(name: str, value: Any) -> Tamper:
    """A field in the record and in the identity, with ids that follow."""

    def change(record: dict[str, Any]) -> None:
        record[name] = value
        record["identity"]["fit"][name] = value

    return lambda f: f.reidentified(change)


def _member(name: str, mode: int = stat.S_IFREG | 0o644) -> Tamper:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return lambda f: f.members.append((entry, b"/etc/passwd"))


def _relabel(f: Forger) -> None:
    """Other labels for one run's images: a story of its own that contradicts the other runs'."""
    f.table("images", lambda c: c.update(label=[0] * len(c["label"])), run=1)


def _twice(f: Forger) -> None:
    f.members.append(("manifest.json", b"{}"))


def _swap(f: Forger) -> None:
    one, other = f.manifest["runs"][:2]
    one["outcomes"], other["outcomes"] = other["outcomes"], one["outcomes"]


def _first(name: str, value: Any) -> Tamper:
    return lambda f: f.table("outcomes", lambda c: c[name].__setitem__(0, value))


def _compress(f: Forger) -> None:
    f.compression = zipfile.ZIP_DEFLATED


def _quietly(change: Tamper) -> Tamper:
    """Without the hashes that would follow the change."""

    def tamper(f: Forger) -> None:
        f.rehash = False
        change(f)

    return tamper


def _newer(f: Forger) -> None:
    f.manifest["shiftpack"] = 99


def _spoil_a_blob(f: Forger) -> None:
    sha = f.manifest["runs"][0]["record"]
    f.blobs[sha] += b" "


def _lose_a_blob(f: Forger) -> None:
    del f.blobs[f.manifest["runs"][0]["outcomes"]["art"]]


def _drop_a_split(f: Forger) -> None:
    del f.manifest["runs"][0]["outcomes"]["sketch"]


def _shorten(columns: dict[str, Any]) -> None:
    for name in columns:
        columns[name] = columns[name][:-10]


def _repeat_an_image(f: Forger) -> None:
    f.table("images", lambda c: c["key"].__setitem__(1, c["key"][0]))


def _multiply(
    f: Forger, rows: int = 200_000, key: str = "x" * 200, *, dictionary: bool = True
) -> None:
    """Many images in a few kilobytes."""
    f.record(lambda r: r["metrics"]["art"].update(images=rows))
    table = pa.table({"key": [key] * rows, "label": [0] * rows, "group": [0] * rows})
    buffer = io.BytesIO()
    coded = [*(["key"] if dictionary else []), "label", "group"]
    pq.write_table(table, buffer, compression="zstd", use_dictionary=coded, write_statistics=False)
    assert len(buffer.getvalue()) < 20_000
    f.manifest["runs"][0]["images"]["art"] = f.put(buffer.getvalue())


_NAN = float("nan")
TAMPERING: dict[str, tuple[Tamper, str]] = {
    "average over an ID split": (
        lambda f: f.record(lambda r: r.update(averaged=["id-test"])),
        "something else than its shifts",
    ),
    "more images stated than predicted": (
        _metric("images", 61),
        "states 61 images, and the pack holds 60",
    ),
    "fewer rows": (
        lambda f: f.table("outcomes", _shorten),
        "states 60 images, and the pack holds 50",
    ),
    "many images of one name": (_multiply, "bytes cannot name 200000 images"),
    "many images of no names": (
        partial(_multiply, dictionary=False, key=""),
        "bytes cannot name 200000 images|would unpack to",
    ),
    "many images of one long name": (
        partial(_multiply, dictionary=False),
        "its predictions would unpack to 4",
    ),
    "other labels than other runs": (_relabel, "labels are not those of the data that it names"),
    "an image twice": (_repeat_an_image, "an image occurs twice"),
    "a prediction of no class": (_first("prediction", -1), "a class has a negative number"),
    "an edited logit of the label": (
        _first("label_logit", 99.0),
        "a label's logit exceeds the largest one",
    ),
    "predictions that are not finite": (_first("maximum", _NAN), "not finite"),
    "a missing split": (_drop_a_split, "not of the same splits"),
    "another seed": (
        lambda f: f.record(lambda r: r.update(seed=7)),
        "its record and its identity differ in the seed",
    ),
    "other parameters": (
        lambda f: f.record(lambda r: r["method"]["parameters"].update(lr=1.0)),
        "its record and its identity differ in the method",
    ),
    "an identity that was edited": (
        lambda f: f.record(lambda r: r["identity"]["fit"].update(train="u" * 64)),
        "its fit_id is not the hash",
    ),
    "other data": (
        lambda f: f.record(
            lambda r: (
                r["data"].update(art="0" * 64),
                r["identity"]["evaluation"]["data"].update(art="0" * 64),
            )
        ),
        "its eval_id is not the hash",
    ),
    "other pixels": (
        lambda f: f.record(lambda r: r.update(pixels="pil-bicubic-9-9")),
        "differ in the pixels",
    ),
    "another label": (
        lambda f: f.record(lambda r: r.update(label="ours")),
        "is not that of the method",
    ),
    "a run on a part of the images": (
        lambda f: f.record(lambda r: r.update(limit=10)),
        "not the result of a whole run",
    ),
    "an unfinished run": (
        lambda f: f.record(lambda r: r.update(status="failed")),
        "not the result of a whole run",
    ),
    "a record without identity": (
        lambda f: f.record(lambda r: r.update(identity={})),
        "does not say what its ids are",
    ),
    "NaN in a record": (
        lambda f: f.record(lambda r: r.update(fit_seconds=_NAN)),
        "a record is damaged",
    ),
    "a negative time": (
        lambda f: f.record(lambda r: r.update(fit_seconds=-1)),
        "fit_seconds is negative",
    ),
    "a negative class on a curve": (
        lambda f: f.table("curve", lambda c: c["0"].__setitem__(0, -1)),
        "a negative number",
    ),
    "a curve with a hole": (
        lambda f: f.manifest["runs"][0]["curve"].pop("art"),
        "are not of the same splits",
    ),
    "a curve of other points": (
        lambda f: f.table("curve", lambda c: c.update({"0.7": c.pop("0.5")})),
        "other columns",
    ),
    "a short curve": (
        lambda f: f.table("curve", lambda c: [x.pop() for x in c.values()]),
        "the pack holds 59",
    ),
    "a temperature below zero": (
        lambda f: f.record(lambda r: r.update(temperature=-1.0)),
        "its temperature is -1",
    ),
    "a Brier score beyond 2": (_metric("brier", 2.5), "a Brier score lies outside"),
    "another metric": (_metric("metric", "luck"), "the metric of art is luck"),
    "a curve beyond 100 %": (
        lambda f: f.record(
            lambda r: r.update(
                curve=[{"alpha": 0.0, "scores": dict.fromkeys(r["metrics"], 1.5), "ood": 1.5}]
            )
        ),
        "not made of shares",
    ),
    "a record of a newer version": (
        lambda f: f.record(lambda r: r.update(record_schema=99)),
        "schema 99",
    ),
    "a record that is none": (lambda f: f.record(lambda r: r.clear()), "a record is damaged"),
    "a backbone with an escape sequence": (
        lambda f: f.record(lambda r: r.update(backbone="tiny\x1b[31m")),
        "does not print",
    ),
    "a label with a bell": (
        lambda f: f.record(lambda r: r.update(label="wise-ft (\x07)")),
        "does not print",
    ),
    "a label that is written backwards": (
        lambda f: f.record(lambda r: r.update(label="wise-ft (\u202e)")),
        "does not print",
    ),
    "a hole of two lines": (
        lambda f: f.record(lambda r: r["holes"].update({"art\n": "none"})),
        "does not print",
    ),
    "a parameter with an escape sequence": (
        lambda f: f.record(lambda r: r["method"]["parameters"].update({"\x9b31m": 1})),
        "does not print",
    ),
    "a suite that climbs": (
        lambda f: f.record(lambda r: r.update(suite="..")),
        "cannot be a folder's",
    ),
    "a suite with a path": (
        lambda f: f.record(lambda r: r.update(suite="../../etc")),
        "cannot be a folder's",
    ),
    "a backbone that climbs": (
        lambda f: f.record(lambda r: r.update(backbone="..")),
        "the backbone has a name",
    ),
    "an id with a path": (
        lambda f: f.record(lambda r: r.update(eval_id="../../../../x")),
        "not one of 24 hexadecimal",
    ),
    "other columns": (
        lambda f: f.table("outcomes", lambda c: c.update(extra=[0] * 60)),
        "other columns",
    ),
    "holes": (_first("maximum", None), "have holes"),
    "an edited manifest": (_quietly(lambda f: f.manifest["runs"].pop()), "its manifest was edited"),
    "a newer pack": (_newer, "schema 99"),
    "a changed blob": (_quietly(_spoil_a_blob), "was changed"),
    "a lost blob": (_quietly(_lose_a_blob), "is missing"),
    "a run twice": (lambda f: f.manifest["runs"].append(f.manifest["runs"][0]), "a run twice"),
    "a path outside": (_member("../../outside"), "does not belong into a pack"),
    "an absolute path": (_member("/tmp/outside"), "does not belong into a pack"),
    "a link": (_member("blobs/" + "0" * 64, stat.S_IFLNK | 0o777), "a link or a device"),
    "a blob that nobody names": (_member("blobs/" + "0" * 64), "does not name"),
    "a file twice": (_twice, "twice"),
    "compressed files": (_compress, "compressed"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", TAMPERING)
def test_what_was_tampered_with_is_refused_with_the_reason_and_nothing_is_written(
    kind: str, slim: Path, tmp_path: Path
) -> None:
    tamper, reason = TAMPERING[kind]
    forger = Forger(slim)
    tamper(forger)
    theirs = Store(tmp_path / "theirs")
    with pytest.raises(Refused, match=reason) as refused:
        merge([forger.write(tmp_path / "forged.shiftpack")], theirs)
    assert "forged.shiftpack" in refused.value.where
    assert not theirs.root.exists()


STATED: dict[str, Tamper] = {
    **{
        name: _metric(name, 0.99)
        for name in ("accuracy", "class_mean", "macro_f1", "worst_group", "nll", "ece", "score")
    },
    "average": lambda f: f.record(lambda r: r.update(ood=0.99)),
    "no average": lambda f: f.record(lambda r: r.update(ood=None)),
    "curve": lambda f: f.record(lambda r: r["curve"][1]["scores"].update(art=1.0)),
    "average of a curve": lambda f: f.record(lambda r: r["curve"][1].update(ood=1.0)),
}


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
    _swap(forger)
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
    with pytest.raises(Refused, match="its predictions contradict themselves"):
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
    with pytest.raises(Refused, match=r"labels or groups differ, such as that of 'art/000\.png'"):
        merge([forger.write(tmp_path / "forged.shiftpack")], mine)


def test_labels_are_held_against_the_data_where_it_is_asked_for(full: Path, tmp_path: Path) -> None:
    def data(record: RunRecord, split: str) -> tuple[str, dict[str, tuple[int, int]]]:
        return record.data[split], {f"{split}/{i:03d}.png": (0, 0) for i in range(60)}

    with pytest.raises(Refused, match="labels are not those of the data"):
        merge([full], Store(tmp_path / "theirs"), data=data)
    with pytest.raises(Refused, match="here have the fingerprint"):
        merge([full], Store(tmp_path / "theirs"), data=lambda record, split: ("another", {}))


@pytest.fixture(params=["text", "cut"])
def not_a_pack(request: pytest.FixtureRequest, full: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "no.shiftpack"
    path.write_bytes(b"hello" if request.param == "text" else full.read_bytes()[:-100])
    return path


def test_a_file_that_is_no_pack_is_refused(not_a_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be opened"):
        merge([not_a_pack], Store(tmp_path / "theirs"))
