"""Accuracy on the parts of a split, its classes or its groups, with the number of images behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.results.record import RunRecord

from .intervals import Interval, mean_and_sd, over_images
from .predictions import Predictions
from .strata import every_outcome


@dataclass(frozen=True)
class Part:
    """Accuracy of a row on one class or group: mean and sample SD over seeds, Wilson interval over its images."""

    number: int
    images: int
    accuracy: float
    sd: float | None
    interval: Interval | None


def parts(runs: Sequence[RunRecord], split: str, by: Literal["class", "group"], predictions: Predictions) -> list[Part]:
    """Accuracy per class (of the labels) or per group, in the order of their numbers; images in no group are left out.

    Raises:
        NotPaired: a run kept no predictions, or the runs saw different images.
    """
    found = every_outcome(runs, split, predictions)
    member = found[0].labels if by == "class" else found[0].groups
    made = []
    for number in np.unique(member[member >= 0]):
        here = member == number
        mean, sd = mean_and_sd([float(outcomes.correct[here].mean()) for outcomes in found])
        made.append(Part(int(number), int(here.sum()), mean, sd, over_images([(mean, int(here.sum()))])))
    return made
