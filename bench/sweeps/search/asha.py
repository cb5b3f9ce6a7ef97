"""Asynchronous successive halving (Li et al., 2020): trials are paused at rungs of their schedule,
and the best of a rung go on.

Every trial has its full schedule; a rung is a moment in it, so that a trial that goes on continues
its own training, and one that goes to the end is the fit that it would have been without. Off
unless asked for: a third of a schedule favours what learns fast early, and which trials go on
depends on the order in which results arrive.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from fractions import Fraction

#: Of the trials at a rung, one in so many goes on (the paper's eta); and each rung is so many times
#: as far as the one before it.
ETA = 3


def rungs(epochs: int) -> tuple[Fraction, ...]:
    """The shares of a schedule after which a trial is paused: a ninth and a third, where these are
    different epochs.

    Empty for one epoch, of which nothing can be cut.
    """
    shares = {stop_at(share, epochs): share for share in (Fraction(1, ETA), Fraction(1, ETA**2))}
    return tuple(share for epoch, share in sorted(shares.items()) if epoch < epochs)


def stop_at(share: Fraction, epochs: int) -> int:
    """The epoch after which a trial of so many epochs is paused: rounded up."""
    return math.ceil(share * epochs)


def promoted(scores: Mapping[str, tuple[float, float]], *, closed: bool) -> Collection[str]:
    """Who may go on from a rung.

    Args:
        scores: id-val score and NLL of each fit that has come to the rung.
        closed: no other one will, so that the best of even a small rung goes on, and a search ends
            with at least one trial that was trained to its end.
    """
    quota = max(len(scores) // ETA, int(closed))
    return sorted(scores, key=lambda fit_id: (-scores[fit_id][0], scores[fit_id][1], fit_id))[
        :quota
    ]


def epochs_expected(trials: int, epochs: int) -> float:
    """Epochs that a search of so many trials trains if every rung lets just its quota go on."""
    total, going, before = 0.0, trials, 0
    for end in [*(stop_at(share, epochs) for share in rungs(epochs)), epochs]:
        total += going * (end - before)
        going, before = max(1, going // ETA), end
    return total
