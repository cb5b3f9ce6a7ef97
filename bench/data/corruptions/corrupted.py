"""Parts of data sets that are another's images under a generated corruption: nothing of their own
lies on disk.
"""

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
from ..cards.data_set import Corrupted
from ..collection import Collection, Originals, fingerprint
from ..pixels.cache import prepared
from ..pixels.decoder import Pixels
from ..readers.here import DataSet, NotHere, Opened, open_data_set
from ..split import MappedPixels
from .generate import FROST_PHOTOGRAPHS, VERSION, Bytes, corrupted

#: `parts.open_part`, which calls this module.
Opener = Callable[..., Opened]
#: Corruptions act on what the official files were made from: torchvision's resize to 256 pixels and
#: centre crop of 224.
BEFORE = Pixels(size=224, resize=256, interpolation="bilinear")


@dataclass(frozen=True, eq=False)
class CorruptedOriginals(Originals):
    """Images of 224 x 224 pixels, corrupted when they are opened; their content keys the random
    streams.

    Attributes:
        clean: the images that are corrupted.
        photographs: of frost, which the corruption of that name needs.
        crops: the clean images at the pixels `BEFORE`, by row, where they are kept decoded.
    """

    clean: Collection
    layout: Corrupted
    photographs: tuple[Bytes, ...] = field(default=(), repr=False)
    crops: MappedPixels | None = None

    def open(self, row: int) -> Image.Image:
        """Raises what opening the clean image raises, which PIL decodes: it is part of what the
        corruptions are defined on.
        """
        if self.crops is not None:
            image: NDArray[np.uint8] = self.crops.take(np.array([row]))[0]
        else:
            image = prepared(self.clean.originals.open(row), BEFORE)
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
        """Of the clean image."""
        return self.clean.originals.place(row)


def read_corrupted(
    data_set: DataSet,
    layout: Corrupted,
    labels: Sequence[int],
    open_part: Opener,
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """See `parts.open_part`: the part of the clean data set, its images corrupted."""
    treatment = (
        f"{layout.corruption} {layout.severity} seed {layout.seed} version {VERSION} on"
        f" {BEFORE.name}"
    )
    photographs: tuple[Bytes, ...] = ()
    if layout.corruption == "frost":
        photographs, shown = data_set.once(
            ("photographs", layout.photographs),
            lambda: _photographs(data_set, layout, open_part, cache),
        )
        treatment += f" photographs {shown}"
    # All corruptions of a part are of the same images: indexed once, however many there are.
    opened = data_set.once(
        (layout.path, *labels), lambda: _clean(data_set, layout, labels, open_part, cache, progress)
    )
    clean = opened.collection
    collection = dataclasses.replace(
        clean,
        what=f"{data_set.card.name} {layout.corruption}-{layout.severity}",
        originals=CorruptedOriginals(clean, layout, photographs),
        treatment=f"{clean.treatment} {treatment}".strip(),
    )
    return Opened(collection, opened.remarks, opened.problems)


def _clean(
    data_set: DataSet,
    layout: Corrupted,
    labels: Sequence[int],
    open_part: Opener,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    name, _, part = layout.path.rpartition("/")
    clean_set = open_data_set(name, data_set.roots, beside=data_set.beside)
    if clean_set.classes.ids != data_set.classes.ids:
        raise UsageError(
            f"{data_set.card.name} has other classes than {name}, whose images it corrupts",
            fix="mend its card",
        )
    return open_part(clean_set, part, labels, cache=cache, progress=progress)


def _photographs(
    data_set: DataSet, layout: Corrupted, open_part: Opener, cache: Path
) -> tuple[tuple[Bytes, ...], str]:
    """The photographs of frost in the order of their names, and what identifies them.

    Raises:
        NotHere: they are not on this machine, or not all of them.
    """
    name, _, part = layout.photographs.rpartition("/")
    frost = open_data_set(name, data_set.roots, beside=data_set.beside)
    try:
        collection = open_part(frost, part, [0], cache=cache).collection
    except NotHere as why:
        raise NotHere(
            f"{layout.corruption} needs photographs that are not here: {why}; `bench data fetch"
            f" {name}`"
        ) from why
    if len(collection) != FROST_PHOTOGRAPHS:
        raise NotHere(
            f"{frost.card.title}: {len(collection)} images in {frost.folder}, not"
            f" {FROST_PHOTOGRAPHS}"
        )
    order = np.argsort(collection.keys)
    return tuple(np.asarray(collection.originals.open(int(row))) for row in order), fingerprint(
        collection, order
    )
