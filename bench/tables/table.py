"""What the command line prints: the answer as tables on stdout in five formats, the story and the
errors on stderr.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
import unicodedata
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
    Format,
    typer.Option(
        "--format", help="table, md and latex are rounded; csv and json carry full precision"
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="BENCH_STORE",
        help="folder of the fits and runs",
        show_default="bench-store",
    ),
]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: name in csv and json, and key into the rows.
        title: heading for people; the key if empty.
        kind: how people see a number; `percent` is kept as a share and shown times 100.
        spread: key of the standard deviation that people see behind the value, and machines as a
            column of its own.
        interval: keys of an interval's ends, which people see behind the value instead of the
            deviation.
        human: False for what only machines get.
        printed: False for what a page of a paper has no room for.
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
    """A titled table. Rows are raw values by column key; None is a hole. Notes are sentences that
    stand below it.

    Attributes:
        caption: for print, in place of title and notes; LaTeX then sets the table as a float.
        bold: (number of a row, key of a column) of what print sets in bold.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    caption: str = ""
    bold: Collection[tuple[int, str]] = ()


def print_tables(tables: Sequence[Table], form: Format) -> None:
    """Print tables on stdout.

    People on a terminal get rules and colour, people on a pipe plain text at its natural width, so
    that no cell is ever cut. csv joins the tables into one (rows keep their own columns, others
    stay empty) and sends notes to stderr; json is `{"schema", "tables": [{"title", "notes",
    "rows"}]}`.
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
        found = [
            {"title": t.title, "notes": list(t.notes), "rows": [_raw(t, r) for r in t.rows]}
            for t in tables
        ]
        return _json({"tables": found})

    one = {Format.md: _markdown, Format.latex: latex, Format.table: _text}[form]
    return "\n".join(one(table) for table in tables)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout with the layout's version; NaN becomes null."""
    _write(_json(value))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps({"schema": JSON_SCHEMA, **_finite(value)}, indent=2, allow_nan=False) + "\n"


def stderr_console() -> Console:
    """The console of the story: stderr, without markup in what is printed, without any styling
    under NO_COLOR.
    """
    return _console(stderr=True)


def say(text: str) -> None:
    """One line of the story on stderr."""
    stderr_console().print(Text(plain(text)), soft_wrap=True)


def print_error(error: Told) -> None:
    """An error that the user can act on: what, where, what to do, a line each, on stderr."""
    lines = [
        error.what,
        error.where and f"  where: {error.where}",
        error.fix and f"  to mend: {error.fix}",
    ]
    text = Text("\n".join(plain(line, strip=False) for line in lines if line))
    stderr_console().print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def shortened(text: str, length: int) -> str:
    """`text`, cut after a word if it is longer (in the first word if there is but that), with an
    ellipsis.
    """
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
    """The columns that people see, their titles, and the cells of every row, rounded and not yet
    escaped.
    """
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
        writer.writerows(
            {key: _in_csv(value) for key, value in _raw(table, row).items()} for row in table.rows
        )
    return text.getvalue()


def _in_csv(value: Cell) -> Cell:
    """A cell that a spreadsheet shows as it is: a text that it would take for a formula begins with
    an apostrophe.
    """
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
    if not (
        sys.stdout.isatty() and _encodable(text) and _fits(columns, titles, rows, console.width)
    ):
        _write(text)
        return
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
    for note in table.notes:
        console.print(Text(plain(note), "dim"))


def _fits(columns: Sequence[Column], titles: list[str], rows: list[list[str]], width: int) -> bool:
    """Whether Rich can lay the table out by folding nothing but text: it would cut numbers to make
    room, losing digits.
    """
    needed = 1
    for i, column in enumerate(columns):
        natural = max(cell_len(line[i]) for line in (titles, *rows))
        needed += 3 + (min(natural, 16) if column.kind == "text" and not column.whole else natural)
    return needed <= width


def _console(*, stderr: bool = False) -> Console:
    # Rich drops colours under NO_COLOR but keeps bold and dim; without a colour system it styles
    # nothing at all.
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
        text = (
            text.replace("±", "+/-")
            .replace(HOLE, "-")
            .encode(encoding, "backslashreplace")
            .decode(encoding)
        )
    sys.stdout.write(text)
    sys.stdout.flush()


