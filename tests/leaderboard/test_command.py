"""`bench leaderboard` as it is typed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.errors import NothingMatched, UsageError
from bench.results.record import RunRecord
from bench.results.store import Store

from support.messages import states

Make = Callable[..., RunRecord]


def board(store: Store, *options: str) -> Result:
    return CliRunner().invoke(build_app(), ["leaderboard", "--store", str(store.root), *options])


def failure(result: Result, kind: type[Any]) -> Any:
    assert isinstance(result.exception, kind), result.output
    return result.exception


@pytest.mark.slow
def test_every_format_carries_every_row(make: Make, store: Store) -> None:
    varied = {"id-test": 0.92, "cartoon": 0.6, "sketch": 0.5}
    for record in (
        make("a"),
        make("a", 1, varied),
        make("b", status="failed", error="boom", scores={}),
    ):
        store.save_run(record)
    whole = json.loads(board(store, "--format", "json").stdout)
    assert whole["schema"] == 1
    ranked, unfinished = whole["tables"]
    assert ranked["rows"][0]["id"] == pytest.approx(0.91)
    assert unfinished["rows"][0]["error"] == "boom"
    rows = list(csv.DictReader(io.StringIO(board(store, "--format", "csv").stdout)))
    assert [(row["group"], row["method"]) for row in rows] == [("ranked", "a"), ("unfinished", "b")]
    assert float(rows[0]["sketch"]) == pytest.approx(0.5)
    for form, mark in (
        ("table", "91.0 ± 1.4"),
        ("md", "| 91.0 ± 1.4 |"),
        ("latex", r"91.0 {\scriptsize $\pm$ 1.4}"),
    ):
        text = board(store, "--format", form).stdout
        assert mark in text
        assert "boom" in text


def test_a_pipe_never_loses_a_column(make: Make, store: Store) -> None:
    shifts = [f"a-shift-with-a-long-name-{i}" for i in range(12)]
    store.save_run(
        make("m" * 60, scores={"id-test": 0.9, **dict.fromkeys(shifts, 0.5)}, shifts=shifts)
    )
    lines = board(store).stdout.splitlines()
    assert all(shift in lines[1] for shift in shifts)
    assert "m" * 60 in lines[2]
    assert lines[2].count("50.0") == 13
    assert "…" not in "".join(lines)


def test_an_empty_store_says_how_to_fill_it(store: Store) -> None:
    error = failure(board(store), NothingMatched)
    assert error.exit_code == 5
    assert "bench run" in error.fix


def test_a_filter_that_leaves_nothing_says_what_would_match(make: Make, store: Store) -> None:
    store.save_run(make())
    error = failure(board(store, "--suite", "birds"), NothingMatched)
    assert "pets" in error.fix
    assert "wise-ft" in error.fix


def test_trials_alone_are_nothing_to_show(make: Make, store: Store) -> None:
    store.save_run(make(limit=8))
    assert "--include-limited" in failure(board(store), NothingMatched).fix
    assert "at most 8 images" in board(store, "--include-limited").stdout


def test_an_unknown_column_is_a_usage_error(make: Make, store: Store) -> None:
    store.save_run(make())
    assert failure(board(store, "--columns", "beauty"), UsageError).exit_code == 2
    assert failure(board(store, "--sort", "beauty"), UsageError).exit_code == 2
    assert board(store, "--format", "xml").exit_code == 2


def test_extra_columns(make: Make, store: Store) -> None:
    store.save_run(make(peak_memory_mb=100.0))
    (table,) = json.loads(
        board(store, "--columns", "nll,memory,id-val", "--format", "json").stdout
    )["tables"]
    row = table["rows"][0]
    assert row["nll_id"] == pytest.approx(0.1)
    assert row["nll_ood"] == pytest.approx(0.45)
    assert row["memory_bytes"] == 100 * 2**20
    assert row["id_val"] is None


def test_the_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib\nfrom bench.cli import main\nwith contextlib.suppress(SystemExit):"
        " main(['--help'])\nprint(*({'torch', 'pandas', 'ray', 'sklearn', 'scipy',"
        " 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "leaderboard" in done.stdout
    assert done.stderr.strip() == ""


def test_numbers_carry_the_interval_that_is_requested(make: Make, store: Store) -> None:
    for seed, score in enumerate((0.5, 0.6)):
        store.save_run(make("a", seed, scores={"id-test": score, "cartoon": 0.6, "sketch": 0.5}))
    assert "55.0 ± 7.1" in board(store).stdout
    seeds, images = (
        board(store, "--spread", "seeds").stdout,
        board(store, "--spread", "images").stdout,
    )
    assert "55.0 [-8.5, 118.5]" in seeds
    assert "t-interval over seeds" in seeds
    assert "55.0 [45.2, 64.4]" in images
    assert "interval over images" in images
    (table,) = json.loads(board(store, "--format", "json").stdout)["tables"]
    assert table["rows"][0]["id_images_low"] == pytest.approx(0.452, abs=1e-3)
    assert table["rows"][0]["id_seeds_high"] == pytest.approx(1.185, abs=1e-3)


@pytest.mark.parametrize("other", [("--html", "board.html"), ("--serve",), ("--format", "csv")])
def test_the_literature_is_shown_by_itself(
    make: Make, store: Store, other: tuple[str, ...]
) -> None:
    store.save_run(make("a"))
    assert "one way at a time" in failure(board(store, "--bibtex", *other), UsageError).what


def test_a_folder_is_no_page(make: Make, store: Store) -> None:
    store.save_run(make("a"))
    error = failure(board(store, "--html", str(store.root)), UsageError)
    assert error.fix.endswith("board.html")


@pytest.mark.parametrize(
    "text",
    [None, "[[standard]]", "standard = 3", "[[standard]]\nsuite = 'pets'\nbackbones = 3", "="],
)
def test_a_wrong_baseline_is_reported_with_its_form(
    make: Make, store: Store, text: str | None
) -> None:
    store.save_run(make("a"))
    path = store.root / "baseline.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert "[[standard]]" in failure(board(store, "--baseline", str(path)), UsageError).fix


def test_a_baseline_of_too_few_runs_says_so(make: Make, store: Store) -> None:
    store.save_run(make("a"))
    path = store.root / "baseline.toml"
    path.write_text("[[standard]]\nsuite = 'pets'\nbackbones = ['x', 'y']", encoding="utf-8")
    shown = board(store, "--baseline", str(path)).stdout.replace("\n", " ")
    assert states(shown, 2, "baseline.toml", "pets", "fewer than 5")
