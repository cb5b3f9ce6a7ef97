"""Names that came with records, on their way to terminals, spreadsheets, documents and charts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import build_app
from bench.console.progress import ConsoleReporter
from bench.leaderboard.board.groups import load
from bench.results.record import RunRecord
from bench.results.store import Store

Make = Callable[..., RunRecord]

#: What a terminal, a page, a spreadsheet or the chart library would take for something else than a
#: name.
HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "two\nlines",
    "\u202ebackwards",
    "\x9b2J",
    "<img src=x onerror=alert(1)>",
    "=HYPERLINK(1)",
    "@SUM(1)",
    "nul\x00",
]


def run(*arguments: str) -> str:
    """What a command shows, on both streams."""
    done = CliRunner().invoke(build_app(), list(arguments))
    assert done.exit_code == 0, done.output
    return str(done.output)


@pytest.fixture(params=HOSTILE, ids=[ascii(name) for name in HOSTILE])
def store(request: pytest.FixtureRequest, make: Make, store: Store) -> Store:
    """Two rows, the second of them with a hostile name, on a backbone with one."""
    for method in ("full-finetune", "wise-ft"):
        for seed in (0, 1):
            label = f"{request.param} ({method})" if method == "wise-ft" else method
            record = make(
                method,
                seed,
                {"id-test": 0.9, "cartoon": 0.5, "sketch": 0.5 + 0.1 * seed},
                label=label,
                backbone=request.param,
            )
            store.save_run(record)
    return store


def is_plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("form", ["table", "md", "latex", "csv", "json"])
def test_a_board_is_plain_text_in_every_format(form: str, store: Store) -> None:
    text = run("leaderboard", "--store", str(store.root), "--format", form)
    assert "wise-ft" in text
    assert is_plain(text)
    if form == "csv":
        cells = [
            cell
            for line in csv.reader(io.StringIO(text))
            for cell in line
            if cell and not _is_number(cell)
        ]
        assert not [cell for cell in cells if cell[0] in "=+-@"]
    if form == "md":
        assert "<img" not in text.replace("\\<img", "")


@pytest.mark.slow
def test_a_report_is_plain_text_and_its_charts_are_plotted(store: Store, tmp_path: Path) -> None:
    run("report", "-o", str(tmp_path / "r"), "--store", str(store.root))
    text = (tmp_path / "r" / "report.md").read_text()
    assert is_plain(text)
    assert "<img" not in text.replace("\\<img", "")
    charts = list((tmp_path / "r").glob("*/scatter.svg"))
    assert len(charts) == 1
    assert is_plain(charts[0].read_text())
    for ending in ("png", "pdf", "svg", "html"):
        run("plot", "scatter", "-o", str(tmp_path / f"chart.{ending}"), "--store", str(store.root))
        assert (tmp_path / f"chart.{ending}").stat().st_size > 1000


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_notes_progress_and_warnings_are_plain(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reporter = ConsoleReporter()
    reporter.event("warning", text="set train: \x1b[31m\u202e.png is no image")
    reporter.event("data", what="decoding \x1b]0;x\x07", done=3, of=3)
    shown = capsys.readouterr().err
    assert is_plain(shown)
    assert r"set train: \x1b[31m\u202e.png is no image" in shown
    store = Store(tmp_path / "\x1b[31mstore")
    path = store.save_run(make())
    path.write_text("{")
    assert list(store.records()) == []
    assert load(store) == []
    assert len(caplog.messages) == 2
    assert all(map(is_plain, caplog.messages))


@pytest.mark.parametrize(
    "origin",
    [
        {"pack": "x"},
        {"digest": "0" * 64},
        {"pack": "x", "digest": "../../../../x"},
        {"pack": "x", "digest": "/" * 64},
    ],
)
def test_a_record_that_climbs_out_of_its_folder_is_damaged(
    origin: dict[str, str], make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.save_run(make("wise-ft"))
    path = store.save_run(make("lp-ft"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"origin": origin}))
    assert "lp-ft" not in run("leaderboard", "--store", str(store.root))
    assert [message for message in caplog.messages if "record is damaged" in message]
