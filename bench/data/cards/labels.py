"""Label spaces by name: lists of classes, how folders name them, and what a classifier over one
space says about another.
"""

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
from .data_set import Naming

Protocol = Literal["masked", "full"]


@dataclass(frozen=True)
class ClassList:
    """Classes in label order.

    Attributes:
        ids: (C,) identities, such as WordNet ids; unique.
        names: (C,) what prompts call the classes; not necessarily unique (ImageNet has two kinds of
            sunglasses).
        covers: (C,) identities in a wider space that each class stands for; its own unless the list
            says otherwise.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    covers: tuple[tuple[str, ...], ...]

    @classmethod
    def plain(cls, names: Sequence[str]) -> ClassList:
        """Classes that are identified by their names."""
        return cls(tuple(names), tuple(names), tuple((name,) for name in names))

    def __len__(self) -> int:
        return len(self.ids)

    def labels_of(self, folders: Iterable[str], named_by: Sequence[Naming]) -> dict[str, int]:
        """Class number of each folder name that names a class.

        One way of naming holds for all folders: of those allowed, the one that recognises most of
        them (an earlier one if several do). Numbers are read as numbers: folder "10" is class 10,
        and so is "00010", whatever folders are sorted before it. Names may have a number before
        them (`001.Ant`). Accents may be letters of their own, as macOS writes them.

        Raises:
            UsageError: the numbers are those from 1 on, and which class each is cannot be told; or
                two folders name one class.
        """
        folders = list(folders)
        often = Counter(self.names)
        ways: dict[Naming, dict[str, int]] = {
            "id": {_composed(identity): label for label, identity in enumerate(self.ids)},
            "name": {
                _composed(name): label for label, name in enumerate(self.names) if often[name] == 1
            },
            "number": {str(label): label for label in range(len(self))},
        }
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
                f"the classes are numbered from 1 to {len(self)}, and numbers from 0 to"
                f" {len(self) - 1} were to be expected: ImageNet's development kit numbers them in"
                " an order of its own, others by the alphabet",
                fix=(
                    "name the folders by the classes' identities or names, or number them from 0 in"
                    " the order of the class list"
                ),
            )
        folder_of: dict[int, str] = {}
        for folder, label in found[best].items():
            if folder_of.setdefault(label, folder) != folder:
                raise UsageError(
                    f"{folder_of[label]} and {folder} are both the class {self.names[label]}",
                    fix="put the images of a class together",
                )
        return found[best]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _key(folder: str, way: Naming, known: Mapping[str, int]) -> str:
    """What a folder is called among the known names; "" if nothing there."""
    text = _composed(folder)
    if way == "number":
        text = text.lstrip("0") or "0" if text.isascii() and text.isdigit() else ""
    elif text not in known:
        text = re.sub(r"^[0-9]+[._ -]", "", text)
    return text if text in known else ""


def _counts_from_one(folders: Sequence[str], count: int) -> bool:
    numbers = {
        int(folder)
        for folder in folders
        if folder.isascii() and folder.isdigit() and len(folder) < 9
    }
    return count in numbers and 0 not in numbers and 2 * len(numbers) > count


def read_class_list(path: Path) -> ClassList:
    """Read a list: a line per class, `identity<TAB>name<TAB>identities that it covers`, the latter
    two optional.

    Lines that begin with # are remarks. Several covered identities are separated by spaces.

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
            f"a list of classes needs unique identities, not {', '.join(double) or 'none at all'}",
            where=str(path),
        )
    return ClassList(ids, names, covers)


def list_lines(path: Path) -> list[str]:
    """The lines of a list that are neither empty nor remarks.

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
    """How logits over a suite's classes become logits over a data set's: class k is the maximum
    over `members[k]`.

    Attributes:
        name: of the protocol: `identity`, `masked200`, `max125to113`, `full1000`.
        members: (K,) labels of the suite that each projected class stands for; no label is in two
            of them.
        kept: how many of the projected classes, the first ones, are the data set's; the others
            (protocol `full`) are rivals that an image of the data set may be mistaken for.
    """

    name: str
    members: tuple[tuple[int, ...], ...]
    kept: int

    @property
    def identity(self) -> bool:
        """Whether nothing is projected."""
        return self.name == "identity"

    @cached_property
    def fingerprint(self) -> str:
        """Name and hash: of the same name with other members, scores are not comparable."""
        return f"{self.name}:{digest([list(map(list, self.members)), self.kept])[:16]}"

    @cached_property
    def class_of(self) -> dict[int, int]:
        """Projected class of each of the suite's labels that the data set has."""
        return {
            label: k for k, members in enumerate(self.members[: self.kept]) for label in members
        }


def projection(
    space: Sequence[str], classes: ClassList, protocol: Protocol = "masked"
) -> tuple[Projection, list[int]]:
    """From a suite's label space to a data set's classes, by identity.

    `masked` compares the data set's classes with each other only; `full` lets every class of the
    suite compete.

    Args:
        space: (C,) identities of the suite's classes.

    Returns:
        The projection, and for every class of the data set its projected label (-1: the suite does
            not have it).

    Raises:
        UsageError: two classes of the data set cover the same class of the suite, or none covers
            any.
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
            "the data set and the suite have no class in common",
            fix="compare the identities in their class lists",
        )
    if len(set(flat)) < len(flat):
        raise UsageError(
            "two classes of the data set stand for the same class of the suite",
            fix="mend the list of classes",
        )
    kept = len(members)
    if members == [(label,) for label in range(len(space))]:
        return Projection("identity", tuple(members), kept), labels
    if sorted(members) == [
        (label,) for label in range(len(space))
    ]:  # the same classes in another order
        order = [members[label][0] if label >= 0 else -1 for label in labels]
        return Projection("identity", tuple((label,) for label in range(len(space))), kept), order
    if protocol == "full":
        members += [(label,) for label in range(len(space)) if label not in set(flat)]
        name = f"full{len(space)}"
    else:
        name = f"masked{kept}" if len(flat) == kept else f"max{len(flat)}to{kept}"
    return Projection(name, tuple(members), kept), labels
