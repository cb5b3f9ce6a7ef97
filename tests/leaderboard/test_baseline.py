"""Effective robustness: the published lines, their fit, and when a suite has a line of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.special import expit, logit

from bench.leaderboard.board.baseline import (
    Line,
    Piece,
    chosen,
    effective,
    fit,
    measured,
    published,
)
from bench.leaderboard.board.tables import View, boards, tables
from bench.results.record import RunRecord, SplitMetrics

from baselines import refitted

Make = Callable[..., RunRecord]


def metrics_of(score: float) -> SplitMetrics:
    same = dict.fromkeys(
        ("score", "accuracy", "class_mean", "macro_f1", "nll", "ece", "brier"), score
    )
    return SplitMetrics(images=100, **same)


IMAGENET = ["imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet", "imagenet-a"]


def table_of_the_testbed() -> Path:
    root = os.environ.get("BENCH_TEST_DATA")
    table = Path(root or "/nowhere") / "metadata" / "imagenet_testbed_top1.csv"
    if not table.is_file():
        pytest.skip("BENCH_TEST_DATA/metadata/imagenet_testbed_top1.csv is not here")
    return table


def test_the_lines_are_those_of_the_testbeds_table() -> None:
    lines = {
        (shift, line.id): line
        for shift, kinds in published("imagenet-shifts").items()
        for line in kinds
    }
    breaks = {key: line.pieces[0].below for key, line in lines.items() if len(line.pieces) > 1}
    found = refitted(table_of_the_testbed(), breaks)
    assert found.keys() == lines.keys()
    for key, pieces in found.items():
        for piece, stated in zip(pieces, lines[key].pieces, strict=True):
            assert (piece.slope, piece.intercept) == pytest.approx(
                (stated.slope, stated.intercept), abs=5e-6
            )


def test_a_fit_finds_the_line_that_made_the_points() -> None:
    points = [(x, float(expit(0.9 * logit(x) - 0.5))) for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert fit([*points, (0.6, 0.0)]) == Piece(pytest.approx(0.9), pytest.approx(-0.5))
    with pytest.raises(ValueError, match="at least 5 models"):
        fit(points[:4])


def test_a_line_has_two_pieces_and_no_ends() -> None:
    line = Line("id-test", (Piece(1, 0, below=0.5), Piece(1, 1)), "")
    assert line.at(0.4) == pytest.approx(0.4)
    assert line.at(0.6) == pytest.approx(expit(logit(0.6) + 1))
    assert line.at(0.0) is None
    assert line.at(1.0) is None


def test_imagenets_board_has_the_column_and_says_where_its_line_is_from(make: Make) -> None:
    scores = {"id-test": 0.633, **dict.fromkeys(IMAGENET, 0.5)}
    record = make(suite="imagenet-shifts", scores=scores, shifts=IMAGENET)
    (table,) = tables([record], View())
    own = [
        effective(record, shift, line)
        for shift, line in chosen(published("imagenet-shifts"), [record]).items()
    ]
    assert table.rows[0]["effective"] == pytest.approx(
        sum(value for value in own if value is not None) / 5
    )
    v2 = 0.5 - expit(0.92323 * logit(0.633) - 0.49769)
    assert table.rows[0]["effective imagenet-v2"] == pytest.approx(v2)
    assert any("85 standard models" in note for note in table.notes)


def test_id_on_the_shifts_classes_is_used_where_every_row_has_it(make: Make) -> None:
    scores = {"id-test": 0.6, **dict.fromkeys(IMAGENET, 0.5)}
    matched = {"imagenet-r": metrics_of(0.9)}
    record = make(suite="imagenet-shifts", scores=scores, shifts=IMAGENET, id_matched=matched)
    lines = chosen(published("imagenet-shifts"), [record])
    assert {shift for shift, line in lines.items() if line.id == "id_matched"} == {"imagenet-r"}
    assert effective(record, "imagenet-r", lines["imagenet-r"]) == pytest.approx(
        0.5 - expit(0.63684 * logit(0.9) - 2.10772)
    )
    (board,) = boards([record], View()).boards
    assert board.rows[0].cells["id_matched"].value == pytest.approx((0.9 + 4 * 0.6) / 5)
    older = record.model_copy(update={"id_matched": {}})
    assert chosen(published("imagenet-shifts"), [record, older])["imagenet-r"].id == "id-test"


def test_other_suites_have_no_such_column(make: Make) -> None:
    (board,) = boards([make()], View()).boards
    assert board.measure("effective") is None


def test_five_declared_backbones_make_a_line_and_four_do_not(make: Make, tmp_path: Path) -> None:
    def run(number: int) -> RunRecord:
        at = 0.5 + 0.08 * number
        scores = {"id-test": at, "cartoon": at - 0.2, "sketch": at - 0.3}
        return make(
            "full-finetune",
            scores=scores,
            backbone=f"net{number}",
            backbone_sha256=str(number) * 64,
        )

    names = [f"net{number}" for number in range(5)]
    assert measured([run(number) for number in range(4)], names) == {}
    assert measured([run(number) for number in range(5)], names[:4]) == {}
    blind = [run(number) for number in range(5)]
    blind[0].metrics["cartoon"].score = 0.0  # which has no logit, so that four are left
    assert measured(blind, names).keys() == {"sketch"}
    file = tmp_path / "standard.toml"
    file.write_text(f'[[standard]]\nsuite = "pets"\nbackbones = {names}\n', encoding="utf-8")
    found = boards([run(number) for number in range(5)], View(baseline=file)).boards
    values = [board.rows[0].cells["effective"].value for board in found]
    assert all(value is not None and abs(value) < 0.02 for value in values)
    assert all(
        "5 standard backbones" in line.source for board in found for line in board.lines.values()
    )
