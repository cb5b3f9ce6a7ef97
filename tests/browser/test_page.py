"""The page in a real browser, as a reader uses it: with a mouse, a keyboard, a finger, a screen
reader's eyes, a link.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import HOSTILE, row

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
pytestmark = [pytest.mark.browser, pytest.mark.waits]


def names(page: Page) -> list[str]:
    """Names of the table's rows, in order."""
    return page.locator("#table tbody .name button").all_inner_texts()


def test_rows_stand_best_ood_first_and_a_header_sorts(opened: Open) -> None:
    page = opened()
    assert names(page) == ["wise-ft", "zero-shot", "full-finetune", HOSTILE]
    page.get_by_role("button", name="ID", exact=True).click()
    assert names(page)[0] == "full-finetune"
    header = page.get_by_role("columnheader", name="ID", exact=True)
    assert header.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="ID", exact=True).click()
    assert (names(page)[0], header.get_attribute("aria-sort")) == ("zero-shot", "ascending")
    assert "sorted by ID, worst first" in page.locator("#status").inner_text()


def test_a_missing_value_is_last_in_both_orders_and_says_why(opened: Open) -> None:
    page = opened("#sort=rotated")
    assert names(page)[-1] == HOSTILE
    page.get_by_role("button", name="rotated").click()
    assert names(page)[-1] == HOSTILE
    assert row(page, HOSTILE).locator(".missing[title*='folder not there']").count() == 1


def test_the_method_filter_narrows_table_and_scatter(opened: Open) -> None:
    page = opened()
    page.get_by_label("Method").fill("WISE")
    page.wait_for_function("document.querySelectorAll('#scatter .mark-symbol path').length < 6")
    assert names(page) == ["wise-ft"]
    assert "1 of 4 rows" in page.locator("#status").inner_text()


def test_two_selected_rows_are_compared_for_both_questions(opened: Open) -> None:
    page = opened()
    row(page, "wise-ft").get_by_role("checkbox").check()
    row(page, "zero-shot").get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare").click()
    message = page.locator("#comparison").inner_text()
    assert "These trained models" in message
    assert "The method, with other seeds" in message
    assert "A is better on" in message
    verdicts = page.locator("#comparison .question").nth(0).locator("tbody tr th").all_inner_texts()
    assert verdicts == ["id-test", "sketch", "cartoon", "rotated", "OOD"]
    assert page.evaluate("document.activeElement.id") == "comparison"


def test_the_numbers_of_a_comparison_are_those_of_the_statistics(opened: Open, store: Any) -> None:
    from bench.leaderboard.board.comparison import compare
    from bench.leaderboard.board.groups import load
    from bench.leaderboard.statistics.predictions import Predictions

    runs = {
        name: [r for r in load(store) if r.label == name and r.status == "done"]
        for name in ("wise-ft", "zero-shot")
    }
    expected = compare(runs["wise-ft"], runs["zero-shot"], Predictions(store)).models[0]
    assert expected.interval is not None
    page = opened()
    row(page, "zero-shot").get_by_role("checkbox").check()
    row(page, "wise-ft").get_by_role("checkbox").check()
    shown = (
        page.locator("#comparison .question")
        .nth(0)
        .locator("tbody tr")
        .nth(0)
        .locator("td")
        .all_inner_texts()
    )
    signed = [
        f"{100 * x:+.1f}".replace("-", "\u2212")
        for x in (expected.value or 0, expected.interval.low, expected.interval.high)
    ]
    assert shown[2:4] == [signed[0], f"[{signed[1]}, {signed[2]}]"]


def test_scatter_and_table_are_linked(opened: Open) -> None:
    page = opened()
    marks = page.locator("#scatter .mark-symbol.role-mark path")
    places = {i: marks.nth(i).bounding_box() for i in range(marks.count())}
    # The rows' marks are drawn last, in the order of the table.
    box = places[marks.count() - 4]
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#table tr.hovered")
    assert page.locator("#table tr.hovered .name button").inner_text() == "wise-ft"
    assert "wise-ft" in page.locator("#vg-tooltip-element").inner_text()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#table tr.chosen-row")
    assert row(page, "wise-ft").get_by_role("checkbox").is_checked()
    row(page, "zero-shot").hover()
    page.wait_for_function(
        "[...document.querySelectorAll('#scatter .mark-symbol path')].some(p =>"
        " p.getBoundingClientRect().width > 14)"
    )


