"""Equal images under two names: found in every layout, kept in the index, counted, and compared
with what cards state.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.data.cards.dataset import read_dataset
from bench.data.cards.suite_card import SuiteCard, read_card
from bench.data.collection import FolderOriginals
from bench.data.duplicates import END
from bench.data.pixels.decoder import Pixels
from bench.data.suite import Suite, open_suite
from bench.errors import UsageError
from bench.testing import suite_checks

from support.messages import states

CLASSES = ("cat", "dog", "newt")
PIXELS = Pixels(size=8, resize=8)
SUITE = """
name = "pets"
title = "Pets"
licence = "CC0"
classes = ["cat", "dog", "newt"]
{stated}
[id]
data = "./set.toml"
{id_data}
[[shifts]]
name = "sketch"
data = "./set.toml"
part = "sketch"
"""
READY = 'train = "train"\nval = "val"\ntest = "test"'
CHECK = "no image occurs twice, except as the card states"


class Pets:
    """Four parts of three classes, each of six images of one size; copies are made by hand."""

    def __init__(self, folder: Path, identity: str = "listing") -> None:
        self.folder, self.root, self.identity = folder, folder / "data/pets", identity
        for number, part in enumerate(("train", "val", "test", "sketch")):
            for label, name in enumerate(CLASSES):
                for image in range(6):
                    self.image(f"{part}/{name}/{image}.ppm", 1000 * number + 100 * label + image)

    def image(self, name: str, seed: int, middle: int = 0) -> Path:
        """An image of 60 x 60 pixels, whose first and last bytes depend on the seed alone; its
        middle, on both.
        """
        pixels = np.random.default_rng(seed).integers(0, 256, 60 * 60 * 3, dtype=np.uint8)
        pixels[len(pixels) // 2] = middle
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P6 60 60 255\n" + pixels.tobytes())
        assert file.stat().st_size > 2 * END
        return file

    def copy(self, old: str, new: str) -> None:
        shutil.copy(self.root / old, self.root / new)

    def write(
        self,
        id_data: str = READY,
        stated: str = "",
        of_the_set: str = "",
        layout: str = '{{ path = "{part}" }}',
    ) -> Path:
        head = (
            'name = "set"\ntitle = "Pets"\nlicence = "CC0"\nfolders = ["pets"]\nidentity ='
            f' "{self.identity}"\n'
        )
        parts = "".join(
            f"[parts.{part}]\nlayouts = [{layout.format(part=part)}]\n"
            for part in ("train", "val", "test", "sketch")
        )
        (self.folder / "set.toml").write_text(
            f"{head}{of_the_set}\nclasses = {list(CLASSES)}\n{parts}"
        )
        card = self.folder / "suite.toml"
        card.write_text(SUITE.format(id_data=id_data, stated=stated))
        return card

    def suite(self, *arguments: str, **written: str) -> Suite:
        card = self.write(*arguments, **written)
        return open_suite(read_card(card), card_path=card, data_root=self.folder / "data")

    def check(self, *arguments: str, **written: str) -> tuple[str, str]:
        """Status and detail of the check of equal images."""
        card = self.write(*arguments, **written)
        checks = suite_checks(card, size=8, data_root=self.folder / "data")
        found = {check.name: check.run() for check in checks}
        return found[CHECK].status, found[CHECK].detail


ALL = ("train", "id-val", "id-test", "sketch")
NONE = {
    **dict.fromkeys(ALL, 0),
    **dict.fromkeys((f"{split} in train" for split in ALL[1:]), 0),
    **dict.fromkeys((f"{split} in id-val" for split in ALL[2:]), 0),
}


@pytest.fixture
def pets(tmp_path: Path) -> Pets:
    return Pets(tmp_path)


@pytest.fixture
def with_copies(pets: Pets) -> Pets:
    """Two images of test are in train, one of sketch in val, and train holds one thrice, once under
    another class.
    """
    pets.copy("train/cat/0.ppm", "test/cat/a.ppm")
    pets.copy("train/dog/0.ppm", "test/cat/b.ppm")
    pets.copy("val/newt/5.ppm", "sketch/newt/c.ppm")
    pets.copy("train/cat/3.ppm", "train/cat/d.ppm")
    pets.copy("train/cat/3.ppm", "train/dog/e.ppm")
    return pets


COPIES = NONE | {"train": 2, "id-test in train": 2, "sketch in id-val": 1}


def test_a_listing_does_not_know_until_it_is_checked_and_then_every_run_does(
    with_copies: Pets,
) -> None:
    before = with_copies.suite()
    assert before.duplicates(ALL) == {}
    assert before.warnings == []
    prints = [before.fingerprint(split, PIXELS) for split in ALL]
    assert with_copies.check()[0] == "fail"
    after = with_copies.suite()
    assert after.duplicates(ALL) == COPIES
    assert after.warnings == [
        "set train: 2 images repeat another's content",
        "set train: 1 contents appear under more than one class",
        "set test: 2 images are also in set train (same bytes)",
        "set sketch: 1 images are also in set val (same bytes)",
    ]
    assert [after.fingerprint(split, PIXELS) for split in ALL] == prints, (
        "what was found is no part of the identity"
    )


def test_what_is_identified_by_its_content_is_known_at_once(
    tmp_path: Path, with_copies: Pets
) -> None:
    with_copies.identity = "content"
    assert with_copies.suite().duplicates(ALL) == COPIES
    assert not list((tmp_path / "cache").rglob("*.equal.parquet"))


def test_only_what_is_compared_is_counted(with_copies: Pets) -> None:
    with_copies.check()
    suite = with_copies.suite()
    assert suite.duplicates(["id-test"]) == {"id-test": 0}
    assert suite.duplicates(["id-val", "sketch"]) == {
        "id-val": 0,
        "sketch": 0,
        "sketch in id-val": 1,
    }


def test_images_that_differ_in_the_middle_alone_are_two(pets: Pets) -> None:
    pets.image("train/cat/a.ppm", 5000, middle=1)
    pets.image("test/cat/a.ppm", 5000, middle=2)
    assert pets.check() == ("pass", "")
    assert pets.suite().duplicates(ALL) == NONE
    pets.image("test/cat/a.ppm", 5000, middle=1)
    status, detail = pets.check()
    assert status == "fail"
    assert "id-test in train: 1 equal images" in detail
    assert "test/cat/a.ppm = train/cat/a.ppm" in detail
    assert "[duplicates]" in detail


def test_small_images_whole_and_empty_ones_not_at_all(pets: Pets) -> None:
    for name, data in (
        ("train/cat/a.ppm", b"P6 1 1 255\nabc"),
        ("test/cat/a.ppm", b"P6 1 1 255\nabc"),
    ):
        (pets.root / name).write_bytes(data)
    for name in ("train/cat/empty.ppm", "test/cat/empty.ppm"):
        (pets.root / name).touch()
    pets.check()
    assert pets.suite().duplicates(ALL) == NONE | {"id-test in train": 1}


def test_only_those_of_one_size_are_read_and_only_those_that_look_alike_are_read_whole(
    pets: Pets, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, set[str]] = {"ends": set(), "data": set()}
    for how in read:
        original = getattr(FolderOriginals, how)

        def shown(
            self: FolderOriginals, row: int, *rest: Any, how: str = how, original: Any = original
        ) -> bytes:
            read[how].add(str(self.keys[row]))
            return bytes(original(self, row, *rest))

        monkeypatch.setattr(FolderOriginals, how, shown)
    (pets.root / "train/cat/0.ppm").write_bytes(b"P6 1 1 255\nabcd")
    pets.image("val/cat/a.ppm", 7000, middle=1)
    pets.image("test/cat/a.ppm", 7000, middle=2)
    pets.suite().compare()
    assert "train/cat/0.ppm" not in read["ends"]
    assert len(read["ends"]) == 73
    assert read["data"] == {"val/cat/a.ppm", "test/cat/a.ppm"}
    for names in read.values():
        names.clear()
    pets.suite().compare()
    assert read == {"ends": set(), "data": set()}, "it is known"
    pets.image("sketch/dog/new.ppm", 8000)
    pets.suite().compare()
    assert len(read["ends"]) == 74


def test_a_changed_file_is_compared_anew(with_copies: Pets) -> None:
    with_copies.check()
    with_copies.image("test/cat/a.ppm", 9000)
    assert with_copies.suite().duplicates(ALL) == {
        key: count for key, count in COPIES.items() if "id-test" not in key
    }, "of the others it is known"
    with_copies.check()
    assert with_copies.suite().duplicates(ALL) == COPIES | {"id-test in train": 1}


def test_a_damaged_index_is_as_good_as_none(tmp_path: Path, with_copies: Pets) -> None:
    with_copies.check()
    for file in (tmp_path / "cache").rglob("*.equal.parquet"):
        file.write_bytes(b"PAR1 nonsense")
    assert with_copies.suite().duplicates(ALL) == {}
    with_copies.check()
    assert with_copies.suite().duplicates(ALL) == COPIES


STATED = '[duplicates]\ntrain = 2\n"id-test in train" = 2\n"sketch in id-val" = 1\n'
OF_THE_SET = 'duplicates = { train = 2, "test in train" = 2, "sketch in val" = 1 }\n'


class TestStated:
    def test_by_the_suite(self, with_copies: Pets) -> None:
        assert with_copies.check(stated=STATED) == (
            "pass",
            (
                "train: 2 equal images, as the card says: train/cat/3.ppm = train/cat/d.ppm,"
                " train/cat/d.ppm = train/dog/e.ppm; id-test in train: 2 equal images, as the card"
                " says: test/cat/a.ppm = train/cat/0.ppm, test/cat/b.ppm = train/dog/0.ppm; sketch"
                " in id-val: 1 equal images, as the card says: sketch/newt/c.ppm = val/newt/5.ppm"
            ),
        )

    def test_by_the_dataset(self, with_copies: Pets) -> None:
        assert with_copies.check(of_the_set=OF_THE_SET)[0] == "pass"
        status, detail = with_copies.check(
            of_the_set=OF_THE_SET, stated='[duplicates]\n"id-test in train" = 1\n'
        )
        assert status == "fail", "the suite's own word counts before the dataset's"
        assert detail.startswith(
            "AssertionError: id-test in train: 2 equal images, the card says 1: "
        )

    @pytest.mark.parametrize("where", ["train", '"id-test in train"', '"sketch in id-val"'])
    def test_what_one_of_them_does_not_say_fails(self, with_copies: Pets, where: str) -> None:
        stated = "".join(line + "\n" for line in STATED.splitlines() if not line.startswith(where))
        status, detail = with_copies.check(stated=stated)
        assert status == "fail"
        assert f"{where.strip(chr(34))}: " in detail
        assert "the card says none" in detail

    def test_fewer_than_stated_are_reported_and_pass(self, with_copies: Pets) -> None:
        (with_copies.root / "test/cat/a.ppm").unlink()
        status, detail = with_copies.check(stated=STATED)
        assert status == "pass"
        assert states(detail, "id-test in train", 1, 2, "test/cat/b.ppm = train/dog/0.ppm")

    def test_of_images_that_the_card_divides(self, with_copies: Pets) -> None:
        held_out = 'train = "train"\nval_count = 6\ntest = "test"'
        stated = '[duplicates]\nid = 2\n"id-test in id" = 2\n'
        assert with_copies.check(held_out, stated)[0] == "pass"
        assert (
            with_copies.check(held_out, "", 'duplicates = { train = 2, "test in train" = 2 }')[0]
            == "pass"
        )
        together = 'path = ["train", "val", "test"]\nval_fraction = 0.25\ntest_fraction = 0.25'
        status, detail = with_copies.check(together, '[duplicates]\nid = 4\n"sketch in id" = 1\n')
        assert (status, detail.count("as the card says")) == ("pass", 2)
        assert with_copies.check(together, "", OF_THE_SET)[0] == "pass", (
            "those within and between the three count together"
        )
        status, detail = with_copies.check(
            together, "", OF_THE_SET.replace(', "sketch in val" = 1', "")
        )
        assert (status, "sketch in id: 1 equal images, the card says none" in detail) == (
            "fail",
            True,
        )

    @pytest.mark.parametrize(
        ("id_data", "key"),
        [
            (READY, "id"),
            (READY, "test"),
            (READY, "id-test in other"),
            ('train = "train"\nval_count = 6\ntest = "test"', "train"),
        ],
    )
    def test_names_that_are_no_split(self, pets: Pets, id_data: str, key: str) -> None:
        with pytest.raises(UsageError, match="duplicates: no "):
            read_card(pets.write(id_data, f'[duplicates]\n"{key}" = 1\n'))
        pets.write(of_the_set='duplicates = { "train in other" = 1 }')
        with pytest.raises(UsageError, match=r"duplicates: no other; .* train, val, test, sketch"):
            read_dataset(pets.folder / "set.toml")


def test_a_listing_that_is_divided_says_what_the_division_parted(pets: Pets) -> None:
    for name in CLASSES:
        for number in range(6):
            pets.copy(f"train/{name}/{number}.ppm", f"train/{name}/copy-{number}.ppm")
    whole = 'path = "train"\nval_fraction = 0.25\ntest_fraction = 0.25'
    pets.check(whole)
    suite = pets.suite(whole)
    found, rows = suite.duplicates(ALL), {split: suite.load(split, PIXELS) for split in ALL[:3]}
    content = {
        name: [(pets.root / str(key)).read_bytes() for key in split.keys]
        for name, split in rows.items()
    }
    for split in ALL[:3]:
        assert found[split] == len(content[split]) - len(set(content[split]))
    for split, other in (("id-val", "train"), ("id-test", "train"), ("id-test", "id-val")):
        assert found[f"{split} in {other}"] == sum(one in content[other] for one in content[split])
    assert found["id-test in train"] > 0
    assert "they stay on one side" not in " ".join(suite.warnings)


def test_pixels_that_are_equal_in_other_bytes_are_distinguished_from_what_the_card_states(
    with_copies: Pets,
) -> None:
    card = with_copies.write(stated=STATED)
    checks = suite_checks(card, size=8, data_root=with_copies.folder / "data")
    assert {check.run().status for check in checks} == {"pass"}
    data = (with_copies.root / "train/newt/1.ppm").read_bytes()
    (with_copies.root / "test/newt/x.ppm").write_bytes(data.replace(b"P6 60", b"P6  60", 1))
    results = [
        check.run()
        for check in suite_checks(
            with_copies.write(stated=STATED), size=8, data_root=with_copies.folder / "data"
        )
    ]
    failed = {result.check: result.detail for result in results if result.status == "fail"}
    assert failed == {
        "train, id-val and id-test share no image": (
            "AssertionError: 1 images are in two of these splits"
        )
    }


@pytest.mark.parametrize("kind", ["tar", "table", "flat"])
def test_other_layouts(with_copies: Pets, kind: str) -> None:
    import tarfile

    layout = {
        "tar": '{{ kind = "tar", path = "{part}.tar" }}',
        "table": '{{ kind = "table", path = "{part}.csv", file = "file", label = "y" }}',
        "flat": '{{ kind = "flat", path = "flat-{part}", lists = ["{part}-truth.csv"] }}',
    }[kind]
    for part in ("train", "val", "test", "sketch"):
        files = sorted((with_copies.root / part).rglob("*.ppm"))
        if kind == "tar":
            with tarfile.open(with_copies.root / f"{part}.tar", "w") as tar:
                tar.add(with_copies.root / part, part)
        elif kind == "table":
            lines = [
                f"{file.relative_to(with_copies.root)},{CLASSES.index(file.parent.name)}"
                for file in files
            ]
            (with_copies.root / f"{part}.csv").write_text("\n".join(["file,y", *lines]))
        else:
            (with_copies.root / f"flat-{part}").mkdir()
            lines = []
            for file in files:
                shutil.copy(
                    file, with_copies.root / f"flat-{part}" / f"{file.parent.name}-{file.name}"
                )
                lines.append(f"{file.parent.name}-{file.stem},{file.parent.name} 1 2 3 4")
            (with_copies.root / f"{part}-truth.csv").write_text(
                "\n".join(["ImageId,PredictionString", *lines])
            )
    assert with_copies.check(layout=layout)[0] == "fail"
    assert with_copies.suite(layout=layout).duplicates(ALL) == COPIES


def test_an_index_that_is_saved_as_arrays_knows_what_was_found(
    with_copies: Pets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.data.readers.listing.TRUSTED_FROM", 10)
    monkeypatch.setattr("bench.data.readers.listing.UNSETTLED_NS", -(10**30))
    with_copies.check()
    for _ in range(2):
        assert with_copies.suite().duplicates(ALL) == COPIES


def test_a_suite_of_folders_of_its_own(card_of: Callable[..., SuiteCard], data: Path) -> None:
    shutil.copy(data / "pets/photo/cat/001.png", data / "pets/sketch/cat/photo.png")
    found = open_suite(card_of(), data_root=data).duplicates(ALL)
    own = {split: found[f"sketch in {split}"] for split in ("train", "id-val")}
    assert sum(own.values()) <= 1
    (repetition,) = open_suite(card_of(duplicates={"sketch in id": 1}), data_root=data).compare()
    assert states(str(repetition), "sketch in id", 1, "sketch/cat/photo.png = photo/cat/001.png")
    assert repetition.is_stated
    (repetition,) = open_suite(card_of(), data_root=data).compare()
    assert not repetition.is_stated
