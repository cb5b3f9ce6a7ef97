"""Find a dataset's folder on this machine and the layout that its images are stored in."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ...plain import some
from ..cards.dataset import (
    Arrays,
    Corrupted,
    DatasetCard,
    FileTable,
    Flat,
    Folders,
    Naming,
    ParquetFiles,
    Part,
    Tars,
    find_dataset,
)
from ..cards.inheritance import find_list
from ..cards.labels import ClassList, read_class_list
from ..cards.locations import DataRoot
from ..collection import Collection
from ..pixels.image_bytes import has_image_suffix
from .archive import archives_at
from .folder import remarks_on

Value = TypeVar("Value")
#: A layout whose images are on disk.
Present = Folders | Flat | FileTable | Arrays | Tars | ParquetFiles


class NotHere(Exception):
    """Images that are not on this machine; the message lists where they were searched for.

    It is no `BenchError`, since callers decide what it means: a missing shift is left out of a run,
    missing ID images end it.
    """


@dataclass(frozen=True)
class Dataset:
    """A dataset's card, its classes, and its folder on this machine.

    Attributes:
        card: card of the dataset.
        classes: its classes, in the order of its labels.
        folder: where its images are; None if they are not on this machine.
        missing: why there is no folder.
        roots: where to search for further datasets that the card names.
        card_folder: folder of the card, which paths on the card are relative to.
        requested: name or card's file by which it was requested, for commands in messages.
    """

    card: DatasetCard
    classes: ClassList
    folder: Path | None
    missing: str = ""
    roots: Sequence[DataRoot] = ()
    card_folder: Path | None = None
    requested: str = ""
    # Results of `once`. They do not count in comparisons, since they follow from the other fields.
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the result of `make`, which is called once per key and object.

        The 75 corrupted parts of ImageNet-C share the clean images in this way.
        """
        if key not in self._made:
            self._made[key] = make()
        value: Value = self._made[key]
        return value

    @property
    def get(self) -> str:
        """How to obtain the dataset: a command, or what to do by hand."""
        if self.card.fetch.archives:
            return f"bench data fetch {self.requested or self.card.name}"
        return (
            self.card.fetch.steps.strip()
            or f"put its images into {self.card.folders[0]}, or add their folder to its card"
        )


@dataclass(frozen=True)
class Opened:
    """A part of a dataset, indexed.

    Attributes:
        collection: the images of the requested classes.
        remarks: sentences for the user.
        problems: unusual and unreadable files; a table with the columns `folder.COLUMNS`.
    """

    collection: Collection
    remarks: list[str]
    problems: pd.DataFrame


def open_dataset(
    name: str, roots: Sequence[DataRoot], *, card_folder: Path | None = None
) -> Dataset:
    """Read a dataset's card and find its folder.

    Args:
        name: name of the dataset, or a card's file relative to `card_folder`.
        roots: folders to search, in the order of precedence.
        card_folder: folder of the card that names this dataset; default: the working directory.

    Raises:
        UsageError: the name is unknown, or the card is invalid.
    """
    # From here on paths are relative to this card, which may be elsewhere than the one that names
    # it.
    card, path = find_dataset(name, card_folder)
    classes = ClassList.plain(card.classes) if not isinstance(card.classes, str) else None
    if classes is None:
        assert isinstance(card.classes, str)
        classes = read_class_list(find_list(card.classes, path.parent))
    folder, searched = find_folder(card, roots, card_folder=path.parent)
    return Dataset(
        card,
        classes,
        folder,
        searched,
        roots,
        path.parent,
        str(path) if name.endswith(".toml") else name,
    )


def find_folder(
    card: DatasetCard, roots: Sequence[DataRoot], *, card_folder: Path
) -> tuple[Path | None, str]:
    """Return the first existing folder of a dataset, or the reason why there is none.

    Args:
        card: card of the dataset.
        roots: folders to search, in the order of precedence.
        card_folder: folder of the card, which a folder such as `./images` is relative to.

    Returns:
        The folder and "", or None and the places that were searched.
    """
    # Paths on the card first: its author knows where the data is. Then all names below the first
    # root before any below the second, as the order of roots is the user's choice.
    places = []
    for name in card.folders:
        if Path(name).is_absolute() or name in (".", "..") or name.startswith(("./", "../")):
            places.append(card_folder / name)
    places += [
        root.path / name
        for root in roots
        for name in card.folders
        if card_folder / name not in places
    ]
    for place in places:
        if place.is_dir():
            return place.resolve(), ""
    if not places:
        return None, "no data root is set by --data-root or BENCH_DATA"
    return None, "searched " + "; ".join(map(str, places))


