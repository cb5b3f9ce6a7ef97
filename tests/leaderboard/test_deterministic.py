"""A row that no seed changes says so wherever another one has a spread over seeds; equal accuracies
alone are a coincidence.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.leaderboard.board.comparison import compare
from bench.leaderboard.board.groups import deterministic
from bench.leaderboard.board.rows import Board
from bench.leaderboard.board.tables import Boards, View, board_table, boards
from bench.leaderboard.commands import plot as plot_command
from bench.leaderboard.commands.compare import tables as comparison_tables
from bench.leaderboard.commands.leaderboard import SpreadOption
from bench.leaderboard.commands.scores import _MAKERS, Scores
from bench.leaderboard.page.document import Document
from bench.leaderboard.page.report import protocol, write_report
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.record import CurvePoint, RunRecord
from bench.results.store import Store
from bench.tables.table import Format, Row, render

import claims

Make = Callable[..., RunRecord]
Predict = Callable[..., None]
#: Relative differences of the NLLs of two seeds, the scores being equal: of two machines, and of
#: two trained models.
ROUNDING, TRAINING = 1e-8, 1e-3


def seeds_of(
    make: Make, predict: Predict, method: str, apart: float, right: int = 60
) -> list[RunRecord]:
    """Three seeds with equal accuracies, the NLLs this far from each other."""
    runs = []
    for seed in range(3):
        run = make(method, seed)
        for split in ("id-val", "id-test", "cartoon", "sketch"):
            predict(run, split, [i < right for i in range(100)])
            run.metrics[split].nll *= 1 + apart * seed
        runs.append(run)
    return runs


@pytest.fixture
def runs(make: Make, predict: Predict, store: Store) -> dict[str, list[RunRecord]]:
    made = {
        "zero-shot": seeds_of(make, predict, "zero-shot", ROUNDING, 50),
        "linear-probe": seeds_of(make, predict, "linear-probe", 0.0),
        "chance": seeds_of(make, predict, "chance", TRAINING, 40),
    }
    for record in (run for own in made.values() for run in own):
        store.save_run(record)
    return made


@pytest.fixture
def board(runs: dict[str, list[RunRecord]]) -> Board:
    (found,) = boards([run for own in runs.values() for run in own], View()).boards
    return found


def test_it_is_decided_by_what_was_measured(runs: dict[str, list[RunRecord]]) -> None:
    assert {name: deterministic(own) for name, own in runs.items()} == {
        "zero-shot": True,
        "linear-probe": True,
        "chance": False,
    }
    assert not deterministic(runs["zero-shot"][:1]), "one seed tells nothing about another"
    other = runs["linear-probe"][1]
    other.metrics["sketch"].score += 0.01
    assert not deterministic(runs["linear-probe"])
    del other.metrics["sketch"]
    assert deterministic(runs["linear-probe"]), "a missing split says nothing"
    other.metrics.clear()
    assert not deterministic(runs["linear-probe"])


def test_its_cells_have_no_spread_over_seeds_and_keep_that_over_images(board: Board) -> None:
    cells = {row.name: row.cells for row in board.rows}
    for key in ("id", "cartoon", "ood", "nll_id", "ece_ood"):
        assert cells["zero-shot"][key].sd is None
        assert cells["zero-shot"][key].seeds is None
        assert cells["chance"][key].sd is not None
        assert cells["chance"][key].seeds is not None
    assert cells["zero-shot"]["ood"].images is not None


@pytest.mark.parametrize("form", [Format.table, Format.md, Format.latex])
@pytest.mark.parametrize("spread", SpreadOption)
def test_people_read_it_in_every_format(board: Board, form: Format, spread: SpreadOption) -> None:
    text = render([board_table(board, View(spread=spread.value))], form)
    fixed, varied = (
        next(line for line in text.splitlines() if line.lstrip("| ").startswith(name))
        for name in ("zero-shot", "chance")
    )
    assert ("deterministic" in fixed, "deterministic" in varied) == (True, False)
    sign = "[" if spread is not SpreadOption.sd else r"\pm" if form is Format.latex else "±"
    assert sign in varied
    assert (sign in fixed) == (spread is SpreadOption.images)


def test_machines_get_a_field_and_no_spread(board: Board) -> None:
    table = board_table(board, View())
    rows: dict[str, dict[str, Any]] = {
        row["method"]: row for row in json.loads(render([table], Format.json))["tables"][0]["rows"]
    }
    assert {
        name: (row["deterministic"], row["ood_sd"], row["ood_seeds_low"])
        for name, row in rows.items()
    } == {
        "zero-shot": (True, None, None),
        "linear-probe": (True, None, None),
        "chance": (False, pytest.approx(0), pytest.approx(0.4)),
    }
    assert rows["zero-shot"]["ood_images_low"] < 0.5
    as_csv = {
        row["method"]: row for row in csv.DictReader(io.StringIO(render([table], Format.csv)))
    }
    assert (as_csv["zero-shot"]["deterministic"], as_csv["zero-shot"]["ood_sd"]) == ("True", "")
    assert as_csv["chance"]["deterministic"] == "False"


def test_what_it_is_measured_against_may_vary(make: Make) -> None:
    fixed = [
        make("zero-shot", seed, {"id-test": 0.6, "cartoon": 0.5, "sketch": 0.5}) for seed in (0, 1)
    ]
    curves = [
        make("full-finetune", seed, {"id-test": 0.9, "cartoon": 0.4, "sketch": 0.4 + seed / 10})
        for seed in (0, 1)
    ]
    for run in curves:
        end = {split: metrics.score for split, metrics in run.metrics.items()}
        start = {"id-test": 0.5, "cartoon": 0.45, "sketch": 0.45}
        run.curve = [CurvePoint(alpha=a, scores=s, ood=0.45) for a, s in ((0.0, start), (1.0, end))]
    (found,) = boards([*fixed, *curves], View()).boards
    (row,) = [row for row in found.rows if row.name == "zero-shot"]
    assert row.cells["ood"].sd is None
    assert row.cells["above_curve"].sd is not None
    assert row.cells["above_curve"].sd > 0


def test_a_comparison_of_two_such_rows_is_the_difference(
    runs: dict[str, list[RunRecord]], store: Store
) -> None:
    found = compare(
        runs["linear-probe"], runs["zero-shot"], Predictions(store), ("linear-probe", "zero-shot")
    )
    assert {(d.deterministic, d.interval, d.verdict) for d in found.method} == {
        (True, None, "better")
    }
    assert "mean difference +10.0, deterministic over 3 seeds: better" in found.verdict[1]
    text = render(comparison_tables(found, "pets"), Format.table)
    assert "+10.0, deterministic" in text
    assert "[+10.0, +10.0]" not in text
    with_chance = compare(runs["chance"], runs["zero-shot"], Predictions(store))
    assert not any(d.deterministic for d in with_chance.method)


@pytest.mark.parametrize("what", [Scores.calibration, Scores.detection, Scores.classes])
def test_scores_beyond_accuracy_say_it_too(board: Board, store: Store, what: Scores) -> None:
    splits = ["sketch"] if what is Scores.detection else ["id-test"]
    table = _MAKERS[what](board, splits, Predictions(store), 5)
    rows: dict[Any, Row] = {row["method"]: row for row in table.rows}
    assert {name: row["deterministic"] for name, row in rows.items()} == {
        "zero-shot": True,
        "linear-probe": True,
        "chance": False,
    }
    spreads = [column.spread for column in table.columns if column.spread]
    assert spreads
    assert all(rows["zero-shot"].get(key) is None for key in spreads)
    assert any(rows["chance"].get(key) is not None for key in spreads)
    assert "deterministic" in render([table], Format.md)


def test_the_page_has_a_badge_and_no_spread(board: Board, store: Store) -> None:
    (made,) = Document(Predictions(store)).of(Boards([board], []), View())["boards"]
    rows = {row["name"]: row for row in made["rows"]}
    assert {name: row["deterministic"] for name, row in rows.items()} == {
        "zero-shot": True,
        "linear-probe": True,
        "chance": False,
    }
    value, sd, low, high, *images = rows["zero-shot"]["cells"]["ood"]
    assert (value, sd, low, high, len(images)) == (0.5, None, None, None, 2)
    pair = made["comparisons"][f"{rows['linear-probe']['id']} {rows['zero-shot']['id']}"]
    assert {(low, high, last) for *_, low, high, p, verdict, why, last in pair["method"]} == {
        (None, None, True)
    }


def test_figures_and_reports_say_it(board: Board, store: Store, tmp_path: Path) -> None:
    assert "deterministic" in plot_command._seeds(board)
    sentence = "Deterministic, so that there is no spread over seeds: linear-probe, zero-shot"
    assert sentence in protocol(board)
    write_report(
        [run for row in board.rows for run in row.records],
        store,
        tmp_path / "report",
        figures=(".svg",),
    )
    svg = (tmp_path / "report" / "pets_tiny" / "scatter.svg").read_text(encoding="utf-8")
    assert "no interval: deterministic" in svg
    assert sentence in (tmp_path / "report" / "report.md").read_text(encoding="utf-8").replace(
        "\\", ""
    )


def test_a_curve_of_such_runs_has_no_band(make: Make) -> None:
    runs = [make("linear-probe", seed) for seed in (0, 1)]
    for run in runs:
        run.curve = [
            CurvePoint(
                alpha=a, scores={"id-test": 0.5 + a / 5, "cartoon": 0.5, "sketch": 0.5}, ood=0.5
            )
            for a in (0, 1)
        ]
    (found,) = boards(runs, View()).boards
    chart = plot_command.curve_of(found, ["id-test"]).to_dict()
    assert chart["title"]["subtitle"] == ["deterministic: 2 seeds have equal scores"]
    assert {(point["low"], point["high"]) for point in chart["data"]["values"]} == {(None, None)}


def test_a_claim_on_two_such_rows_has_no_interval(make: Make) -> None:
    def row(name: str, score: float, apart: float = 0.0) -> list[RunRecord]:
        made = [
            make(name, seed, {"id-test": score + apart * seed, "cartoon": 0.5, "sketch": 0.5})
            for seed in range(3)
        ]
        for run in made:
            run.method["parameters"]["head_init"] = "zero-shot"
        return made

    table = claims.table(
        [*row("zero-shot", 0.5), *row("linear-probe", 0.7), *row("full-finetune", 0.8, 0.01)],
        "pets",
    )
    (shown,) = [str(line["shown"]) for line in table.rows if line["key"] == "d"]
    parts = shown.split("; ")
    assert parts[0] == "ID +20.0, deterministic"
    assert parts[1].startswith("ID +11.0 [")
