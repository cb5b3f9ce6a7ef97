"""Charts say what the board says, in files that need no network, and nothing in a name becomes
code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.errors import NothingMatched, UsageError
from bench.leaderboard.board.frames import bins, curve_of, points
from bench.leaderboard.board.frames import reference as curve_of_reference
from bench.leaderboard.board.rows import Board
from bench.leaderboard.board.tables import View, boards
from bench.leaderboard.charts import diagrams
from bench.leaderboard.charts.scatter import scatter
from bench.leaderboard.charts.style import Axis, save
from bench.leaderboard.commands.plot import scatter_of
from bench.leaderboard.statistics.predictions import Predictions
from bench.leaderboard.statistics.tradeoff import on_front
from bench.results.record import CurvePoint
from bench.results.store import Store

from support.packs import stored_run

HOSTILE = "</script><script>alert(1)</script>"


def marks(*rows: tuple[str, float, float], **fields: Any) -> pd.DataFrame:
    return pd.DataFrame(
        [{"key": name, "row": name, "id": x, "ood": y, **fields} for name, x, y in rows]
    )


def data(chart: Any, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("name") == name and "values" in part and not found:
                found.extend(part["values"])
            for value in part.values():
                look(value)
        elif isinstance(part, list):
            for value in part:
                look(value)

    specification = chart.to_dict()
    look(specification)
    return found or specification.get("datasets", {}).get(name, [])


def test_the_front_by_hand() -> None:
    places = [(0.9, 0.5), (0.8, 0.6), (0.7, 0.6), (0.7, 0.4), (0.9, 0.5)]
    assert on_front(places) == [True, True, False, False, True]


def test_a_reported_row_is_plotted_apart_and_is_never_on_the_front() -> None:
    sampled = marks(("mine", 0.8, 0.5), ("theirs", 0.9, 0.6))
    sampled["kind"] = ["measured", "reported"]
    rows = {row["row"]: row for row in data(scatter(sampled), "points")}
    assert rows["mine"]["front"]
    assert not rows["theirs"]["front"]
    assert "hollow: reported, not measured" in json.dumps(scatter(sampled).to_dict())


def test_a_logit_axis_stands_where_the_logit_is_and_says_per_cent() -> None:
    (row,) = data(scatter(marks(("a", 0.5, 0.9)), logit=True), "points")
    assert row["x_id"] == pytest.approx(0)
    assert row["y_ood"] == pytest.approx(2.1972, abs=1e-4)
    ticks = Axis("ID", logit=True).axis(0.65, 0.93).to_dict()
    assert len(ticks["values"]) >= 5
    assert "logit scale" in ticks["title"]
    assert Axis("ID", logit=True).place(1.0) == pytest.approx(6.9068, abs=1e-4)


def test_the_figure_reaches_as_far_as_the_baseline_over_the_marks() -> None:
    chart = scatter(
        marks(("a", 0.6, 0.5), ("b", 0.9, 0.6)), baseline=lambda x: x - 0.2 if x < 0.8 else None
    )
    line = data(chart, "baseline")
    assert line[0]["ood"] == pytest.approx(0.4)
    assert all(0.6 <= p["id"] < 0.8 for p in line)
    low, high = chart.to_dict()["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert low == pytest.approx(0.4 - 0.01)
    assert high == pytest.approx(0.6 + 0.01)


def test_a_radar_closes_where_every_split_is_known() -> None:
    whole = [{"key": "w", "row": "whole", "split": split, "score": 0.5} for split in "abc"]
    part = [{"key": "p", "row": "part", "split": split, "score": 0.5} for split in "ab"]
    sampled = pd.DataFrame(data(diagrams.radar(pd.DataFrame(whole + part)), "radar"))
    assert list(sampled[sampled["row"] == "whole"]["split"]) == ["a", "b", "c", "a"]
    assert list(sampled[sampled["row"] == "part"]["split"]) == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_files_carry_all_they_need_and_names_stay_text(dark: bool, tmp_path: Path) -> None:
    long = (
        "masked-counterfactual (lr=0.00102, weight=1.1, mask=random, mask_share=None,"
        " probability=0.25)"
    )
    chart = scatter(marks((HOSTILE, 0.8, 0.5), (long, 0.9, 0.4)), title=HOSTILE, dark=dark)
    save(chart, tmp_path / "c.html", HOSTILE)
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert page.count("</script>") == 3
    assert not re.search(
        r"<(script|link|img)[^>]+(src|href)=", re.sub(r"(?s)<script.*?</script>", "", page)
    )
    assert "default-src 'none'" in page
    assert (
        json.loads(page.split('id="specification">')[1].split("</script>")[0])["title"]["text"]
        == HOSTILE
    )
    save(chart, tmp_path / "c.svg", "")
    svg = (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert long in svg
    assert "<script" not in svg


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_ending_says_what_is_written(tmp_path: Path, ending: str, magic: bytes) -> None:
    path = tmp_path / f"c{ending}"
    save(
        diagrams.radar(
            pd.DataFrame([{"key": "a", "row": "a", "split": s, "score": 0.5} for s in "abc"])
        ),
        path,
        "",
    )
    assert path.read_bytes().startswith(magic)
    with pytest.raises(UsageError, match="cannot be written"):
        save(None, tmp_path / "c.gif", "")


@pytest.fixture
def measured(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for seed in (0, 1):
        record = stored_run(store, "full-finetune", seed)
        record.curve = [
            CurvePoint(
                alpha=alpha,
                scores={"id-test": 0.5 + alpha / 4 + seed / 10, "art": 0.5},
                ood=0.4 + seed / 10,
            )
            for alpha in (0.0, 1.0)
        ]
        store.save_run(record)
    stored_run(store, "wise-ft", 0)
    return store


def test_points_are_the_boards_means_with_intervals_over_seeds(measured: Store) -> None:
    (board,) = boards([r for _, r in measured.records()], View()).boards
    sampled = points(board).set_index("row")
    runs = [r for _, r in measured.records() if r.label == "full-finetune"]
    assert sampled.loc["full-finetune", "ood"] == pytest.approx(sum(r.ood or 0 for r in runs) / 2)
    assert sampled.loc["full-finetune", "ood_low"] < sampled.loc["full-finetune", "ood"]
    assert pd.isna(sampled.loc["wise-ft", "ood_low"])


def test_a_curve_is_the_mean_over_the_seeds_that_have_one(measured: Store) -> None:
    found = curve_of([r for _, r in measured.records()], ["art"])
    assert found is not None
    by = found.set_index(["split", "alpha"])["score"]
    assert by["id-test", 1.0] == pytest.approx(0.8)
    assert by["OOD average", 0.0] == pytest.approx(0.5), (
        "the mean over the shifts asked for, not the one recorded"
    )
    assert curve_of([], ["art"]) is None


def end_of(board: Board, key: str) -> float | None:
    """What a column has for the row whose own curve is the yardstick."""
    (row,) = [row for row in board.rows if row.name == "full-finetune"]
    return row.cells[key].value


def test_the_curve_averages_what_the_points_average_where_a_row_lacks_a_shift(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "store")
    reference = stored_run(store, "full-finetune", curve=True)
    lacking = stored_run(store)
    del lacking.metrics["sketch"]
    (board,) = boards([reference, lacking], View()).boards
    curve, end = curve_of_reference(board), points(board).set_index("row").loc["full-finetune"]
    assert board.shifts.shared == ["art"]
    assert curve is not None
    assert end_of(board, "above_curve") == 0.0
    assert end_of(board, "curve_ood") == reference.curve[-1].scores["art"]
    assert curve["ood"].tolist() == [point.scores["art"] for point in reference.curve]
    assert (curve["id"].iloc[-1], curve["ood"].iloc[-1]) == pytest.approx(
        (end["id"], end["ood"])
    ), "its end is the row's own mark"
    for point in reference.curve:
        del point.scores["art"]
    assert curve_of_reference(board) is None


def test_reliability_pools_the_images_of_all_seeds(measured: Store) -> None:
    (board,) = boards([r for _, r in measured.records()], View()).boards
    found = bins(board, ["art"], Predictions(measured))
    assert found.groupby("row")["images"].sum().to_dict() == {"full-finetune": 120, "wise-ft": 60}
    accuracy = found[found["row"] == "wise-ft"]
    assert (accuracy["accuracy"] * accuracy["images"]).sum() / 60 == pytest.approx(
        next(r.metrics["art"].accuracy for _, r in measured.records() if r.label == "wise-ft")
    )


def test_what_cannot_stand_against_id_is_reported(measured: Store) -> None:
    (board,) = boards([r for _, r in measured.records()], View()).boards
    with pytest.raises(UsageError, match="not an accuracy"):
        scatter_of(board, y="cost")
    board.rows = []
    with pytest.raises(NothingMatched):
        scatter_of(board)


def test_a_shift_with_the_name_of_a_column_has_its_curve(tmp_path: Path) -> None:
    reference = stored_run(Store(tmp_path / "store"), "full-finetune", curve=True)
    for scores in (reference.metrics, reference.data, *(point.scores for point in reference.curve)):
        scores["cost"] = scores.pop("sketch")  # type: ignore[attr-defined,index]
    reference.shifts, reference.averaged = ["art", "cost"], ["art", "cost"]
    (board,) = boards([reference], View()).boards
    curve = curve_of_reference(board, "shift cost")
    assert curve is not None
    assert curve["ood"].tolist() == [point.scores["cost"] for point in reference.curve]
