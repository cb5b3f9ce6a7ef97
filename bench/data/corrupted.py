"""Parts of data sets that are another's images under a generated corruption: nothing on disk, nothing kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError
from .collection import Originals
from .corruption import MISSING, VERSION, corrupted
from .data_set import Corrupted
from .pixel_cache import prepared
from .pixels import Pixels
from .sources import DataSet, NotHere, Opened, open_data_set, open_part
from .stored import Progress

#: Corruptions act on what the official files were made from: torchvision's resize to 256 pixels and centre crop of 224.
BEFORE = Pixels(size=224, resize=256, interpolation="bilinear")


@dataclass(frozen=True, eq=False)
class CorruptedOriginals:
    """Images of 224 x 224 pixels, corrupted when they are opened; `content` keys their random streams."""

    clean: Originals
    content: NDArray[np.str_]
    layout: Corrupted

    def open(self, row: int) -> Image.Image:
        """Raises what opening the clean image raises."""
        image = prepared(self.clean.open(row), BEFORE)
        made = corrupted(image, self.layout.corruption, self.layout.severity, key=str(self.content[row]), seed=self.layout.seed)
        return Image.fromarray(made)

    def place(self, row: int) -> str:
        """Of the clean image."""
        return self.clean.place(row)


def read_corrupted(
    data_set: DataSet, layout: Corrupted, labels: Sequence[int], *, cache: Path, progress: Progress | None
) -> Opened:
    """See `sources.open_part`: the part of the clean data set, its images corrupted."""
    if layout.corruption in MISSING:
        raise NotHere(f"{layout.corruption} cannot be generated: {MISSING[layout.corruption]}")
    name, _, part = layout.path.rpartition("/")
    clean_set = open_data_set(name, data_set.roots)
    if clean_set.classes.ids != data_set.classes.ids:
        raise UsageError(f"{data_set.card.name} has other classes than {name}, whose images it corrupts", fix="mend its card")
    opened = open_part(clean_set, part, labels, cache=cache, progress=progress)
    clean = opened.collection
    treatment = f"{layout.corruption} {layout.severity} seed {layout.seed} version {VERSION} on {BEFORE.name}"
    collection = dataclasses.replace(
        clean,
        what=f"{data_set.card.name} {layout.corruption}-{layout.severity}",
        originals=CorruptedOriginals(clean.originals, clean.content, layout),
        stamps=None,
        treatment=f"{clean.treatment} {treatment}".strip(),
        kept=False,
    )
    return Opened(collection, opened.remarks, opened.problems)
