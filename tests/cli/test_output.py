"""Every format carries every cell, whatever is in it."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest

from bench.errors import UsageError
from bench.plain import plain
from bench.tables.table import (
    Column,
    Format,
    Row,
    Table,
    duration,
    for_people,
    print_error,
    print_tables,
    shortened,
)

HOSTILE = [
    "[bold red]not markup[/]",
    "a | b",
    r"50% & $x_1$ #1 {y} ~ ^ \textbf{z}",
    "first line\nsecond line",
    "tab\tand `code` *star* <script>alert(1)</script>",
    '=1+1,"quoted"',
    "\x1b[31mred\x1b[0m",
    "art_painting ±1 naïve 画",
]


def table(*texts: str) -> Table:
    rows: list[Row] = [
        {"name": text, "id": 0.12345678901234, "id_sd": 0.01, "fits": "f"} for text in texts
    ]
    return Table(
        [
            Column("name"),
            Column("id", "ID", "percent", spread="id_sd"),
            Column("fits", human=False),
        ],
        rows,
        "a title",
        ["a note"],
    )


def printed(capsys: pytest.CaptureFixture[str], form: Format, *texts: str) -> str:
    print_tables([table(*texts)], form)
    return capsys.readouterr().out


def test_csv_gives_back_plain_text_and_json_raw_values(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capsys, Format.csv, *HOSTILE))))
    formula = '=1+1,"quoted"'
    assert [row["name"] for row in rows] == [
        f"'{text}" if text == formula else plain(text) for text in HOSTILE
    ]
    assert {float(row["id"]) for row in rows} == {0.12345678901234}
    assert rows[0]["fits"] == "f"
    (found,) = json.loads(printed(capsys, Format.json, *HOSTILE))["tables"]
    assert [row["name"] for row in found["rows"]] == HOSTILE
    assert found["notes"] == ["a note"]


def test_markdown_rows_parse_back(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, Format.md, *HOSTILE).splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    cells = [
        [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        for row in rows
    ]
    assert cells == [[plain(text), "12.3 ± 1.0"] for text in HOSTILE]
    assert r"\<script\>" in "\n".join(rows)
    assert "art_painting" in rows[-1]


def test_latex_rows_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, Format.latex, *HOSTILE)
    rows = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(rows) == len(HOSTILE)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 1, row
        assert not re.search(r"(?<!\\)[%#_]", row), row
        assert row.endswith(r"12.3 {\scriptsize $\pm$ 1.0} \\")
    assert (
        r"50\% \& \$x\_1\$ \#1 \{y\} \textasciitilde{} \textasciicircum{}"
        r" \textbackslash{}textbf\{z\}" in rows[2]
    )


def test_text_for_people_keeps_one_row_per_line_and_no_control_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys, Format.table, *HOSTILE).splitlines()
    assert len(lines) == 1 + 1 + len(HOSTILE) + 1
    assert "[bold red]not markup[/]" in lines[2]
    assert "first line second line" in "\n".join(lines)
    assert "\x1b" not in "\n".join(lines)
    assert r"\x1b[31mred" in "\n".join(lines)


def test_missing_values(capsys: pytest.CaptureFixture[str]) -> None:
    made = Table(
        [Column("a", kind="percent"), Column("b")], [{"a": None}, {"a": float("nan"), "b": True}]
    )
    print_tables([made], Format.table)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["\u2013", "\u2013"],
        ["\u2013", "yes"],
    ]
    print_tables([made], Format.json)
    assert json.loads(capsys.readouterr().out)["tables"][0]["rows"] == [
        {"a": None, "b": None},
        {"a": None, "b": True},
    ]
    print_tables([made], Format.csv)
    assert capsys.readouterr().out == "a,b\n,\n,True\n"


def test_tables_of_different_columns_make_one_csv_and_notes_go_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_tables(
        [table("x"), Table([Column("name"), Column("error")], [{"name": "y", "error": "boom"}])],
        Format.csv,
    )
    captured = capsys.readouterr()
    first, second = csv.DictReader(io.StringIO(captured.out))
    assert (first["name"], first["error"], second["name"], second["error"], second["id"]) == (
        "x",
        "",
        "y",
        "boom",
        "",
    )
    assert captured.err == "note: a note\n"


def test_errors_are_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(
        UsageError("no method\n`x[/]`", where="--method " + "long " * 40, fix="did you mean `y`?")
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "error: no method `x[/]`"
    assert len(captured.err.splitlines()) == 3


_WIDE = (
    "from bench.tables.table import *\n"
    "columns = [Column('name'), *(Column(f'shift-{i}', kind='percent') for i in range(6))]\n"
    "rows = [{'name': 'word ' * 8, **{f'shift-{i}': 0.5 for i in range(6)}}]\n"
    "print_tables([Table(columns, rows, 'a title')], Format.table)"
)


def _on_a_terminal(width: int, code: str = _WIDE, **environment: str) -> str:
    """What a terminal of that width shows of a few lines of Python; less than it buffers."""
    leader, follower = pty.openpty()
    settings = {
        **os.environ,
        "COLUMNS": str(width),
        "TERM": "xterm",
        "PYTHONIOENCODING": "utf-8",
        **environment,
    }
    subprocess.run([sys.executable, "-c", code], stdout=follower, env=settings, check=True)
    os.close(follower)
    found = b""
    try:
        while chunk := os.read(leader, 65536):
            found += chunk
    except OSError:  # how Linux tells that the other end is closed
        pass
    os.close(leader)
    return found.decode().replace("\r\n", "\n")


def test_a_terminal_gets_rules_and_a_narrow_one_loses_nothing() -> None:
    wide, narrow = _on_a_terminal(120), _on_a_terminal(50)
    assert "┃" in wide
    assert "\x1b[" in wide
    for text in (wide, narrow):
        assert text.count("50.0") == 6
        assert text.count("word") == 8
        assert "…" not in text


def test_a_terminal_folds_no_name_that_is_to_be_typed() -> None:
    code = (
        "from bench.tables.table import *\nrow = {'name': 'imagenet-shifts-without-objectnet',"
        " 'title': 'word ' * 20, 'suites': 'some-very-long-name ' *"
        " 3}\nprint_tables([Table([Column('name', whole=True), Column('title'), Column('suites')],"
        " [row])], Format.table)"
    )
    text = _on_a_terminal(80, code, NO_COLOR="1")
    assert "imagenet-shifts-without-objectnet" in text
    assert text.count("word") == 20
    assert max(len(line) for line in text.splitlines()) <= 80


def test_no_color_leaves_no_escape_sequence() -> None:
    text = _on_a_terminal(120, NO_COLOR="1")
    assert "┃" in text
    assert "\x1b[" not in text


def test_an_output_that_knows_no_unicode_is_no_crash() -> None:
    code = (
        "from bench.tables.table import *\n"
        "columns = [Column('a', kind='percent', spread='s'), Column('b')]\n"
        "print_tables([Table(columns, [{'a': .5, 's': .1, 'b': '画'}])], Format.table)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert "50.0 +/- 10.0" in done.stdout


def test_durations_sizes_and_shortened_texts_read_well() -> None:
    assert [duration(seconds) for seconds in (0.4, 42, 200, 9000)] == [
        "0.4 s",
        "42 s",
        "3.3 min",
        "2.5 h",
    ]
    words = "fair use in research"
    assert [shortened(words, length) for length in (20, 19, 12)] == [
        words,
        "fair use in\u2026",
        "fair use\u2026",
    ]
    assert shortened("CC-BY-NC-SA-4.0", 6) == "CC-BY\u2026"
    assert for_people(Table([Column("it", kind="bytes")], [{"it": 2048}]))[2] == [["2.0 kB"]]


_BOARD = """
from bench.tables.table import *
columns = [Column('method'), *(Column(f'shift{i}', kind='percent') for i in range(9)),
           Column('ood', kind='percent')]
row = {'method': 'masked-counterfactual (lr=0.00102, weight=1.1, fill=none)', 'ood': 0.673}
row |= {f'shift{i}': 0.1 + i / 100 for i in range(9)}
print_tables([Table(columns, [row], lead=('method', 'ood'), more='--columns all')], Format.table)
"""


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_shows_the_leading_columns_and_as_many_others_as_fit(width: int) -> None:
    text = _on_a_terminal(width, _BOARD, NO_COLOR="1")
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= width
    (named,) = (line for line in lines if "masked-counterfactual" in line)
    assert "67.3" in named, "the leading column is on the line of the name"
    assert "fill=none" in text
    shown = [i for i in range(9) if f"shift{i}" in text]
    assert shown == list(range(len(shown))), "the others are in their order"
    assert all(f"{10 + i}.0" in named for i in shown), "no number is broken"
    left = 9 - len(shown)
    assert (f"{left} more columns: --columns all" in text) == (left > 0)
