from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bench.data.pixels.image_bytes import inspect
from bench.data.readers import folder as folder_module
from bench.data.readers.folder import class_images, index_folder
from bench.errors import BenchError

NewPhoto = Callable[..., Image.Image]
CLASSES = ("cat", "dog", "newt")


@pytest.fixture
def pets(data: Path) -> Path:
    return data / "pets"


def index(root: Path, tmp_path: Path) -> pd.DataFrame:
    return index_folder(root, "photo", cache=tmp_path / "index")


def problem_of(frame: pd.DataFrame, key: str) -> str:
    return str(frame.set_index("key").loc[key, "problem"])


def test_every_file_is_listed_once_with_its_content(pets: Path, tmp_path: Path) -> None:
    frame = index(pets, tmp_path)
    assert list(frame.columns) == [*folder_module.COLUMNS, "inode"]
    assert len(frame) == 60
    assert frame["key"].is_monotonic_increasing
    row = frame.set_index("key").loc["photo/dog/003.png"]
    data = (pets / "photo/dog/003.png").read_bytes()
    assert (row["folder"], row["size"], row["format"]) == ("dog", len(data), "PNG")
    assert row["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jpg", b"", "empty"),
        ("a.jpg", b"<html>404 not found</html>", "not an image"),
        ("a.jpg", b"\xff\xd8\xff\xe0\x00\x10JF", "broken image"),
        ("a.png", b"\x89PNG\r\n\x1a\n\x00\x00", "broken image"),
        (".DS_Store", b"\x00\x00\x00\x01Bud1", "system file"),
        ("._a.jpg", b"\x00\x05\x16\x07", "system file"),
        ("Thumbs.db", b"\xd0\xcf", "system file"),
        ("README.md", b"Some pets.", "other file"),
        ("empty.txt", b"", "other file"),
    ],
)
def test_files_that_are_no_images_are_named(
    pets: Path, tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (pets / "photo/cat" / name).write_bytes(content)
    frame = index(pets, tmp_path)
    assert len(frame) == 61
    assert problem_of(frame, f"photo/cat/{name}") == problem


def test_a_misnamed_image_is_noted_and_read_all_the_same(
    pets: Path, tmp_path: Path, new_photo: NewPhoto
) -> None:
    new_photo(1).save(pets / "photo/cat/misnamed.jpg", format="PNG")
    frame = index(pets, tmp_path)
    assert problem_of(frame, "photo/cat/misnamed.jpg") == "misnamed"
    images, remarks = class_images(frame, "photo", CLASSES)
    assert "photo/cat/misnamed.jpg" in set(images["key"])
    assert any("photo/cat/misnamed.jpg" in remark for remark in remarks)


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif"]
)
def test_every_usual_format_is_recognised(suffix: str, tmp_path: Path, new_photo: NewPhoto) -> None:
    file = tmp_path / f"picture{suffix}"
    new_photo(1).save(file)
    found, problem = inspect(file.read_bytes(), file.name)
    assert found
    assert problem == ""


def test_a_hidden_folder_is_one_ignored_entry(
    pets: Path, tmp_path: Path, new_photo: NewPhoto
) -> None:
    (pets / "photo/cat/.ipynb_checkpoints").mkdir()
    new_photo(1).save(pets / "photo/cat/.ipynb_checkpoints/copy.png")
    frame = index(pets, tmp_path)
    assert problem_of(frame, "photo/cat/.ipynb_checkpoints") == "system file"
    assert len(frame) == 61


def test_linked_folders_are_followed_and_a_circle_ends(pets: Path, tmp_path: Path) -> None:
    (pets / "photo/cat/again").symlink_to(pets / "photo")
    (pets / "photo/dog/more").symlink_to(pets / "sketch/dog")
    frame = index(pets, tmp_path)
    assert len(frame) == 66


