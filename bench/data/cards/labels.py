"""Match label spaces by class identity: class lists, folder names, and projections of logits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ...errors import UsageError
from ...identity import digest
from ...storage.files import read_text
from .dataset import Naming

Protocol = Literal["masked", "full"]


@dataclass(frozen=True)
class ClassList:
    """Classes in label order.

    Attributes:
        ids: (C,) identities, such as WordNet ids; unique.
        names: (C,) names for prompts; not necessarily unique (ImageNet has two classes named
            sunglasses).
        covers: (C,) identities in a wider label space that each class stands for; by default its
            own identity.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    covers: tuple[tuple[str, ...], ...]

    @classmethod
    def plain(cls, names: Sequence[str]) -> ClassList:
        """Return a list of classes that are identified by their names."""
        return cls(tuple(names), tuple(names), tuple((name,) for name in names))

    def __len__(self) -> int:
        return len(self.ids)

    def labels_of(self, folders: Iterable[str], named_by: Sequence[Naming]) -> dict[str, int]:
        """Return the class number of each folder name that names a class.

        One way of naming applies to all folders: the allowed one that recognises most of them, or
        the first of several that recognise as many. Numbers are read as numbers: folders "10" and
        "00010" are class 10, independent of the sort order. Names may have a number as prefix
        (`001.Ant`). Accents may be separate characters, as macOS writes them.

        Args:
            folders: names of folders, or other labels found in the data.
            named_by: allowed ways of naming.

        Raises:
            UsageError: the numbers start at 1, so that their classes are ambiguous; or two folders
                name the same class.
        """
        folders = list(folders)
        often = Counter(self.names)
        ways: dict[Naming, dict[str, int]] = {
            "id": {_composed(identity): label for label, identity in enumerate(self.ids)},
            # A name of two classes identifies neither of them.
            "name": {
                _composed(name): label for label, name in enumerate(self.names) if often[name] == 1
            },
            "number": {str(label): label for label in range(len(self))},
        }
        # One way for all: choosing per folder would read a folder "5" of a copy named by names as
        # class 5.
        found = {
            way: {
                folder: ways[way][key]
                for folder in folders
                if (key := _key(folder, way, ways[way]))
            }
            for way in named_by
        }
        best = max(found, key=lambda way: len(found[way]))
        if best == "number" and _counts_from_one(folders, len(self)):
            raise UsageError(
                f"the classes are numbered from 1 to {len(self)}, expected numbers from 0 to"
                f" {len(self) - 1}. The order is ambiguous: ImageNet's development kit numbers the"
                " classes in its own order, others alphabetically",
                fix=(
                    "name the folders by the classes' identities or names, or number them from 0 in"
                    " the order of the class list"
                ),
            )
        # Two folders such as "7" and "007" are refused and not merged, since one of them may be
        # meant as another class.
        folder_of: dict[int, str] = {}
        for folder, label in found[best].items():
            if folder_of.setdefault(label, folder) != folder:
                raise UsageError(
                    f"the folders {folder_of[label]} and {folder} are both the class"
                    f" {self.names[label]}",
                    fix="put all images of a class into one folder",
                )
        return found[best]


def _composed(text: str) -> str:
    # macOS returns file names in decomposed form; class lists are usually written composed.
    return unicodedata.normalize("NFC", text)


def _key(folder: str, way: Naming, known: Mapping[str, int]) -> str:
    """Return the known name that a folder's name stands for; "" if there is none."""
    text = _composed(folder)
    if way == "number":
        text = text.lstrip("0") or "0" if text.isascii() and text.isdigit() else ""
    elif text not in known:
        # The whole name comes first: a class may itself begin with a number.
        text = re.sub(r"^[0-9]+[._ -]", "", text)
    return text if text in known else ""


def _counts_from_one(folders: Sequence[str], count: int) -> bool:
    """Whether folders are numbered 1 to `count`, also if up to half of them are missing."""
    # Labels from a file may have any number of digits, and `int` refuses thousands of them.
    numbers = {
        int(folder)
        for folder in folders
        if folder.isascii() and folder.isdigit() and len(folder) < 9
    }
    return count in numbers and 0 not in numbers and 2 * len(numbers) > count


