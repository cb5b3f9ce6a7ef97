"""What of a suite is on this machine: the collection of every split, holes, remarks, and
projections of label spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..errors import BenchError, MissingPrerequisite, UsageError
from ..storage.atomic import Progress
from .cards.data_set import DataSetCard
from .cards.labels import Projection, Protocol, projection
from .cards.locations import DataRoot, cache_dir
from .cards.suite_card import ID_SPLITS, FolderSource, SuiteCard
from .collection import Collection, folder_collection, merged
from .equal import EqualImages, Repetition
from .readers.folder import COLUMNS, class_images, count_ignored, has_images, index_folder
from .readers.here import DataSet, NotHere, open_data_set
from .readers.parts import open_part
from .readers.same_file import refuse_repeated, refuse_shared

#: Name of the collection of ID images that the card's seed divides.
WHOLE = "ID data"


@dataclass
class Index:
    """What was found.

    Attributes:
        places: collection -> folder below the root, parts of a data set, or rendered split. The
            collections are the ID data (`WHOLE`, if the card divides them), ready ID splits, and
            the shifts.
        collections: those that are on this machine (none of a rendered suite, whose images are made
            when needed).
        projections: shift -> how its label space lies in the suite's, where they differ.
        holes: shift -> why it is missing.
        warnings: sentences for the user.
        problems: every file that is not a plain image under its right name: columns of
            `folder.COLUMNS`.
        get: collection -> how to obtain it.
        training: whether somebody will train: otherwise training images and id-val may be missing,
            too.
        id_names: the data sets whose images the ID images are, however they were prepared.
        miscounted: collection -> how many images are here and how many the card states, where these
            differ.
        parts: collection -> the data set and its parts that it is, if it is of one.
        equal: what is known of equal images.
    """

    card: SuiteCard
    places: dict[str, tuple[str, ...]]
    collections: dict[str, Collection] = field(default_factory=dict)
    projections: dict[str, Projection] = field(default_factory=dict)
    holes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))
    get: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int | None] = field(default_factory=dict)
    training: bool = True
    id_names: frozenset[str] = frozenset()
    miscounted: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[DataSetCard, tuple[str, ...]]] = field(default_factory=dict)
    equal: EqualImages = field(default_factory=lambda: EqualImages(cache_dir("index")))

    def add(self, name: str, collection: Collection) -> None:
        """Take a collection in, and say what is odd about its contents.

        Raises:
            BenchError: a file is more than one image of it.
        """
        self.collections[name] = collection
        refuse_repeated(collection, lambda label: self._called(name, label))
        repeated, contradictory = (
            self.equal.within(collection),
            self.equal.contradictory(collection),
        )
        if repeated:
            together = (
                "; they stay on one side of the ID division"
                if name == WHOLE and not collection.listed
                else ""
            )
            self.warnings.append(
                f"{collection.what}: {repeated} images repeat another's content{together}"
            )
        if contradictory:
            self.warnings.append(
                f"{collection.what}: {contradictory} contents appear under more than one class"
            )

    def missing(self, name: str, why: str) -> None:
        """A shift that is missing is a hole; without ID images there is nothing to train or to
        compare with.

        Raises:
            MissingPrerequisite: the ID images are missing, or those to train on where somebody
                wants to.
        """
        needed = (name == WHOLE and "id-test" not in self.places) or name == "id-test"
        if not self.training and not needed and (name == WHOLE or name in ID_SPLITS):
            self.holes.update(dict.fromkeys(("train", "id-val") if name == WHOLE else (name,), why))
            return
        if self.card.id.test_only and name != "id-test":
            what = f"nothing can be trained on {self.card.name}, which has images to test on alone"
            raise UsageError(
                what,
                fix=(
                    "`bench run zero-shot`, or `bench evaluate` of weights that were trained"
                    " elsewhere"
                ),
            )
        if name in ID_SPLITS or name == WHOLE:
            raise MissingPrerequisite(
                f"the ID images of {self.card.title} are missing", where=why, fix=self.get_of(name)
            )
        self.holes[name] = why

    def missing_where_test_only(self) -> None:
        """Say of a suite that has nothing to train on that train and id-val are missing."""
        for name in ("train", "id-val") if self.card.id.test_only else ():
            self.missing(name, "the suite is for testing alone")

    def get_of(self, name: str) -> str:
        """How to obtain a collection."""
        return self.get.get(name) or self.card.get

    def check_counts(self, names: Sequence[str], root: Path | None) -> None:
        """Compare the numbers of images with the card's.

        Raises:
            BenchError: they differ, and the card is strict.
        """
        found = {name: len(self.collections[name]) for name in names}
        differ = {
            name: count
            for name, count in found.items()
            if self.counts.get(name) not in (None, count)
        }
        self.miscounted |= {
            name: f"{count:,} images, the card says {self.counts[name]:,}"
            for name, count in differ.items()
        }
        wrong = [f"{self.collections[name].what} holds {self.miscounted[name]}" for name in differ]
        if wrong and self.card.strict_counts:
            raise BenchError(
                f"these are not the images of {self.card.title}: {'; '.join(wrong)}",
                where=str(root or self.card.name),
                fix="complete the copy, or use the card that describes it (`bench suites`)",
            )
        self.warnings += wrong

    def compare_splits(self) -> None:
        """Warn of images that are also ID images (of ready-made splits: in train or id-val).

        Raises:
            BenchError: two splits share a file.
        """
        refuse_shared(self.collections, (WHOLE, "train", "id-val"))
        for base, name in self.seen_in():
            shared = self.equal.among(self.collections[name], self.collections[base])
            if shared:
                what = self.collections[name].what
                self.warnings.append(
                    f"{what}: {shared} images are also in {self.collections[base].what} (same"
                    " bytes)"
                )

    def seen_in(self) -> list[tuple[str, str]]:
        """Every collection that is trained or selected on, and each of the others that should not
        share an image with it.
        """
        chosen_on = [name for name in (WHOLE, "train", "id-val") if name in self.collections]
        return [
            (base, name)
            for number, base in enumerate(chosen_on)
            for name in self.collections
            if name not in chosen_on[: number + 1]
        ]

    def repetitions(self) -> list[Repetition]:
        """Where images are equal, within a collection or to one that is trained or selected on,
        beside what cards state.
        """
        found = []
        for name, other in [
            *((name, name) for name in self.collections),
            *((name, base) for base, name in self.seen_in()),
        ]:
            one, two = self.collections[name], self.collections[other]
            count = self.equal.within(one) if name == other else self.equal.among(one, two)
            stated = self._stated(name, other)
            if count or (stated and count is not None):
                told = _id(name) if name == other else f"{_id(name)} in {_id(other)}"
                found.append(Repetition(told, count, stated, self.equal.pairs(one, two)))
        return found

    def _stated(self, name: str, other: str) -> int:
        """How many equal images the suite's card states, or else those of the data sets."""
        key = _id(name) if name == other else f"{_id(name)} in {_id(other)}"
        if key in self.card.duplicates or name not in self.parts:
            return self.card.duplicates.get(key, 0)
        (card, mine), (others_card, theirs) = self.parts[name], self.parts[other]
        if card.name != others_card.name:
            return 0
        pairs = {f"{one} in {two}" for one in mine for two in theirs} | (
            set(mine) if name == other else set()
        )
        return sum(count for key, count in card.duplicates.items() if key in pairs)

    def _called(self, name: str, label: int) -> str:
        """The class, or classes, of the suite that a label of a collection stands for."""
        members = self.projections[name].members[label] if name in self.projections else (label,)
        return "/".join(self.card.classes[one] for one in members)


