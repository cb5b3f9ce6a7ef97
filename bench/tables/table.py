"""What the command line prints: the answer as tables on stdout in five formats, the story and the errors on stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table as RichTable
from rich.text import Text

from ..errors import Told
from ..plain import plain

#: Version of the JSON layout; raised when a key changes its meaning.
JSON_SCHEMA = 1
#: What a missing value looks like to a person (machines get an empty field or null).
HOLE = "\u2013"

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
Kind = Literal["text", "count", "number", "percent", "seconds", "bytes"]


class Format(StrEnum):
    """How an answer is printed."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    latex = "latex"


FormatOption = Annotated[
    Format, typer.Option("--format", help="table, md and latex are rounded; csv and json carry full precision")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", envvar="BENCH_STORE", help="folder of the fits and runs", show_default="bench-store")
]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: name in csv and json, and key into the rows. title: heading for people; the key if empty.
        kind: how people see a number; `percent` is kept as a share and shown times 100.
        spread: key of the standard deviation that people see behind the value, and machines as a column of its own.
        interval: keys of an interval's ends, which people see behind the value instead of the deviation.
        human: False for what only machines get. printed: False for what a page of a paper has no room for.
        whole: whether a terminal may not fold it, such as a name that is to be typed.
    """

    key: str
    title: str = ""
    kind: Kind = "text"
    spread: str = ""
    interval: tuple[str, str] | None = None
    human: bool = True
    whole: bool = False
    printed: bool = True


@dataclass(frozen=True)
class Table:
    """A titled table. Rows are raw values by column key; None is a hole. Notes are sentences that stand below it.

    Attributes:
        caption: for print, in place of title and notes; LaTeX then sets the table as a float. bold: (number of a row, key of a
            column) of what print sets in bold.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    caption: str = ""
    bold: Collection[tuple[int, str]] = ()


def print_tables(tables: Sequence[Table], form: Format) -> None:
    """Print tables on stdout.

    People on a terminal get rules and colour, people on a pipe plain text at its natural width, so that no cell is ever
    cut. csv joins the tables into one (rows keep their own columns, others stay empty) and sends notes to stderr; json is
    `{"schema", "tables": [{"title", "notes", "rows"}]}`.
    """
    if form is Format.table:
        for number, table in enumerate(tables):
            if number:
                _write("\n")
            _print_for_people(table)
        return
    _write(render(tables, form))
    if form is Format.csv:
        for note in _notes(tables):
            say(f"note: {note}")


def render(tables: Sequence[Table], form: Format) -> str:
    """Tables as text in one of the formats, for a file; `table` is what people get on a pipe."""
    if form is Format.csv:
        return _csv(tables)
    if form is Format.json:
        found = [{"title": t.title, "notes": list(t.notes), "rows": [_raw(t, r) for r in t.rows]} for t in tables]
        return _json({"tables": found})
    from .latex import latex

    one = {Format.md: _markdown, Format.latex: latex, Format.table: _text}[form]
    return "\n".join(one(table) for table in tables)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout with the layout's version; NaN becomes null."""
    _write(_json(value))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps({"schema": JSON_SCHEMA, **_finite(value)}, indent=2, allow_nan=False) + "\n"


def stderr_console() -> Console:
    """The console of the story: stderr, without markup in what is printed, without any styling under NO_COLOR."""
    return _console(stderr=True)


def say(text: str) -> None:
    """One line of the story on stderr."""
    stderr_console().print(Text(plain(text)), soft_wrap=True)


def print_error(error: Told) -> None:
    """An error that the user can act on: what, where, what to do, a line each, on stderr."""
    lines = [error.what, error.where and f"  where: {error.where}", error.fix and f"  to mend: {error.fix}"]
    text = Text("\n".join(plain(line, strip=False) for line in lines if line))
    stderr_console().print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def shortened(text: str, length: int) -> str:
    """`text`, cut after a word if it is longer (in the first word if there is but that), with an ellipsis."""
    cut = text[: length - 1]
    return text if len(text) <= length else (cut.rpartition(" ")[0] or cut) + "\u2026"


