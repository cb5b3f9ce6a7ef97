"""Both schedules against torch's own and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bench.training.schedules import one_cycle, warmup_cosine


def test_warmup_cosine_by_hand() -> None:
    # T = 100, w = 10: linear to the peak at steps 9 and 10, half way down the cosine at 10 + 45.
    rates = [warmup_cosine(step, 100, 2.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(1.0)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))


def test_warmup_cosine_without_warmup_starts_at_the_peak() -> None:
    assert warmup_cosine(0, 10, 3e-5, 0) == pytest.approx(3e-5)


@pytest.mark.parametrize(("total", "up"), [(100, 0.3), (24_820, 0.02), (50, 0.1), (76, 0.1)])
def test_one_cycle_equals_torch(total: int, up: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-5, total_steps=total, pct_start=up
    )
    for step in range(total):
        if step in {0, 1, 2, total // 10, total // 3, total // 2, total - 2, total - 1}:
            rate, beta = one_cycle(step, total, 3e-5, up)
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            assert beta == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_one_cycle_in_steps_equals_the_share() -> None:
    assert one_cycle(7, 200, 1e-3, 20) == pytest.approx(one_cycle(7, 200, 1e-3, 0.1))
