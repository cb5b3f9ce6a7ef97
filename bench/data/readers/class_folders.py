"""Read images from class folders, or from one flat folder that a list of classes labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ...storage.atomic import Progress
from ..cards.dataset import Flat, Folders, Part
from ..collection import folder_collection
from ..pixels.image_bytes import OTHER, SYSTEM
from .folder import COLUMNS, count_ignored, index_folder, remarks_on, remarks_outside
from .ground_truth import find_ground_truth, read_ground_truth
from .index_cache import from_cache
from .listing import list_folder
from .located import Dataset, NotHere, Opened, class_remarks, labelled


def read_class_folders(
    dataset: Dataset,
    part: Part,
    layout: Folders,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Read a part in class folders (see `parts.open_part`).

    Folders that name no class and classes without a folder are reported in the remarks; they are
    not errors, since copies with some classes or with folders of other files are common.

    Raises:
        NotHere: no folder of a requested class has images.
    """
    assert dataset.folder is not None
    if dataset.card.identity == "content":
        index = index_folder(dataset.folder, layout.path, cache=cache, progress=progress)
        return _read(dataset, part, layout, labels, index)
    listing = list_folder(dataset.folder, layout.path, cache=cache, progress=progress)
    # A small listing has no stamp: it is made on every start, and so is what follows from it.
    if not listing.stamp:
        return _read(dataset, part, layout, labels, listing.frame())
    # The frame of a million files is only read from disk if the collection is not cached.
    return from_cache(
        dataset,
        part,
        layout,
        labels,
        listing.stamp,
        lambda: _read(dataset, part, layout, labels, listing.frame()),
        cache,
    )


def _read(
    dataset: Dataset, part: Part, layout: Folders, labels: Sequence[int], index: pd.DataFrame
) -> Opened:
    assert dataset.folder is not None
    card, what = dataset.card, f"{dataset.card.name} {layout.path}".removesuffix(" .")
    images = index[~index["problem"].isin([SYSTEM, OTHER]) & (index["folder"] != "")]
    present = sorted(set(images["folder"]))
    # All folders decide how they are named, also those of classes that are not requested.
    numbers = dataset.classes.labels_of(present, layout.named_by)
    wanted = {folder: labels[number] for folder, number in numbers.items() if labels[number] >= 0}
    if not wanted:
        raise NotHere(
            f"{card.title}: no class folder with images at {dataset.folder / layout.path}"
        )
    chosen = images[images["folder"].isin(list(wanted))].copy()
    chosen["label"] = chosen["folder"].map(wanted).astype("int64")
    chosen["group"] = -1
    # A copy with other folder names is the same dataset, so the identity of a listed image is
    # made of its class and not of its folder.
    chosen["class"] = chosen["folder"].map(
        {folder: dataset.classes.ids[number] for folder, number in numbers.items()}
    )
    outside = index[~index["problem"].isin([SYSTEM, OTHER]) & (index["folder"] == "")]
    remarks = class_remarks(
        what,
        dataset.classes,
        present,
        numbers,
        lacking="no folder with images",
        called="folders",
    )
    remarks += remarks_on(chosen, what) + remarks_outside(outside, what)
    collection = folder_collection(
        what,
        dataset.folder,
        chosen,
        grouped=False,
        listed=card.identity == "listing",
        pre_crop=part.pre_crop,
        ignored=count_ignored(index),
    )
    return Opened(collection, remarks, chosen[chosen["problem"] != ""][list(COLUMNS)])


def read_flat(
    dataset: Dataset,
    part: Part,
    layout: Flat,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Read a part in one folder, labelled by a list (see `parts.open_part`).

    Images in subfolders are not part of it.

    Raises:
        NotHere: there is no list of classes, or no image of a requested class.
        BenchError: the list cannot be read, or does not match the images.
    """
    assert dataset.folder is not None
    listed, what = dataset.card.identity == "listing", f"{dataset.card.name} {layout.path}"
    truth = find_ground_truth(dataset.folder, layout.path, layout.lists)
    if listed:
        index = list_folder(dataset.folder, layout.path, cache=cache, progress=progress).frame()
    else:
        index = index_folder(dataset.folder, layout.path, cache=cache, progress=progress)
    images = index[~index["problem"].isin([SYSTEM, OTHER]) & (index["folder"] == "")].copy()
    # Lists name images without their suffix, which differs between copies (.JPEG, .png).
    stems = images["key"].str.rpartition("/")[2].str.rpartition(".")[0]
    images["token"] = stems.map(read_ground_truth(truth, stems.tolist()))
    chosen, remarks = labelled(dataset, labels, images, layout.named_by, what)
    collection = folder_collection(
        what,
        dataset.folder,
        chosen,
        grouped=False,
        listed=listed,
        pre_crop=part.pre_crop,
        ignored=int((index["problem"] == OTHER).sum()),
    )
    return Opened(collection, remarks, chosen[chosen["problem"] != ""][list(COLUMNS)])