def test_intervals_are_over_what_the_reader_chooses(opened: Open) -> None:
    page = opened()
    cell = row(page, "wise-ft").locator("td.number").first
    assert "\u00b1" in cell.inner_text()
    page.get_by_label("Uncertainty").select_option("images")
    assert "[" in cell.inner_text()
    assert "over test images" in page.locator("#table-caption").inner_text()
    page.get_by_label("Uncertainty").select_option("none")
    assert cell.inner_text().strip().replace(".", "").isdigit()


def test_columns_can_be_chosen(opened: Open) -> None:
    page = opened()
    page.get_by_text("Columns", exact=True).click()
    page.get_by_role("checkbox", name="worst shift").check()
    assert page.get_by_role("columnheader", name="worst shift").count() == 1
    page.get_by_role("checkbox", name="cartoon").uncheck()
    assert page.get_by_role("columnheader", name="cartoon").count() == 0


def test_a_name_opens_what_is_recorded_and_escape_closes_it(opened: Open) -> None:
    page = opened()
    row(page, "full-finetune").get_by_role("button").click()
    drawer = page.get_by_role("dialog")
    message = drawer.inner_text()
    assert "parameters.lr" in message
    assert "device" in message
    assert "bench show" in message
    assert drawer.locator("table").first.locator("thead th").all_inner_texts() == [
        "split",
        "seed 0",
        "seed 1",
        "seed 2",
    ]
    page.keyboard.press("Escape")
    assert not drawer.is_visible()
    assert page.evaluate("document.activeElement.textContent") == "full-finetune"


