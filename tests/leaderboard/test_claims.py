"""Verdicts from per-seed differences, by hand."""

from __future__ import annotations

import pytest

from bench.results.record import RunRecord, SplitMetrics

from claims import Inequality, differences, table, verdict


def run(name: str, seed: int, id_: float, ood: float, **parameters: object) -> RunRecord:
    def metrics(score: float) -> SplitMetrics:
        return SplitMetrics(
            images=10,
            score=score,
            accuracy=score,
            class_mean=score,
            macro_f1=score,
            nll=1,
            ece=0,
            brier=0,
        )

    return RunRecord(
        status="done", method={"name": name, "parameters": {"head_init": "zero-shot",
        **parameters}}, label=name, backbone="b",
        backbone_sha256="s", suite="suite", seed=seed, fit_id=f"{name}{seed}{parameters}",
        metrics={"id-test": metrics(id_), "sketch": metrics(ood)}, shifts=["sketch"],
        averaged=["sketch"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([[1.0, 1.1, 0.9]], "holds"),
        ([[-1.0, -1.1, -0.9]], "fails"),
        ([[1.0, -1.0, 0.5]], "undecided"),
        ([[1.0, 1.1, 0.9], [-1.0, -1.1, -0.9]], "fails"),
        ([[1.0, 1.1, 0.9], [1.0, -1.0, 0.5]], "undecided"),
        ([[1.0]], "not measured"),
        ([[]], "not measured"),
    ],
)
def test_verdict(found: list[list[float]], expected: str) -> None:
    assert verdict(found) == expected


@pytest.mark.parametrize(
    ("ood", "identity", "expected"),
    [
        ([0.05, 0.06, 0.055], [0.001, -0.002, 0.0], "holds"),
        ([0.05, 0.06, 0.055], [0.04, 0.05, 0.045], "holds"),
        ([0.05, 0.06, 0.055], [-0.04, -0.05, -0.045], "undecided"),
        ([-0.05, -0.06, -0.055], [0.001, -0.002, 0.0], "fails"),
        ([-0.05, -0.06, -0.055], [0.04, 0.05, 0.045], "undecided"),
        ([-0.05, 0.06, 0.0], [0.0, 0.0, 0.0], "undecided"),
    ],
)
def test_more_ood_counts_only_at_equal_id(
    ood: list[float], identity: list[float], expected: str
) -> None:
    assert verdict([ood, identity], at_equal_id=True) == expected


def test_masks_are_held_against_distillation_with_the_same_parameters() -> None:
    records = [
        run("masked-counterfactual", 0, 0.9, 0.60, mask="object", fill="single", weight=6),
        run("masked-counterfactual", 0, 0.9, 0.70, mask="context", fill="single", weight=1),
        run("feature-distillation", 0, 0.9, 0.55, weight=6),
        run("feature-distillation", 0, 0.9, 0.68, weight=1),
    ]

    def gain(mask: str) -> list[float]:
        return differences(
            Inequality("OOD", f"masked-counterfactual, {mask} single", "the same without masks"),
            records,
        ).values

    assert gain("object") == [pytest.approx(0.05)]
    assert gain("context") == [pytest.approx(0.02)]
    assert gain("random") == []


def test_differences_pair_the_seeds() -> None:
    records = [
        run("full-finetune", 0, 0.9, 0.5),
        run("full-finetune", 1, 0.8, 0.4),
        run("zero-shot", 1, 0.6, 0.6),
    ]
    assert differences(Inequality("ID", "full-finetune", "zero-shot"), records).values == [
        pytest.approx(0.2)
    ]


def test_table_marks_gain_and_loss() -> None:
    records = [run("full-finetune", s, 0.9 + s / 100, 0.5) for s in range(3)]
    records += [run("zero-shot", s, 0.6, 0.6 + s / 100) for s in range(3)]
    elsewhere = [
        run(name, s, 0.1 * s, 0.9).model_copy(update={"suite": "other"})
        for name in ("full-finetune", "zero-shot")
        for s in (0, 1)
    ]
    rows = {row["key"]: row["verdict"] for row in table([*elsewhere, *records], "suite").rows}
    assert rows["b"] == "holds"
    assert rows["f"] == "not measured"
