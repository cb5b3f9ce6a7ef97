"""Learning-rate schedules as pure functions of the step.

torch.optim.lr_scheduler keeps a state that a checkpoint would have to hold; these need none.
"""

from __future__ import annotations

import math
from typing import Literal

import torch


def set_rate(
    optimizer: torch.optim.Optimizer,
    schedule: Literal["warmup-cosine", "one-cycle"],
    lr: float,
    warmup: float,
    step: int,
    total: int,
) -> None:
    """Set the learning rate for a step and, for one-cycle, also AdamW's first beta.

    Args:
        optimizer: an AdamW with a single parameter group.
        schedule: shape of the schedule.
        lr: peak learning rate.
        warmup: steps; below 1, a fraction of all steps.
        step: step number, from 0.
        total: number of steps.
    """
    group = optimizer.param_groups[0]
    if schedule == "one-cycle":
        group["lr"], beta = one_cycle(step, total, lr, warmup)
        group["betas"] = (beta, 0.999)
    else:
        # At most total - 1, so that a short training, such as one with --limit, still decays.
        group["lr"] = warmup_cosine(
            step, total, lr, min(round(warmup * total if warmup < 1 else warmup), total - 1)
        )


def warmup_cosine(step: int, total: int, lr: float, warmup: int) -> float:
    """Return the rate of a linear warm-up and half a cosine to zero (Wortsman et al., 2022).

    lr (s+1)/w for s < w, else lr/2 (1 + cos(pi (s-w)/(T-w))), with s the step in 0..T-1, w the
    warm-up steps and T all steps.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def one_cycle(step: int, total: int, lr: float, up: float) -> tuple[float, float]:
    """Return the one-cycle rate (Smith & Topin, 2018) and AdamW's first beta.

    Both are cosine-interpolated: the rate from lr/25 to lr while 0 <= s <= up*T - 1, then to
    lr/25e4 at T-1; beta from 0.95 to 0.85 at the peak, and back. Beta moves since the code of Xiao
    et al. (2023) leaves torch's `cycle_momentum` on, so that its nominal 0.9 is never used.

    Args:
        step: step number, from 0.
        total: number of steps.
        lr: peak learning rate.
        up: length of the rising phase in steps; below 1, a fraction of all steps.
    """
    peak = max((up * total if up < 1 else up) - 1, 0.0)
    low, final = lr / 25, lr / 25e4
    if step <= peak and peak > 0:
        return _cosine(low, lr, step / peak), _cosine(0.95, 0.85, step / peak)
    # A rising phase as long as the training has its peak in the last step.
    share = (step - peak) / max(total - 1 - peak, 1e-12)
    return _cosine(lr, final, min(share, 1.0)), _cosine(0.85, 0.95, min(share, 1.0))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))