def test_everything_works_with_the_keyboard_alone(opened: Open) -> None:
    page = opened()

    def tab_to(condition: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate(f"(e => {condition})(document.activeElement)"):
                return
        raise AssertionError(f"the keyboard does not reach {condition}")

    tab_to("e.dataset.sort === 'id'")
    page.keyboard.press("Enter")
    assert names(page)[0] == "full-finetune"
    assert page.evaluate("document.activeElement.dataset.sort") == "id"
    for name in ("full-finetune", "wise-ft"):
        tab_to(f"e.getAttribute('aria-label') === 'select {name}'")
        page.keyboard.press("Space")
    assert "2 selected" in page.locator("#status").inner_text()
    tab_to("e.id === 'compare'")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "comparison"


def test_a_link_is_a_view(opened: Open) -> None:
    first = opened()
    row(first, "wise-ft").get_by_role("checkbox").check()
    row(first, "zero-shot").get_by_role("checkbox").check()
    first.get_by_role("button", name="cartoon").click()
    first.get_by_label("Uncertainty").select_option("seeds")
    first.get_by_role("button", name="Dark").click()
    again = opened("#" + first.url.split("#")[1])
    assert names(again) == names(first)
    assert again.locator("#comparison").inner_text() == first.locator("#comparison").inner_text()
    assert again.get_by_label("Uncertainty").input_value() == "seeds"
    assert again.locator("html").get_attribute("data-theme") == "dark"


def test_one_sentence_says_what_leads_and_its_names_open_the_drawer(opened: Open) -> None:
    page = opened()
    stated = page.locator("#summary").inner_text()
    assert "wise-ft has the highest OOD average, " in stated
    assert "on these test images" in stated
    assert "points less ID than" in stated
    link = page.locator("#summary").get_by_role("button", name="wise-ft")
    link.click()
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.closest('#summary') !== null")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()


def axis_titles(page: Page) -> list[str]:
    return page.locator("#scatter .role-axis-title").all_text_contents()


def test_axes_and_what_stands_against_id_are_the_readers_choice_and_part_of_the_link(
    opened: Open,
) -> None:
    page = opened()
    assert axis_titles(page) == ["ID accuracy (%)", "OOD average (%)"]
    page.get_by_label("Axes").select_option("logit")
    page.get_by_label("Against").select_option("cartoon")
    page.wait_for_function("document.querySelector('#scatter').textContent.includes('cartoon')")
    again = opened("#" + page.url.split("#")[1])
    assert (
        axis_titles(again)
        == axis_titles(page)
        == ["ID accuracy (%, logit scale)", "accuracy on cartoon (%, logit scale)"]
    )
    assert (
        again.get_by_label("Axes").input_value(),
        again.get_by_label("Against").input_value(),
    ) == ("logit", "cartoon")
    # Equal steps are equal odds ratios: the place of a tick is the logit of its label.
    ticks = page.evaluate("""() => { const view = views.scatter.view, x = view.scale("x");
                   return [0.5, 0.6, 0.75].map((share) => x(Math.log(share / (1 - share)))); }""")
    odds = [0.0, 0.405465, 1.098612]
    assert (ticks[1] - ticks[0]) / (ticks[2] - ticks[0]) == pytest.approx(
        odds[1] / odds[2], rel=1e-5
    )


def test_without_an_average_the_first_shift_that_a_row_has_stands_against_id(
    opened: Open, store: Any, tmp_path: Path
) -> None:
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.source import Source

    def page_of(**saved: list[str]) -> Page:
        records = [
            record.model_copy(deep=True)
            for _, record in store.records()
            if record.label in saved and record.seed == 0
        ]
        for record in records:
            record.metrics = {
                split: found
                for split, found in record.metrics.items()
                if split in saved[record.label]
            }
        path = tmp_path / "board.html"
        path.write_text(Source(store, View()).page(records), encoding="utf-8")
        return opened(file=path)

    saved = {"full-finetune": ["id-test", "cartoon"], "wise-ft": ["id-test", "rotated"]}
    page = page_of(**saved)
    assert axis_titles(page) == ["ID accuracy (%)", "accuracy on cartoon (%)"]
    assert page.get_by_label("Against").locator("option").all_inner_texts() == [
        "cartoon",
        "rotated",
    ]
    page = page_of(**{name: ["id-test"] for name in saved})
    assert page.locator("#scatter-figure").is_hidden()
    assert page.locator("#scatter svg").count() == 0
    assert sorted(names(page)) == sorted(saved)


def test_the_pareto_front_is_that_of_what_is_plotted(opened: Open) -> None:
    page = opened()
    front = "[...front()].map((id) => rowById(id).name).sort()"
    assert page.evaluate(front) == sorted(
        page.evaluate("board().rows.filter((r) => r.front).map((r) => r.name)")
    )
    assert page.evaluate(front) == ["full-finetune", "wise-ft"]


def test_several_suites_are_shown_one_at_a_time_with_baselines_where_they_are_known(
    opened: Open, suites_file: Path
) -> None:
    page = opened(file=suites_file)
    assert (
        page.get_by_role("heading", level=1).inner_text()
        == "imagenet-shifts on open_clip:ViT-B-32/openai"
    )
    assert names(page) == ["zero-shot"]
    assert "Dashed: standard models" in page.locator("#scatter-caption").inner_text()
    reached = page.evaluate("board().baselines['imagenet-v2'].find(([id]) => id === 0.63)[1]")
    line = 1 / (1 + math.exp(-(0.92323 * math.log(0.63 / 0.37) - 0.49769)))
    assert reached == pytest.approx(line, abs=1e-5)
    page.get_by_label("Suite").select_option("pets")
    assert page.get_by_role("heading", level=1).inner_text() == "pets on tiny"
    assert names(page)[0] == "wise-ft"
    assert "Dashed" not in page.locator("#scatter-caption").inner_text()
    again = opened("#" + page.url.split("#")[1], file=suites_file)
    assert names(again) == names(page)


def test_reported_rows_stand_apart_with_the_gap_to_what_was_measured(
    opened: Open, suites_file: Path
) -> None:
    page = opened("#show=both", file=suites_file)
    reported = page.locator(
        "#table tr.reported", has=page.get_by_role("button", name="zero-shot (reported, VRF)")
    )
    assert "63.3here +0.1" in reported.locator("td.number").first.inner_text().replace(
        "\n", ""
    ).replace(" here", "here")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('tr.reported td')).fontStyle")
        == "italic"
    )
    reported.get_by_role("button").click()
    message = page.get_by_role("dialog").inner_text()
    assert "zero-shot, measured here" in message
    assert "bench reproduce imagenet-shifts/b32-zero-shot" in message
    page.keyboard.press("Escape")
    row(page, "zero-shot").get_by_role("button").click()
    assert "Reported for this recipe" in page.get_by_role("dialog").inner_text()


