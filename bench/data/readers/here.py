"""What of a data set is on this machine: its folder, and which of the layouts that its card
states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ...plain import some
from ..cards.data_set import (
    Arrays,
    Corrupted,
    DataSetCard,
    Flat,
    Folders,
    Naming,
    ParquetFiles,
    Part,
    Table,
    Tars,
    find_data_set,
)
from ..cards.inheritance import find_list
from ..cards.labels import ClassList, read_class_list
from ..cards.locations import DataRoot
from ..collection import Collection
from .folder import remarks_on

Result = TypeVar("Result")
#: A layout whose images lie on disk.
Present = Folders | Flat | Table | Arrays | Tars | ParquetFiles


class NotHere(Exception):
    """The images are not on this machine; the message says where they were looked for."""


@dataclass(frozen=True)
class DataSet:
    """A data set's card, its classes, and its folder on this machine (None if it is not here, and
    `missing` says why).

    Attributes:
        asked: what it was asked for by, for commands in messages: its name, or its card's file.
        roots: where further data sets are looked for.
        beside: folder of the card, which files that it names are relative to.
    """

    card: DataSetCard
    classes: ClassList
    folder: Path | None
    missing: str = ""
    roots: Sequence[DataRoot] = ()
    beside: Path | None = None
    asked: str = ""
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """What `make` returns, made once for this object and `key`: what several of its parts
        share.
        """
        if key not in self._kept:
            self._kept[key] = make()
        kept: Result = self._kept[key]
        return kept

    @property
    def get(self) -> str:
        """How to obtain it."""
        if self.card.fetch.archives:
            return f"bench data fetch {self.asked or self.card.name}"
        return (
            self.card.fetch.steps.strip()
            or f"put its images into {self.card.folders[0]}, or name their folder on its card"
        )


@dataclass(frozen=True)
class Opened:
    """A part of a data set, indexed.

    Attributes:
        collection: the images of the classes that were asked for.
        remarks: sentences for the user.
        problems: files that are not plain images, columns of `folder.COLUMNS`.
    """

    collection: Collection
    remarks: list[str]
    problems: pd.DataFrame


def open_data_set(name: str, roots: Sequence[DataRoot], *, beside: Path | None = None) -> DataSet:
    """Read a data set's card and find its folder.

    Args:
        name: of the data set, or a card's file relative to `beside`.

    Raises:
        UsageError: unknown name, or the card is wrong.
    """
    card, path = find_data_set(name, beside)
    classes = ClassList.plain(card.classes) if not isinstance(card.classes, str) else None
    if classes is None:
        assert isinstance(card.classes, str)
        classes = read_class_list(find_list(card.classes, path.parent))
    folder, looked = find_folder(card, roots, beside=path.parent)
    return DataSet(
        card,
        classes,
        folder,
        looked,
        roots,
        path.parent,
        str(path) if name.endswith(".toml") else name,
    )


def find_folder(
    card: DataSetCard, roots: Sequence[DataRoot], *, beside: Path
) -> tuple[Path | None, str]:
    """The folder of a data set, the first that exists, and where it was looked for, for messages.

    Args:
        beside: folder of the card, which a folder such as `./images` is relative to.
    """
    places = []
    for name in card.folders:
        if Path(name).is_absolute() or name in (".", "..") or name.startswith(("./", "../")):
            places.append(beside / name)
    places += [
        root.path / name for root in roots for name in card.folders if beside / name not in places
    ]
    for place in places:
        if place.is_dir():
            return place.resolve(), ""
    if not places:
        return None, "no data root is given: not by --data-root, not by BENCH_DATA"
    return None, "looked at " + "; ".join(map(str, places))


def present_layout(part: Part, folder: Path, classes: ClassList) -> Present | None:
    """The first layout that is on disk; of class folders, the one with most folders that name a
    class.
    """
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
    """How many folders name a class, and how many name none; (0, 0) of a part that does not lie in
    class folders.
    """
    layout = present_layout(part, folder, classes)
    if not isinstance(layout, Folders):
        return 0, 0
    names = [entry.name for entry in (folder / layout.path).iterdir() if entry.is_dir()]
    own = len(classes.labels_of(names, layout.named_by))
    return own, len(names) - own


def _is_here(layout: Present, folder: Path) -> bool:
    if isinstance(layout, Flat):
        from ..pixels.image_bytes import has_image_suffix

        if not (folder / layout.path).is_dir():
            return False
        with os.scandir(folder / layout.path) as entries:
            return any(has_image_suffix(entry.name) and not entry.is_dir() for entry in entries)
    if isinstance(layout, Tars | ParquetFiles):
        from .archive import (
            archives_at,
        )  # pandas is slow to import, and listing data sets does not need it

        return layout.path.startswith(("http://", "https://")) or bool(
            archives_at(folder, layout.path)
        )
    return (folder / layout.path).is_file()


def labelled(
    data_set: DataSet,
    labels: Sequence[int],
    images: pd.DataFrame,
    named_by: Sequence[Naming],
    what: str,
) -> tuple[pd.DataFrame, list[str]]:
    """The images of wanted classes with the columns `label`, `class` (identity), `folder` and
    `group`, and remarks.

    Args:
        labels: as in `parts.open_part`.
        images: an index with the column `token`, the word (missing where there is none).

    Raises:
        NotHere: no word is that of a wanted class.
    """
    classes = data_set.classes
    tokens = sorted(set(images["token"].dropna()))
    numbers = classes.labels_of(tokens, named_by)
    wanted = {token: labels[number] for token, number in numbers.items() if labels[number] >= 0}
    if not wanted:
        raise NotHere(f"{data_set.card.title}: no image of a known class in {what}")
    chosen = images[images["token"].isin(list(wanted))].copy()
    chosen["folder"] = chosen["token"]
    chosen["label"] = chosen["token"].map(wanted).astype("int64")
    chosen["class"] = chosen["token"].map(
        {token: classes.ids[number] for token, number in numbers.items()}
    )
    chosen["group"] = -1
    remarks = class_remarks(what, classes, tokens, numbers, lacking="no image", called="labels")
    unlabelled = list(images["key"][images["token"].isna()])
    if unlabelled:
        remarks.append(
            f"{what}: {len(unlabelled)} images that no class is given for are missing:"
            f" {some(unlabelled, 3)}"
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
    """Which classes are not there, and which words (folders, labels) are none of them.

    Args:
        present: the words that are there.
        numbers: the class that a word stands for.
        lacking: what a missing class has.
        called: what the words are.
    """
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
            f"{what}: {len(extra)} {called} are none of its {len(classes)} classes (left out):"
            f" {some(extra)}"
        )
    return remarks
