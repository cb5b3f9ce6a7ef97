from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from bench.data.cards.suite_card import SuiteCard
from bench.data.collection import Collection, Originals, merged
from bench.data.pixels.cache import prepared
from bench.data.pixels.decoder import Pixels
from bench.data.suite import Suite, open_suite
from bench.errors import BenchError, MissingPrerequisite, UsageError

Make = Callable[..., SuiteCard]
NewPhoto = Callable[..., Image.Image]
PIXELS = Pixels(size=8, resize=10)
ID_SPLITS = ("train", "id-val", "id-test")


def contents(suite: Suite, split: str) -> list[bytes]:
    loaded = suite.load(split, PIXELS)
    return [image.tobytes() for image in loaded.take(np.arange(len(loaded)))]


def cut(file: Path) -> None:
    """Half of a JPEG that PIL opens."""
    Image.effect_noise((120, 120), 80).convert("RGB").save(file, format="JPEG")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_the_id_data_are_divided_by_the_fractions_and_by_class(card_of: Make, data: Path) -> None:
    suite = open_suite(card_of(), data_root=data)
    assert suite.split_names == ("train", "id-val", "id-test", "sketch")
    sizes = {
        name: np.bincount(suite.load(name, PIXELS).labels).tolist() for name in suite.split_names
    }
    assert sizes == {
        "train": [12, 12, 12],
        "id-val": [4, 4, 4],
        "id-test": [4, 4, 4],
        "sketch": [6, 6, 6],
    }
    keys = [set(suite.load(name, PIXELS).keys) for name in ID_SPLITS]
    assert len(set.union(*keys)) == 60
    assert suite.warnings == []
    assert suite.missing == {}


def test_a_split_gives_the_pixels_label_and_original_of_each_key(card_of: Make, data: Path) -> None:
    split = open_suite(card_of(), data_root=data).load("id-val", PIXELS)
    assert split.groups is None
    for row, (key, label) in enumerate(zip(split.keys, split.labels, strict=True)):
        with Image.open(data / "pets" / str(key)) as image:
            original = image.convert("RGB")
        assert split.original(row).tobytes() == original.tobytes()
        np.testing.assert_array_equal(split.take(np.array([row]))[0], prepared(original, PIXELS))
        assert str(key).split("/")[1] == ("cat", "dog", "newt")[label]


def test_the_three_id_splits_share_one_cache(card_of: Make, data: Path, tmp_path: Path) -> None:
    suite = open_suite(card_of(), data_root=data)
    for name in ID_SPLITS:
        suite.load(name, PIXELS)
    assert len([path for path in (tmp_path / "cache/pixels").iterdir() if path.is_dir()]) == 1
    assert suite.load("train", PIXELS) is suite.load("train", PIXELS)


