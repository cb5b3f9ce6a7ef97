"""Rows differ in what they look like: on the boards that are kept here, on any ground, to any eye,
and no line joins two.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from bench.leaderboard.board.frames import scores
from bench.leaderboard.board.rows import Board
from bench.leaderboard.board.tables import Boards, View, boards
from bench.leaderboard.charts import diagrams
from bench.leaderboard.charts.style import COLOURS, DARK, LIGHT, SHAPES, looks
from bench.leaderboard.commands.plot import curve_of, radar_of, scatter_of
from bench.leaderboard.packs.pack import open_pack
from bench.leaderboard.page.document import Document
from bench.leaderboard.page.figures import figures
from bench.leaderboard.statistics.predictions import Predictions
from bench.results.store import Store

from boards import BOARDS

#: What the three kinds of dichromats see of linear RGB (Machado, Oliveira and Fernandes, 2009,
#: severity 1).
EYES = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
Floats = NDArray[np.float64]


def linear(colour: str) -> Floats:
    share = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb: Floats) -> Floats:
    """CIE Lab under D65; Euclidean distances of 2 are just seen, side by side."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""
    dark, light = sorted(
        float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)
    )
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eye", EYES)
def test_eight_colours_are_distinguished_by_every_eye_on_either_ground(
    palette: Any, eye: str
) -> None:
    assert len(set(palette.rows)) == len(COLOURS) == len(set(SHAPES)) == 8
    assert min(contrast(colour, palette.background) for colour in palette.rows) >= 3
    seen = [lab(np.array(EYES[eye]) @ linear(colour)) for colour in palette.rows]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 20


def test_up_to_eight_rows_have_a_colour_and_a_mark_each_whatever_their_family() -> None:
    found = list(looks({f"row {i}": "one family" for i in range(8)}).values())
    assert [len({look[part] for look in found}) for part in (0, 1)] == [8, 8]


def test_of_more_rows_the_colour_is_the_familys_and_the_mark_the_rows() -> None:
    families = {f"{family} {i}": family for i in range(4) for family in ("a", "b", "c")}
    found = looks(families)
    assert {found[row][0] for row in families if row.startswith("a")} == {found["a 0"][0]}
    assert len({found[f"{family} 0"][0] for family in "abc"}) == 3
    assert len(set(found.values())) == len(families)


@pytest.fixture(scope="module")
def saved() -> Boards:
    """The boards of the packs that this repository carries."""
    records = []
    for path in BOARDS.glob("*.shiftpack"):
        with open_pack(path) as pack:
            records += [pack.record(run) for run in pack.manifest.runs]
    return boards(records, View())


@pytest.fixture(scope="module")
def many(saved: Boards) -> Board:
    """The one that has more rows than there are colours, so that a ninth row had the colour of the
    first.
    """
    (board,) = [
        board for board in saved.boards if board.kind == "ranked" and len(board.rows) > len(COLOURS)
    ]
    return board


def parts(specification: Any) -> Iterator[dict[str, Any]]:
    """Every layer that has a mark, with the encoding of what it lies in."""

    def below(part: Any, outer: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            encoding = outer | part.get("encoding", {})
            if "mark" in part:
                yield {**part, "encoding": encoding}
            for key in ("layer", "spec", "hconcat", "vconcat"):
                yield from below(part.get(key), encoding)
        elif isinstance(part, list):
            for item in part:
                yield from below(item, outer)

    return below(specification, {})


def joined(specification: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines and areas of rows: all but the front, which is of all rows, and what is drawn of no
    row.
    """
    found = [
        part for part in parts(specification) if part["mark"]["type"] in ("line", "area", "trail")
    ]
    fixed = ("datum.front",)
    ours = [
        part
        for part in found
        if not any(t.get("filter") in fixed for t in part.get("transform", []))
    ]
    return [part for part in ours if part["mark"].get("strokeDash") != [7, 4]]


def fields(part: dict[str, Any]) -> set[str]:
    detail = part["encoding"].get("detail", [])
    return {one["field"] for one in (detail if isinstance(detail, list) else [detail])}


def test_the_pair_that_everybody_compares_differs_in_colour_in_every_figure(many: Board) -> None:
    row = next(
        one
        for one in parts(scatter_of(many).to_dict())
        if one["mark"]["type"] == "point" and "shape" in one["encoding"]
    )
    scale = row["encoding"]["color"]["scale"]
    colour = dict(zip(scale["domain"], scale["range"], strict=True))
    assert colour["wise-ft"] != colour["full-finetune"]
    assert all(
        (colour[a.name] == colour[b.name]) == (a.family == b.family)
        for a, b in combinations(many.rows, 2)
    )
    document = Document(Predictions(Store(BOARDS / "none"))).of(Boards([many], []), View())
    look = {
        made["name"]: made["look"]
        for made in document["boards"][0]["rows"]
        if made["kind"] == "measured"
    }
    assert look["wise-ft"][0] != look["full-finetune"][0]
    assert len({tuple(one) for one in look.values()}) == len(many.rows)


def test_no_line_joins_two_rows(many: Board) -> None:
    bins = scores(many, ["id-test"]).rename(columns={"score": "accuracy", "split": "panel"})
    bins = pd.concat([bins.assign(confidence=share, images=20) for share in (0.3, 0.8)])
    made = {
        "reliability": diagrams.reliability(bins).to_dict(),
        "radar": radar_of(many, ["id-test", *many.shifts.shared]).to_dict(),
        "curve": curve_of(many, ["id-test"]).to_dict(),
        "scatter": scatter_of(many).to_dict(),
        **{
            f"page's {name}": one
            for name, one in figures([{"cells": {"id": [0.5]}, "bins": {"s": [1]}}], ["s"]).items()
        },
    }
    found = {name: [fields(part) for part in joined(one)] for name, one in made.items()}
    assert {name: one for name, one in found.items() if one} == {
        "reliability": [{"key"}],
        "radar": [{"ring"}, {"key"}],
        "curve": [{"split"}, {"split"}],
        "scatter": [{"key"}],
        "page's scatter": [{"key"}],
        "page's reliability": [{"key"}],
    }
