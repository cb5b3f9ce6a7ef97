"""The colours of rows on the page: of methods where there are many, of rows where there are few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import row

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
pytestmark = [pytest.mark.browser, pytest.mark.waits]


def variants(store: Any) -> list[Any]:
    """Twelve rows: three rates of each of four methods, which score alike."""
    from bench.leaderboard.board.groups import load
    from bench.results.record import RunRecord

    found = []
    for record in (r.model_dump() for r in load(store) if r.status == "done" and r.seed == 0):
        for rate in range(3):
            method = record["method"] | {"parameters": {"lr": rate}}
            label = f"{record['method']['name']} (lr={rate})"
            found.append(
                RunRecord.model_validate(record | {"method": method, "label": label, "curve": []})
            )
    return found


@pytest.fixture
def variants_file(store: Any, tmp_path: Path) -> Path:
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.source import Source

    assert Source(store, View()).write(variants(store), tmp_path / "variants.html")
    return tmp_path / "variants.html"


def swatches(page: Page) -> dict[str, tuple[str, str]]:
    """Name of a row -> its colour and its mark in the table."""
    cells = page.locator("#table tbody th.name").evaluate_all(
        "cells => cells.map((c) => [c.querySelector('button').textContent,"
        " c.querySelector('.swatch').style.color, c.querySelector('.swatch').textContent])"
    )
    return {name: (colour, mark) for name, colour, mark in cells}


def strokes(page: Page, what: str) -> list[str]:
    return page.locator(what).evaluate_all(
        "lines => lines.map((line) => line.getAttribute('stroke'))"
    )


def test_rows_of_many_have_their_methods_colour_and_selected_ones_their_own(
    opened: Open, variants_file: Path
) -> None:
    page = opened(file=variants_file)
    usual = swatches(page)
    assert len(set(usual.values())) == 12
    assert len({colour for colour, _ in usual.values()}) == 4
    assert len({usual[f"wise-ft (lr={rate})"][0] for rate in range(3)}) == 1
    # The small figures' rows are of three colours.
    assert len(set(strokes(page, "#reliability .mark-line path"))) == 3
    page.get_by_role("button", name="ID", exact=True).click()
    assert swatches(page) == usual
    for rate in (0, 2):
        row(page, f"wise-ft (lr={rate})").get_by_role("checkbox").check()
    page.wait_for_function(
        "document.querySelector('#bars-caption').textContent.startsWith('wise', 1)"
    )
    chosen = swatches(page)
    pair = [chosen[f"wise-ft (lr={rate})"] for rate in (0, 2)]
    assert pair[0][0] != pair[1][0]
    assert pair[0][1] != pair[1][1]
    assert pair[0] == usual["wise-ft (lr=0)"]  # what is free is kept
    assert pair[1][0] not in {colour for colour, _ in usual.values()}
    assert {name: look for name, look in chosen.items() if name != "wise-ft (lr=2)"} == {
        name: look for name, look in usual.items() if name != "wise-ft (lr=2)"
    }
    page.get_by_role("button", name="Clear").click()
    assert swatches(page) == usual


def test_calibration_curves_of_one_method_are_a_line_each(
    opened: Open, variants_file: Path
) -> None:
    page = opened(file=variants_file)
    for rate in (0, 1):
        row(page, f"full-finetune (lr={rate})").get_by_role("checkbox").check()
    page.wait_for_function(
        "document.querySelector('#reliability-caption').textContent.includes('lr=1')"
    )
    sampled = strokes(page, "#reliability .mark-line path")
    assert len(sampled) == 2 * len(("id-test", "sketch", "cartoon", "rotated"))
    assert len(set(sampled)) == 2
    bars = page.locator("#bars .mark-rect.role-mark path").evaluate_all(
        "bars => bars.map((bar) => bar.getAttribute('fill'))"
    )
    assert len(set(bars)) == 2


def test_a_filter_that_leaves_few_gives_each_a_colour_of_its_own(
    opened: Open, variants_file: Path
) -> None:
    page = opened(file=variants_file)
    usual = swatches(page)
    page.get_by_label("Method").fill("wise")
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 3")
    left = swatches(page)
    assert (
        len({colour for colour, _ in left.values()})
        == len({mark for _, mark in left.values()})
        == 3
    )
    assert sum(left[name] == usual[name] for name in left) == 1


@pytest.mark.parametrize("spread", ["sd", "seeds", "images"])
def test_a_row_that_no_seed_changes_says_so_and_has_no_spread_over_seeds(
    opened: Open, store: Any, tmp_path: Path, spread: str
) -> None:
    from bench.leaderboard.board.groups import load
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.source import Source

    runs = [r for r in load(store) if r.status == "done"]
    first = next(r for r in runs if r.label == "zero-shot")
    for run in (r for r in runs if r.label == "zero-shot"):
        run.metrics = first.metrics
    assert Source(store, View()).write(runs, tmp_path / "fixed.html")
    page = opened(f"#spread={spread}&columns=id,sketch,ood", file=tmp_path / "fixed.html")
    fixed, varied = row(page, "zero-shot"), row(page, "wise-ft")
    assert fixed.locator(".badge", has_text="deterministic").count() == 1
    assert varied.locator(".badge", has_text="deterministic").count() == 0
    assert varied.locator(".spread").count() > 0
    assert (fixed.locator(".spread").count() > 0) == (spread == "images")
