"""One file is one image: in every layout, a file in two splits or under two labels is an error that
names it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.data.cards.suite_card import SuiteCard, read_card
from bench.data.suite import open_suite
from bench.errors import BenchError, UsageError

from support.pets_in_layouts import CLASSES, PIXELS, READY, Pets


@pytest.fixture(params=["content", "listing"])
def pets(request: pytest.FixtureRequest, tmp_path: Path) -> Pets:
    return Pets(tmp_path, request.param)


def refused(make: Callable[[], object], *names: str) -> BenchError:
    """The error, which says every one of these."""
    with pytest.raises(BenchError) as caught:
        make()
    assert caught.value.exit_code == 1
    for name in names:
        assert name in str(caught.value), str(caught.value)
    return caught.value


WHOLE = 'path = "all"\nval_fraction = 0.25\ntest_fraction = 0.25'


class TestLists:
    @pytest.mark.parametrize(
        ("line", "shown"),
        [
            ("all/cat/0.ppm 1", "1 file is more than one image: all/cat/0.ppm (cat and dog)"),
            ("all/cat/0.ppm 0", "1 file is more than one image: all/cat/0.ppm (cat and cat)"),
            ("./all/cat/0.ppm 1", "1 file is more than one image: all/cat/0.ppm (cat and dog)"),
            (
                "all/dog/../cat//0.ppm 1",
                "1 file is more than one image: all/cat/0.ppm (cat and dog)",
            ),
        ],
    )
    def test_a_file_listed_twice(self, pets: Pets, line: str, shown: str) -> None:
        lines = pets.images("all", 0)
        refused(lambda: pets.suite(pets.lists(all=[*lines, line]), WHOLE), shown, "set all.txt")
        assert len(pets.suite(pets.lists(all=lines), WHOLE).load("train", PIXELS)) == 12

    def test_every_file_is_counted_and_five_are_named(self, pets: Pets) -> None:
        lines = pets.images("all", 0)
        again = [line.replace(" 0", " 1") for line in lines if line.endswith(" 0")]
        error = refused(
            lambda: pets.suite(pets.lists(all=lines + again), WHOLE), "8 files", "; and 3 more"
        )
        assert error.what.count("cat and dog") == 5

    def test_a_class_that_the_suite_leaves_out_counts_too(self, pets: Pets) -> None:
        lines = pets.images("all", 0)
        layouts = pets.lists(all=[*lines, "all/cat/0.ppm 2"])
        card = pets.folder / "two.toml"
        refused(lambda: pets.suite(layouts, WHOLE), "cat and newt")
        text = (pets.folder / "suite.toml").read_text()
        card.write_text(text.replace('["cat", "dog", "newt"]', '["cat", "dog"]'))
        refused(
            lambda: open_suite(read_card(card), card_path=card, data_root=pets.folder / "data"),
            "cat and newt",
        )

    @pytest.mark.parametrize(
        ("extra", "other"),
        [("val", "train"), ("test", "train"), ("test", "val"), ("sketch", "val")],
    )
    def test_a_file_in_two_lists(self, pets: Pets, extra: str, other: str) -> None:
        lines = {
            name: pets.images(name, 1000 * number)
            for number, name in enumerate(("train", "val", "test", "sketch"))
        }
        assert pets.suite(pets.lists(**lines), shifts=("sketch",)).warnings == []
        lines[extra].append(lines[other][0])
        shown = [name for name in ("train", "val", "test", "sketch") if name in (extra, other)]
        where = " and ".join({"val": "id-val", "test": "id-test"}.get(name, name) for name in shown)
        refused(
            lambda: pets.suite(pets.lists(**lines), shifts=("sketch",)),
            f"in two splits, {where}: {other}/cat/0.ppm",
        )

    def test_held_out_of_a_list_that_shares_a_file_with_the_test_list(self, pets: Pets) -> None:
        lines = {
            name: pets.images(name, 1000 * number) for number, name in enumerate(("train", "test"))
        }
        lines["test"].append(lines["train"][3])
        made = 'train = "train"\nval_count = 6\ntest = "test"'
        refused(
            lambda: pets.suite(pets.lists(**lines), made), "ID data and id-test: train/cat/3.ppm"
        )

    def test_a_test_set_may_be_another_s_part_but_not_overlap_with_it(self, pets: Pets) -> None:
        lines = {
            name: pets.images(name, 1000 * number)
            for number, name in enumerate(("train", "val", "test", "sketch"))
        }
        lines["some"] = lines["test"][:9]
        suite = pets.suite(pets.lists(**lines), shifts=("some", "sketch"))
        assert suite.warnings == []
        lines["sketch"].append(lines["test"][0])
        refused(
            lambda: pets.suite(pets.lists(**lines), shifts=("some", "sketch")),
            "id-test and sketch: test/cat/0.ppm",
        )

    def test_two_parts_that_are_the_id_images_together(self, pets: Pets) -> None:
        lines = {
            name: pets.images(name, 1000 * number) for number, name in enumerate(("one", "two"))
        }
        lines["two"].append(lines["one"][0])
        together = 'path = ["one", "two"]\nval_fraction = 0.25\ntest_fraction = 0.25'
        refused(lambda: pets.suite(pets.lists(**lines), together), "one/cat/0.ppm (cat and cat)")

    def test_a_second_table_that_says_two_things(self, pets: Pets) -> None:
        lines = [line.replace(" ", ",") + ",FRA" for line in pets.images("all", 0)]
        (pets.root / "all.csv").write_text("\n".join(["file,y,country", *lines]))
        layout = (
            '{ kind = "table", path = "all.csv", file = "file", label = "y", group = "region", join'
            " = { "
        )
        layout += 'path = "c.csv", column = "country", key = "code", value = "region" } }'
        (pets.root / "c.csv").write_text("code,region\nFRA,Europe\nFRA,Europe\n")
        pets.suite({"all": layout}, WHOLE)
        (pets.root / "c.csv").write_text("code,region\nFRA,Europe\nFRA,Africa\n")
        refused(lambda: pets.suite({"all": layout}, WHOLE), "FRA (Europe); FRA (Africa)", "c.csv")


def linked(kind: str, new: Path, old: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hard":
        os.link(old, new)
    else:
        new.symlink_to(old)


@pytest.mark.parametrize("kind", ["hard", "symbolic"])
class TestLinks:
    def test_two_names_under_two_classes(self, pets: Pets, kind: str) -> None:
        pets.images("all", 0)
        linked(kind, pets.root / "all/dog/x.ppm", pets.root / "all/cat/3.ppm")
        shown = "all/cat/3.ppm = all/dog/x.ppm (cat and dog)"
        refused(lambda: pets.suite({"all": '{ path = "all" }'}, WHOLE), shown)

    def test_two_names_in_two_splits(self, pets: Pets, kind: str) -> None:
        for number, part in enumerate(("train", "val", "test", "sketch")):
            pets.images(part, 1000 * number)
        layouts = {part: f'{{ path = "{part}" }}' for part in ("train", "val", "test", "sketch")}
        linked(kind, pets.root / "sketch/cat/x.ppm", pets.root / "train/cat/3.ppm")
        shown = "1 file is in two splits, train and sketch: train/cat/3.ppm = sketch/cat/x.ppm"
        refused(lambda: pets.suite(layouts, shifts=("sketch",)), shown)
        refused(lambda: pets.suite(layouts, shifts=("sketch",), training=False), shown)

    def test_two_names_under_one_class(self, pets: Pets, kind: str) -> None:
        """They stay together where the content is known; a listing cannot keep them, and is refused
        where they are parted.
        """
        pets.images("all", 0)
        for number in range(8):
            linked(kind, pets.root / f"all/cat/x{number}.ppm", pets.root / f"all/cat/{number}.ppm")
        if pets.identity == "content":
            suite = pets.suite({"all": '{ path = "all" }'}, WHOLE)
            names = [
                {Path(key).name.strip("x") for key in suite.load(s, PIXELS).keys if "cat" in key}
                for s in suite.split_names
            ]
            assert sum(map(len, names)) == 8, "no image is in two splits"
        else:
            error = refused(
                lambda: pets.suite({"all": '{ path = "all" }'}, WHOLE), "are in two splits"
            )
            assert "(train) = all/cat/x" in error.what
        pets.images("val", 1000)
        pets.images("test", 2000)
        ready = {
            "train": '{ path = "all" }',
            "val": '{ path = "val" }',
            "test": '{ path = "test" }',
        }
        assert len(pets.suite(ready).load("train", PIXELS)) == 32, (
            "where nothing is divided, nothing is parted"
        )

    def test_a_suite_of_folders_of_its_own(
        self, card_of: Callable[..., SuiteCard], data: Path, kind: str
    ) -> None:
        linked(kind, data / "pets/sketch/dog/x.png", data / "pets/photo/dog/001.png")
        shown = "ID data and sketch: photo/dog/001.png = sketch/dog/x.png"
        refused(lambda: open_suite(card_of(), data_root=data), shown)
        (data / "pets/sketch/dog/x.png").rename(data / "pets/photo/cat/x.png")
        refused(
            lambda: open_suite(card_of(), data_root=data),
            "photo/cat/x.png = photo/dog/001.png (cat and dog)",
        )

    def test_a_file_system_that_gives_all_files_one_number(
        self, pets: Pets, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "bench.data.readers.folder.file_numbers", lambda size, inode: np.full(len(size), 7)
        )
        pets.images("all", 0)
        pets.suite({"all": '{ path = "all" }'}, WHOLE)
        linked(kind, pets.root / "all/dog/x.ppm", pets.root / "all/cat/3.ppm")
        refused(
            lambda: pets.suite({"all": '{ path = "all" }'}, WHOLE),
            "1 file is",
            "all/cat/3.ppm = all/dog/x.ppm",
        )


def test_a_class_folder_that_is_a_link_to_another(pets: Pets) -> None:
    pets.images("all", 0)
    for file in (pets.root / "all/newt").iterdir():
        file.unlink()
    (pets.root / "all/newt").rmdir()
    (pets.root / "all/newt").symlink_to(pets.root / "all/dog")
    refused(
        lambda: pets.suite({"all": '{ path = "all" }'}, WHOLE),
        "8 files",
        "all/dog/0.ppm = all/newt/0.ppm (dog and newt)",
    )


def test_a_folder_of_a_shift_that_is_a_link_to_the_training_images(
    card_of: Callable[..., SuiteCard], data: Path
) -> None:
    (data / "pets/again").symlink_to(data / "pets/photo")
    again = {"name": "again", "path": "again"}
    refused(
        lambda: open_suite(card_of(shifts=[again]), data_root=data),
        "60 files are in two splits, ID data and again",
    )
    with pytest.raises(ValueError, match=r"id\.path and the shift again are the same images"):
        card_of(shifts=[again | {"path": "photo"}])


@pytest.mark.parametrize("same", ["val", "test", "shift"])
def test_a_card_that_names_one_place_twice(pets: Pets, same: str) -> None:
    for number, part in enumerate(("train", "val", "test")):
        pets.images(part, 1000 * number)
    layouts = {part: f'{{ path = "{part}" }}' for part in ("train", "val", "test")}
    id_data = READY if same == "shift" else READY.replace(f'{same} = "{same}"', f'{same} = "train"')
    with pytest.raises(UsageError, match=r"id\.train and .* are the same images"):
        pets.suite(layouts, id_data, shifts=("train",) if same == "shift" else ())


def archive(file: Path, members: list[tuple[str, bytes]]) -> None:
    import io

    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class TestArchives:
    def members(self, pets: Pets, seed: int, part: str) -> list[tuple[str, bytes]]:
        pets.images(part, seed)
        return [
            (str(file.relative_to(pets.root / part)), file.read_bytes())
            for file in sorted((pets.root / part).rglob("*.ppm"))
        ]

    @pytest.mark.parametrize("name", ["cat/3.ppm", "./cat/3.ppm"])
    def test_a_member_twice(self, pets: Pets, name: str) -> None:
        members = self.members(pets, 0, "all")
        layouts = {"all": '{ kind = "tar", path = "all*.tar" }'}
        archive(pets.root / "all.tar", members)
        pets.suite(layouts, WHOLE)
        archive(pets.root / "all.tar", [*members, (name, members[9][1])])
        refused(
            lambda: pets.suite(layouts, WHOLE),
            "2 files are under the name",
            "all.tar: all/cat/3.ppm",
            f"all.tar: all/{name}",
        )

    def test_one_archive_for_two_parts(self, pets: Pets) -> None:
        archive(pets.root / "a-0.tar", self.members(pets, 0, "a"))
        archive(pets.root / "b-0.tar", self.members(pets, 1000, "b"))
        archive(pets.root / "c-0.tar", self.members(pets, 2000, "c"))
        layouts = {
            part: f'{{ kind = "tar", path = "{at}-*.tar" }}'
            for part, at in (("train", "a"), ("val", "b"), ("test", "c"))
        }
        pets.suite(layouts)
        (pets.root / "c-1.tar").symlink_to(pets.root / "a-0.tar")
        refused(
            lambda: pets.suite(layouts),
            "24 files are in two splits, train and id-test: a-0/cat/0.ppm = c-1/cat/0.ppm",
        )

    def test_two_classes_for_one_sample(self, pets: Pets) -> None:
        members = [
            (f"{number}.{what}", data)
            for number in range(24)
            for what, data in self.sample(pets, number)
        ]
        layouts = {
            "all": '{ kind = "tar", path = "all.tar", class_in = "cls", named_by = ["number"] }'
        }
        archive(pets.root / "all.tar", members)
        pets.suite(layouts, WHOLE)
        archive(pets.root / "all.tar", [*members, ("4.cls", b"2")])
        refused(lambda: pets.suite(layouts, WHOLE), "4.cls")

    def sample(self, pets: Pets, number: int) -> list[tuple[str, bytes]]:
        return [
            ("ppm", pets.image("x.ppm", number).read_bytes()),
            ("cls", str(number % 3).encode()),
        ]


@pytest.mark.parametrize("lies", ["flat", "tar"])
def test_a_list_of_classes_that_names_an_image_twice(pets: Pets, lies: str) -> None:
    rows = [f"{number},{CLASSES[number % 3]} 1 2 3 4" for number in range(24)]
    files = [pets.image(f"all/{number}.ppm", number) for number in range(24)]
    archive(pets.root / "all.tar", [(file.name, file.read_bytes()) for file in files])
    place = 'path = "all"' if lies == "flat" else 'path = "all.tar", class_in = "list"'
    layouts = {"all": f'{{ kind = "{lies}", {place}, lists = ["truth.csv"] }}'}
    (pets.root / "truth.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    pets.suite(layouts, WHOLE)
    (pets.root / "truth.csv").write_text(
        "\n".join(["ImageId,PredictionString", *rows, "4,cat 1 2 3 4"])
    )
    refused(lambda: pets.suite(layouts, WHOLE), "4 (cat); 4 (dog)", "truth.csv")


class TestParquet:
    def table(self, pets: Pets, seed: int) -> dict[str, list[Any]]:
        data = [pets.image("x.ppm", seed + number).read_bytes() for number in range(24)]
        images = [{"bytes": one, "path": f"{seed + number}.ppm"} for number, one in enumerate(data)]
        return {"image": images, "label": [number % 3 for number in range(24)]}

    @pytest.mark.parametrize("label", [0, 1])
    def test_a_row_twice(self, pets: Pets, label: int) -> None:
        table, layouts = self.table(pets, 0), {"all": '{ kind = "parquet", path = "*.parquet" }'}
        pq.write_table(pa.table(table), pets.root / "all.parquet")
        pets.suite(layouts, WHOLE)
        table = {"image": [*table["image"], table["image"][3]], "label": [*table["label"], label]}
        pq.write_table(pa.table(table), pets.root / "all.parquet")
        refused(lambda: pets.suite(layouts, WHOLE), f"0000003/3.ppm (0); 0000024/3.ppm ({label})")

    def test_one_file_for_two_parts(self, pets: Pets) -> None:
        for number, part in enumerate(("train", "val", "test")):
            pq.write_table(
                pa.table(self.table(pets, 1000 * number)), pets.root / f"{part}-0.parquet"
            )
        layouts = {
            part: f'{{ kind = "parquet", path = "{part}-*.parquet" }}'
            for part in ("train", "val", "test")
        }
        pets.suite(layouts)
        (pets.root / "test-1.parquet").symlink_to(pets.root / "train-0.parquet")
        refused(
            lambda: pets.suite(layouts),
            "24 files are in two splits, train and id-test",
            "0000000/0.ppm = 0000024/0.ppm",
        )


@pytest.mark.parametrize("form", ["numpy", "cifar-binary"])
def test_ranges_of_an_array_that_overlap(tmp_path: Path, form: str) -> None:
    pets = Pets(tmp_path, "content")
    rng = np.random.default_rng(0)
    pixels, labels = (
        rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        (np.arange(40) % 3).astype(np.uint8),
    )
    if form == "numpy":
        np.save(pets.root / "x.npy", pixels)
        np.save(pets.root / "y.npy", labels)
        files = 'path = "x.npy", labels = "y.npy"'
    else:  # rows are counted through both files
        records = np.concatenate(
            [labels[:, None], pixels.transpose(0, 3, 1, 2).reshape(40, -1)], axis=1
        )
        records[:15].tofile(pets.root / "one.bin")
        records[15:].tofile(pets.root / "two.bin")
        files = 'format = "cifar-binary", path = "one.bin", more = ["two.bin"]'

    def layouts(first: int) -> dict[str, str]:
        rows = {"train": (0, 20), "val": (20, 30), "test": (first, 40)}
        return {
            part: f'{{ kind = "arrays", {files}, rows = {list(own)} }}'
            for part, own in rows.items()
        }

    pets.suite(layouts(30))
    refused(lambda: pets.suite(layouts(19)), "1 file is in two splits, train and id-test", "000019")
    one = {
        "train": layouts(30)["train"],
        "val": layouts(30)["val"],
        "test": '{ kind = "arrays", format = "cifar-binary", path = "two.bin" }',
    }
    if form == "cifar-binary":
        refused(lambda: pets.suite(one), "5 files are in two splits, train and id-test")


def test_a_large_listing_is_checked_when_it_is_made_and_again_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.data.readers.listing.TRUSTED_FROM", 10)
    monkeypatch.setattr("bench.data.readers.listing.UNSETTLED_NS", -(10**30))
    pets = Pets(tmp_path, "listing")
    for number, part in enumerate(("train", "val", "test")):
        pets.images(part, 1000 * number)
    layouts = {part: f'{{ path = "{part}" }}' for part in ("train", "val", "test")}
    for _ in range(2):
        pets.suite(layouts)
    linked("hard", pets.root / "test/cat/x.ppm", pets.root / "train/cat/3.ppm")
    os.utime(pets.root / "test/cat", (1e9, 1e9))
    for _ in range(2):
        refused(lambda: pets.suite(layouts), "train and id-test: train/cat/3.ppm = test/cat/x.ppm")
    (pets.root / "test/cat/x.ppm").rename(pets.root / "train/dog/x.ppm")
    for changed in ("test/cat", "train/dog"):
        os.utime(pets.root / changed, (2e9, 2e9))
    for _ in range(2):
        refused(lambda: pets.suite(layouts), "train/cat/3.ppm = train/dog/x.ppm (cat and dog)")