@pytest.mark.parametrize(
    "fragment",
    [
        "#rows=nobody&sort=nothing&group=99&suite=none",
        "#row=x&spread=%00&theme=pink&columns=,,,&y=ece_id&axes=cubic",
        "#%E0%A4%A",
    ],
)
def test_a_link_that_means_nothing_shows_the_board(opened: Open, fragment: str) -> None:
    assert len(names(opened(fragment))) == 4


def test_dark_follows_the_system_until_the_reader_decides(opened: Open) -> None:
    page = opened(dark=True)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(22, 24, 29)"
    assert (
        page.locator(
            "#scatter svg rect[fill='#16181d'], #scatter svg[style*='22, 24, 29'], #scatter svg"
            " [fill='#16181d']"
        ).count()
        > 0
    )
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_a_hostile_record_stays_text(opened: Open) -> None:
    page = opened()
    row(page, HOSTILE).get_by_role("button").click()
    assert HOSTILE in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    row(page, HOSTILE).get_by_role("checkbox").check()
    assert "</script><script>" in page.locator("#unfinished").inner_text()
    assert page.title() == "ShiftBench leaderboard"
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_nothing_serious(opened: Open, width: int, dark: bool) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed"
    )
    page = opened(width=width, dark=dark)
    row(page, "wise-ft").get_by_role("checkbox").check()
    row(page, "zero-shot").get_by_role("checkbox").check()
    page.evaluate("changed('rows')")  # until it is drawn
    found = serious(axe.Axe().run(page))
    row(page, "full-finetune").get_by_role("button").click()
    assert found + serious(axe.Axe().run(page)) == []


def serious(results: Any) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    return [
        f"{violation['id']}: {[node['html'][:160] for node in violation['nodes'][:3]]}"
        for violation in results.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def test_a_phone_shows_the_page_without_sideways_scrolling(opened: Open) -> None:
    page = opened(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    first = page.locator("#table tbody td.number").nth(1).bounding_box()
    assert first is not None
    assert first["x"] + first["width"] <= 390  # ID and OOD of a row are in view
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('tbody .select label')].map(e =>"
        " e.getBoundingClientRect().height))"
    )
    assert smallest >= 24


def test_paper_gets_the_tables_and_not_the_controls(opened: Open) -> None:
    page = opened(dark=True)
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert page.locator("#table").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_of_many_rows_the_front_and_the_selected_have_bars(
    opened: Open, store: Any, tmp_path: Path
) -> None:
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.source import Source
    from bench.results.record import RunRecord

    source = Source(store, View())
    record = next(r for r in source.records() if r.method["name"] == "full-finetune").model_dump()
    many = []
    for number in range(22):
        for seed in (0, 1):
            metrics = {
                s: m | {"score": 0.4 + 0.01 * number + 0.002 * seed}
                for s, m in record["metrics"].items()
            }
            parameters = {"lr": number}
            method = record["method"] | {"parameters": parameters}
            own = {
                "seed": seed,
                "method": method,
                "label": f"row {number}",
                "fit_id": f"{number}.{seed}",
                "eval_id": f"{number}.{seed}",
            }
            many.append(RunRecord.model_validate(record | own | {"metrics": metrics, "curve": []}))
    source.write(many, tmp_path / "many.html")
    page = opened(file=tmp_path / "many.html")
    bars = page.locator("#scatter .mark-rule.role-mark line")
    assert bars.count() == 2  # of the best one, which is the front
    row(page, "row 3").get_by_role("checkbox").check()
    page.wait_for_function(
        "document.querySelectorAll('#scatter .mark-rule.role-mark line').length === 4"
    )
    assert "of the selected rows and the front" in page.locator("#scatter-caption").inner_text()
