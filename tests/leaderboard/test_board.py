"""What a row is, what it is averaged over, and what may stand beside it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from bench.errors import UsageError
from bench.leaderboard.board.groups import groups, load, select
from bench.leaderboard.board.tables import View, tables
from bench.results.record import CurvePoint, RunRecord
from bench.results.store import Store

from support.messages import states

Make = Callable[..., RunRecord]


def test_seeds_are_averaged_with_the_sample_standard_deviation(make: Make) -> None:
    scores = [0.50, 0.53, 0.59]
    records = [
        make(seed=seed, scores={"id-test": 0.9, "cartoon": 0.7, "sketch": value})
        for seed, value in enumerate(scores)
    ]
    (table,) = tables(records, View())
    (row,) = table.rows
    mean = (0.50 + 0.53 + 0.59) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in scores) / (3 - 1))
    assert row["sketch"] == pytest.approx(mean)
    assert row["sketch_sd"] == pytest.approx(deviation)
    assert row["ood"] == pytest.approx((0.7 + mean) / 2)
    assert row["ood_sd"] == pytest.approx(deviation / 2)
    assert (row["runs"], row["seeds"]) == (3, "0 1 2")
    assert "± sample SD over 3 seeds" in table.notes[0]
    assert "OOD = mean over cartoon, sketch" in table.notes[0]


def test_a_single_seed_has_no_spread(make: Make) -> None:
    (table,) = tables([make()], View())
    assert table.rows[0]["id_sd"] is None
    assert "one seed, so no spread" in table.notes[0]


def test_a_run_on_other_data_stands_apart_and_says_in_what_it_differs(make: Make) -> None:
    records = [make("a", seed) for seed in range(2)] + [make("b")]
    data = {**records[0].data, "sketch": "other-images"}
    records.append(make("c", scores={"id-test": 1.0, "cartoon": 1.0, "sketch": 1.0}, data=data))
    ranked, apart = tables(records, View())
    assert {row["method"] for row in ranked.rows} == {"a", "b"}
    assert [row["method"] for row in apart.rows] == ["c"]
    assert apart.rows[0]["group"] == "apart"
    assert "data of sketch is other-images here and data-of-sketch above" in apart.title


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"backbone_sha256": "c" * 64}, "backbone weights"),
        ({"pixels": "pil-bicubic-64-64"}, "pixels"),
    ],
)
def test_other_weights_or_pixels_are_not_comparable(
    make: Make, changed: dict[str, str], named: str
) -> None:
    _, apart = tables([make("a"), make("b"), make("c", **changed)], View())
    assert named in apart.title


def test_every_suite_and_backbone_has_a_board_of_its_own(make: Make) -> None:
    made = tables([make(), make(suite="birds"), make(backbone="huge")], View())
    assert [table.title for table in made] == ["birds · tiny", "pets · huge", "pets · tiny"]
    assert all(row["group"] == "ranked" for table in made for row in table.rows)


def test_grouping_does_not_depend_on_the_order_of_the_records(make: Make) -> None:
    partial = make("p", scores={"id-test": 0.9, "cartoon": 0.6})
    other = {"id-test": "data-of-id-test", "cartoon": "data-of-cartoon", "sketch": "other"}
    records = [make("a"), make("b"), partial, make("c", data=other)]
    expected = [{r.label for r in group.records} for group in groups(records)]
    assert expected[0] == {"a", "b", "p"}
    assert [{r.label for r in group.records} for group in groups(records[::-1])] == expected


def test_a_missing_shift_is_missing_with_its_reason_and_leaves_every_average(make: Make) -> None:
    whole = make("a", scores={"id-test": 0.9, "cartoon": 0.6, "sketch": 0.2})
    partial = make("b", scores={"id-test": 0.9, "cartoon": 0.5}, holes={"sketch": "not downloaded"})
    (table,) = tables([whole, partial], View())
    by_name = {row["method"]: row for row in table.rows}
    assert by_name["b"]["sketch"] is None
    assert by_name["a"]["ood"] == pytest.approx(0.6)
    assert by_name["b"]["ood"] == pytest.approx(0.5)
    notes = "\n".join(table.notes)
    assert "sketch is missing for b (seed 0): not downloaded" in notes
    assert "sketch is left out of the OOD average of every row" in notes
    assert "OOD = mean over cartoon," in notes


def test_a_shift_that_the_card_leaves_out_of_the_average_is_shown_and_not_averaged(
    make: Make,
) -> None:
    (table,) = tables([make(averaged=["cartoon"])], View())
    assert table.rows[0]["sketch"] == pytest.approx(0.5)
    assert table.rows[0]["ood"] == pytest.approx(0.6)
    assert any(states(note, "OOD average", "card", "sketch") for note in table.notes)


def test_without_a_common_shift_there_is_no_average(make: Make) -> None:
    (table,) = tables(
        [
            make("a", scores={"id-test": 0.9, "cartoon": 0.6}),
            make("b", scores={"id-test": 0.9, "sketch": 0.6}),
        ],
        View(),
    )
    assert [row["ood"] for row in table.rows] == [None, None]
    assert "no shift was measured in every run" in table.notes[0]


def test_limited_and_search_runs_never_enter_the_board(make: Make) -> None:
    records = [make("a"), make("b", limit=8), make("c", phase="search")]
    (table,) = tables(records, View())
    assert [row["method"] for row in table.rows] == ["a"]
    ranked, limited = tables(records, View(limited=True))
    assert [row["method"] for row in limited.rows] == ["b"]
    assert "at most 8 images per split" in limited.title
    assert [row["method"] for row in ranked.rows] == ["a"]


def test_a_failed_run_is_a_row_with_the_first_line_of_its_error(make: Make) -> None:
    failed = make(
        "b",
        seed=1,
        status="failed",
        scores={},
        error="Diverged: the loss is not finite\n  where: step 3",
    )
    ranked, unfinished = tables([make("a"), make("b"), failed], View())
    assert {row["method"]: row["runs"] for row in ranked.rows} == {"a": 1, "b": 1}
    (row,) = unfinished.rows
    assert (row["method"], row["seed"], row["status"]) == ("b", 1, "failed")
    assert row["error"] == "Diverged: the loss is not finite"


def test_unequal_numbers_of_seeds_are_reported(make: Make) -> None:
    (table,) = tables([make("a"), make("a", 1), make("b")], View())
    assert any("unequal numbers of seeds" in note for note in table.notes)
    assert "over 1 to 2 seeds" in table.notes[0]


def test_external_checkpoints_are_marked_and_never_averaged(make: Make) -> None:
    theirs = [
        make("external", seed, label="theirs", phase="external", fit_id=f"fit{seed}")
        for seed in range(2)
    ]
    (table,) = tables([make("a"), *theirs], View())
    marked = [row for row in table.rows if row["external"]]
    assert len(marked) == 2
    assert len({row["method"] for row in marked}) == 2
    assert all("external, training unverified" in str(row["method"]) for row in marked)


def test_seen_id_val_is_flagged(make: Make) -> None:
    (table,) = tables([make(id_val_seen=True)], View())
    assert any("id-val is seen data" in note for note in table.notes)


def test_a_split_of_another_size_than_its_card_states_is_flagged(make: Make) -> None:
    (table,) = tables(
        [make(miscounted={"real": "5 images, the card says 10"}), make("a", 1)], View()
    )
    assert any(states(note, "real", 5, 10, "published") for note in table.notes)


def test_equal_images_are_flagged_once_and_those_that_are_none_are_not(make: Make) -> None:
    found = {"id-test": 2, "id-test in train": 3, "real": 0, "real in train": 0}
    (table,) = tables(
        [make(duplicates=found), make("a", 1), make("b", duplicates={"id-test in train": 3})],
        View(),
    )
    message = sorted(note for note in table.notes if "byte by byte" in note)
    assert message == [
        "id-test: 2 images repeat another of it, byte by byte.",
        "id-test: 3 images are also in train, byte by byte.",
    ]


def test_different_methods_of_one_label_are_distinguished(make: Make) -> None:
    newer = make(fit_id="other", method_version=2)
    newer.method = {**newer.method, "version": 2}
    (table,) = tables([make(), newer], View())
    assert {row["method"] for row in table.rows} == {"wise-ft [version=1]", "wise-ft [version=2]"}


def test_search_budgets_are_shown_and_compared(make: Make) -> None:
    (table,) = tables([make("a", search_trials=2, search_seconds=30.0), make("b")], View())
    assert {row["method"]: row["trials"] for row in table.rows} == {"a": 2, "b": 0}
    assert any("unequal search budgets: 0 to 2 trials" in note for note in table.notes)
    assert next(column for column in table.columns if column.key == "trials").human


def test_rows_say_how_their_parameters_were_sampled(make: Make) -> None:
    (table,) = tables(
        [
            make("a", search_trials=9, search_rule="random, asha"),
            make("b", search_trials=9, search_rule="grid"),
        ],
        View(),
    )
    assert {row["method"]: row["search_rule"] for row in table.rows} == {
        "a": "random, asha",
        "b": "grid",
    }
    (note,) = [note for note in table.notes if "ASHA" in note]
    assert "the parameters of a." in note


def test_path_candidates_are_selections_too(make: Make) -> None:
    among = {
        "alpha": {"value": 0.3, "id_val": 0.9, "among": 11},
        "linear-probe.C": {"value": 1.0, "id_val": 0.8, "among": 50},
    }
    (table,) = tables([make("a", selection=among), make("b")], View())
    assert {row["method"]: row["candidates"] for row in table.rows} == {"a": 61, "b": 0}


def test_a_seed_counts_once(make: Make) -> None:
    again = make(
        fit_id="again",
        eval_id="again",
        finished="2026-02-01",
        scores={"id-test": 0.5, "cartoon": 0.5, "sketch": 0.5},
    )
    (table,) = tables([make(), again], View())
    (row,) = table.rows
    assert (row["runs"], row["id"]) == (1, pytest.approx(0.5))
    assert any("1 earlier run(s)" in note for note in table.notes)


def test_factor_columns_average_the_shifts_that_declare_them(make: Make) -> None:
    shifts = ["cartoon", "sketch", "night"]
    style = {"style": "changed", "context": "kept"}
    record = make(
        scores={"id-test": 0.9, "cartoon": 0.6, "sketch": 0.4, "night": 0.1},
        shifts=shifts,
        factors={"cartoon": style, "sketch": style, "night": {"light": "changed"}},
    )
    (table,) = tables([record], View(by="factor"))
    assert table.rows[0]["context kept, style changed"] == pytest.approx(0.5)
    assert table.rows[0]["light changed"] == pytest.approx(0.1)
    assert "cartoon" not in table.rows[0]


def test_rows_are_sorted_best_first_with_missing_values_last(make: Make) -> None:
    records = [
        make("a", scores={"id-test": 0.7, "cartoon": 0.9, "sketch": 0.9}, fit_seconds=3.0),
        make("b", scores={"id-test": 0.9, "cartoon": 0.1, "sketch": 0.1}, fit_seconds=None),
        make("c", scores={"id-test": 0.8, "cartoon": 0.5, "sketch": 0.5}, fit_seconds=2.0),
    ]

    def order(view: View) -> str:
        (table,) = tables(records, view)
        return "".join(str(row["method"]) for row in table.rows)

    assert order(View()) == "acb"
    assert order(View(sort="id")) == "bca"
    assert order(View(sort="cost")) == "cab"
    assert order(View(sort="method")) == "abc"
    assert order(View(sort="nll_ood", extras=["nll"])) == "acb"
    with pytest.raises(UsageError, match="no column `beauty`"):
        tables(records, View(sort="beauty"))


def test_a_shift_may_bear_the_name_of_a_column(make: Make) -> None:
    (table,) = tables(
        [make(scores={"id-test": 0.9, "id": 0.4, "cost": 0.2}, shifts=["id", "cost"])], View()
    )
    row = table.rows[0]
    assert (row["id"], row["cost"]) == (pytest.approx(0.9), pytest.approx(60.0))
    assert (row["shift id"], row["shift cost"]) == (pytest.approx(0.4), pytest.approx(0.2))


def test_load_keeps_the_latest_done_record_and_drops_failures_that_were_fixed(
    make: Make, store: Store
) -> None:
    store.save_run(
        make(
            "a",
            status="failed",
            error="disk full",
            eval_id="early",
            scores={},
            finished="2026-01-01T00:30:00",
        )
    )
    store.save_run(make("a"))
    store.save_run(make("b", status="failed", error="disk full"))
    assert {(record.label, record.status) for record in load(store)} == {
        ("a", "done"),
        ("b", "failed"),
    }


def test_filters_take_names_labels_and_patterns(make: Make) -> None:
    records = [
        make("wise-ft", label="wise-ft (alpha=0.3)"),
        make("lp-ft"),
        make("lp-ft", suite="birds"),
    ]
    assert len(select(records, methods=["wise-ft"])) == 1
    assert len(select(records, methods=["wise-ft (alpha=0.3)"])) == 1
    assert len(select(records, methods=["*-ft"], suites=["pets"])) == 2
    assert select(records, backbones=["huge"]) == []


def test_above_the_curve_is_blank_unless_every_seed_is_on_its_range(make: Make) -> None:
    def curve(seed: int) -> RunRecord:
        ends = ((0.0, 0.6, 0.6), (1.0, 0.8 + 0.1 * seed, 0.5))
        points = [
            CurvePoint(alpha=a, scores={"id-test": x, "cartoon": y, "sketch": y}, ood=y)
            for a, x, y in ends
        ]
        return make(
            "full-finetune",
            seed,
            scores={"id-test": 0.8 + 0.1 * seed, "cartoon": 0.5, "sketch": 0.5},
            curve=points,
        )

    def run(name: str, seed: int, at: float) -> RunRecord:
        return make(name, seed, scores={"id-test": at, "cartoon": 0.7, "sketch": 0.7}, ood=0.7)

    inside = [run("inside", seed, 0.8) for seed in range(3)]  # there is no curve of the third seed
    outside = [run("outside", seed, 0.85) for seed in range(2)]
    (table,) = tables([curve(0), curve(1), *inside, *outside], View())
    above = {row["method"]: row["above_curve"] for row in table.rows}
    assert above["inside"] == pytest.approx(0.2 - (0.1 * 1 / 3) / 2)
    assert above["outside"] is None
    assert any(
        "blank for outside" in note and "nothing is extrapolated" in note for note in table.notes
    )


def test_a_row_is_as_far_above_the_curve_whether_or_not_the_curves_row_is_shown(make: Make) -> None:
    points = [
        CurvePoint(alpha=a, scores={"id-test": x, "cartoon": y, "sketch": y}, ood=y)
        for a, x, y in ((0, 0.6, 0.6), (1, 1, 0.4))
    ]
    reference = make(
        "full-finetune", scores={"id-test": 1.0, "cartoon": 0.4, "sketch": 0.4}, curve=points
    )
    alien = make(
        "full-finetune",
        scores={"id-test": 1.0, "cartoon": 0.4, "sketch": 0.4},
        curve=points,
        backbone_sha256="c" * 64,
    )
    shown = make("a", scores={"id-test": 0.8, "cartoon": 0.7, "sketch": 0.7})
    (table,) = tables([shown], View(), None, [shown, reference])
    assert [row["above_curve"] for row in table.rows] == [pytest.approx(0.2)]
    assert "same seed's full-finetune" in table.notes[0]
    assert "above_curve" not in {
        column.key for column in tables([shown], View(), None, [shown, alien])[0].columns
    }


def test_the_newest_run_of_the_curves_row_counts_whether_or_not_it_is_shown(make: Make) -> None:
    points = [
        CurvePoint(alpha=a, scores={"id-test": x, "cartoon": 0.5, "sketch": 0.5}, ood=0.5)
        for a, x in ((0, 0.6), (1, 1.0))
    ]
    older = make("full-finetune", curve=points, finished="2025-01-01T00:00:00", eval_id="older")
    newer, shown = make("full-finetune"), make("a")
    for made in (
        tables([shown], View(), None, [shown, older, newer]),
        tables([shown, older, newer], View()),
    ):
        assert "above_curve" not in {column.key for column in made[0].columns}