def read_class_list(path: Path) -> ClassList:
    """Read a list of classes from a tab-separated file.

    A line is `identity<TAB>name<TAB>covered identities`; the latter two are optional. Covered
    identities are separated by spaces. Lines that begin with # are comments.

    Raises:
        UsageError: the file cannot be read, is empty, or an identity occurs twice.
    """
    lines = [line.split("\t") for line in list_lines(path)]
    ids = tuple(line[0] for line in lines)
    names = tuple(line[1] if len(line) > 1 and line[1] else line[0] for line in lines)
    covers = tuple(tuple(line[2].split()) if len(line) > 2 else (line[0],) for line in lines)
    double = sorted(identity for identity, count in Counter(ids).items() if count > 1)
    if double or not ids:
        raise UsageError(
            f"these class identities are not unique: {', '.join(double)}"
            if double
            else "the list has no classes",
            where=str(path),
        )
    return ClassList(ids, names, covers)


def list_lines(path: Path) -> list[str]:
    """Return the lines of a list that are neither empty nor comments.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"the list cannot be read: {error}", where=str(path)) from error
    return [line for line in lines if line.strip() and not line.startswith("#")]


@dataclass(frozen=True)
class Projection:
    """A map from logits over a suite's classes to logits over a dataset's classes.

    The logit of projected class k is the maximum over the suite's logits `members[k]`.

    Attributes:
        name: the protocol and its size, such as `identity`, `masked200`, `max125to113`, `full1000`.
        members: (K,) labels of the suite that each projected class stands for, disjoint.
        num_classes: number of projected classes that belong to the dataset. They come first; the
            others (protocol `full`) only compete with them.
    """

    name: str
    members: tuple[tuple[int, ...], ...]
    num_classes: int

    @property
    def identity(self) -> bool:
        """Whether the projection leaves the logits as they are."""
        return self.name == "identity"

    @cached_property
    def fingerprint(self) -> str:
        """Name and hash of the projection, part of the identity of an evaluation."""
        # The name alone is not enough: `masked200` of ImageNet-R and of ImageNet-A compare
        # different classes.
        return f"{self.name}:{digest([list(map(list, self.members)), self.num_classes])[:16]}"

    @cached_property
    def class_of(self) -> dict[int, int]:
        """The projected class of each of the suite's labels that the dataset has."""
        return {
            label: k
            for k, members in enumerate(self.members[: self.num_classes])
            for label in members
        }


def projection(
    space: Sequence[str], classes: ClassList, protocol: Protocol = "masked"
) -> tuple[Projection, list[int]]:
    """Match a dataset's classes with a suite's label space by identity.

    Args:
        space: (C,) identities of the suite's classes.
        classes: classes of the dataset.
        protocol: `masked` compares the dataset's classes only with each other; `full` lets every
            class of the suite compete.

    Returns:
        The projection, and the projected label of every class of the dataset (-1 if the suite
        does not have the class).

    Raises:
        UsageError: two classes of the dataset cover the same class of the suite, or the two label
            spaces have nothing in common.
    """
    number = {identity: label for label, identity in enumerate(space)}
    members: list[tuple[int, ...]] = []
    labels = []
    for covered in classes.covers:
        present = tuple(sorted(number[identity] for identity in covered if identity in number))
        labels.append(len(members) if present else -1)
        members += [present] if present else []
    flat = [label for group in members for label in group]
    if not flat:
        raise UsageError(
            "the dataset and the suite have no class in common",
            fix="compare the identities in their class lists",
        )
    if len(set(flat)) < len(flat):
        raise UsageError(
            "two classes of the dataset stand for the same class of the suite",
            fix="fix the third column of the dataset's class list",
        )
    # The dataset's own classes come first, so that `num_classes` separates them from those that
    # only compete.
    count = len(members)
    if members == [(label,) for label in range(len(space))]:
        return Projection("identity", tuple(members), count), labels
    # The same classes in another order: the suite's order is used, so that scores have the same
    # identity as those of a dataset in that order.
    if sorted(members) == [(label,) for label in range(len(space))]:
        order = [members[label][0] if label >= 0 else -1 for label in labels]
        return Projection("identity", tuple((label,) for label in range(len(space))), count), order
    if protocol == "full":
        members += [(label,) for label in range(len(space)) if label not in set(flat)]
        name = f"full{len(space)}"
    else:
        name = f"masked{count}" if len(flat) == count else f"max{len(flat)}to{count}"
    return Projection(name, tuple(members), count), labels
