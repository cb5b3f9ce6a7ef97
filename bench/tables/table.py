"""Print tables on stdout in five formats, and messages and errors on stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table as RichTable
from rich.text import Text

from ..errors import UserFacingError
from ..plain import plain
from .latex import MISSING, latex

#: Version of the JSON layout; increased when a key changes its meaning.
JSON_SCHEMA = 1

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
Kind = Literal["text", "count", "number", "percent", "seconds", "bytes"]

#: Characters of a line of folded parameters: a name and four numbers then fit into 80 columns.
_FOLDED = 26


class Format(StrEnum):
    """The output formats."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    latex = "latex"


FormatOption = Annotated[
    Format,
    typer.Option(
        "--format", help="table, md and latex are rounded; csv and json have full precision"
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="BENCH_STORE",
        help="folder of fits and runs",
        show_default="bench-store",
    ),
]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    The readable formats are table, md and latex; the machine-readable ones are csv and json.

    Attributes:
        key: Name in csv and json, and key into the rows.
        title: Heading in readable formats; the key if empty.
        kind: How numbers are formatted in readable formats. `percent` is a share in [0, 1], shown
            times 100; `seconds` and `bytes` get a unit.
        spread: Key of the standard deviation. Readable formats show it after the value, the others
            as a column of its own.
        interval: Keys of the ends of an interval, shown after the value instead of the deviation.
        human: Whether readable formats have the column.
        whole: Whether a terminal must not fold it, as for names that a user types.
        printed: Whether LaTeX has the column; False if a page has no room for it.
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
    """A titled table with notes below it.

    Attributes:
        columns: The columns, in their order.
        rows: Raw values by column key; None is a missing value.
        title: Heading of the table.
        notes: Sentences that are printed below it.
        caption: Caption for LaTeX, which then makes the table a float.
        bold: Cells that LaTeX sets in bold, as (index of the row, key of the column).
        lead: Keys of the columns that a terminal shows first where it has no room for all. The
            first one holds names, whose parameters are then folded below them.
        more: How to see the columns that are left out there.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    caption: str = ""
    bold: Collection[tuple[int, str]] = ()
    lead: Sequence[str] = ()
    more: str = ""


def print_tables(tables: Sequence[Table], form: Format) -> None:
    """Print tables on stdout.

    `table` has rules and colours on a terminal. On a pipe, or where the terminal is too narrow, it
    is plain text at its natural width, so that no cell is ever cut. csv joins the tables into one,
    in which a row has empty fields for the columns of other tables, and prints notes on stderr.
    json is `{"schema", "tables": [{"title", "notes", "rows"}]}`.
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
    """Return tables as text in one of the formats; `table` gives what `print_tables` pipes."""
    if form is Format.csv:
        return _csv(tables)
    if form is Format.json:
        found = [
            {"title": t.title, "notes": list(t.notes), "rows": [_raw(t, r) for r in t.rows]}
            for t in tables
        ]
        return _json({"tables": found})

    render_one = {Format.md: _markdown, Format.latex: _latex, Format.table: _text}[form]
    return "\n".join(render_one(table) for table in tables)


def print_json(value: Mapping[str, Any]) -> None:
    """Print a JSON object on stdout with the version of the layout; NaN becomes null."""
    _write(_json(value))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps({"schema": JSON_SCHEMA, **_finite(value)}, indent=2, allow_nan=False) + "\n"


def stderr_console() -> Console:
    """Return the console for messages: stderr, without markup, and unstyled under NO_COLOR."""
    return _console(stderr=True)


def say(text: str) -> None:
    """Print a line on stderr."""
    stderr_console().print(Text(plain(text)), soft_wrap=True)