def duration(seconds: float) -> str:
    """Such as `42 s`, `3.5 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _number(value: float, kind: Kind) -> str:
    if kind == "percent":
        return f"{100 * value:.1f}"
    if kind == "seconds":
        return duration(value)
    if kind == "bytes":
        return decimal(int(value))
    if kind == "number":
        return f"{value:.3f}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _shown(row: Row, column: Column) -> str:
    """A cell as people see it: rounded, on one line, not yet escaped for any format."""
    value = row.get(column.key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return HOLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return plain(value)
    text = _number(value, column.kind)
    if column.interval:
        low, high = (row.get(key) for key in column.interval)
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            text += f" [{_number(low, column.kind)}, {_number(high, column.kind)}]"
        return text
    spread = row.get(column.spread) if column.spread else None
    if isinstance(spread, (int, float)) and not math.isnan(spread):
        text += f" ± {_number(spread, column.kind)}"
    return text


def for_people(table: Table) -> tuple[list[Column], list[str], list[list[str]]]:
    """The columns that people see, their titles, and the cells of every row, rounded and not yet escaped."""
    columns = [column for column in table.columns if column.human]
    titles = [plain(column.title or column.key) for column in columns]
    return columns, titles, [[_shown(row, column) for column in columns] for row in table.rows]


def _keys(table: Table) -> list[str]:
    return [key for column in table.columns for key in (column.key, column.spread) if key]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _raw(table: Table, row: Row) -> dict[str, Cell]:
    return {key: row.get(key) for key in _keys(table)}


def _notes(tables: Sequence[Table]) -> list[str]:
    return list(dict.fromkeys(note for table in tables for note in table.notes))


def _csv(tables: Sequence[Table]) -> str:
    keys = list(dict.fromkeys(key for table in tables for key in _keys(table)))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows({key: _in_csv(value) for key, value in _raw(table, row).items()} for row in table.rows)
    return text.getvalue()


def _in_csv(value: Cell) -> Cell:
    """A cell that a spreadsheet shows as it is: a text that it would take for a formula begins with an apostrophe."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    text = plain(value, strip=False)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def markdown_text(text: str) -> str:
    """Text as Markdown shows it, whatever it holds."""
    text = re.sub(r"([\\`*<>\[\]|])", r"\\\1", text)
    # An underscore inside a word is no emphasis, and `art_painting` should stay readable.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _markdown(table: Table) -> str:
    columns, titles, rows = for_people(table)
    rule = ["---" if column.kind == "text" else "---:" for column in columns]
    lines = [f"### {markdown_text(plain(table.title))}", ""] if table.title else []
    cells = [[markdown_text(cell) for cell in line] for line in (titles, *rows)]
    lines += ["| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:])]
    if table.notes:
        lines += ["", *(f"- {markdown_text(plain(note))}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _text(table: Table) -> str:
    """Full-width text without rules: columns two spaces apart, numbers to the right."""
    columns, titles, rows = for_people(table)
    widths = [max(cell_len(line[i]) for line in (titles, *rows)) for i in range(len(columns))]

    def pad(cell: str, width: int, column: Column) -> str:
        blank = " " * (width - cell_len(cell))
        return cell + blank if column.kind == "text" else blank + cell

    lines = [plain(table.title)] if table.title else []
    lines += ["  ".join(map(pad, line, widths, columns)).rstrip() for line in (titles, *rows)]
    return "\n".join([*lines, *map(plain, table.notes)]) + "\n"


def _print_for_people(table: Table) -> None:
    text, console = _text(table), _console()
    columns, titles, rows = for_people(table)
    if not (sys.stdout.isatty() and _encodable(text) and _fits(columns, titles, rows, console.width)):
        _write(text)
        return
    grid = RichTable(title=Text(plain(table.title), "bold") if table.title else None, title_justify="left")
    for column, title in zip(columns, titles, strict=True):
        if column.kind == "text":
            grid.add_column(Text(title), overflow="fold", no_wrap=column.whole)
        else:
            grid.add_column(Text(title), justify="right", no_wrap=True)
    for line in rows:
        grid.add_row(*map(Text, line))
    console.print(grid)
    for note in table.notes:
        console.print(Text(plain(note), "dim"))


def _fits(columns: Sequence[Column], titles: list[str], rows: list[list[str]], width: int) -> bool:
    """Whether Rich can lay the table out by folding nothing but text: it would cut numbers to make room, losing digits."""
    needed = 1
    for i, column in enumerate(columns):
        natural = max(cell_len(line[i]) for line in (titles, *rows))
        needed += 3 + (min(natural, 16) if column.kind == "text" and not column.whole else natural)
    return needed <= width


def _console(*, stderr: bool = False) -> Console:
    # Rich drops colours under NO_COLOR but keeps bold and dim; without a colour system it styles nothing at all.
    colour: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, color_system=colour)


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _write(text: str) -> None:
    if not _encodable(text):
        encoding = sys.stdout.encoding or "utf-8"
        text = text.replace("±", "+/-").replace(HOLE, "-").encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(text)
    sys.stdout.flush()
