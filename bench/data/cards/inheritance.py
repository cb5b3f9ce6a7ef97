"""Cards as TOML tables: one that extends another, and one entry written for many (`each`)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ...errors import UsageError
from ...plugins import named_files, unknown
from ...storage.files import absent, read_toml

Table = dict[str, Any]

#: Entries that one may stand for: more than any data set needs, and few enough to be written out.
_MOST = 10_000


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Entry(_Part):
    name: str = ""
    each: dict[str, list[str | int | float]] = {}

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if math.prod(map(len, self.each.values())) > _MOST:
            raise ValueError(f"each: stands for more than {_MOST} entries")
        return self


class _Fetch(_Part):
    archives: list[_Entry] = []


class _Shape(_Part):
    """What has to hold before tables are merged and entries written out; the cards' own models see
    the result.
    """

    extends: str | None = None
    without: list[str] = []
    shifts: list[_Entry] = []
    parts: dict[str, _Entry] = {}
    fetch: _Fetch = _Fetch()


def read_table(path: Path) -> Table:
    """The table of a card's file, complete.

    `extends = "NAME"` (or a file beside it) begins with that suite's table. Tables are merged key
    by key, anything else is replaced; shifts are merged by name, and `without = ["NAME"]` leaves
    shifts out.

    `each = { severity = [1, 2] }` in a shift, a part or an archive to fetch stands for one entry
    per combination of values, with `{severity}` in its name and texts replaced.

    Raises:
        UsageError: the file is not TOML, extends itself, or has a table or a list where another
            thing belongs.
    """
    return _read(path, above=())


def _read(path: Path, above: tuple[Path, ...]) -> Table:
    try:
        table = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"the card cannot be read: {error}", where=str(path)) from error
    try:
        _Shape.model_validate(table)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(
            f"the card is wrong: {problems}", where=str(path), fix="mend these fields"
        ) from error
    table = _expanded(table)
    base = table.pop("extends", None)
    without = table.pop("without", [])
    if base is not None:
        if path.resolve() in above:
            raise UsageError(
                "the card extends itself",
                where=" <- ".join(map(str, (*above, path))),
                fix="mend `extends`",
            )
        table = _merged(_read(suite_file(str(base), path.parent), (*above, path.resolve())), table)
    unknown = set(without) - {shift.get("name") for shift in table.get("shifts", [])}
    if unknown:
        raise UsageError(
            f"`without` names no shift of it: {', '.join(sorted(unknown))}", where=str(path)
        )
    if without:
        table["shifts"] = [shift for shift in table["shifts"] if shift.get("name") not in without]
    return table


def _merged(base: Table, over: Table) -> Table:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merged(old, value)
        elif key == "shifts" and isinstance(old, list):
            own = {shift.get("name"): shift for shift in value}
            merged[key] = [_merged(shift, own.pop(shift.get("name"), {})) for shift in old] + list(
                own.values()
            )
        else:
            merged[key] = value
    return merged


def _expanded(table: Table) -> Table:
    table = dict(table)
    if isinstance(table.get("shifts"), list):
        table["shifts"] = [entry for shift in table["shifts"] for entry in _each(shift)]
    if isinstance(table.get("parts"), dict):
        entries = [
            entry for name, part in table["parts"].items() for entry in _each({"": name, **part})
        ]
        table["parts"] = {entry.pop(""): entry for entry in entries}
    if isinstance(table.get("fetch", {}).get("archives"), list):
        archives = [entry for archive in table["fetch"]["archives"] for entry in _each(archive)]
        table["fetch"] = table["fetch"] | {"archives": archives}
    return table


def _each(entry: Table) -> list[Table]:
    entry = dict(entry)
    values = entry.pop("each", None)
    if values is None:
        return [entry]
    combinations = itertools.product(*values.values())
    return [_filled(entry, dict(zip(values, chosen, strict=True))) for chosen in combinations]


def _filled(value: Any, chosen: dict[str, Any]) -> Any:
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
        raise unknown(
            "suite", name, paths, fix="`bench suites` lists them; a card of your own ends in .toml"
        )
    return paths[name]


def data_set_paths() -> dict[str, Path]:
    """Cards of the installed data sets by name."""
    return named_files("bench.data_sets", "data set's card")


def find_list(name: str, beside: Path) -> Path:
    """The file of a list of classes or prompts: an installed one by its name, or a file (.tsv or
    .txt) beside a card.

    Raises:
        UsageError: unknown name, or there is no such file.
    """
    if name.endswith((".tsv", ".txt")):
        if not (beside / name).is_file():
            raise UsageError(
                f"there is no list {beside / name}",
                fix="a list has a class or a prompt on every line",
            )
        return beside / name
    lists = named_files("bench.lists", "list")
    if name not in lists:
        raise unknown("list", name, lists, fix="a list of your own ends in .tsv or .txt")
    return lists[name]