def test_a_moved_and_renamed_copy_gives_the_same_splits_in_the_same_order(
    card_of: Make, data: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere/pets"
    (elsewhere / "photo").mkdir(parents=True)
    shutil.copytree(data / "pets/sketch", elsewhere / "sketch")
    for folder in ("newt", "dog", "cat"):
        (elsewhere / "photo" / f"z-{folder[::-1]}").mkdir()
        for number, file in enumerate(
            sorted((data / "pets/photo" / folder).iterdir(), reverse=True)
        ):
            shutil.copy(file, elsewhere / "photo" / f"z-{folder[::-1]}" / f"renamed-{number}.png")
    for folder in ("newt", "dog", "cat"):
        (elsewhere / "sketch" / folder).rename(elsewhere / "sketch" / f"z-{folder[::-1]}")
    moved = card_of(
        source={"kind": "folder", "root": "pets", "folders": ["z-tac", "z-god", "z-twen"]}
    )
    one, two = (
        open_suite(card_of(), data_root=data),
        open_suite(moved, data_root=tmp_path / "elsewhere"),
    )
    for name in one.split_names:
        assert one.load(name, PIXELS).fingerprint == two.load(name, PIXELS).fingerprint
        assert contents(one, name) == contents(two, name)
        np.testing.assert_array_equal(one.load(name, PIXELS).labels, two.load(name, PIXELS).labels)


def test_labels_and_contents_are_in_the_fingerprint(
    card_of: Make, data: Path, new_photo: NewPhoto
) -> None:
    def fingerprint() -> str:
        return open_suite(card_of(), data_root=data).load("sketch", PIXELS).fingerprint

    before = fingerprint()
    (data / "pets/sketch/cat/000.png").rename(data / "pets/sketch/dog/moved.png")
    relabelled = fingerprint()
    new_photo(99_999).save(data / "pets/sketch/dog/moved.png")
    assert len({before, relabelled, fingerprint()}) == 3


def test_another_split_seed_is_another_division(card_of: Make, data: Path) -> None:
    one = open_suite(card_of(), data_root=data)
    other = open_suite(card_of(id={"path": "photo", "split_seed": 1}), data_root=data)
    for name in ID_SPLITS:
        assert one.load(name, PIXELS).fingerprint != other.load(name, PIXELS).fingerprint


def test_changed_content_reaches_the_pixels(card_of: Make, data: Path, new_photo: NewPhoto) -> None:
    before = contents(open_suite(card_of(), data_root=data), "sketch")
    new_photo(12_345).save(data / "pets/sketch/cat/000.png")
    after = contents(open_suite(card_of(), data_root=data), "sketch")
    assert len(set(before) - set(after)) == 1


def test_a_file_that_changes_after_it_was_indexed_is_an_error(
    card_of: Make, data: Path, new_photo: NewPhoto
) -> None:
    suite = open_suite(card_of(), data_root=data)
    new_photo(12_345).save(data / "pets/sketch/cat/000.png")
    with pytest.raises(BenchError, match=r"changed while it was in use[\s\S]*sketch/cat/000.png"):
        suite.load("sketch", PIXELS)


def test_copies_of_an_image_stay_on_one_side_of_the_division(card_of: Make, data: Path) -> None:
    photos = data / "pets/photo"
    for folder in ("cat", "dog", "newt"):
        for number in range(20):
            shutil.copy(
                photos / folder / f"{number:03d}.png", photos / folder / f"copy-{number:03d}.png"
            )
    suite = open_suite(card_of(), data_root=data)
    assert any("60 images repeat" in warning for warning in suite.warnings)
    seen = [set(contents(suite, name)) for name in ID_SPLITS]
    assert [len(part) for part in seen] == [36, 12, 12]
    assert len(set.union(*seen)) == 60
    assert sum(len(suite.load(name, PIXELS)) for name in ID_SPLITS) == 120


def test_one_image_under_two_classes_and_test_images_among_the_id_data_are_reported(
    card_of: Make, data: Path
) -> None:
    shutil.copy(data / "pets/photo/cat/000.png", data / "pets/photo/dog/cat.png")
    shutil.copy(data / "pets/photo/cat/001.png", data / "pets/sketch/cat/photo.png")
    warnings = "\n".join(open_suite(card_of(), data_root=data).warnings)
    assert "1 contents appear under more than one class" in warnings
    assert "sketch: 1 images are also in photo" in warnings


def test_an_undecodable_file_fails_with_its_path(card_of: Make, data: Path) -> None:
    cut(data / "pets/sketch/cat/cut.jpg")
    suite = open_suite(card_of(), data_root=data)
    with pytest.raises(BenchError, match=r"sketch/cat/cut.jpg[\s\S]*--skip-unreadable 1") as caught:
        suite.load("sketch", PIXELS)
    assert caught.value.exit_code == 1
    assert len(suite.load("train", PIXELS)) == 36


def test_unreadable_files_up_to_the_allowed_number_are_counted_and_left_out(
    card_of: Make, data: Path
) -> None:
    cut(data / "pets/sketch/cat/cut.jpg")
    (data / "pets/sketch/dog/empty.jpg").touch()
    (data / "pets/sketch/newt/page.jpg").write_text("<html>")
    with pytest.raises(BenchError, match=r"unreadable images in pets sketch: 3 \(allowed: 2\)"):
        open_suite(card_of(), data_root=data, skip_unreadable=2).load("sketch", PIXELS)
    clean = open_suite(card_of(), data_root=data, skip_unreadable=3).load("sketch", PIXELS)
    assert (len(clean), clean.skipped) == (18, 3)
    assert len(clean.take(np.arange(18))) == 18


def test_unreadable_id_files_are_counted_over_the_three_splits(card_of: Make, data: Path) -> None:
    for number in range(5):
        cut(data / f"pets/photo/cat/cut-{number}.jpg")
    with pytest.raises(BenchError, match="allowed: 4"):
        open_suite(card_of(), data_root=data, skip_unreadable=4).load("id-val", PIXELS)
    suite = open_suite(card_of(), data_root=data, skip_unreadable=5)
    assert sum(suite.load(name, PIXELS).skipped for name in ID_SPLITS) == 5
    assert sum(len(suite.load(name, PIXELS)) for name in ID_SPLITS) == 60


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a text"])
def test_a_missing_shift_is_missing_and_the_rest_goes_on(
    card_of: Make, data: Path, left: str
) -> None:
    shutil.rmtree(data / "pets/sketch")
    if left != "nothing":
        (data / "pets/sketch").mkdir()
    if left == "a text":
        (data / "pets/sketch/download-failed.txt").write_text("404")
    suite = open_suite(card_of(), data_root=data)
    assert str(data / "pets/sketch") in suite.missing["sketch"]
    assert len(suite.load("id-test", PIXELS)) == 12
    with pytest.raises(MissingPrerequisite):
        suite.load("sketch", PIXELS)


def test_missing_id_data_is_exit_code_3(card_of: Make, data: Path) -> None:
    shutil.rmtree(data / "pets/photo")
    with pytest.raises(MissingPrerequisite, match="ID images of Pets"):
        open_suite(card_of(), data_root=data)


def test_counts_that_differ_are_reported_and_on_a_strict_card_refused(
    card_of: Make, data: Path
) -> None:
    fields = {
        "id": {"path": "photo", "count": 61},
        "shifts": [{"name": "sketch", "path": "sketch", "count": 18}],
    }
    suite = open_suite(card_of(**fields), data_root=data)
    assert suite.warnings == ["photo has 60 images, the card says 61"]
    with pytest.raises(BenchError, match="not the images of Pets: photo has 60"):
        open_suite(card_of(**fields, strict_counts=True), data_root=data)


def test_a_limit_is_balanced_deterministic_and_another_fingerprint(
    card_of: Make, data: Path
) -> None:
    whole, one, two = (open_suite(card_of(), data_root=data, limit=limit) for limit in (None, 7, 7))
    for name in whole.split_names:
        few = one.load(name, PIXELS)
        assert sorted(np.bincount(few.labels).tolist()) == [2, 2, 3]
        assert few.keys.tolist() == two.load(name, PIXELS).keys.tolist()
        assert few.fingerprint != whole.load(name, PIXELS).fingerprint
        assert set(few.keys) <= set(whole.load(name, PIXELS).keys)
    assert len(open_suite(card_of(), data_root=data, limit=1000).load("train", PIXELS)) == 36


def test_ready_made_splits_are_used_as_they_are(
    card_of: Make, data: Path, new_part: Callable[..., None]
) -> None:
    for part, seed in (("val", 10_000), ("test", 20_000)):
        new_part(data / "pets" / part, ("cat", "dog", "newt"), 3, seed=seed)
    shutil.copy(data / "pets/photo/cat/000.png", data / "pets/test/cat/000.png")
    suite = open_suite(card_of(id={"train": "photo", "val": "val", "test": "test"}), data_root=data)
    assert [len(suite.load(name, PIXELS)) for name in ID_SPLITS] == [60, 9, 9]
    assert any("test: 1 images are also in photo" in warning for warning in suite.warnings)


def test_problems_list_every_unusual_file(card_of: Make, data: Path) -> None:
    (data / "pets/photo/README.md").write_text("hello")
    (data / "pets/sketch/.DS_Store").write_bytes(b"x")
    problems = open_suite(card_of(), data_root=data).problems
    assert dict(zip(problems["key"], problems["problem"], strict=True)) == {
        "photo/README.md": "other file",
        "sketch/.DS_Store": "system file",
    }


def test_too_few_images_to_divide_is_reported(
    card_of: Make, tmp_path: Path, new_part: Callable[..., None]
) -> None:
    new_part(tmp_path / "few/pets/photo", ("cat", "dog", "newt"), 2, seed=0)
    with pytest.raises(BenchError, match="too few to divide"):
        open_suite(card_of(shifts=[]), data_root=tmp_path / "few").load("train", PIXELS)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"skip_unreadable": -1}])