def _id(name: str) -> str:
    """What a card calls a collection."""
    return "id" if name == WHOLE else name


def places(card: SuiteCard) -> dict[str, tuple[str, ...]]:
    """Where the card says that every collection is: folder below the root, parts of the data set,
    or rendered split.
    """
    own = card.id
    ready: dict[str, str | tuple[str, ...] | None]
    ready = dict(zip(ID_SPLITS, (own.train, own.val, own.test), strict=True))
    if own.path is not None:
        ready = {WHOLE: own.path}
    elif own.val_count is not None:
        ready = {WHOLE: own.train, "id-test": own.test}
    stated = ready | {shift.name: shift.path or shift.part for shift in card.shifts}
    return {
        name: (place,) if isinstance(place, str) else place
        for name, place in stated.items()
        if place
    }


def index_root(
    card: SuiteCard,
    source: FolderSource,
    root: Path,
    progress: Progress | None,
    *,
    training: bool = True,
) -> Index:
    """Index the class folders below one root.

    No data set of its own stands for them: a card that names its folders is held to them (a missing
    or another one is an error, where a data set tells of it), and has groups in their subfolders.

    Raises:
        MissingPrerequisite: the ID images are missing.
        BenchError: folders or counts do not match the card.
    """
    index = Index(card, places(card), training=training)
    index.counts = {shift.name: shift.count for shift in card.shifts} | {WHOLE: card.id.count}
    problems = []
    index.missing_where_test_only()
    for name, (part,) in index.places.items():
        if not (root / part).is_dir():
            index.missing(name, f"no folder {root / part}")
            continue
        files = index_folder(root, part, cache=cache_dir("index"), progress=progress)
        if not has_images(files):
            index.missing(name, f"no image below {root / part}")
            continue
        images, remarks = class_images(files, part, card.class_folders, source.groups)
        index.warnings += remarks
        problems.append(files[files["problem"] != ""][list(COLUMNS)])
        index.add(
            name,
            folder_collection(
                part, root, images, grouped=source.groups is not None, ignored=count_ignored(files)
            ),
        )
    index.problems = pd.concat(problems, ignore_index=True)
    index.check_counts(list(index.collections), root)
    index.compare_splits()
    return index


