"""Cards that extend others, entries written once for many, and lists in place of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.data.cards.inheritance import read_table
from bench.data.cards.suite_card import find_card
from bench.errors import UsageError

BASE = """
name = "base"
title = "Base"
licence = "CC0"
classes = ["a", "b"]
[source]
kind = "folder"
root = "./images"
[id]
path = "photo"
split_seed = 3
[[shifts]]
name = "one"
path = "one"
factors = { style = "changed" }
[[shifts]]
name = "two"
path = "two"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "card.toml").write_text(text)
    return folder / "card.toml"


def test_own_fields_lie_over_those_of_the_card_that_is_extended(folder: Path) -> None:
    text = """
    extends = "base.toml"
    name = "mine"
    [id]
    path = "drawing"
    [[shifts]]
    name = "two"
    count = 7
    [[shifts]]
    name = "three"
    path = "three"
    """
    card, _ = find_card(str(write(folder, text)))
    assert (card.name, card.title, card.classes) == ("mine", "Base", ("a", "b"))
    assert (card.id.path, card.id.split_seed) == ("drawing", 3)
    assert [(shift.name, shift.path, shift.count) for shift in card.shifts] == [
        ("one", "one", None),
        ("two", "two", 7),
        ("three", "three", None),
    ]
    assert card.shifts[0].factors == {"style": "changed"}


def test_shifts_can_be_left_out_by_name(folder: Path) -> None:
    card, _ = find_card(
        str(write(folder, 'extends = "base.toml"\nname = "mine"\nwithout = ["one"]'))
    )
    assert [shift.name for shift in card.shifts] == ["two"]
    with pytest.raises(UsageError, match=r"`without`.*: tow"):
        read_table(write(folder, 'extends = "base.toml"\nwithout = ["tow"]'))


def test_a_circle_is_an_error(folder: Path) -> None:
    (folder / "other.toml").write_text('extends = "card.toml"')
    with pytest.raises(UsageError, match="extends itself"):
        read_table(write(folder, 'extends = "other.toml"'))


def test_an_installed_suite_is_extended_by_its_name(folder: Path) -> None:
    card, _ = find_card(
        str(write(folder, 'extends = "mini-shifts"\nname = "mine"\n[source.options]\nbias = 0.5'))
    )
    whole, _ = find_card("mini-shifts")
    assert card.source is not None
    assert whole.source is not None
    assert card.source.model_dump()["options"] == whole.source.model_dump()["options"] | {
        "bias": 0.5
    }
    assert card.shifts == whole.shifts
    with pytest.raises(UsageError, match="did you mean `mini-shifts`"):
        read_table(write(folder, 'extends = "mini-shift"'))


def test_one_entry_for_many_values(folder: Path) -> None:
    text = """
    extends = "base.toml"
    name = "mine"
    [[shifts]]
    name = "{kind}-{level}"
    path = "{kind}/{level}"
    family = "{kind}"
    each = { kind = ["fog", "snow"], level = [1, 2] }
    """
    card, _ = find_card(str(write(folder, text)))
    shifts = [(shift.name, shift.path, shift.family) for shift in card.shifts[2:]]
    assert shifts == [
        (f"{kind}-{level}", f"{kind}/{level}", kind) for kind in ("fog", "snow") for level in (1, 2)
    ]


def test_classes_and_prompts_from_lists(folder: Path) -> None:
    (folder / "classes.tsv").write_text("# two kinds\nn1\tcrane\nn2\tcrane\n")
    (folder / "prompts.txt").write_text("a {}.\nthe {}.\n")
    text = (
        'extends = "base.toml"\nclasses = "./classes.tsv"\ntemplates ='
        ' "./prompts.txt"\n[source]\nfolders = ["one", "two"]'
    )
    card, _ = find_card(str(write(folder, text)))
    assert (card.classes, card.identities) == (("crane", "crane"), ("n1", "n2"))
    assert card.templates == ("a {}.", "the {}.")
    (folder / "classes.tsv").write_text("n1\tcrane\nn1\tbird\n")
    with pytest.raises(UsageError, match="not unique: n1"):
        find_card(str(folder / "card.toml"))
    with pytest.raises(UsageError, match=r"list.*`imagenet-2k`"):
        find_card(str(write(folder, 'extends = "base.toml"\nclasses = "imagenet-2k"')))
