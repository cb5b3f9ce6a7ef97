"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

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
    """Set the rate (and, for one-cycle, AdamW's first beta) of the optimiser's only group for a
    step.

    Args:
        warmup: steps, or a share of all steps if below 1.
    """
    group = optimizer.param_groups[0]
    if schedule == "one-cycle":
        group["lr"], beta = one_cycle(step, total, lr, warmup)
        group["betas"] = (beta, 0.999)
    else:
        group["lr"] = warmup_cosine(
            step, total, lr, min(round(warmup * total if warmup < 1 else warmup), total - 1)
        )


def warmup_cosine(step: int, total: int, lr: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero; the rate for step `step` of 0..total-1 (Wortsman
    et al., 2022).

    lr (s+1)/w for s < w, else lr/2 (1 + cos(pi (s-w)/(T-w))).
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def one_cycle(step: int, total: int, lr: float, up: float) -> tuple[float, float]:
    """One-cycle rate and AdamW's first beta, cosine-interpolated in both phases (Smith & Topin,
    2018; as in Xiao et al., 2023).

    From lr/25 to lr while 0 <= s <= up*T - 1, then to lr/25e4 at T-1. Beta falls from 0.95 to 0.85
    at the peak and returns: the reference leaves torch's `cycle_momentum` on, so its nominal 0.9 is
    never used.

    Args:
        up: length of the rising phase: a share of all steps if below 1, steps otherwise.
    """
    peak = max((up * total if up < 1 else up) - 1, 0.0)
    low, final = lr / 25, lr / 25e4
    if step <= peak and peak > 0:
        return _cosine(low, lr, step / peak), _cosine(0.95, 0.85, step / peak)
    share = (step - peak) / max(total - 1 - peak, 1e-12)
    return _cosine(lr, final, min(share, 1.0)), _cosine(0.85, 0.95, min(share, 1.0))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))
