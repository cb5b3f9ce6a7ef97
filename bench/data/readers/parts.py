"""The images of a data set's part, in whichever of its layouts they lie, and which class each of
them has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...errors import UsageError
from ...storage.atomic import Progress
from ..cards.data_set import Arrays, Corrupted, Flat, Folders, ParquetFiles, Table, Tars
from ..corruptions.corrupted import read_corrupted
from .arrays import read_arrays
from .class_folders import read_class_folders, read_flat
from .here import DataSet, NotHere, Opened, present_layout
from .packed import read_parquet, read_tars
from .same_file import refuse_repeated
from .tables import read_table

#: The reader of each layout: called with the data set, the part, the layout, and the labels, cache
#: and progress of `open_part`.
_READERS: Mapping[type, Callable[..., Opened]] = {
    Folders: read_class_folders,
    Flat: read_flat,
    Table: read_table,
    Tars: read_tars,
    ParquetFiles: read_parquet,
    Arrays: read_arrays,
}


def open_part(
    data_set: DataSet,
    part: str,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Opened:
    """Index a part of a data set.

    Args:
        labels: for every class of the data set the label that its images get, -1 for classes that
            are not wanted.

    Raises:
        NotHere: the data set, or every layout of this part, is missing on disk.
        UsageError: the card has no such part.
        BenchError: a file is not readable, the images belong to none of the classes, or a file is
            more than one image.
    """
    card = data_set.card
    if part not in card.parts:
        raise UsageError(
            f"the data set {card.name} has no part {part!r}",
            where="the suite's card",
            fix=f"one of {', '.join(card.parts)}",
        )
    stated = card.parts[part]
    if isinstance(stated.layouts[0], Corrupted):
        return read_corrupted(
            data_set, stated.layouts[0], labels, open_part, cache=cache, progress=progress
        )
    if data_set.folder is None:
        raise NotHere(f"{card.title}: {data_set.missing}")
    layout = present_layout(stated, data_set.folder, data_set.classes)
    if layout is None:
        tried = ", ".join(str(data_set.folder / layout.path) for layout in stated.layouts)
        raise NotHere(f"{card.title}: nothing of `{part}` at {tried}")
    opened = _READERS[type(layout)](
        data_set, stated, layout, labels, cache=cache, progress=progress
    )
    ids = data_set.classes.ids
    refuse_repeated(
        opened.collection,
        lambda label: "/".join(one for one, to in zip(ids, labels, strict=True) if to == label),
    )
    return opened
