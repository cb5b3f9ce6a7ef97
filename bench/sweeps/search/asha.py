"""Asynchronous successive halving: pause trials at rungs, and promote the best of each rung.

The algorithm is ASHA by Li et al. (2020), https://arxiv.org/abs/1810.05934.
"""

# A rung is an epoch of the trial's own full schedule and not a shorter schedule, so a promoted
# trial continues its training, and one that is never stopped is, to the bit, the fit that it would
# be without ASHA. It is off by default: the score after a third of a schedule favours methods that
# learn fast early, and which trials are promoted depends on the order in which results arrive.

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from fractions import Fraction

#: One in this many trials at a rung is promoted, and each rung is this many times as far as the one
#: before it (eta in the paper).
ETA = 3


def rungs(epochs: int) -> tuple[Fraction, ...]:
    """Return the shares of a schedule after which a trial is paused: a ninth and a third.

    Args:
        epochs: number of epochs of the schedule.

    Returns:
        Shares in ascending order, fewer for short schedules; none for a single epoch.
    """
    # By epoch, so that two shares that are rounded to the same epoch count once.
    shares = {stop_at(share, epochs): share for share in (Fraction(1, ETA), Fraction(1, ETA**2))}
    return tuple(share for epoch, share in sorted(shares.items()) if epoch < epochs)


def stop_at(share: Fraction, epochs: int) -> int:
    """Return the epoch after which a trial is paused.

    Args:
        share: share of the schedule, in (0, 1].
        epochs: number of epochs of the schedule.
    """
    # Rounded up, so that even a short schedule trains an epoch before it is judged.
    return math.ceil(share * epochs)


def promoted(scores: Mapping[str, tuple[float, float]], *, closed: bool) -> Collection[str]:
    """Return the fits that may continue beyond a rung.

    Args:
        scores: (score, NLL) on id-val at the rung by fit_id.
        closed: whether no further trial can reach the rung.
    """
    # The best of a closed rung is promoted even if the rung is small: a search has to end with at
    # least one trial that was trained to its end, since only such trials can be chosen.
    quota = max(len(scores) // ETA, int(closed))
    # The fit_id breaks ties, so that every process comes to the same choice.
    return sorted(scores, key=lambda fit_id: (-scores[fit_id][0], scores[fit_id][1], fit_id))[
        :quota
    ]


def epochs_expected(trials: int, epochs: int) -> float:
    """Estimate the epochs that a search trains in total if every rung promotes just its quota.

    Args:
        trials: number of trials.
        epochs: number of epochs of one full schedule.
    """
    total, running, start = 0.0, trials, 0
    for end in [*(stop_at(share, epochs) for share in rungs(epochs)), epochs]:
        total += running * (end - start)
        running, start = max(1, running // ETA), end
    return total
