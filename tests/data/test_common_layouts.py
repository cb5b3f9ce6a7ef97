"""Datasets as people have them: lists made elsewhere, byte-order marks, accents, folders with
numbers, capital letters.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import bench
from bench.cli import main
from bench.data.cards.labels import ClassList
from bench.data.cards.locations import DataRoot
from bench.data.readers.located import open_dataset
from bench.data.readers.parts import open_part
from bench.errors import UsageError

from support.pets import opened, unpacked

NFD = "caf\u0065\u0301"
NFC = unicodedata.normalize("NFC", NFD)
TABLE = '{ kind = "table", path = "list.csv", images = "test", file = "file", label = "y" }'


def command(*arguments: str) -> tuple[int | str | None, str]:
    shown = io.StringIO()
    with (
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
        pytest.raises(SystemExit) as ended,
    ):
        main(list(arguments))
    return ended.value.code, shown.getvalue()


@pytest.mark.parametrize("way", ["plain", "./", "absolute", "drive", "backslashes", "mark"])
def test_lists_that_were_made_elsewhere(way: str, root: Path, photos: dict[str, bytes]) -> None:
    unpacked(root, photos)
    before = {
        "./": "./",
        "absolute": "/home/somebody/pets/",
        "drive": "D:\\pets\\",
        "backslashes": "",
    }.get(way, "")
    lines = []
    for name in sorted(photos):
        path = name.replace("/", "\\") if way in ("drive", "backslashes") else name
        lines.append(f"{before}{path},{int(name[1:3]) - 1}")
    text = "file,y\n" + "\n".join(lines) + "\n"
    (root / "pets" / "list.csv").write_text(
        text, encoding="utf-8-sig" if way == "mark" else "utf-8"
    )
    found = opened(root, TABLE)
    assert found.remarks == []
    assert sorted(found.collection.keys) == sorted(f"test/{name}" for name in photos)
    for key, label in zip(found.collection.keys, found.collection.labels, strict=True):
        assert int(key[6:8]) - 1 == label


def test_accents_that_are_letters_of_their_own(root: Path, photos: dict[str, bytes]) -> None:
    content = next(iter(photos.values()))
    unpacked(root, {f"n01/{NFD}.png": content})
    (root / "pets" / "list.csv").write_text(f"file,y\nn01/{NFC}.png,0\n", encoding="utf-8")
    assert len(opened(root, TABLE).collection) == 1
    classes = ClassList.plain((NFC, "tea"))
    assert classes.labels_of([NFD, "tea"], ("id",)) == {NFD: 0, "tea": 1}


@pytest.mark.parametrize(
    ("folders", "named_by", "expected"),
    [
        (["00000", "00001", "00002"], ("number",), [0, 1, 2]),
        (["0", "1", "2"], ("number",), [0, 1, 2]),
        (["001.Ant", "002.Bee", "003.Cat"], ("id",), [0, 1, 2]),
        (["1_Ant", "2_Bee", "3_Cat"], ("number", "id"), [0, 1, 2]),
    ],
)
def test_folders_with_numbers(
    folders: list[str], named_by: tuple[str, ...], expected: list[int]
) -> None:
    classes = ClassList.plain(("Ant", "Bee", "Cat"))
    found = classes.labels_of(folders, named_by)  # type: ignore[arg-type]
    assert [found[folder] for folder in folders] == expected


def test_a_class_that_begins_with_a_number_is_itself() -> None:
    classes = ClassList.plain(("3.Ant", "Ant"))
    assert classes.labels_of(["3.Ant", "7.Ant"], ("id",)) == {"3.Ant": 0, "7.Ant": 1}


@pytest.mark.parametrize("folders", [["Ant", "001.Ant"], ["1", "01"]])
def test_two_folders_of_one_class_are_not_mixed(folders: list[str]) -> None:
    with pytest.raises(UsageError, match=f"{folders[0]} and {folders[1]} are both the class"):
        ClassList.plain(("Ant", "Bee")).labels_of(folders, ("id", "number"))


def test_numbers_from_one_on_are_not_shifted_by_one_without_a_word() -> None:
    classes = ClassList.plain(tuple(f"c{n}" for n in range(1000)))
    with pytest.raises(
        UsageError,
        match=r"from 1 to 1000, .* from 0 to 999.* ImageNet's development kit",
    ):
        classes.labels_of([str(n) for n in range(1, 1001)], ("id", "number"))
    assert len(classes.labels_of([str(n) for n in range(1000)], ("id", "number"))) == 1000
    assert len(classes.labels_of(["0", "1000"], ("number",))) == 1


def test_a_card_a_list_and_a_configuration_with_byte_order_marks(
    tiny_suite: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_suite.parent / "images", tmp_path / "images")
    (tmp_path / "tiny.toml").write_text(tiny_suite.read_text(), encoding="utf-8-sig")
    (tmp_path / "config.toml").write_text('methods = ["linear-probe"]\n', encoding="utf-8-sig")
    code, shown = command(
        "run",
        "--config",
        str(tmp_path / "config.toml"),
        "--suite",
        str(tmp_path / "tiny.toml"),
        "--dry-run",
        "--store",
        str(tmp_path),
    )
    assert code == 0, shown
    assert "linear-probe" in shown


def test_a_root_in_capital_letters_is_found(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCH_DATA", raising=False)
    shutil.copytree(tiny_suite.parent / "images", tmp_path / "data" / "TINY")
    card = tmp_path / "tiny.toml"
    card.write_text(tiny_suite.read_text().replace('root = "./images"', 'root = "tiny"'))
    assert 'root = "tiny"' in card.read_text()
    fields = {"suite": str(card), "store": tmp_path / "store"}
    data = tmp_path / "data"
    (record,) = bench.run("linear-probe", data_root=data, **fields)  # type: ignore[arg-type]
    assert record.status == "done"
    code, shown = command(
        "run",
        "linear-probe",
        "--suite",
        str(card),
        "--data-root",
        str(tmp_path / "data" / "TINY"),
        "--dry-run",
    )
    assert code == 3
    assert f"export BENCH_DATA={tmp_path / 'data'}" in " ".join(shown.split())


def test_a_suite_for_testing_alone(tiny_suite: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_suite.parent / "images", tmp_path / "images")
    card = tmp_path / "tiny.toml"
    text = tiny_suite.read_text().replace('path = "photo"', 'test = "photo"', 1)
    card.write_text(
        "\n".join(
            line
            for line in text.splitlines()
            if "_fraction" not in line and not line.startswith("count")
        )
    )
    assert 'test = "photo"' in card.read_text()
    (record,) = bench.run(
        "zero-shot", suite=str(card), backbone="mini-clip", store=tmp_path / "store"
    )
    assert record.status == "done", record.error
    assert record.metrics.keys() == {"id-test", "inverted", "noisy"}
    assert record.holes["id-val"] == "the suite is for testing alone"
    with pytest.raises(
        UsageError, match="nothing can be trained on tiny, which only has test images"
    ):
        bench.run("linear-probe", suite=str(card), backbone="mini-clip", store=tmp_path / "store")
    for arguments in (["suites", "show", str(card)], ["check", str(card)]):
        code, shown = command(*arguments)
        assert code == 0, shown


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar_100(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, fine = rng.integers(0, 256, (100, 3072), dtype=np.uint8), rng.permutation(100)
    folder = tmp_path / f"cifar-100-{kind}"
    folder.mkdir()
    for part in ("train", "test"):
        if kind == "python":
            batch = {b"data": pixels, b"fine_labels": fine.tolist(), b"coarse_labels": [0] * 100}
            (folder / part).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            records = np.concatenate([np.zeros((100, 1)), fine[:, None], pixels], axis=1).astype(
                np.uint8
            )
            (folder / f"{part}.bin").write_bytes(records.tobytes())
    dataset = open_dataset("cifar-100", [DataRoot(tmp_path, "test")])
    collection = open_part(dataset, "test", range(100), cache=tmp_path / "index").collection
    for key, label, row in zip(collection.keys, collection.labels, range(100), strict=True):
        number = int(key.rpartition("/")[2])
        assert label == fine[number]
        expected = pixels[number].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(collection.originals.open(row)), expected)