_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    HOLE: "--",
    "\u2014": "---",
    "·": r"$\cdot$",
    "\u00d7": r"$\times$",
    "\u2212": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "…": r"\ldots{}",
    "ß": r"{\ss}",
    "ø": r"{\o}",
    "Ø": r"{\O}",
    "æ": r"{\ae}",
    "Æ": r"{\AE}",
    "ł": r"{\l}",
    "Ł": r"{\L}",
    "\u0131": r"{\i}",
    # A star or bracket after a row's `\\` would be read as that command's argument, and `?` with a
    # backtick as a Spanish question mark; braces keep them text everywhere.
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    "`": "{`}",
}
#: Combining character -> the command that sets it on a letter, in every font encoding.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u ",
    "\u0307": ".", "\u0308": '"',
    "\u030a": "r ", "\u030b": "H ", "\u030c": "v ", "\u0327": "c ",
}  # fmt: skip
#: The Greek letters that LaTeX has a command for: not those that look like Latin ones, nor the
#: archaic ones.
_GREEK = frozenset((
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
    "alpha", "beta", "gamma", "delta",
    "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho",
    "sigma", "tau", "upsilon", "phi",
    "chi", "psi", "omega",
))  # fmt: skip
#: Cells of a text column longer than this are broken into lines.
_LONG = 28


def latex_text(text: str) -> str:
    """Text as LaTeX sets it in every encoding; a character that pdfLaTeX has no letter for stands
    as its number, `U+4E2D`.
    """
    apart = re.sub(r"([-'])(?=\1)", "\\1\0", unicodedata.normalize("NFC", text).replace("\0", ""))
    return "".join("{}" if c == "\0" else _character(c) for c in apart)  # two hyphens are no dash


def _character(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if c.isascii():
        return c
    apart = unicodedata.normalize("NFD", c)
    if len(apart) == 2 and apart[0].isascii() and apart[1] in _ACCENTS:
        return rf"{{\{_ACCENTS[apart[1]]}{apart[0]}}}"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(c, ""))
    if greek:
        name = greek[2].replace("LAMDA", "LAMBDA")  # Unicode's spelling
        name = name.lower() if greek[1] == "SMALL" else name.title()
        if name in _GREEK:
            return rf"$\{name}$"
    return rf"\texttt{{U+{ord(c):04X}}}"


def latex(table: Table) -> str:
    """The table; as a float with its caption if it has one, made smaller where it is wider than the
    text.

    Columns that print has no room for (`Column.printed`) are named in a comment.
    """
    columns, titles, rows = for_people(table)
    kept = [i for i, column in enumerate(columns) if column.printed]
    shown = [columns[i] for i in kept]
    wide = [max((len(line[i]) for line in rows), default=0) > _LONG for i in kept]
    lines = [
        r"\begin{tabular}{" + "".join(map(_alignment, shown, wide)) + "}",
        r"\toprule",
        " & ".join(latex_text(titles[i]) for i in kept) + r" \\",
        r"\midrule",
        *(
            " & ".join(
                _cell(columns[i], line[i], (number, columns[i].key) in table.bold) for i in kept
            )
            + r" \\"
            for number, line in enumerate(rows)
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.caption:
        lines = [
            r"% needs \usepackage{booktabs, array, graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(plain(table.caption))}}}",
            r"\par\smallskip\small\setlength{\tabcolsep}{4pt}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *lines[:-1],
            lines[-1] + "}",
            r"\end{table}",
        ]
    elif table.title:
        lines = [f"% {plain(table.title)}", *lines]
    left_out = [title for title, column in zip(titles, columns, strict=True) if not column.printed]
    comments = (
        [f"columns left out, which md, csv and json have: {', '.join(left_out)}"]
        if left_out
        else []
    )
    return "\n".join([*lines, *(f"% {plain(note)}" for note in (*comments, *table.notes))]) + "\n"


def _alignment(column: Column, wide: bool) -> str:
    if column.kind != "text":
        return "r"
    return r">{\raggedright\arraybackslash}p{0.34\linewidth}" if wide else "l"


def _cell(column: Column, shown: str, bold: bool) -> str:
    if column.kind == "text":
        return rf"\textbf{{{latex_text(shown)}}}" if bold else latex_text(shown)
    value, *behind = re.split(r" (?=±|\[)", shown, maxsplit=1)
    text = _with_minus(value)
    spread = "".join(rf" {{\scriptsize {_with_minus(part)}}}" for part in behind)
    return (rf"\textbf{{{text}}}" if bold else text) + spread


def _with_minus(number: str) -> str:
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex_text(number))  # a hyphen is no minus