def test_senseless_numbers_are_usage_errors(
    card_of: Make, data: Path, wrong: dict[str, int]
) -> None:
    with pytest.raises(UsageError):
        open_suite(card_of(), data_root=data, **wrong)  # type: ignore[arg-type]


def test_an_unknown_split_is_a_usage_error_that_lists_the_splits(card_of: Make, data: Path) -> None:
    with pytest.raises(UsageError, match="id-val"):
        open_suite(card_of(), data_root=data).load("validation", PIXELS)


def test_a_split_pickles_without_its_pixels(card_of: Make, data: Path) -> None:
    split = open_suite(card_of(), data_root=data).load("sketch", Pixels(size=200, resize=200))
    pixels = split.take(np.arange(3))
    packed = pickle.dumps(split)
    assert len(packed) < 40_000
    np.testing.assert_array_equal(pickle.loads(packed).take(np.arange(3)), pixels)


@pytest.mark.parametrize("first", [True, False], ids=["the first", "the second"])
def test_stamps_that_one_of_two_parts_lacks_are_left_out_of_both(first: bool) -> None:
    def part(name: str, stamps: bool) -> Collection:
        return Collection(
            what=name,
            keys=np.array([f"{name}/0", f"{name}/1"]),
            labels=np.array([0, 1]),
            groups=None,
            content=np.array([f"{name}0", f"{name}1"]),
            problems=np.array(["", ""]),
            originals=cast(Originals, SimpleNamespace()),
            stamps=np.array([3, 4]) if stamps else None,
            files=np.array([0, 1]),
        )

    both = merged([part("b", first), part("a", not first)])
    assert both.stamps is None
    assert both.keys.tolist() == ["a/0", "a/1", "b/0", "b/1"]
    stamped = merged([part("b", True), part("a", True)]).stamps
    assert stamped is not None
    assert stamped.tolist() == [3, 4, 3, 4]