def print_error(error: UserFacingError) -> None:
    """Print an error on stderr: what is wrong, where, and how to fix it, a line each."""
    lines = [
        error.what,
        error.where and f"  where: {error.where}",
        error.fix and f"  fix: {error.fix}",
    ]
    text = Text("\n".join(plain(line, strip=False) for line in lines if line))
    stderr_console().print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def shortened(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters, ending in an ellipsis.

    It is cut between words, or within the first word if that alone is too long.
    """
    cut = text[: length - 1]
    return text if len(text) <= length else (cut.rpartition(" ")[0] or cut) + "\u2026"


def duration(seconds: float) -> str:
    """Format seconds, such as `42 s`, `3.5 min` or `2.1 h`."""
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
    """Return a cell as text for people: rounded, on one line, not escaped for any format."""
    value = row.get(column.key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    # Before the numbers, since a bool is an int.
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
    """Return the columns that people see, their titles, and the cells of each row as text.

    The cells are rounded, and not escaped for any format.
    """
    columns = [column for column in table.columns if column.human]
    titles = [plain(column.title or column.key) for column in columns]
    return columns, titles, [[_shown(row, column) for column in columns] for row in table.rows]


def _keys(table: Table) -> list[str]:
    return [key for column in table.columns for key in (column.key, column.spread) if key]


def _finite(value: Any) -> Any:
    """Replace NaN by null and infinities by text, neither of which JSON has."""
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
        writer.writerows(
            {key: _in_csv(value) for key, value in _raw(table, row).items()} for row in table.rows
        )
    return text.getvalue()


def _in_csv(value: Cell) -> Cell:
    # `value != value` is true of NaN alone.
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    # A name in somebody's pack may be a formula, which a spreadsheet would execute when it opens
    # the file. An apostrophe makes it text.
    text = plain(value, strip=False)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def markdown_text(text: str) -> str:
    """Escape a text for Markdown."""
    text = re.sub(r"([\\`*<>\[\]|])", r"\\\1", text)
    # An underscore within a word is no emphasis in Markdown, and `art_painting` stays readable.
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


def _latex(table: Table) -> str:
    return latex(table, *for_people(table))


def _text(table: Table) -> str:
    """Return plain text: columns two spaces apart at full width, numbers to the right."""
    # `cell_len` and not `len`: Chinese characters are two columns wide in a terminal.
    columns, titles, rows = for_people(table)
    widths = [max(cell_len(line[i]) for line in (titles, *rows)) for i in range(len(columns))]

    def pad(cell: str, width: int, column: Column) -> str:
        blank = " " * (width - cell_len(cell))
        return cell + blank if column.kind == "text" else blank + cell

    lines = [plain(table.title)] if table.title else []
    lines += ["  ".join(map(pad, line, widths, columns)).rstrip() for line in (titles, *rows)]
    return "\n".join([*lines, *map(plain, table.notes)]) + "\n"


def _print_for_people(table: Table) -> None:
    # Rules and colour only where they can be displayed and no number would be cut.
    text, console = _text(table), _console()
    shown, notes = for_people(table), list(table.notes)
    is_terminal = sys.stdout.isatty() and _encodable(text)
    if is_terminal and table.lead and not _fits(*shown, console.width):
        total = len(shown[0])
        shown = _narrowed(table.lead, *shown, console.width)
        notes.insert(0, f"{total - len(shown[0])} more columns: {table.more}")
    if not is_terminal or not _fits(*shown, console.width):
        _write(text)
        return
    columns, titles, rows = shown
    grid = RichTable(
        title=Text(plain(table.title), "bold") if table.title else None, title_justify="left"
    )
    for column, title in zip(columns, titles, strict=True):
        if column.kind == "text":
            grid.add_column(Text(title), overflow="fold", no_wrap=column.whole)
        else:
            grid.add_column(Text(title), justify="right", no_wrap=True)
    for line in rows:
        grid.add_row(*map(Text, line))
    console.print(grid)
    for note in notes:
        console.print(Text(plain(note), "dim"))


def _narrowed(
    lead: Sequence[str],
    columns: list[Column],
    titles: list[str],
    rows: list[list[str]],
    width: int,
) -> tuple[list[Column], list[str], list[list[str]]]:
    """Return the leading columns, and of the others as many as fit, in their order."""
    places = {column.key: i for i, column in enumerate(columns)}
    first = [places[key] for key in lead if key in places]
    name, rows = first[0], [list(line) for line in rows]
    for line in rows:
        line[name] = _folded(line[name])
    columns = [*columns]
    columns[name] = replace(columns[name], whole=True)

    def part(chosen: list[int]) -> tuple[list[Column], list[str], list[list[str]]]:
        return (
            [columns[i] for i in chosen],
            [titles[i] for i in chosen],
            [[line[i] for i in chosen] for line in rows],
        )

    chosen = first
    for i in range(len(columns)):
        if i not in chosen and _fits(*part([*chosen, i]), width):
            chosen = [*chosen, i]
    return part(chosen)


def _folded(name: str) -> str:
    """Return a name with its parameters on lines of their own: `NAME` above `(key=value, ...)`."""
    start, bracket, parameters = name.partition(" (")
    if not bracket:
        return name
    lines = textwrap.wrap(f"({parameters}", _FOLDED, break_long_words=False, break_on_hyphens=False)
    return "\n".join([start, *(f" {line}" for line in lines)])


def _fits(columns: Sequence[Column], titles: list[str], rows: list[list[str]], width: int) -> bool:
    """Whether Rich can fit the table into `width` by folding text only."""
    # Where there is no room, Rich cuts numbers too, so that digits are lost. A column takes three
    # characters for its rule and padding, and text can be folded to about 16.
    needed = 1
    for i, column in enumerate(columns):
        natural = max(cell_len(part) for line in (titles, *rows) for part in line[i].split("\n"))
        needed += 3 + (min(natural, 16) if column.kind == "text" and not column.whole else natural)
    return needed <= width


def _console(*, stderr: bool = False) -> Console:
    # Under NO_COLOR Rich drops colours but still writes bold and dim. Without a colour system it
    # writes no escape sequences.
    colour: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, color_system=colour)


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _write(text: str) -> None:
    # An output of another encoding, such as a Windows console or LANG=C, gets ASCII replacements
    # instead of a UnicodeEncodeError after hours of training.
    if not _encodable(text):
        encoding = sys.stdout.encoding or "utf-8"
        text = (
            text.replace("±", "+/-")
            .replace(MISSING, "-")
            .encode(encoding, "backslashreplace")
            .decode(encoding)
        )
    sys.stdout.write(text)
    sys.stdout.flush()
