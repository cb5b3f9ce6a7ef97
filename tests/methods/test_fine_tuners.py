"""The losses: exact against hand computations, the same for every micro-batch size, fair to the
teacher.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.backbones.backbone import ImageTower
from bench.classifier import Classifier
from bench.errors import UsageError
from bench.method import FineTuner, Traits
from bench.methods.feature_distillation import FeatureDistillation
from bench.methods.full_finetune import FullFinetune
from bench.methods.lp_ft import LPFT
from bench.methods.masked_counterfactual import MaskedCounterfactual
from bench.methods.wise_ft import WiSEFT

from support.towers import (
    CONV,
    VIT,
    TinyTask,
    classifier,
    full_rollout,
    global_batch,
    micro_batch,
    step,
)

BARE = Traits(text=False, native=False, layout="vit")
PAIRS: list[dict[str, Any]] = [
    {"mask": m, "fill": f}
    for m in ("object", "context", "random")
    for f in ("none", "single", "multi")
]
ON_VIT: list[FineTuner] = [
    FullFinetune(),
    LPFT(),
    FeatureDistillation(weight=6, weight_unit="teacher_ms"),
    MaskedCounterfactual(mask_share=0.3),
    MaskedCounterfactual(mask="context", fill="multi", mask_share=0.5),
    *(MaskedCounterfactual(**pair) for pair in PAIRS),
]
ON_CONV = [method for method in ON_VIT if getattr(method, "fill", "single") != "none"]


def pair_of(layout: str) -> tuple[Classifier, Classifier]:
    """A student and another classifier as its teacher."""
    return classifier(layout, seed=1), classifier(layout, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "traits"),
    [
        (method.bind(traits), traits)
        for methods, traits in ((ON_VIT, VIT), (ON_CONV, CONV))
        for method in methods
    ],
    ids=lambda value: (
        f"{value.name}-{getattr(value, 'mask', '')}-{getattr(value, 'fill', '')}"
        if isinstance(value, FineTuner)
        else value.layout
    ),
)
def test_accumulation_equals_one_large_batch_and_is_finite(
    method: FineTuner, traits: Traits
) -> None:
    (student, teacher), (pool, labels) = pair_of(traits.layout), global_batch(8)
    constants = {"teacher_ms": 0.7}
    loss, whole = step(method, student, teacher, pool, labels, [8], constants)
    assert np.isfinite(loss)
    assert all(bool(gradient.isfinite().all()) for gradient in whole.values())
    for sizes in ([4, 4], [3, 3, 2], [1] * 8):
        partial, parts = step(method, student, teacher, pool, labels, sizes, constants)
        assert partial == pytest.approx(loss, rel=1e-5)
        assert set(parts) == set(whole)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-5)


def test_full_finetuning_is_cross_entropy() -> None:
    (student, teacher), (pool, labels) = pair_of("vit"), global_batch()
    batch = micro_batch(FullFinetune(), pool, labels, torch.arange(8))
    expected = -student(batch.images).log_softmax(dim=1)[torch.arange(8), labels].mean()
    torch.testing.assert_close(FullFinetune().loss(batch, student, teacher, {}), expected)


def test_feature_distillation_by_hand_in_both_units() -> None:
    (student, teacher), (pool, labels) = pair_of("vit"), global_batch()
    images = pool.float() / 255
    distance = ((student.features(images) - teacher.features(images)) ** 2).sum() / (8 * 6)
    expected = F.cross_entropy(student(images), labels) + 12 * distance
    for method in (
        FeatureDistillation(weight=12),
        FeatureDistillation(weight=3, weight_unit="teacher_ms"),
    ):
        batch = micro_batch(method, pool, labels, torch.arange(8))
        torch.testing.assert_close(
            method.loss(batch, student, teacher, {"teacher_ms": 0.25}), expected
        )


def test_the_teachers_mean_square_is_measured_on_the_training_features() -> None:
    features = np.array([[1.0, 2.0], [3.0, 0.0]], dtype=np.float32)
    task = TinyTask(train=(features, np.array([0, 1])))
    assert FeatureDistillation().prepare(cast(Any, task), classifier()) == {"teacher_ms": 3.5}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.values()))
def test_masked_distillation_by_hand(pair: dict[str, Any]) -> None:
    method = MaskedCounterfactual(**pair).bind(VIT)
    (student, teacher), (pool, labels) = pair_of("vit"), global_batch()
    batch = micro_batch(method, pool, labels, torch.arange(8))
    look = method.look(batch, student)
    assert 0 < look.mask.float().mean() < 1
    if look.cam is not None:
        assert method.threshold is not None
        torch.testing.assert_close(
            look.cam.double(), full_rollout(student, batch.images, labels), atol=1e-5, rtol=1e-5
        )
        above = look.cam / look.cam.amax(dim=1, keepdim=True) > method.threshold
        assert torch.equal(look.mask, above if pair["mask"] == "object" else ~above)
    images, keep = pool.float() / 255, None
    if pair["fill"] == "none":
        keep = ~look.mask
    else:
        cells = look.mask.view(8, 3, 3).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
        source = (
            batch.random["source"]
            if pair["fill"] == "multi"
            else batch.random["source"][:, None].expand(8, 9)
        )
        for i in range(8):
            for p in range(9):
                block = (
                    slice(None),
                    slice(p // 3 * 8, p // 3 * 8 + 8),
                    slice(p % 3 * 8, p % 3 * 8 + 8),
                )
                if look.mask[i, p]:
                    images[(i, *block)] = pool[(int(source[i, p]), *block)].float() / 255
        assert torch.equal(
            (images != pool.float() / 255).any(dim=1) & ~cells, torch.zeros_like(cells)
        )
    distance = ((student.features(images, keep) - teacher.features(images, keep)) ** 2).mean()
    expected = F.cross_entropy(student(pool.float() / 255), labels) + 30 * distance
    torch.testing.assert_close(
        method.loss(batch, student, teacher, {"teacher_ms": 1.0}), expected, atol=1e-5, rtol=1e-5
    )


class Spy(Classifier):
    """Remembers what its tower is asked for."""

    def __init__(self, model: Classifier) -> None:
        super().__init__(copy.deepcopy(model.tower), copy.deepcopy(model.head))
        self.calls: list[tuple[str, Tensor, Tensor | None, Tensor]] = []
        tower, explain = self.tower, self.tower.explain

        def watch(_: ImageTower, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.calls.append(
                ("features", inputs[0], inputs[1] if len(inputs) > 1 else None, output)
            )

        def watch_explain(images: Tensor) -> tuple[Tensor, list[Tensor]]:
            features, maps = explain(images)
            self.calls.append(("explain", images, None, features))
            return features, maps

        tower.register_forward_hook(watch)
        tower.explain = watch_explain  # type: ignore[method-assign]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.values()))
def test_student_and_teacher_see_the_same_masked_image_and_the_clean_one_is_seen_once(
    pair: dict[str, Any],
) -> None:
    method = MaskedCounterfactual(**pair).bind(VIT)
    student, teacher = (Spy(model) for model in pair_of("vit"))
    pool, labels = global_batch()
    batch = micro_batch(method, pool, labels, torch.arange(8))
    loss = method.loss(batch, student, teacher, {"teacher_ms": 1.0})
    loss.backward()  # type: ignore[no-untyped-call]
    (clean, masked), (target,) = student.calls, teacher.calls
    assert clean[0] == ("features" if pair["mask"] == "random" else "explain")
    assert torch.equal(clean[1], batch.images)
    assert torch.equal(masked[1], target[1])
    if pair["fill"] == "none":
        assert masked[2] is not None
        assert target[2] is not None
        assert torch.equal(masked[2], target[2])
    else:
        assert masked[2] is None
        assert not torch.equal(masked[1], batch.images)
    assert not target[3].requires_grad
    assert not masked[1].requires_grad
    assert all(weight.grad is None for weight in teacher.parameters())


def test_feature_distillation_runs_each_tower_once() -> None:
    student, teacher = (Spy(model) for model in pair_of("vit"))
    pool, labels = global_batch()
    batch = micro_batch(FeatureDistillation(), pool, labels, torch.arange(8))
    loss = FeatureDistillation().loss(batch, student, teacher, {"teacher_ms": 1.0})
    loss.backward()  # type: ignore[no-untyped-call]
    assert len(student.calls) == len(teacher.calls) == 1
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_step_in_bfloat16_is_finite() -> None:
    method = MaskedCounterfactual().bind(VIT)
    (student, teacher), (pool, labels) = pair_of("vit"), global_batch()
    batch = micro_batch(method, pool, labels, torch.arange(8))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(batch, student, teacher, {"teacher_ms": 1.0})
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_the_papers_thresholds_and_probabilities_are_the_defaults() -> None:
    chosen = {tuple(p.values()): MaskedCounterfactual(**p).bind(VIT) for p in PAIRS}
    cuts = [
        [chosen[mask, fill].threshold for fill in ("none", "single", "multi")]
        for mask in ("object", "context")
    ]
    assert cuts == [[0.3, 0.3, 0.6], [0.6, 0.5, 0.3]]
    assert [chosen["random", fill].probability for fill in ("none", "single", "multi")] == [
        0.75,
        0.5,
        0.5,
    ]
    default = MaskedCounterfactual().bind(VIT)
    assert (default.mask, default.fill, default.threshold, default.weight, default.weight_unit) == (
        "object",
        "single",
        0.3,
        30,
        "raw",
    )
    assert (default.schedule, default.warmup, default.augment, default.select) == (
        "one-cycle",
        0.02,
        "none",
        "best",
    )


@pytest.mark.parametrize("method", ON_VIT, ids=lambda method: method.name)
def test_resolving_twice_changes_nothing(method: FineTuner) -> None:
    once = method.bind(VIT)
    assert once.bind(VIT) == once
    assert MaskedCounterfactual(mask_share=0.3).bind(VIT).threshold is None
    by_share = MaskedCounterfactual(mask="random", mask_share=0.3).bind(VIT)
    assert by_share.probability == 0.3
    assert by_share.bind(VIT) == by_share


def test_heads_by_traits() -> None:
    for method, heads in (
        (FullFinetune(), ("zero-shot", "native", "random")),
        (FeatureDistillation(), ("zero-shot", "native", "probe")),
        (MaskedCounterfactual(), ("zero-shot", "native", "probe")),
        (LPFT(), ("probe", "probe", "probe")),
    ):
        assert tuple(method.bind(traits).head_init for traits in (VIT, CONV, BARE)) == heads
    assert FullFinetune(head_init="random").bind(VIT).head_init == "random"
    assert LPFT().lr == 1e-5


@pytest.mark.parametrize("mask", ["object", "context", "random"])
def test_leaving_patches_out_is_refused_on_a_convolutional_backbone(mask: Any) -> None:
    with pytest.raises(UsageError, match="no tokens to leave out"):
        MaskedCounterfactual(mask=mask, fill="none").bind(CONV)


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "random", "threshold": 0.3},
        {"mask": "random", "mask_share": 0.3, "probability": 0.4},
        {"probability": 0.5},
        {"threshold": 0.3, "mask_share": 0.3},
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        MaskedCounterfactual(**fields).bind(VIT)


def test_a_search_draws_the_weight_in_teacher_units() -> None:
    space = MaskedCounterfactual.search_space()
    assert space["weight_unit"].sample(0.9) == "teacher_ms"
    assert (space["weight"].sample(0.0), space["weight"].log) == (0.5, True)


def test_trained_batch_statistics_are_refused_where_they_would_be_wrong() -> None:
    traits = Traits(text=False, native=False, layout="conv")
    with pytest.raises(UsageError, match="interpolated"):
        WiSEFT(of=FullFinetune(norm="train")).bind(traits)
    with pytest.raises(UsageError, match="frozen"):
        MaskedCounterfactual(norm="train").bind(traits)