def index_data_sets(
    card: SuiteCard,
    roots: Sequence[DataRoot],
    beside: Path | None,
    progress: Progress | None,
    *,
    training: bool = True,
) -> Index:
    """Index the parts of data sets that the card refers to.

    Raises:
        MissingPrerequisite: the ID images are missing.
        UsageError: a data set is unknown, or its classes do not match the suite's.
    """
    index = Index(card, places(card), training=training)
    data_sets = {name: open_data_set(name, roots, beside=beside) for name in card.data_sets}
    id_card = data_sets[card.id.data].card
    index.id_names = frozenset({id_card.name, id_card.made_of} - {""})
    shifts = {shift.name: shift for shift in card.shifts}
    problems = [index.problems]
    index.missing_where_test_only()
    for name, parts in index.places.items():
        data_set = data_sets[shifts[name].data if name in shifts else card.id.data]
        if name in shifts:
            labels = _shift_labels(
                index, name, shifts[name].projection or card.projection, data_set
            )
        else:
            labels = _id_labels(card.identities, data_set)
        index.get[name] = data_set.get
        index.parts[name] = data_set.card, parts
        try:
            opened = [
                open_part(data_set, part, labels, cache=cache_dir("index"), progress=progress)
                for part in parts
            ]
        except NotHere as why:
            index.missing(name, str(why))
            continue
        for one in opened:
            index.warnings += one.remarks
            problems.append(one.problems)
        index.add(name, merged([one.collection for one in opened]))
        stated = [data_set.card.parts[part].images for part in parts]
        known = all(label >= 0 for label in labels) and None not in stated
        index.counts[name] = sum(count or 0 for count in stated) if known else None
    index.problems = pd.concat(problems, ignore_index=True)
    index.check_counts(list(index.collections), None)
    index.compare_splits()
    return index


def _id_labels(space: Sequence[str], data_set: DataSet) -> list[int]:
    """The suite's label of every class of the ID data set, -1 for classes that the suite leaves
    out.
    """
    number = {identity: label for label, identity in enumerate(space)}
    labels = [number.get(identity, -1) for identity in data_set.classes.ids]
    there = set(data_set.classes.ids)
    lacking = [identity for identity in space if identity not in there]
    if lacking:
        raise UsageError(
            f"the ID data set {data_set.card.name} has no class {', '.join(lacking[:5])}"
            + (", ..." if lacking[5:] else ""),
            fix="the classes of a suite are classes of its ID data",
        )
    return labels


def _shift_labels(index: Index, name: str, protocol: Protocol, data_set: DataSet) -> list[int]:
    space, classes = index.card.identities, data_set.classes
    found, labels = projection(space, classes, protocol)
    if not found.identity:
        index.projections[name] = found
    return labels
