"""Sets of images that are drawn together: what an image adds to the estimates of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.results.record import RunRecord

from .intervals import Interval, mean_and_sd, over_images
from .predictions import Outcomes, Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class NotPaired(Exception):
    """Rows cannot be compared image by image; the text says why."""


def per_image(
    runs: Sequence[RunRecord], split: str, predictions: Predictions
) -> tuple[NDArray[np.str_], Floats]:
    """Keys and, per image, the share of the runs (seeds) that get it right: an image's outcomes
    stay together.

    Raises:
        NotPaired: a run kept no predictions on that split, or the runs saw different images.
    """
    found = every_outcome(runs, split, predictions)
    return found[0].keys, np.mean([one.correct for one in found], axis=0)


def every_outcome(
    runs: Sequence[RunRecord], split: str, predictions: Predictions
) -> list[Outcomes]:
    """Predictions of every run on a split.

    Raises:
        NotPaired: a run kept none, or the runs saw different images.
    """
    made: list[Outcomes] = []
    for run in runs:
        found = predictions.outcomes(run, split)
        if found is None:
            why = run.holes.get(split) or "no predictions are kept"
            raise NotPaired(f"{split}: {why} for {run.label} (seed {run.seed})")
        if made and not made[0].same_images(found):
            raise NotPaired(f"{split}: the runs of {run.label} saw different images")
        made.append(found)
    return made


def contributions(
    rows: Sequence[Sequence[RunRecord]], splits: Sequence[str], predictions: Predictions
) -> list[Floats]:
    """Strata of the mean accuracy over `splits`, (images, rows) each; summing all of them gives the
    rows' means.

    An image that occurs in several splits (by its key) is drawn once for all of them; images are
    drawn within the group that occurs in the same splits, so that the sets keep their sizes.

    Raises:
        NotPaired: see `per_image`; or rows saw different images, or a split is not scored by
            accuracy.
    """
    if not splits:
        raise NotPaired("there is no split that all rows have")
    keys: list[NDArray[np.str_]] = []
    shares: list[Floats] = []
    for split in splits:
        if any(
            run.metrics[split].metric != "accuracy"
            for row in rows
            for run in row
            if split in run.metrics
        ):
            raise NotPaired(
                f"{split}: not scored by accuracy, which is what single images add up to"
            )
        found = [per_image(row, split, predictions) for row in rows]
        if any(not np.array_equal(found[0][0], other) for other, _ in found[1:]):
            raise NotPaired(f"{split}: the rows saw different images")
        keys.append(found[0][0])
        shares.append(
            np.stack([share for _, share in found], axis=1) / (len(found[0][0]) * len(splits))
        )
    place, kind = drawn_together(keys)
    total = np.zeros((len(kind), len(rows)))
    np.add.at(total, np.concatenate(place), np.concatenate(shares))
    return [total[kind == number] for number in range(kind.max() + 1)]


def drawn_together(keys: Sequence[NDArray[np.str_]]) -> tuple[list[Ints], Ints]:
    """Images of several sets as one population: (place of every set's images in it, kind of its
    every image).

    Images of one kind are in the same sets. Drawing as many of every kind as there are leaves the
    sets their sizes.

    Args:
        keys: per set, each key once.
    """
    images, place = np.unique(np.concatenate(keys), return_inverse=True)
    member = np.zeros((len(images), len(keys)), dtype=bool)
    member[place, np.repeat(np.arange(len(keys)), [len(k) for k in keys])] = True
    _, kind = np.unique(member, axis=0, return_inverse=True)
    return np.split(place, np.cumsum([len(k) for k in keys])[:-1]), kind.ravel()


@dataclass(frozen=True)
class Part:
    """Accuracy of a row on one class or group: mean and sample SD over seeds, Wilson interval over
    its images.
    """

    number: int
    images: int
    accuracy: float
    sd: float | None
    interval: Interval | None


def parts(
    runs: Sequence[RunRecord], split: str, by: Literal["class", "group"], predictions: Predictions
) -> list[Part]:
    """Accuracy per class (of the labels) or per group, in the order of their numbers; images in no
    group are left out.

    Raises:
        NotPaired: a run kept no predictions, or the runs saw different images.
    """
    found = every_outcome(runs, split, predictions)
    member = found[0].labels if by == "class" else found[0].groups
    made = []
    for number in np.unique(member[member >= 0]):
        here = member == number
        mean, sd = mean_and_sd([float(outcomes.correct[here].mean()) for outcomes in found])
        made.append(
            Part(int(number), int(here.sum()), mean, sd, over_images([(mean, int(here.sum()))]))
        )
    return made
