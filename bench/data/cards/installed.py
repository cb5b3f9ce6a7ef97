"""The cards and lists that are installed, and the files that names on cards stand for."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError
from ...plugins import named_files, unknown
from ...storage.files import absent


def suite_paths() -> dict[str, Path]:
    """Cards of the installed suites by name."""
    return named_files("bench.suites", "card")


def suite_names() -> list[str]:
    """Names of the installed suites."""
    return sorted(suite_paths())


def suite_file(name: str, beside: Path | None = None) -> Path:
    """Where the card of a suite lies.

    Args:
        beside: folder that the path of a file is relative to; default: the working directory.

    Raises:
        UsageError: unknown name, or there is no such file.
    """
    if name.endswith(".toml"):
        path = (beside or Path()) / name
        if why := absent(path):
            raise UsageError(why, fix="`bench suites` lists the installed suites")
        return path.resolve()
    paths = suite_paths()
    if name not in paths:
        raise unknown("suite", name, paths, fix="`bench suites` lists them; a card of your own ends in .toml")
    return paths[name]


def data_set_paths() -> dict[str, Path]:
    """Cards of the installed data sets by name."""
    return named_files("bench.data_sets", "data set's card")


def find_list(name: str, beside: Path) -> Path:
    """The file of a list of classes or prompts: an installed one by its name, or a file (.tsv or .txt) beside a card.

    Raises:
        UsageError: unknown name, or there is no such file.
    """
    if name.endswith((".tsv", ".txt")):
        if not (beside / name).is_file():
            raise UsageError(f"there is no list {beside / name}", fix="a list has a class or a prompt on every line")
        return beside / name
    lists = named_files("bench.lists", "list")
    if name not in lists:
        raise unknown("list", name, lists, fix="a list of your own ends in .tsv or .txt")
    return lists[name]
