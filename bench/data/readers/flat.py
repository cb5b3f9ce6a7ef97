"""Parts of data sets that lie in one folder without class folders, and whose classes a list gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...storage.cache import Progress
from ..cards.data_set import Flat, Part
from ..collection import folder_collection
from ..pixels.image_bytes import OTHER, SYSTEM
from .folder import COLUMNS, index_folder
from .ground_truth import find_truth, read_truth
from .here import DataSet, Opened
from .listing import list_folder
from .tokens import labelled


def read_flat(
    data_set: DataSet, part: Part, layout: Flat, labels: Sequence[int], *, cache: Path, progress: Progress | None
) -> Opened:
    """See `parts.open_part`. Images in subfolders are none of it."""
    assert data_set.folder is not None
    listed, what = data_set.card.identity == "listing", f"{data_set.card.name} {layout.path}"
    truth = find_truth(data_set.folder, layout.path, layout.lists)
    if listed:
        index = list_folder(data_set.folder, layout.path, cache=cache, progress=progress).frame()
    else:
        index = index_folder(data_set.folder, layout.path, cache=cache, progress=progress)
    images = index[~index["problem"].isin([SYSTEM, OTHER]) & (index["folder"] == "")].copy()
    stems = images["key"].str.rpartition("/")[2].str.rpartition(".")[0]
    images["token"] = stems.map(read_truth(truth, stems.tolist()))
    chosen, remarks = labelled(data_set, labels, images, layout.named_by, what)
    collection = folder_collection(
        what,
        data_set.folder,
        chosen,
        grouped=False,
        listed=listed,
        pre_crop=part.pre_crop,
        ignored=int((index["problem"] == OTHER).sum()),
    )
    return Opened(collection, remarks, chosen[chosen["problem"] != ""][list(COLUMNS)])
