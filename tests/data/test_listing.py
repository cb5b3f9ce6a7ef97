from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from bench.data.readers import folder as folder_module
from bench.data.readers import listing as listing_module
from bench.data.readers.listing import list_folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "TRUSTED_FROM", 10)
    monkeypatch.setattr(listing_module, "UNSETTLED_NS", -(10**30))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for every walk."""
    seen: list[str] = []
    walk = listing_module.walk
    monkeypatch.setattr(
        listing_module, "walk", lambda *arguments: (seen.append("walk"), walk(*arguments))[1]
    )
    return seen


def listing(data: Path, tmp_path: Path, refresh: bool = False) -> pd.DataFrame:
    return list_folder(data / "pets", "photo", cache=tmp_path / "index", refresh=refresh).frame()


def size_of(frame: pd.DataFrame) -> int:
    return int(frame.set_index("key").loc["photo/cat/003.png", "size"])


def test_a_listing_has_the_columns_and_order_of_an_index(data: Path, tmp_path: Path) -> None:
    (data / "pets/photo/cat/empty.png").touch()
    (data / "pets/photo/cat/readme.txt").write_text("pets")
    (data / "pets/photo/.hidden").mkdir()
    found = listing(data, tmp_path)
    indexed = folder_module.index_folder(data / "pets", "photo", cache=tmp_path / "index")
    assert list(found.columns) == list(indexed.columns)
    for column in ("key", "folder", "size", "mtime_ns", "problem"):
        assert found[column].tolist() == indexed[column].tolist(), column
    assert set(found["problem"]) == {"", "empty", "other file", "system file"}


def test_an_unchanged_large_folder_is_not_walked_again(
    data: Path, tmp_path: Path, walks: list[str]
) -> None:
    first, second = listing(data, tmp_path), listing(data, tmp_path)
    assert walks == ["walk"]
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new folder"])
def test_a_changed_folder_is_noticed(
    data: Path, tmp_path: Path, walks: list[str], change: str
) -> None:
    cat = data / "pets/photo/cat"
    # A change within one tick of the file system's clock has the same time.
    os.utime(cat, (1e9, 1e9))
    before = listing(data, tmp_path)
    if change == "add":
        (cat / "new.png").write_bytes(b"x")
    elif change == "remove":
        (cat / "003.png").unlink()
    elif change == "rename":
        (cat / "003.png").rename(cat / "003b.png")
    else:
        (cat / "deeper").mkdir()
        (cat / "deeper" / "new.png").write_bytes(b"x")
    after = listing(data, tmp_path)
    assert len(walks) == 2
    assert set(before["key"]) != set(after["key"])


def test_an_overwritten_file_is_noticed_below_the_limit_and_by_refresh(
    data: Path, tmp_path: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing(data, tmp_path)
    file = data / "pets/photo/cat/003.png"
    file.write_bytes(b"other")
    remembered, refreshed = listing(data, tmp_path), listing(data, tmp_path, refresh=True)
    assert size_of(remembered) != 5
    assert size_of(refreshed) == 5
    monkeypatch.setattr(listing_module, "TRUSTED_FROM", 1000)
    for stored in (tmp_path / "index").iterdir():
        stored.unlink()
    file.write_bytes(b"yet another")
    assert size_of(listing(data, tmp_path)) == 11


def test_a_folder_listed_right_after_its_change_is_not_believed(
    data: Path, tmp_path: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = (data / "pets/photo/cat").stat().st_mtime_ns
    monkeypatch.setattr(listing_module, "UNSETTLED_NS", folder_module.UNSETTLED_NS)
    monkeypatch.setattr(listing_module, "time", SimpleNamespace(time_ns=lambda: changed + 1))
    listing(data, tmp_path)
    listing(data, tmp_path)
    assert len(walks) == 2


def test_a_damaged_listing_is_made_anew(data: Path, tmp_path: Path, walks: list[str]) -> None:
    first = listing(data, tmp_path)
    for stored in (tmp_path / "index").iterdir():
        stored.write_bytes(b"PAR1 nonsense")
    pd.testing.assert_frame_equal(first, listing(data, tmp_path))
    assert len(walks) == 2
