"""What every suite must satisfy: a valid card, data that agree with it, classes that occur, splits
that do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data.cards.suite_card import find_card
from ..data.equal import UNKNOWN
from ..data.pixels.decoder import Pixels
from ..data.suite import Suite, open_suite
from ..storage.atomic import Progress
from .outcome import NotApplicable, Outcome, outcome_of

#: Images to try of a split that is decoded anew whenever it is read.
SAMPLE = 512


class SuiteChecks:
    """Checks of one suite.

    Args:
        name: name of a suite or path of a card.
        pixels: at which its images are decoded.
        progress: told how far it is.
    """

    def __init__(
        self,
        name: str,
        *,
        pixels: Pixels,
        data_root: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._name, self._pixels, self._data_root, self._progress = (
            name,
            pixels,
            data_root,
            progress,
        )
        self._suite: Suite | None = None

    def run(self) -> Iterator[Outcome]:
        """Every check in turn."""
        yield outcome_of("the card is valid", self.card)
        yield outcome_of("the data are found and agree with the card", self.opens)
        yield outcome_of("no image is there twice, but for those that a card states", self.repeated)
        yield outcome_of("the images of every split can be decoded", self.decodes)
        yield outcome_of("every class occurs in the ID splits", self.classes)
        yield outcome_of("train, id-val and id-test share no image", self.disjoint)

    def suite(self) -> Suite:
        """The opened suite."""
        if self._suite is None:
            card, path = find_card(self._name)
            # Without training images a suite still serves what trains nothing; that they are
            # missing is told.
            self._suite = open_suite(
                card,
                card_path=path,
                data_root=self._data_root,
                training=False,
                progress=self._progress,
            )
        return self._suite

    def _with_training_images(self) -> Suite:
        """The suite, unless it has none.

        Raises:
            NotApplicable: nothing can be trained on it here.
        """
        suite = self.suite()
        if "train" in suite.holes:
            raise NotApplicable(
                "no training images: `bench run zero-shot` and `bench evaluate` run, nothing else"
                " does"
            )
        return suite

    def card(self) -> str:
        """Parse and validate."""
        card, path = find_card(self._name)
        return f"{len(card.classes)} classes, {len(card.shifts)} shifts, {path.name}"

    def opens(self) -> str:
        """Missing shifts and differing counts are named."""
        suite = self.suite()
        missing = [shift.name for shift in suite.card.shifts if shift.name in suite.holes]
        if missing and len(missing) == len(suite.card.shifts):
            told = "; ".join(f"{name}: {suite.holes[name]}" for name in missing)
            raise AssertionError(
                f"no shift is there, so nothing out of distribution can be measured: {told}"
            )
        remarks = [f"{name}: {reason}" for name, reason in suite.holes.items()] + list(
            suite.warnings
        )
        return "; ".join(remarks)

    def repeated(self) -> str:
        """By their bytes: within a split, and between a split and what is trained or selected
        on.
        """
        found = self.suite().compare()
        unstated = [str(one) for one in found if not one.is_stated]
        if unstated:
            raise AssertionError(
                f"{'; '.join(unstated)}. If it is known and right, say so on the card under"
                " [duplicates]"
            )
        return "; ".join(map(str, found))

    def decodes(self) -> str:
        """Counts per split; of a split that is too large to be kept decoded, a sample is, and the
        detail says so.
        """
        suite = self.suite()
        told = []
        for name in (name for name in suite.split_names if name not in suite.holes):
            split = suite.load(name, self._pixels)
            told.append(f"{name} {len(split)}")
            if not split.kept:
                rows = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(int))
                for first in range(0, len(rows), 64):
                    split.take(rows[first : first + 64])
                told[-1] += (
                    f" of which {len(rows)} were tried: `bench data verify NAME --full` reads all"
                )
        return ", ".join(told)

    def classes(self) -> None:
        """A class without images would silently shrink macro averages."""
        suite = self._with_training_images()
        for name in ("train", "id-val", "id-test"):
            present = np.unique(suite.load(name, self._pixels).labels)
            missing = [c for i, c in enumerate(suite.card.classes) if i not in present]
            if missing:
                raise AssertionError(f"{name} has no image of: {', '.join(missing[:5])}")

    def disjoint(self) -> str:
        """By pixels, not by name or bytes: equal bytes are told by another check, and a card may
        state them.
        """
        suite = self._with_training_images()
        seen: dict[bytes, str] = {}
        told: set[int] = set()
        shared = 0
        for name in ("train", "id-val", "id-test"):
            split = suite.load(name, self._pixels)
            if len(split) > 20_000:
                raise NotApplicable("too many images to compare here")
            contents = suite.contents(name).tolist()
            for row, content in enumerate(contents):
                image = split.take(np.array([row])).tobytes()
                shared += seen.setdefault(image, name) != name and content not in told
            told |= {content for content in contents if content != UNKNOWN}
        if shared:
            raise AssertionError(f"{shared} images are in two of them")
        return f"{len(seen)} different images"
