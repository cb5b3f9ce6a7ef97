from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data.cards.locations import cache_dir, data_roots, find_root, user_configuration
from bench.data.cards.suite_card import SuiteCard
from bench.errors import BenchError, MissingPrerequisite, UsageError

Make = Callable[..., SuiteCard]


def test_the_option_comes_before_the_environment_before_the_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", os.pathsep.join(["/second", "/third"]))
    user_configuration().parent.mkdir(parents=True)
    user_configuration().write_text('data_roots = ["/fourth"]\n')
    roots = data_roots(Path("/first"))
    assert [str(root.path) for root in roots] == ["/first", "/second", "/third", "/fourth"]
    assert [root.origin for root in roots[:3]] == ["--data-root", "BENCH_DATA", "BENCH_DATA"]


def test_the_first_root_that_holds_the_dataset_is_taken(
    card_of: Make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", os.pathsep.join([str(tmp_path / "empty"), str(data)]))
    assert find_root(card_of(), data_roots()) == data / "pets"


@pytest.mark.parametrize("absolute", [True, False])
def test_a_root_on_the_card_may_be_absolute_or_relative_to_it(
    card_of: Make, data: Path, absolute: bool
) -> None:
    card = card_of(source={"kind": "folder", "root": str(data / "pets") if absolute else "./pets"})
    assert find_root(card, [], card_path=data / "pets.toml") == data / "pets"


def test_missing_data_is_exit_code_3_and_names_every_place_and_the_repair(
    card_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "BENCH_DATA", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")])
    )
    with pytest.raises(MissingPrerequisite) as caught:
        find_root(card_of(), data_roots(tmp_path / "zero"))
    assert caught.value.exit_code == 3
    for place in ("zero", "one", "two"):
        assert str(tmp_path / place / "pets") in caught.value.where
    assert "Ask the neighbours" in caught.value.fix
    assert "export BENCH_DATA=" in caught.value.fix


def test_without_any_data_root_the_three_ways_to_name_one_are_listed(card_of: Make) -> None:
    with pytest.raises(MissingPrerequisite, match=r"--data-root.*BENCH_DATA.*config\.toml"):
        find_root(card_of(), data_roots())


def test_naming_the_dataset_instead_of_the_folder_above_it_is_recognised(
    card_of: Make, data: Path
) -> None:
    with pytest.raises(MissingPrerequisite, match=f"export BENCH_DATA={data}$"):
        find_root(card_of(), data_roots(data / "pets"))


def test_a_wrong_configuration_is_a_usage_error() -> None:
    user_configuration().parent.mkdir(parents=True)
    user_configuration().write_text('data_roots = "/one"\n')
    with pytest.raises(UsageError, match="not a list"):
        data_roots()


def test_a_cache_that_cannot_be_made_names_the_variable_that_moves_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(BenchError, match="BENCH_CACHE"):
        cache_dir("pixels")