def present_layout(part: Part, folder: Path, classes: ClassList) -> Present | None:
    """Return the layout of a part that is on disk, or None.

    It is the first one on disk. Among class folders it is the one with the most folders that name
    a class.
    """
    # With layouts such as `test` and `.`, the folder of the dataset itself always exists, so
    # existence alone would not tell class folders apart. They win over any layout after them.
    best: Folders | None = None
    most = 0
    for layout in part.layouts:
        place = folder / layout.path
        if isinstance(layout, Folders):
            names = (
                [entry.name for entry in place.iterdir() if entry.is_dir()]
                if place.is_dir()
                else []
            )
            found = len(classes.labels_of(names, layout.named_by)) if names else 0
            if found > most:
                best, most = layout, found
        elif best is None and not isinstance(layout, Corrupted) and _is_here(layout, folder):
            return layout
    return best


def class_folders(part: Part, folder: Path, classes: ClassList) -> tuple[int, int]:
    """Return how many folders name a class and how many do not; (0, 0) for other layouts."""
    layout = present_layout(part, folder, classes)
    if not isinstance(layout, Folders):
        return 0, 0
    names = [entry.name for entry in (folder / layout.path).iterdir() if entry.is_dir()]
    own = len(classes.labels_of(names, layout.named_by))
    return own, len(names) - own


def _is_here(layout: Present, folder: Path) -> bool:
    if isinstance(layout, Flat):
        # The folder alone is not enough: class folders may be in a folder of the same name.
        if not (folder / layout.path).is_dir():
            return False
        with os.scandir(folder / layout.path) as entries:
            return any(has_image_suffix(entry.name) and not entry.is_dir() for entry in entries)
    if isinstance(layout, Tars | ParquetFiles):
        # Shards on a server count as present: they are downloaded when they are first read.
        return layout.path.startswith(("http://", "https://")) or bool(
            archives_at(folder, layout.path)
        )
    return (folder / layout.path).is_file()


def labelled(
    dataset: Dataset,
    labels: Sequence[int],
    images: pd.DataFrame,
    named_by: Sequence[Naming],
    what: str,
) -> tuple[pd.DataFrame, list[str]]:
    """Label the images of requested classes by a class token per image.

    Args:
        dataset: dataset of the images.
        labels: label of every class, -1 to leave it out, as in `parts.open_part`.
        images: an index with the column `token`: what the data calls the class, or missing.
        named_by: what the tokens may be.
        what: name of the part, for messages.

    Returns:
        The selected images with the columns `label`, `class` (identity), `folder` and `group`, and
        remarks.

    Raises:
        NotHere: no image is of a requested class.
    """
    classes = dataset.classes
    tokens = sorted(set(images["token"].dropna()))
    numbers = classes.labels_of(tokens, named_by)
    wanted = {token: labels[number] for token, number in numbers.items() if labels[number] >= 0}
    if not wanted:
        raise NotHere(f"{dataset.card.title}: no image of a requested class in {what}")
    chosen = images[images["token"].isin(list(wanted))].copy()
    # These layouts have no class folders; the column is there because an index has it.
    chosen["folder"] = chosen["token"]
    chosen["label"] = chosen["token"].map(wanted).astype("int64")
    chosen["class"] = chosen["token"].map(
        {token: classes.ids[number] for token, number in numbers.items()}
    )
    chosen["group"] = -1
    remarks = class_remarks(what, classes, tokens, numbers, lacking="no image", called="labels")
    # Not marked as harmless, since these images are meant to be part of the set.
    unlabelled = list(images["key"][images["token"].isna()])
    if unlabelled:
        remarks.append(
            f"{what}: {len(unlabelled)} images without a class are missing: {some(unlabelled, 3)}"
        )
    return chosen, remarks + remarks_on(chosen, what)


def class_remarks(
    what: str,
    classes: ClassList,
    present: Sequence[str],
    numbers: Mapping[str, int],
    *,
    lacking: str,
    called: str,
) -> list[str]:
    """Return remarks on classes without images, and on folders or labels that are not a class.

    Args:
        what: name of the part, for messages.
        classes: classes of the dataset.
        present: folders or labels in the data.
        numbers: class number of each of them that names a class.
        lacking: what missing classes have, such as `no image`.
        called: `folders` or `labels`.
    """
    # "(left out)" marks a remark that is not a difference to `bench data verify`.
    remarks = []
    missing = [
        classes.ids[number] for number in sorted(set(range(len(classes))) - set(numbers.values()))
    ]
    if missing:
        remarks.append(
            f"{what}: {len(missing)} of {len(classes)} classes have {lacking}: {some(missing)}"
        )
    extra = [word for word in present if word not in numbers]
    if extra:
        remarks.append(
            f"{what}: {len(extra)} {called} are not among its {len(classes)} classes (left out):"
            f" {some(extra)}"
        )
    return remarks
