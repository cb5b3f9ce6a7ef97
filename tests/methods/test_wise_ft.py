"""WiSE-FT interpolates every tensor, keeps its ends exact, and knows what it is nested around."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from bench.classifier import interpolate
from bench.method import Traits
from bench.methods.full_finetune import FullFinetune
from bench.methods.linear_probe import LinearProbe
from bench.methods.masked_counterfactual import MaskedCounterfactual
from bench.methods.wise_ft import WiSEFT

from support.towers import CONV, VIT, TinyTask, classifier

BARE = Traits(text=False, native=False, layout="conv")


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
@pytest.mark.parametrize("traits", [VIT, CONV], ids=["vit", "conv"])
def test_every_tensor_is_interpolated_and_the_ends_are_exact(alpha: float, traits: Traits) -> None:
    start, end = classifier(traits.layout, seed=0), classifier(traits.layout, seed=1)
    task = TinyTask(traits=traits, fitted=end)
    mixed = WiSEFT(alpha=alpha).bind(traits).fit(cast(Any, task)).named_weights()
    first, last = start.named_weights(), end.named_weights()
    assert set(mixed) == set(first)
    for name, tensor in mixed.items():
        if alpha in (0, 1):
            assert torch.equal(tensor, (last if alpha else first)[name])
        elif tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, first[name] + 0.3 * (last[name] - first[name]), atol=1e-6, rtol=1e-5
            )
    assert task.started == ["zero-shot" if traits is VIT else "native"]


def test_alpha_on_id_val_is_the_best_of_eleven_and_recorded_as_such() -> None:
    start, end = classifier(seed=0), classifier(seed=1)
    task = TinyTask(fitted=end)
    for step in range(11):
        bias = round(float(interpolate(start, end, step / 10).head.bias.detach()[0]), 6)
        task.scores[bias] = (0.9 if step in (6, 7) else 0.5, 0.2 if step == 7 else 0.3)
    mixed = WiSEFT(alpha="id-val").bind(VIT).fit(cast(Any, task))
    assert task.chosen == {"alpha": (0.7, 11)}
    torch.testing.assert_close(mixed.head.weight, interpolate(start, end, 0.7).head.weight)


def test_a_random_head_is_no_base_unless_it_is_named() -> None:
    assert cast(FullFinetune, WiSEFT().bind(BARE).of).head_init == "probe"
    assert cast(FullFinetune, WiSEFT().bind(CONV).of).head_init == "native"
    assert (
        cast(FullFinetune, WiSEFT(of=FullFinetune(head_init="random")).bind(BARE).of).head_init
        == "random"
    )
    assert WiSEFT().bind(BARE).bind(BARE) == WiSEFT().bind(BARE)


def test_the_nested_method_is_resolved_and_part_of_the_identity() -> None:
    method = WiSEFT(of=MaskedCounterfactual(mask="context")).bind(VIT)
    nested = method.identity()["parameters"]["of"]
    assert (nested["name"], nested["version"]) == (
        "masked-counterfactual",
        MaskedCounterfactual.version,
    )
    assert (nested["parameters"]["threshold"], nested["parameters"]["head_init"]) == (
        0.5,
        "zero-shot",
    )
    assert (
        method.identity()
        != WiSEFT(of=MaskedCounterfactual(mask="context", lr=1e-4)).bind(VIT).identity()
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "id", "best"])
def test_a_wrong_alpha_is_refused(alpha: Any) -> None:
    with pytest.raises(ValidationError):
        WiSEFT(alpha=alpha)


def test_alpha_may_come_as_text() -> None:
    assert WiSEFT.model_validate({"alpha": "0.3"}).alpha == 0.3


def test_what_is_not_fine_tuned_from_a_start_is_refused() -> None:
    with pytest.raises(ValidationError, match="linear-probe"):
        WiSEFT(of=LinearProbe())