def test_only_changed_files_are_read_again(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_photo: NewPhoto
) -> None:
    monkeypatch.setattr(folder_module, "UNSETTLED_NS", -(10**30))
    first = index(pets, tmp_path)
    reads: list[str] = []
    judge = folder_module._judge
    monkeypatch.setattr(
        folder_module, "_judge", lambda path, name: (reads.append(name), judge(path, name))[1]
    )
    new_photo(77_777).save(pets / "photo/cat/000.png")
    (pets / "photo/cat/001.png").unlink()
    new_photo(88_888).save(pets / "photo/newt/new.png")
    second = index(pets, tmp_path)
    assert sorted(reads) == ["cat/000.png", "newt/new.png"]
    assert len(second) == 60
    both = first.merge(second, on="key")
    assert list(both["key"][both["sha256_x"] != both["sha256_y"]]) == ["photo/cat/000.png"]


def test_new_content_of_the_same_size_and_time_is_noticed(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "UNSETTLED_NS", -(10**30))
    file = pets / "photo/cat/000.png"
    before, status = index(pets, tmp_path), file.stat()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    both = before.merge(index(pets, tmp_path), on="key")
    assert list(both["key"][both["sha256_x"] != both["sha256_y"]]) == ["photo/cat/000.png"]


def test_a_file_that_was_read_right_after_its_change_is_read_once_more(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = pets / "photo/cat/000.png"
    settled = (
        max(file.stat().st_ctime_ns for file in pets.rglob("*")) + 2 * folder_module.UNSETTLED_NS
    )
    reads: list[str] = []
    judge = folder_module._judge
    monkeypatch.setattr(
        folder_module, "_judge", lambda path, name: (reads.append(name), judge(path, name))[1]
    )
    for clock, expected in ((new.stat().st_mtime_ns, 60), (settled, 60), (settled, 0)):
        monkeypatch.setattr(folder_module.time, "time_ns", lambda clock=clock: clock)
        reads.clear()
        index(pets, tmp_path)
        assert len(reads) == expected


def test_a_damaged_index_is_made_anew(pets: Path, tmp_path: Path) -> None:
    first = index(pets, tmp_path)
    for stored in (tmp_path / "index").iterdir():
        stored.write_bytes(b"PAR1 nonsense")
    assert index(pets, tmp_path)["sha256"].tolist() == first["sha256"].tolist()


def test_missing_and_extra_class_folders_are_one_error_that_names_both(
    pets: Path, tmp_path: Path
) -> None:
    (pets / "photo/dog").rename(pets / "photo/Dogs")
    with pytest.raises(BenchError, match=r"issing.*: dog.* on the card: Dogs"):
        class_images(index(pets, tmp_path), "photo", CLASSES)


def test_labels_follow_the_card_and_not_the_order_of_the_folders(
    pets: Path, tmp_path: Path
) -> None:
    images, _ = class_images(index(pets, tmp_path), "photo", ("newt", "cat", "dog"))
    assert dict(images.groupby("folder")["label"].first()) == {"newt": 0, "cat": 1, "dog": 2}


def test_images_outside_the_class_folders_are_reported(
    pets: Path, tmp_path: Path, new_photo: NewPhoto
) -> None:
    new_photo(1).save(pets / "photo/stray.png")
    images, remarks = class_images(index(pets, tmp_path), "photo", CLASSES)
    assert len(images) == 60
    assert any("photo/stray.png" in remark for remark in remarks)


def test_subfolders_can_be_groups(pets: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        for group in ("land", "water"):
            (pets / "photo" / name / group).mkdir()
        for file in sorted((pets / "photo" / name).glob("*.png")):
            file.rename(file.parent / ("water" if file.stem > "009" else "land") / file.name)
    images, _ = class_images(index(pets, tmp_path), "photo", CLASSES, ("water", "land"))
    assert images.groupby("group").size().to_dict() == {0: 30, 1: 30}
    with pytest.raises(BenchError, match=r"group \(water, ice\)"):
        class_images(index(pets, tmp_path), "photo", CLASSES, ("water", "ice"))
