"""Read cards as TOML tables: `extends` inherits from another card, `each` expands an entry."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ...errors import UsageError
from ...plugins import named_files, unknown
from ...storage.files import absent, read_toml
from ...validation import problems

TomlTable = dict[str, Any]

#: Limit of entries that one `each` expands to: more than any dataset needs, and small enough that
#: a card from someone else cannot exhaust the memory.
_MOST_ENTRIES = 10_000


class _StrictModel(BaseModel):
    # Strict, since the tables are used as they are: pydantic would validate a converted copy and
    # leave the wrong type in the table.
    model_config = ConfigDict(strict=True)


class _Template(_StrictModel):
    name: str = ""
    each: dict[str, list[str | int | float]] = {}

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if math.prod(map(len, self.each.values())) > _MOST_ENTRIES:
            raise ValueError(f"each: expands to more than {_MOST_ENTRIES} entries")
        return self


class _Fetch(_StrictModel):
    archives: list[_Template] = []


class _Shape(_StrictModel):
    """The types that merging and expanding rely on; the cards' own models validate the result."""

    extends: str | None = None
    without: list[str] = []
    shifts: list[_Template] = []
    parts: dict[str, _Template] = {}
    fetch: _Fetch = _Fetch()


def read_table(path: Path) -> TomlTable:
    """Read the table of a card, with `extends`, `without` and `each` resolved.

    `extends = "NAME"` (or a file relative to the card) starts from that suite's table. Tables are
    merged key by key and other values are replaced. Shifts are merged by name;
    `without = ["NAME"]` removes shifts.

    `each = { severity = [1, 2] }` in a shift, a part or an archive to fetch expands to one entry
    per combination of values, with `{severity}` replaced in its name and texts.

    Raises:
        UsageError: the file is not TOML, extends itself, or a value has the wrong type.
    """
    return _read(path, above=())


def _read(path: Path, above: tuple[Path, ...]) -> TomlTable:
    """Read a card; `above` are the cards that extend this one, the outermost first."""
    try:
        table = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"the card cannot be read: {error}", where=str(path)) from error
    try:
        _Shape.model_validate(table)
    except ValidationError as error:
        raise UsageError(
            f"the card is invalid: {problems(error, _Shape)}",
            where=str(path),
            fix="fix these fields",
        ) from error
    # Expanded before merging, so that a card can override or remove a single expanded shift of the
    # card that it extends, such as `fog-3`.
    table = _expanded(table)
    base = table.pop("extends", None)
    without = table.pop("without", [])
    if base is not None:
        if path.resolve() in above:
            raise UsageError(
                "the card extends itself",
                where=" <- ".join(map(str, (*above, path))),
                fix="fix `extends`",
            )
        table = _merged(_read(suite_file(str(base), path.parent), (*above, path.resolve())), table)
    # A misspelled name would otherwise leave in the average what the author meant to remove.
    unknown = set(without) - {shift.get("name") for shift in table.get("shifts", [])}
    if unknown:
        raise UsageError(
            f"`without` has names that are not shifts of the card: {', '.join(sorted(unknown))}",
            where=str(path),
        )
    if without:
        table["shifts"] = [shift for shift in table["shifts"] if shift.get("name") not in without]
    return table


def _merged(base: TomlTable, over: TomlTable) -> TomlTable:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merged(old, value)
        elif key == "shifts" and isinstance(old, list):
            # Shifts of the base stay in its order, new ones follow: boards show columns in this
            # order.
            own = {shift.get("name"): shift for shift in value}
            merged[key] = [_merged(shift, own.pop(shift.get("name"), {})) for shift in old] + list(
                own.values()
            )
        else:
            merged[key] = value
    return merged


def _expanded(table: TomlTable) -> TomlTable:
    table = dict(table)
    if isinstance(table.get("shifts"), list):
        table["shifts"] = [entry for shift in table["shifts"] for entry in _each(shift)]
    if isinstance(table.get("parts"), dict):
        # A part's name is the key of its table. It is added to the entry under a key that is no
        # field's name, so that placeholders in it are replaced like those in other texts.
        entries = [
            entry for name, part in table["parts"].items() for entry in _each({"": name, **part})
        ]
        table["parts"] = {entry.pop(""): entry for entry in entries}
    if isinstance(table.get("fetch", {}).get("archives"), list):
        archives = [entry for archive in table["fetch"]["archives"] for entry in _each(archive)]
        table["fetch"] = table["fetch"] | {"archives": archives}
    return table


def _each(entry: TomlTable) -> list[TomlTable]:
    """Expand an entry with `each` to one entry per combination of its values."""
    entry = dict(entry)
    values = entry.pop("each", None)
    if values is None:
        return [entry]
    combinations = itertools.product(*values.values())
    return [_filled(entry, dict(zip(values, chosen, strict=True))) for chosen in combinations]


def _filled(value: Any, chosen: dict[str, Any]) -> Any:
    # Not `str.format`, which fails on braces with another meaning, such as `{column}` in the
    # pattern of a table, and which a card could ask for a text of any width.
    if isinstance(value, str):
        for key, text in chosen.items():
            value = value.replace(f"{{{key}}}", str(text))
        return value
    if isinstance(value, dict):
        return {key: _filled(inner, chosen) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, chosen) for inner in value]
    return value


def suite_paths() -> dict[str, Path]:
    """Return the card files of the installed suites by name."""
    return named_files("bench.suites", "card")


def suite_names() -> list[str]:
    """Return the names of the installed suites, sorted."""
    return sorted(suite_paths())


def suite_file(name: str, relative_to: Path | None = None) -> Path:
    """Return the file of a suite's card.

    Args:
        name: name of an installed suite, or path of a TOML file.
        relative_to: folder that the path is relative to; default: the working directory.

    Raises:
        UsageError: the name is unknown, or there is no such file.
    """
    # The suffix decides, not whether the file exists: an installed suite's name means the same in
    # every working directory.
    if name.endswith(".toml"):
        path = (relative_to or Path()) / name
        if why := absent(path):
            raise UsageError(why, fix="run `bench suites` to list the installed suites")
        return path.resolve()
    paths = suite_paths()
    if name not in paths:
        raise unknown(
            "suite",
            name,
            paths,
            fix=(
                "run `bench suites` to list them; the file name of your own card has to end in"
                " .toml"
            ),
        )
    return paths[name]


def dataset_paths() -> dict[str, Path]:
    """Return the card files of the installed datasets by name."""
    return named_files("bench.data_sets", "dataset's card")


def find_list(name: str, card_folder: Path) -> Path:
    """Return the file of a list of classes or prompts.

    Args:
        name: name of an installed list, or path of a .tsv or .txt file.
        card_folder: folder of the card, which the path is relative to.

    Raises:
        UsageError: the name is unknown, or there is no such file.
    """
    if name.endswith((".tsv", ".txt")):
        if not (card_folder / name).is_file():
            raise UsageError(
                f"there is no list {card_folder / name}",
                fix="write this file, with a class or a prompt on every line",
            )
        return card_folder / name
    lists = named_files("bench.lists", "list")
    if name not in lists:
        raise unknown(
            "list", name, lists, fix="the file name of your own list has to end in .tsv or .txt"
        )
    return lists[name]
