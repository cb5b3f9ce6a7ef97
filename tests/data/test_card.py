from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.data.cards.suite_card import SuiteCard, read_card
from bench.datasets import cards
from bench.errors import UsageError

Make = Callable[..., SuiteCard]


@pytest.mark.parametrize("name", sorted(cards()))
def test_every_card_that_comes_with_the_package_is_valid_and_named_as_its_file(name: str) -> None:
    assert read_card(cards()[name]).name == name


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pets.toml"
    file.write_text('name = "pets"\ncolour = "red"\n')
    with pytest.raises(UsageError, match=r"colour.*"):
        read_card(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../pets"}, "name"),
        ({"shifts": [{"name": "a/b", "path": "sketch"}]}, "name"),
        ({"shifts": [{"name": "train", "path": "sketch"}]}, "split names must be unique"),
        (
            {"source": {"kind": "folder", "root": "pets", "folders": ["a", "b"]}},
            "2 folders for 3 classes",
        ),
        (
            {"source": {"kind": "folder", "root": "pets", "folders": ["a", "b", "b"]}},
            "must be unique",
        ),
        (
            {"id": {"path": "photo", "val_fraction": 0.5, "test_fraction": 0.5}},
            "nothing to train on",
        ),
        ({"id": {"train": "a", "val": "b"}}, "all of"),
        ({"metric": "worst_group"}, "needs source.groups"),
        ({"templates": ["a photo"]}, "template"),
    ],
)
def test_a_card_that_cannot_work_is_refused(
    card_of: Make, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        card_of(**fields)


def test_cards_and_locations_are_read_without_the_heavy_packages() -> None:
    code = (
        "import sys, bench.data.cards.suite_card, bench.data.pixels.decoder,"
        " bench.data.cards.locations;print([name for name in ('torch', 'pandas', 'numpy', 'PIL',"
        " 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        ("linear-probe = 3", "the recipe for linear-probe is 3, not a table of parameters"),
        ("linear-probe = [1, 2]", r"the recipe for linear-probe is \[1, 2\]"),
        ("wise-ft = { of = 3 }", "`of` of wise-ft is 3, not the name of a method"),
        ("wise-ft = { of = { lr = 1 } }", "`of` of wise-ft is {'lr': 1}, not the name of a method"),
        ("wise-ft = { of = [1] }", r"`of` of wise-ft is \[1\], not the name of a method"),
    ],
)
def test_a_recipe_is_made_of_tables(recipe: str, shown: str) -> None:
    import tomllib

    from bench.configure import build_method

    values = tomllib.loads(recipe)
    with pytest.raises(UsageError, match=shown):
        build_method(next(iter(values)), {}, values)


def test_a_name_is_short_enough_for_a_folder(card_of: Callable[..., SuiteCard]) -> None:
    assert card_of(name="n" * 128).name == "n" * 128
    with pytest.raises(ValidationError, match="name"):
        card_of(name="n" * 129)
