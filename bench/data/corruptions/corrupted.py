"""Dataset parts that are the images of another part under a generated corruption."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UsageError
from ...storage.atomic import Progress
from ..cards.dataset import Corrupted
from ..collection import Collection, Originals, fingerprint
from ..pixels.cache import prepared
from ..pixels.decoder import Pixels
from ..readers.located import Dataset, NotHere, Opened, open_dataset
from ..split import MappedPixels
from .generate import FROST_PHOTOGRAPHS, VERSION, Bytes, corrupted

#: `parts.open_part`, passed as an argument, since its module imports this one.
Opener = Callable[..., Opened]
#: Preprocessing before the corruption, as for the official files: torchvision's resize to 256
#: pixels and centre crop of 224. The strengths of the corruptions are defined on that size.
BEFORE = Pixels(size=224, resize=256, interpolation="bilinear")


@dataclass(frozen=True, eq=False)
class CorruptedOriginals(Originals):
    """Images of 224 x 224 pixels that are corrupted when they are opened.

    Attributes:
        clean: the images to corrupt.
        layout: corruption, severity and seed.
        photographs: photographs of frost, for the corruption of that name.
        crops: the clean images with the preprocessing `BEFORE`, by row, if they are cached.
    """

    clean: Collection
    layout: Corrupted
    photographs: tuple[Bytes, ...] = field(default=(), repr=False)
    crops: MappedPixels | None = None

    def open(self, row: int) -> Image.Image:
        """Return the corrupted image of a row; raises what opening the clean image raises."""
        # Always decoded by Pillow, whatever the backbone's decoder: the corruptions are defined on
        # its pixels, as the official files were.
        if self.crops is not None:
            image: NDArray[np.uint8] = self.crops.take(np.array([row]))[0]
        else:
            image = prepared(self.clean.originals.open(row), BEFORE)
        # The content keys the random stream, not the row or the path: an image is corrupted in the
        # same way in every subset and on every machine.
        how, key = self.layout, str(self.clean.content[row])
        made = corrupted(
            image,
            how.corruption,
            how.severity,
            key=key,
            seed=how.seed,
            photographs=self.photographs,
        )
        return Image.fromarray(made)

    def place(self, row: int) -> str:
        """Return where the clean image is located."""
        return self.clean.originals.place(row)


def read_corrupted(
    dataset: Dataset,
    layout: Corrupted,
    labels: Sequence[int],
    open_part: Opener,
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Open a part of the clean dataset with its images corrupted; see `parts.open_part`.

    Raises:
        NotHere: the clean images or the photographs of frost are missing.
        UsageError: the classes differ from those of the clean dataset.
    """
    # Part of the fingerprint, so it names everything that changes a pixel.
    treatment = (
        f"{layout.corruption} {layout.severity} seed {layout.seed} version {VERSION} on"
        f" {BEFORE.name}"
    )
    photographs: tuple[Bytes, ...] = ()
    if layout.corruption == "frost":
        photographs, shown = dataset.once(
            ("photographs", layout.photographs),
            lambda: _photographs(dataset, layout, open_part, cache),
        )
        treatment += f" photographs {shown}"
    # All corruptions of a part (75 in ImageNet-C) share one index of the clean images.
    opened = dataset.once(
        (layout.path, *labels), lambda: _clean(dataset, layout, labels, open_part, cache, progress)
    )
    clean = opened.collection
    collection = dataclasses.replace(
        clean,
        what=f"{dataset.card.name} {layout.corruption}-{layout.severity}",
        originals=CorruptedOriginals(clean, layout, photographs),
        treatment=f"{clean.treatment} {treatment}".strip(),
    )
    return Opened(collection, opened.remarks, opened.problems)


def _clean(
    dataset: Dataset,
    layout: Corrupted,
    labels: Sequence[int],
    open_part: Opener,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    name, _, part = layout.path.rpartition("/")
    clean_set = open_dataset(name, dataset.roots, card_folder=dataset.card_folder)
    if clean_set.classes.ids != dataset.classes.ids:
        raise UsageError(
            f"{dataset.card.name} has other classes than {name}, whose images it corrupts",
            fix=f"state the same `classes` on the card of {dataset.card.name}",
        )
    return open_part(clean_set, part, labels, cache=cache, progress=progress)


def _photographs(
    dataset: Dataset, layout: Corrupted, open_part: Opener, cache: Path
) -> tuple[tuple[Bytes, ...], str]:
    """Return the photographs of frost in the order of their names, and their fingerprint.

    Raises:
        NotHere: photographs are missing on this machine.
    """
    name, _, part = layout.photographs.rpartition("/")
    frost = open_dataset(name, dataset.roots, card_folder=dataset.card_folder)
    try:
        collection = open_part(frost, part, [0], cache=cache).collection
    except NotHere as why:
        raise NotHere(
            f"{layout.corruption} needs photographs, which are missing: {why}; download them with"
            f" `bench data fetch {name}`"
        ) from why
    # All of them, although the last is never used: other photographs would be another corruption.
    if len(collection) != FROST_PHOTOGRAPHS:
        raise NotHere(
            f"{frost.card.title}: {len(collection)} images in {frost.folder}, not"
            f" {FROST_PHOTOGRAPHS}"
        )
    # A collection is sorted by content; the corruption chooses a photograph by its number.
    order = np.argsort(collection.keys)
    return tuple(np.asarray(collection.originals.open(int(row))) for row in order), fingerprint(
        collection, order
    )
