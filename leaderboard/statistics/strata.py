"""Split images into strata that are resampled apart, with what each image adds to the estimates."""

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
    """Rows cannot be compared image by image; the message says why."""


def per_image(
    runs: Sequence[RunRecord], split: str, predictions: Predictions
) -> tuple[NDArray[np.str_], Floats]:
    """Return the keys of the images and, for each, the share of the runs that get it right.

    The runs are the seeds of a row. Their outcomes on an image stay together, as one number.

    Raises:
        NotPaired: a run has no saved predictions on that split, or the runs were evaluated on
            different images.
    """
    found = every_outcome(runs, split, predictions)
    return found[0].keys, np.mean([one.correct for one in found], axis=0)


def every_outcome(
    runs: Sequence[RunRecord], split: str, predictions: Predictions
) -> list[Outcomes]:
    """Return the outcomes of every run on a split.

    Raises:
        NotPaired: a run has no saved predictions on that split, or the runs were evaluated on
            different images.
    """
    made: list[Outcomes] = []
    for run in runs:
        found = predictions.outcomes(run, split)
        if found is None:
            why = run.holes.get(split) or "no predictions are saved"
            raise NotPaired(f"{split}: {why} for {run.label} (seed {run.seed})")
        # Runs on other images of the split would be averaged as if they were seeds.
        if made and not made[0].same_images(found):
            raise NotPaired(f"{split}: the runs of {run.label} were evaluated on different images")
        made.append(found)
    return made


def contributions(
    rows: Sequence[Sequence[RunRecord]], splits: Sequence[str], predictions: Predictions
) -> list[Floats]:
    """Return what each image adds to the mean accuracy of each row over the splits.

    Args:
        rows: runs of each row.
        splits: the sets, whose accuracies are averaged.
        predictions: where outcomes are read from.

    Returns:
        Strata, (images, rows) each. Summing over all images and strata gives the rows' means.

    Raises:
        NotPaired: see `per_image`; or the rows were evaluated on different images, or a split is
            not scored by accuracy.
    """
    if not splits:
        raise NotPaired("no split was measured in every row")
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
                f"{split}: its metric is not accuracy, and does not add up from single images"
            )
        found = [per_image(row, split, predictions) for row in rows]
        if any(not np.array_equal(found[0][0], other) for other, _ in found[1:]):
            raise NotPaired(f"{split}: the rows were evaluated on different images")
        keys.append(found[0][0])
        # The mean over images and over splits in one step.
        shares.append(
            np.stack([share for _, share in found], axis=1) / (len(found[0][0]) * len(splits))
        )
    # An image of several splits (by its key) is one image to sample, which adds to each of them.
    # Strata are the images that occur in the same splits: sampling within strata keeps the size of
    # every split, by which its accuracy is divided.
    place, kind = sampled_together(keys)
    total = np.zeros((len(kind), len(rows)))
    # An index may occur several times, where `total[...] += ...` would add only once.
    np.add.at(total, np.concatenate(place), np.concatenate(shares))
    return [total[kind == number] for number in range(kind.max() + 1)]


def sampled_together(keys: Sequence[NDArray[np.str_]]) -> tuple[list[Ints], Ints]:
    """Return the images of several sets as one population.

    Args:
        keys: for each set, the keys of its images, each once.

    Returns:
        The index in the population of every set's images, and the kind of every image of the
        population. Images of one kind are in the same sets: sampling as many of every kind as there
        are keeps the sets' sizes.
    """
    images, place = np.unique(np.concatenate(keys), return_inverse=True)
    member = np.zeros((len(images), len(keys)), dtype=bool)
    # Equal rows of the membership matrix are images of one kind.
    member[place, np.repeat(np.arange(len(keys)), [len(k) for k in keys])] = True
    _, kind = np.unique(member, axis=0, return_inverse=True)
    return np.split(place, np.cumsum([len(k) for k in keys])[:-1]), kind.ravel()


@dataclass(frozen=True)
class StratumScore:
    """Accuracy of a row on one class or group.

    Attributes:
        number: index of the class or group.
        images: number of its images.
        accuracy: mean over seeds.
        sd: sample SD over seeds; None for one seed.
        interval: Wilson interval over its images.
    """

    number: int
    images: int
    accuracy: float
    sd: float | None
    interval: Interval | None


def parts(
    runs: Sequence[RunRecord], split: str, by: Literal["class", "group"], predictions: Predictions
) -> list[StratumScore]:
    """Return the accuracy for each class or group, ordered by index.

    Args:
        runs: runs of a row.
        split: name of the split.
        by: `class` takes the labels, `group` the groups. Images without a group are left out.
        predictions: where outcomes are read from.

    Raises:
        NotPaired: a run has no saved predictions on that split, or the runs were evaluated on
            different images.
    """
    found = every_outcome(runs, split, predictions)
    # Every run has the same labels and groups, since `every_outcome` requires the same images.
    member = found[0].labels if by == "class" else found[0].groups
    made = []
    for number in np.unique(member[member >= 0]):
        here = member == number
        mean, sd = mean_and_sd([float(outcomes.correct[here].mean()) for outcomes in found])
        made.append(
            StratumScore(
                int(number), int(here.sum()), mean, sd, over_images([(mean, int(here.sum()))])
            )
        )
    return made
