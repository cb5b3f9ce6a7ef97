"""Open a part of a dataset: find its layout on disk, and read its images and their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...errors import UsageError
from ...storage.atomic import Progress
from ..cards.dataset import Arrays, Corrupted, FileTable, Flat, Folders, ParquetFiles, Tars
from ..corruptions.corrupted import read_corrupted
from .arrays import read_arrays
from .class_folders import read_class_folders, read_flat
from .located import Dataset, NotHere, Opened, present_layout
from .packed import read_parquet, read_tars
from .same_file import refuse_repeated
from .tables import read_table

#: Layout -> its reader, which is called with the dataset, the part and the layout, and with
#: `labels`, `cache` and `progress` of `open_part`. `Corrupted` is missing here, as it has no files.
_READERS: Mapping[type, Callable[..., Opened]] = {
    Folders: read_class_folders,
    Flat: read_flat,
    FileTable: read_table,
    Tars: read_tars,
    ParquetFiles: read_parquet,
    Arrays: read_arrays,
}


def open_part(
    dataset: Dataset,
    part: str,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Opened:
    """Index a part of a dataset.

    Args:
        dataset: dataset, from `open_dataset`.
        part: name of the part on its card.
        labels: (C,) label for the images of every class of the dataset; -1 leaves a class out.
        cache: folder of cached indexes.
        progress: called while files are read.

    Raises:
        NotHere: the dataset, or every layout of this part, is missing on disk, or none of its
            images is of a requested class.
        UsageError: the card has no such part.
        BenchError: a file cannot be read, or a file is more than one image.
    """
    card = dataset.card
    if part not in card.parts:
        raise UsageError(
            f"the dataset {card.name} has no part {part!r}",
            where="the suite's card",
            fix=f"use one of {', '.join(card.parts)}",
        )
    stated = card.parts[part]
    # Before the check of the folder: a corrupted set has none. Its reader gets `open_part` as an
    # argument, since importing it there would be circular.
    if isinstance(stated.layouts[0], Corrupted):
        return read_corrupted(
            dataset, stated.layouts[0], labels, open_part, cache=cache, progress=progress
        )
    if dataset.folder is None:
        raise NotHere(f"{card.title}: {dataset.missing}")
    layout = present_layout(stated, dataset.folder, dataset.classes)
    if layout is None:
        tried = ", ".join(str(dataset.folder / layout.path) for layout in stated.layouts)
        raise NotHere(f"{card.title}: nothing of `{part}` is at {tried}")
    opened = _READERS[type(layout)](dataset, stated, layout, labels, cache=cache, progress=progress)
    # For every layout alike, and before training: an image under two labels makes a score wrong.
    ids = dataset.classes.ids
    refuse_repeated(
        opened.collection,
        lambda label: "/".join(one for one, to in zip(ids, labels, strict=True) if to == label),
    )
    return opened
