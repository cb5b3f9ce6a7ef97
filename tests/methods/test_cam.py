"""Class-activation maps agree with computations that share no code with them, and leave no trace
behind.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.methods.cam import attention_rollout, class_activation_map, grad_cam, normalized

from support.towers import classifier, full_rollout, global_batch, score_of


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rollout_of_the_class_token_equals_the_full_matrix_product(seed: int) -> None:
    model, (pool, labels) = classifier(seed=seed), global_batch(seed=seed)
    images = pool.float() / 255
    logits, _, attentions = model.explain(images)
    cam = attention_rollout(score_of(logits, labels), attentions)
    expected = full_rollout(model, images, labels)
    assert cam.shape == (8, 9)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(cam.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["vit", "conv"])
def test_the_clean_forward_still_serves_the_cross_entropy(layout: str) -> None:
    model, (pool, labels) = classifier(layout), global_batch()  # type: ignore[arg-type]
    images = pool.float() / 255
    F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    expected = {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad(set_to_none=True)
    logits, _, maps = model.explain(images)
    class_activation_map(score_of(logits, labels), maps, model.tower.layout)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(not tensor._backward_hooks for tensor in maps)
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == set(
        expected
    )
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layout", ["vit", "conv"])
def test_the_map_of_an_image_does_not_depend_on_its_batch(layout: str) -> None:
    model, (pool, labels) = classifier(layout), global_batch()  # type: ignore[arg-type]
    images = pool.float() / 255

    def cam(rows: slice) -> Tensor:
        logits, _, maps = model.explain(images[rows])
        return class_activation_map(score_of(logits, labels[rows]), maps, model.tower.layout)

    torch.testing.assert_close(cam(slice(2, 5)), cam(slice(None))[2:5], atol=1e-6, rtol=1e-5)


def test_rollout_depends_on_the_scale_of_the_score() -> None:
    model, (pool, labels) = classifier(), global_batch()
    logits, _, attentions = model.explain(pool.float() / 255)
    score = score_of(logits, labels)
    once, tenfold = attention_rollout(score, attentions), attention_rollout(10 * score, attentions)
    assert not torch.allclose(normalized(once), normalized(tenfold), atol=1e-3)


def test_grad_cam_by_hand() -> None:
    """With logit_y = w_y . mean(F) + b, each channel's weight is w_y / P, so the map is ReLU(sum_c
    w_yc F_c) / P.
    """
    model, (pool, labels) = classifier("conv", normalize=False), global_batch()
    logits, _, (last,) = model.explain(pool.float() / 255)
    cam = grad_cam(score_of(logits, labels), last)
    expected = (
        torch.einsum("nc,nchw->nhw", model.head.weight[labels], last).clamp(min=0).flatten(1) / 9
    )
    assert expected.detach().max() > 0
    torch.testing.assert_close(cam, expected.detach(), atol=1e-6, rtol=1e-5)


def test_a_map_outside_the_graph_is_an_error_and_leaves_no_hook() -> None:
    model, (pool, labels) = classifier(), global_batch()
    logits, _, attentions = model.explain(pool.float() / 255)
    stranger = torch.rand_like(attentions[1]).requires_grad_()
    with pytest.raises(RuntimeError, match="the gradient reached the layers"):
        attention_rollout(score_of(logits, labels), [attentions[0], stranger])
    assert not attentions[0]._backward_hooks
    assert not stranger._backward_hooks


def test_maps_are_float32_under_autocast() -> None:
    model, (pool, labels) = classifier(), global_batch()
    images = pool.float() / 255
    with torch.autocast("cpu", torch.bfloat16):
        logits, _, attentions = model.explain(images)
        cam = attention_rollout(score_of(logits.float(), labels), attentions)
    assert cam.dtype == torch.float32
    expected = full_rollout(model, images, labels).float()
    assert float((cam - expected).norm() / expected.norm()) < 0.1


def test_normalisation_divides_by_the_maximum_and_subtracts_nothing() -> None:
    cam = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(normalized(cam), torch.tensor([[0.25, 0.5, 1.0], [0.0, 0.0, 0.0]]))
