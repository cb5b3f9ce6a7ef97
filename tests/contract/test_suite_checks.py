"""`bench check SUITE`: what a user's own card of 15 lines and its folders are checked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from bench.testing import CheckResult, suite_checks

MINE = """\
name = "mine"
title = "My shapes"
licence = "CC0"
classes = ["square", "disc", "cross"]
templates = ["a photo of a {}."]
[source]
kind = "folder"
root = "./images"
[id]
path = "photo"
[[shifts]]
name = "inverted"
path = "inverted"
"""


@pytest.fixture
def mine(tiny_suite: Path, tmp_path: Path) -> Path:
    """A card and images of one's own, to be spoiled."""
    shutil.copytree(tiny_suite.parent / "images", tmp_path / "images")
    (tmp_path / "mine.toml").write_text(MINE)
    return tmp_path / "mine.toml"


def outcomes(card: Path) -> dict[str, CheckResult]:
    results = [check.run() for check in suite_checks(card, size=16)]
    return {result.check: result for result in results}


def test_a_right_suite_passes(mine: Path) -> None:
    found = outcomes(mine)
    assert {outcome.status for outcome in found.values()} == {"pass"}
    assert (
        found["the images of every split can be decoded"].detail
        == "train 44, id-val 14, id-test 14, inverted 18"
    )
    assert found["train, id-val and id-test share no image"].detail == "72 different images"


def test_a_file_that_is_no_image_is_named(mine: Path) -> None:
    (mine.parent / "images/inverted/disc/000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    outcome = outcomes(mine)["the images of every split can be decoded"]
    assert outcome.status == "fail"
    assert "images/inverted/disc/000.png" in outcome.detail


def test_a_split_too_large_for_the_cache_is_sampled_and_reported_so(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The training images alone are more.
    monkeypatch.setattr("bench.data.suite._MOST_CACHED_BYTES", 20 * 16**2 * 3)
    monkeypatch.setattr("bench.testing.suite_contract.SAMPLE", 10)
    detail = outcomes(mine)["the images of every split can be decoded"].detail
    assert detail.startswith(
        "train 44 of which 10 were tried: `bench data verify NAME --full` reads all, id-val 14"
    )
    for photo in (mine.parent / "images/photo").rglob("*.png"):
        data = photo.read_bytes()
        photo.write_bytes(data[: len(data) // 2])
    assert outcomes(mine)["the images of every split can be decoded"].status == "fail"


def test_one_image_in_two_ready_splits(mine: Path) -> None:
    card = mine.read_text().replace(
        'path = "photo"\n', 'train = "photo"\nval = "noisy"\ntest = "test"\n'
    )
    mine.write_text(card)
    images = mine.parent / "images"
    shutil.copytree(images / "inverted", images / "test")
    # The same pixels in another file.
    Image.open(images / "photo/disc/003.png").save(images / "test/disc/again.bmp")
    outcome = outcomes(mine)["train, id-val and id-test share no image"]
    assert (outcome.status, outcome.detail) == (
        "fail",
        "AssertionError: 1 images are in two of these splits",
    )


def test_a_missing_shift_is_a_remark_unless_it_is_the_last(mine: Path) -> None:
    name = "the data are found and agree with the card"
    mine.write_text(mine.read_text() + '\n[[shifts]]\nname = "noisy"\npath = "noisy"\n')
    shutil.rmtree(mine.parent / "images/inverted")
    found = outcomes(mine)
    assert {outcome.status for outcome in found.values()} == {"pass"}
    assert "inverted" in found[name].detail
    (mine.parent / "images/noisy").rename(mine.parent / "noisy")
    assert outcomes(mine)[name].status == "fail"


@pytest.mark.parametrize(
    ("wrong", "right", "text"),
    [
        ('"disc", ', "", "disc"),  # a folder that the card does not know
        ('licence = "CC0"\n', "", "licence: is missing"),
        ('path = "photo"', 'path = "photos"', "photos"),
    ],
)
def test_a_wrong_card_is_reported(wrong: str, right: str, text: str, mine: Path) -> None:
    mine.write_text(mine.read_text().replace(wrong, right))
    assert any(text in outcome.detail for outcome in outcomes(mine).values())


def test_without_training_images_the_rest_is_checked(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "test").symlink_to(tiny_suite.parent / "images" / "photo")
    (tmp_path / "images" / "inverted").symlink_to(tiny_suite.parent / "images" / "inverted")
    card = tmp_path / "mine.toml"
    card.write_text(MINE.replace('path = "photo"', 'train = "train"\nval_count = 9\ntest = "test"'))
    found = outcomes(card)
    assert [outcome.status for outcome in found.values()] == [
        "pass",
        "pass",
        "pass",
        "pass",
        "skip",
        "skip",
    ]
    assert "train: no folder" in found["the data are found and agree with the card"].detail
    assert "no training images" in found["every class occurs in the ID splits"].detail
