"""A step on a device that is not the CPU, as far as no such device is needed: torch's `meta`
refuses to mix with the CPU, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.backbones.backbone import pack_tokens
from bench.classifier import Classifier, interpolate
from bench.engine import Engine
from bench.method import Batch, FineTuner, Traits
from bench.methods.feature_distillation import FeatureDistillation
from bench.methods.full_finetune import FullFinetune
from bench.methods.masked_counterfactual import MaskedCounterfactual
from bench.training.devices import Ranks
from bench.training.step import TrainState

from support.towers import CONV, VIT, classifier, global_batch


class Elsewhere(Engine):
    """Computes on `meta` and behaves as on a GPU."""

    @property
    def device_type(self) -> str:
        return "cuda"


ENGINE = Elsewhere(device="meta", micro_batch=3)
CASES: list[tuple[FineTuner, Traits]] = [
    (FullFinetune(), CONV),
    (FeatureDistillation(), VIT),
    (MaskedCounterfactual(), VIT),
    (MaskedCounterfactual(mask="context", fill="multi"), CONV),
    (MaskedCounterfactual(mask="random", fill="multi"), VIT),
    (MaskedCounterfactual(mask_share=0.3, fill="none"), VIT),
]
SAMPLED = 1 + 1 + 2  # sources of fills, and random masks


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was put into page-locked memory."""
    moved: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: moved.append(self) or self)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    return moved


def step(method: FineTuner, traits: Traits) -> tuple[Tensor, Classifier]:
    train_state = TrainState(
        classifier(traits.layout),
        method.bind(traits),
        total=4,
        seed=0,
        constants={},
        engine=ENGINE,
        ranks=Ranks(),
    )
    return train_state.step(*global_batch(8), 0), train_state.student


@pytest.mark.slow
def test_a_step_of_every_method_stays_on_its_device_and_no_copy_to_it_waits(
    pinned: list[Tensor],
) -> None:
    for method, traits in CASES:
        loss, student = step(method, traits)
        assert loss.is_meta, f"{method!r} on {traits.layout}"
        assert all(
            weight.grad is not None and weight.grad.is_meta for weight in student.parameters()
        )
    assert len(pinned) == SAMPLED
    assert all(sample.device.type == "cpu" for sample in pinned)


class Forgets(FullFinetune):
    name = "forgets"

    def loss(self, batch: Batch, *rest: Any) -> Tensor:
        return super().loss(batch, *rest) + torch.arange(len(batch.images)).float().mean(
            dim=0, keepdim=True
        )


def test_which_would_tell_if_one_did_not(pinned: list[Tensor]) -> None:
    with pytest.raises(RuntimeError, match="device"):
        step(Forgets(), VIT)


def test_patches_are_packed_where_they_are() -> None:
    tokens = torch.arange(2 * 5 * 3.0).view(2, 5, 3).requires_grad_()
    packed, _ = pack_tokens(
        tokens, torch.tensor([[True, False, False, True], [False, True, True, False]])
    )
    (gradient,) = torch.autograd.grad(packed.sum(), tokens)
    assert packed.grad_fn is not None
    assert packed.grad_fn.next_functions[0][0].name() == "IndexSelectBackward0", (
        "of whole rows, not of single elements"
    )
    assert gradient.sum(dim=2).tolist() == [[3, 3, 0, 0, 3], [3, 0, 3, 3, 0]]


def test_a_start_on_the_cpu_is_mixed_with_an_end_that_was_measured_on_a_gpu() -> None:
    start, end = classifier(), classifier(seed=1).to("meta")
    assert all(weight.is_meta for weight in interpolate(start, end, 0.5).named_weights().values())


@pytest.mark.parametrize(
    "spoilt",
    [
        Tensor.long,
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn),
        Tensor.to_sparse,
        lambda t: t.to("meta"),
    ],
    ids=["integers", "complex", "8 bits", "sparse", "not there"],
)
def test_what_is_no_plain_floating_point_number_is_no_weight(
    spoilt: Callable[[Tensor], Tensor],
) -> None:
    whole = classifier()
    weights = whole.named_weights()
    name = next(iter(weights))
    with pytest.raises(RuntimeError, match=f"{name} is .* expected dense floating-point numbers"):
        whole.with_weights({**weights, name: spoilt(weights[name])})
    assert torch.equal(
        whole.with_weights({**weights, name: weights[name].double()}).named_weights()[name],
        weights[name],
    )
