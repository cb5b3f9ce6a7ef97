"""The page as a file: what it holds, that nothing in it comes from elsewhere, and that no record
can become a script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import NothingMatched, UsageError
from bench.leaderboard.board.tables import View
from bench.leaderboard.commands.leaderboard import leaderboard
from bench.leaderboard.page.source import Source, embedded, page
from bench.results.record import RunRecord
from bench.results.store import Store

from support.packs import stored_run

Make = Callable[..., RunRecord]
HOSTILE = "</script><script>alert(1)</script><!-- \u2028"


def document(text: str) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="document">(.*?)</script>', text, re.DOTALL
    )
    assert found is not None
    made: dict[str, Any] = json.loads(found.group(1))
    return made


def test_a_row_has_its_numbers_its_missing_values_with_reasons_and_its_runs(
    make: Make, store: Store
) -> None:
    records = [
        make(
            "wise-ft",
            seed,
            {"id-test": 0.9, "cartoon": 0.6 + seed / 10},
            holes={"sketch": "no such folder"},
        )
        for seed in (0, 1)
    ]
    board = document(Source(store, View()).page(records))["boards"][0]
    (row,) = board["rows"]
    assert row["cells"]["cartoon"][:2] == [0.65, 0.07071]
    assert row["holes"]["sketch"] == "sketch: no such folder"
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    assert row["runs"][1]["scores"] == {"id-test": 0.9, "cartoon": 0.7}


def test_rows_of_the_page_are_those_of_the_table_in_its_order(make: Make, store: Store) -> None:
    records = [
        make(name, 0, {"id-test": score, "cartoon": score, "sketch": score})
        for name, score in (("a", 0.2), ("b", 0.7), ("c", 0.5))
    ]
    board = document(Source(store, View(sort="id")).page(records))["boards"][0]
    assert [row["name"] for row in board["rows"]] == ["b", "c", "a"]
    assert board["sort"] == "id"


def test_a_curve_averages_what_the_rows_average_where_one_lacks_a_shift(store: Store) -> None:
    reference, lacking = stored_run(store, "full-finetune", curve=True), stored_run(store)
    del lacking.metrics["sketch"]
    board = document(Source(store, View()).page([reference, lacking]))["boards"][0]
    (row,) = [row for row in board["rows"] if row["name"] == "full-finetune"]
    assert board["averaged"] == ["art"]
    assert [point["scores"]["ood"] for point in board["curves"]] == [
        point["scores"]["art"] for point in board["curves"]
    ]
    assert board["curves"][-1]["scores"]["ood"] == row["cells"]["ood"][0]


def test_a_row_keeps_its_name_in_links_while_runs_are_added(make: Make, store: Store) -> None:
    ids = [
        document(
            Source(store, View()).page([make("a", seed) for seed in range(count)] + [make("b", 0)])
        )["boards"][0]["rows"]
        for count in (1, 3)
    ]
    assert {row["name"]: row["id"] for row in ids[0]} == {row["name"]: row["id"] for row in ids[1]}


def test_what_is_not_comparable_is_a_board_of_its_own_with_the_field_that_differs(
    make: Make, store: Store
) -> None:
    records = [make("a"), make("b"), make("c", pixels="other")]
    boards = document(Source(store, View()).page(records))["boards"]
    assert [board["kind"] for board in boards] == ["ranked", "apart"]
    assert list(boards[1]["apart"]) == ["pixels"]


def test_a_failed_run_is_listed_even_where_nothing_else_is(make: Make, store: Store) -> None:
    made = document(
        Source(store, View()).page([make("a", status="failed", metrics={}, error="out of memory")])
    )
    assert made["boards"][0]["rows"] == []
    assert made["boards"][0]["unfinished"][0]["error"] == "out of memory"


def test_rows_without_predictions_are_compared_over_seeds_and_the_rest_says_why_not(
    make: Make, store: Store
) -> None:
    records = [
        make(name, seed, {"id-test": level + seed / 50, "cartoon": level})
        for name, level in (("a", 0.5), ("b", 0.7))
        for seed in (0, 1, 2)
    ]
    (pair,) = document(Source(store, View()).page(records))["boards"][0]["comparisons"].values()
    assert pair["seeds"] == [0, 1, 2]
    assert "no predictions" in pair["models"][0][8]
    assert pair["method"][0][1:4] == [0.72, 0.52, 0.2]


def test_reported_rows_of_a_suite_stand_apart_from_measured_ones(make: Make, store: Store) -> None:
    boards = document(Source(store, View()).page([make("a", suite="imagenet-shifts")]))["boards"]
    reported = [board for board in boards if board["kind"] == "reported"]
    assert reported
    assert {row["kind"] for board in reported for row in board["rows"]} == {"reported"}
    assert all(row["source"] for board in reported for row in board["rows"])
    assert {row["kind"] for row in boards[0]["rows"]} == {"measured"}


def test_a_suite_whose_name_is_a_path_reads_no_other_file(make: Make, store: Store) -> None:
    boards = document(Source(store, View()).page([make("a", suite="../reported/imagenet-shifts")]))[
        "boards"
    ]
    assert [board["kind"] for board in boards] == ["ranked"]


def test_a_hostile_record_stays_data(make: Make, store: Store) -> None:
    records = [
        make(
            "a",
            label=HOSTILE,
            backbone=HOSTILE,
            suite=HOSTILE,
            holes={"sketch": HOSTILE},
            provenance={HOSTILE: [float("nan"), "\ud800"]},
        ),
        make("b", backbone=HOSTILE, suite=HOSTILE, status="failed", error=HOSTILE),
    ]
    text = Source(store, View()).page(records)
    assert "alert(1)</script>" not in text
    board = document(text)["boards"][0]
    assert (board["suite"], board["rows"][0]["name"]) == (HOSTILE, HOSTILE)
    assert board["unfinished"][0]["error"] == HOSTILE
    text.encode()  # lone surrogates are escapes


def test_embedded_json_cannot_leave_its_element() -> None:
    value = {"text": "</script> <!-- & \u2028\u2029 é"}
    assert not set(embedded(value)) & set("<>&\u2028\u2029é")
    assert json.loads(embedded(value)) == value


@pytest.mark.parametrize("live", [False, True])
def test_only_the_pages_own_scripts_may_run_and_nothing_may_be_fetched(
    make: Make, store: Store, live: bool
) -> None:
    text = Source(store, View()).page([make()], live=live)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.group(1).split(";"))
    assert rules["script-src"].split() == hashes
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == ("'self'" if live else "'none'")
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r"(?:src|href|action)=\"(?!data:|#)[^\"]*|url\([^)]*|@import", markup) == []
    assert ("EventSource" in text) == live


def test_a_large_board_says_which_rows_are_compared(make: Make, store: Store) -> None:
    records = [make(f"m{i:02d}", 0, {"id-test": 0.5, "cartoon": i / 100}) for i in range(20)]
    board = document(Source(store, View()).page(records))["boards"][0]
    assert board["compared"] == 16
    assert len(board["comparisons"]) == 16 * 15 / 2
    assert len(board["rows"]) == 20


def test_the_page_of_a_document_is_the_same_bytes(make: Make, store: Store) -> None:
    made = document(Source(store, View()).page([make()]))
    assert page(made) == page(made)


def test_html_writes_the_selected_runs_and_says_where(
    make: Make, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        store.save_run(make(name))
    target = tmp_path / "new" / "board.html"
    leaderboard(store=store.root, method=["a"], columns="", sort="ood", html=target)
    stated = capsys.readouterr()
    assert stated.out.strip() == str(target)
    assert "MB" in stated.err
    assert [row["name"] for row in document(target.read_text())["boards"][0]["rows"]] == ["a"]


def test_html_writes_no_file_when_nothing_matches(make: Make, store: Store, tmp_path: Path) -> None:
    store.save_run(make("a"))
    with pytest.raises(NothingMatched):
        leaderboard(
            store=store.root, method=["zzz"], columns="", sort="ood", html=tmp_path / "board.html"
        )
    assert list(tmp_path.glob("*.html")) == []


@pytest.mark.parametrize("given", [{"html": Path("b.html"), "serve": True}, {"port": 80}])
def test_options_that_exclude_each_other_are_refused(store: Store, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        leaderboard(store=store.root, columns="", sort="ood", **given)


def test_a_selection_is_plotted_with_the_curve_that_it_is_measured_against(store: Store) -> None:
    reference = stored_run(store, "full-finetune", curve=True)
    stored_run(store)
    source = Source(store, View(), methods=["wise-ft"])
    (board,) = document(source.page(source.records()))["boards"]
    assert [row["name"] for row in board["rows"]] == ["wise-ft"]
    assert {(point["row"], point["of"]) for point in board["curves"]} == {("", "full-finetune")}
    assert len(board["curves"]) == len(reference.curve)
