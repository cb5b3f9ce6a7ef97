"""Tiny image folders with a card, and an environment in which nothing of the user's is read or
written.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.data.cards.suite_card import SuiteCard

from support.pets import IDS

CLASSES = ("cat", "dog", "newt")


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))
    monkeypatch.delenv("BENCH_DATA", raising=False)


def photo(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Noise of this width and height, different for every seed."""
    width, height = size
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def fill_part(
    part: Path, folders: Sequence[str], per_class: int, seed: int, suffix: str = ".png"
) -> None:
    for label, folder in enumerate(folders):
        (part / folder).mkdir(parents=True)
        for number in range(per_class):
            photo(seed + 1000 * label + number).save(part / folder / f"{number:03d}{suffix}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root with `pets`: 20 photos and 6 sketches of each of three classes."""
    root = tmp_path / "data"
    fill_part(root / "pets" / "photo", CLASSES, 20, seed=0)
    fill_part(root / "pets" / "sketch", CLASSES, 6, seed=50_000)
    return root


@pytest.fixture
def card_of() -> Callable[..., SuiteCard]:
    """Makes the card of `data`; keywords replace its fields."""

    def make(**fields: Any) -> SuiteCard:
        card = {
            "name": "pets",
            "title": "Pets",
            "licence": "CC0",
            "get": "Ask the neighbours",
            "classes": CLASSES,
            "source": {"kind": "folder", "root": "pets"},
            "id": {"path": "photo"},
            "shifts": [{"name": "sketch", "path": "sketch"}],
        }
        return SuiteCard.model_validate(card | fields)

    return make


@pytest.fixture
def new_photo() -> Callable[..., Image.Image]:
    return photo


@pytest.fixture
def new_part() -> Callable[..., None]:
    return fill_part


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the folder of the dataset, empty."""
    (tmp_path / "data" / "pets").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path: Path, new_photo: Any) -> dict[str, bytes]:
    """Four images of each class: class folder and file name -> bytes."""
    made = {}
    for label, identity in enumerate(IDS):
        for number in range(4):
            file = io.BytesIO()
            new_photo(100 * label + number).save(file, "PNG")
            made[f"{identity}/{identity}_{number}.png"] = file.getvalue()
    return made
