"""Checks of a suite: a valid card, data that agree with it, and splits that do not overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.cards.suite_card import find_card
from ..data.duplicates import UNKNOWN
from ..data.pixels.decoder import Pixels
from ..data.suite import Suite, open_suite
from ..storage.atomic import Progress
from .check import Check, NotApplicable

#: Images to decode of a split that is too large for the pixel cache. `bench data verify --full`
#: decodes all of them.
SAMPLE = 512
#: Largest split whose images are compared pixel by pixel: each is read one by one.
_MOST_COMPARED = 20_000


class SuiteChecks:
    """The checks of one suite.

    Args:
        name: name of a suite, or path of a card.
        pixels: preprocessing with which images are decoded.
        data_root: folder of the datasets.
        progress: called while images are indexed.
    """

    def __init__(
        self,
        name: str,
        *,
        pixels: Pixels,
        data_root: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._name, self._pixels = name, pixels
        self._data_root, self._progress = data_root, progress
        self._suite: Suite | None = None

    def checks(self) -> list[Check]:
        """Return the checks, in the order in which they are run."""
        # The title of a check says what a suite has to satisfy, as a test's name does.
        return [
            Check("the card is valid", self.card),
            Check("the data are found and agree with the card", self.opens),
            Check("no image occurs twice, except as the card states", self.repeated),
            Check("the images of every split can be decoded", self.decodes),
            Check("every class occurs in the ID splits", self.classes),
            Check("train, id-val and id-test share no image", self.disjoint),
        ]

    def suite(self) -> Suite:
        """Return the opened suite."""
        # Opened by the first check that needs it, not in the constructor: a wrong card or missing
        # data are then results of checks, and not an error of the command.
        if self._suite is None:
            card, path = find_card(self._name)
            # A suite without training images still serves zero-shot and external classifiers. That
            # the images are missing is reported by `opens`.
            self._suite = open_suite(
                card,
                card_path=path,
                data_root=self._data_root,
                training=False,
                progress=self._progress,
            )
        return self._suite

    def _with_training_images(self) -> Suite:
        """Return the suite.

        Raises:
            NotApplicable: its training images are missing.
        """
        suite = self.suite()
        if "train" in suite.missing:
            raise NotApplicable(
                "no training images: only `bench run zero-shot` and `bench evaluate` will run"
            )
        return suite

    def card(self) -> str:
        """Check that the card is valid."""
        card, path = find_card(self._name)
        return f"{len(card.classes)} classes, {len(card.shifts)} shifts, {path.name}"

    def opens(self) -> str:
        """Check that the data of at least one shift are found, and report what is missing."""
        suite = self.suite()
        missing = [shift.name for shift in suite.card.shifts if shift.name in suite.missing]
        if missing and len(missing) == len(suite.card.shifts):
            reasons = "; ".join(f"{name}: {suite.missing[name]}" for name in missing)
            raise AssertionError(
                f"no shift has data, so that nothing out of distribution can be measured: {reasons}"
            )
        remarks = [f"{name}: {reason}" for name, reason in suite.missing.items()] + list(
            suite.warnings
        )
        return "; ".join(remarks)

    def repeated(self) -> str:
        """Check for equal bytes, within a split, and between a split and train or id-val."""
        found = self.suite().compare()
        unstated = [str(one) for one in found if not one.is_stated]
        if unstated:
            raise AssertionError(
                f"{'; '.join(unstated)}. If this is intended, state it in the card under"
                " [duplicates]"
            )
        return "; ".join(map(str, found))

    def decodes(self) -> str:
        """Check that images can be decoded: all, or a subset of a split too large for the cache."""
        suite = self.suite()
        counts = []
        for name in (name for name in suite.split_names if name not in suite.missing):
            # Loading decodes the whole split into the cache, unless it is too large.
            split = suite.load(name, self._pixels)
            counts.append(f"{name} {len(split)}")
            if not split.cached:
                # Evenly spaced: listings are sorted, and the first images are all of one class.
                rows = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(int))
                for first in range(0, len(rows), 64):
                    split.take(rows[first : first + 64])
                counts[-1] += (
                    f" of which {len(rows)} were tried: `bench data verify NAME --full` reads all"
                )
        return ", ".join(counts)

    def classes(self) -> None:
        """Check that every class has images in train, id-val and id-test."""
        # A class without images would silently drop out of class means and macro F1.
        suite = self._with_training_images()
        for name in ("train", "id-val", "id-test"):
            present = np.unique(suite.load(name, self._pixels).labels)
            missing = [c for i, c in enumerate(suite.card.classes) if i not in present]
            if missing:
                raise AssertionError(f"{name} has no image of: {', '.join(missing[:5])}")

    def disjoint(self) -> str:
        """Check that no two of the ID splits share an image, by its pixels."""
        # By pixels and not by bytes: images that were saved again in another format are found, too.
        # Equal bytes are left to `repeated`, since a card may state those.
        suite = self._with_training_images()
        seen: dict[bytes, str] = {}
        reported: set[int] = set()
        shared = 0
        for name in ("train", "id-val", "id-test"):
            split = suite.load(name, self._pixels)
            if len(split) > _MOST_COMPARED:
                raise NotApplicable(f"{name} has more than {_MOST_COMPARED} images to compare")
            contents = suite.contents(name).tolist()
            for row, content in enumerate(contents):
                image = split.take(np.array([row])).tobytes()
                shared += seen.setdefault(image, name) != name and content not in reported
            reported |= {content for content in contents if content != UNKNOWN}
        if shared:
            raise AssertionError(f"{shared} images are in two of these splits")
        return f"{len(seen)} different images"
