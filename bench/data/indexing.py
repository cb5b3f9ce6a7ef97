"""Index the images of a suite on this machine, and check them against its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..errors import BenchError, MissingPrerequisite, UsageError
from ..storage.atomic import Progress
from .cards.dataset import DatasetCard
from .cards.labels import Projection, Protocol, projection
from .cards.locations import DataRoot, cache_dir
from .cards.suite_card import ID_SPLITS, FolderSource, SuiteCard
from .collection import Collection, folder_collection, merged
from .duplicates import EqualImages, Repetition
from .readers.folder import COLUMNS, class_images, count_ignored, has_images, index_folder
from .readers.located import Dataset, NotHere, open_dataset
from .readers.parts import open_part
from .readers.same_file import refuse_repeated, refuse_shared

#: Name of the collection of ID images that are divided into splits by the card's seed. The space
#: keeps it apart from every name of a split or shift.
WHOLE = "ID data"


@dataclass
class Index:
    """The collections of a suite on this machine, and what was noticed about them.

    Attributes:
        card: the suite's card.
        places: collection -> folder below the root, parts of a dataset, or rendered split. The
            collections are the ID data (`WHOLE`, if the card divides them), ready-made ID splits,
            and the shifts.
        collections: those that are on this machine. Rendered suites start with none, since their
            images are made when needed.
        projections: shift -> how its label space maps to the suite's, where they differ.
        missing: split -> why it is missing.
        warnings: sentences for the user.
        problems: every file that is not a plain image under its right name, with the columns
            `folder.COLUMNS`.
        get: collection -> how to obtain it.
        counts: collection -> number of images that the card states, or None.
        training: whether the suite will be trained on; if not, train and id-val may be missing.
        id_names: names of the datasets that the ID images come from, prepared copies included.
        miscounted: collection -> how many images are here and how many the card states, where these
            differ.
        parts: collection -> its dataset and the parts of it that it consists of.
        equal: the known equal images.
    """

    card: SuiteCard
    places: dict[str, tuple[str, ...]]
    collections: dict[str, Collection] = field(default_factory=dict)
    projections: dict[str, Projection] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))
    get: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int | None] = field(default_factory=dict)
    training: bool = True
    id_names: frozenset[str] = frozenset()
    miscounted: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[DatasetCard, tuple[str, ...]]] = field(default_factory=dict)
    equal: EqualImages = field(default_factory=lambda: EqualImages(cache_dir("index")))

    def add(self, name: str, collection: Collection) -> None:
        """Add a collection, and warn of repeated and contradictory images in it.

        Raises:
            BenchError: a file is more than one image of the collection.
        """
        self.collections[name] = collection
        refuse_repeated(collection, lambda label: self._called(name, label))
        repeated, contradictory = (
            self.equal.within(collection),
            self.equal.contradictory(collection),
        )
        if repeated:
            # Only `divide` keeps equal contents together, and only where it can see them.
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

    def add_missing(self, name: str, why: str) -> None:
        """Note that a collection is missing.

        Args:
            name: a collection.
            why: reason, for the user.

        Raises:
            MissingPrerequisite: it holds ID images that are needed: to train on, or to test on.
            UsageError: the suite has only test images, and training was requested.
        """
        # A missing shift leaves a column of the result empty. Without ID test images no shift can
        # be compared with anything, so those are always required.
        needed = (name == WHOLE and "id-test" not in self.places) or name == "id-test"
        if not self.training and not needed and (name == WHOLE or name in ID_SPLITS):
            self.missing.update(
                dict.fromkeys(("train", "id-val") if name == WHOLE else (name,), why)
            )
            return
        if self.card.id.test_only and name != "id-test":
            raise UsageError(
                f"nothing can be trained on {self.card.name}, which only has test images",
                fix="use `bench run zero-shot`, or `bench evaluate` weights trained elsewhere",
            )
        if name in ID_SPLITS or name == WHOLE:
            raise MissingPrerequisite(
                f"the ID images of {self.card.title} are missing", where=why, fix=self.get_of(name)
            )
        self.missing[name] = why

    def missing_where_test_only(self) -> None:
        """Note train and id-val as missing if the suite only has test images."""
        for name in ("train", "id-val") if self.card.id.test_only else ():
            self.add_missing(name, "the suite is for testing alone")

    def get_of(self, name: str) -> str:
        """Return how to obtain a collection."""
        return self.get.get(name) or self.card.get

    def check_counts(self, names: Sequence[str], root: Path | None) -> None:
        """Compare the numbers of images with those on the card.

        Args:
            names: collections to check.
            root: folder of the suite, for the message.

        Raises:
            BenchError: they differ, and the card has `strict_counts`.
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
        wrong = [f"{self.collections[name].what} has {self.miscounted[name]}" for name in differ]
        if wrong and self.card.strict_counts:
            raise BenchError(
                f"these are not the images of {self.card.title}: {'; '.join(wrong)}",
                where=str(root or self.card.name),
                fix="complete the copy, or use the card that describes it (`bench suites`)",
            )
        self.warnings += wrong

    def compare_splits(self) -> None:
        """Warn of images that are also in the ID data, or in ready-made train or id-val splits.

        Raises:
            BenchError: two splits share a file.
        """
        # One file in two splits is a mistake in a folder and refused. Equal bytes in two files may
        # be a property of the published data, so they are only reported.
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
        """Return the pairs of collections that should not share an image.

        Returns:
            (base, other): a collection that is trained or selected on, and another one.
        """
        # Each pair once: of two bases, the later one counts as the other.
        chosen_on = [name for name in (WHOLE, "train", "id-val") if name in self.collections]
        return [
            (base, name)
            for number, base in enumerate(chosen_on)
            for name in self.collections
            if name not in chosen_on[: number + 1]
        ]

    def repetitions(self) -> list[Repetition]:
        """Return the equal images within collections and between them, with the stated numbers."""
        found = []
        for name, other in [
            *((name, name) for name in self.collections),
            *((name, base) for base, name in self.seen_in()),
        ]:
            one, two = self.collections[name], self.collections[other]
            count = self.equal.within(one) if name == other else self.equal.among(one, two)
            stated = self._stated(name, other)
            # Stated repetitions are listed even where none was found, so that a card's number can
            # be seen to be out of date. None: not compared yet.
            if count or (stated and count is not None):
                where = _id(name) if name == other else f"{_id(name)} in {_id(other)}"
                found.append(Repetition(where, count, stated, self.equal.pairs(one, two)))
        return found

    def _stated(self, name: str, other: str) -> int:
        """Return how many equal images the suite's card states, or else the dataset's."""
        key = _id(name) if name == other else f"{_id(name)} in {_id(other)}"
        if key in self.card.duplicates or name not in self.parts:
            return self.card.duplicates.get(key, 0)
        (card, mine), (others_card, theirs) = self.parts[name], self.parts[other]
        # A dataset's card knows nothing of other datasets.
        if card.name != others_card.name:
            return 0
        pairs = {f"{one} in {two}" for one in mine for two in theirs} | (
            set(mine) if name == other else set()
        )
        return sum(count for key, count in card.duplicates.items() if key in pairs)

    def _called(self, name: str, label: int) -> str:
        """Return the name of a label of a collection: one or several classes of the suite."""
        members = self.projections[name].members[label] if name in self.projections else (label,)
        return "/".join(self.card.classes[one] for one in members)


def _id(name: str) -> str:
    """Return the name of a collection in cards."""
    return "id" if name == WHOLE else name


def places(card: SuiteCard) -> dict[str, tuple[str, ...]]:
    """Return where every collection of a card is located.

    Returns:
        Collection -> folder below the root, parts of the dataset, or rendered split.
    """
    own = card.id
    ready: dict[str, str | tuple[str, ...] | None]
    ready = dict(zip(ID_SPLITS, (own.train, own.val, own.test), strict=True))
    # A card has either three ready-made splits, or all ID images in one place (`path`), or training
    # images from which `val_count` are held out next to a ready-made test split.
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

    Unlike a dataset, such a card is strict about its class folders (a missing or an additional one
    is an error), and may have groups in their subfolders.

    Args:
        card: the suite's card.
        source: its `[source]` table.
        root: folder that its paths are relative to.
        progress: called with what is done, how far, and out of how many.
        training: whether the suite will be trained on; if not, train and id-val may be missing.

    Raises:
        MissingPrerequisite: the ID images are missing.
        BenchError: folders or counts do not match the card.
    """
    index = Index(card, places(card), training=training)
    index.counts = {shift.name: shift.count for shift in card.shifts} | {WHOLE: card.id.count}
    # A card that only has test images names no place for train and id-val, so the loop below does
    # not notice that they are missing.
    problems = []
    index.missing_where_test_only()
    for name, (part,) in index.places.items():
        if not (root / part).is_dir():
            index.add_missing(name, f"no folder {root / part}")
            continue
        # A folder without images counts as missing, not as a shift with a score over nothing.
        files = index_folder(root, part, cache=cache_dir("index"), progress=progress)
        if not has_images(files):
            index.add_missing(name, f"no image below {root / part}")
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


def index_datasets(
    card: SuiteCard,
    roots: Sequence[DataRoot],
    card_folder: Path | None,
    progress: Progress | None,
    *,
    training: bool = True,
) -> Index:
    """Index the parts of datasets that the card refers to.

    Args:
        card: the suite's card.
        roots: folders to search for datasets.
        card_folder: folder that relative paths of dataset cards start from, if the card is a file.
        progress: called with what is done, how far, and out of how many.
        training: whether the suite will be trained on; if not, train and id-val may be missing.

    Raises:
        MissingPrerequisite: the ID images are missing.
        UsageError: a dataset is unknown, or its classes do not match the suite's.
    """
    index = Index(card, places(card), training=training)
    datasets = {name: open_dataset(name, roots, card_folder=card_folder) for name in card.datasets}
    # A prepared copy is another dataset with the same images: a backbone that was trained on the
    # one has seen the other.
    id_card = datasets[card.id.data].card
    index.id_names = frozenset({id_card.name, id_card.made_of} - {""})
    shifts = {shift.name: shift for shift in card.shifts}
    problems = [index.problems]
    index.missing_where_test_only()
    for name, parts in index.places.items():
        dataset = datasets[shifts[name].data if name in shifts else card.id.data]
        if name in shifts:
            labels = _shift_labels(index, name, shifts[name].projection or card.projection, dataset)
        else:
            labels = _id_labels(card.identities, dataset)
        index.get[name] = dataset.get
        index.parts[name] = dataset.card, parts
        # A collection of several parts is missing as soon as one of them is.
        try:
            opened = [
                open_part(dataset, part, labels, cache=cache_dir("index"), progress=progress)
                for part in parts
            ]
        except NotHere as why:
            index.add_missing(name, str(why))
            continue
        for one in opened:
            index.warnings += one.remarks
            problems.append(one.problems)
        index.add(name, merged([one.collection for one in opened]))
        stated = [dataset.card.parts[part].images for part in parts]
        # Where the suite leaves classes out (label -1), the counts of whole parts do not apply.
        known = all(label >= 0 for label in labels) and None not in stated
        index.counts[name] = sum(count or 0 for count in stated) if known else None
    index.problems = pd.concat(problems, ignore_index=True)
    index.check_counts(list(index.collections), None)
    index.compare_splits()
    return index


def _id_labels(space: Sequence[str], dataset: Dataset) -> list[int]:
    """Return the suite's label of every class of the ID dataset, -1 for a class that is left out.

    Raises:
        UsageError: the ID data lack a class of the suite.
    """
    number = {identity: label for label, identity in enumerate(space)}
    # By identity (such as the WordNet ID), not by name or order: datasets name and sort the same
    # classes differently.
    labels = [number.get(identity, -1) for identity in dataset.classes.ids]
    there = set(dataset.classes.ids)
    lacking = [identity for identity in space if identity not in there]
    if lacking:
        raise UsageError(
            f"the ID dataset {dataset.card.name} has no class {', '.join(lacking[:5])}"
            + (", ..." if lacking[5:] else ""),
            fix="name only classes of the ID data on the suite's card",
        )
    return labels


def _shift_labels(index: Index, name: str, protocol: Protocol, dataset: Dataset) -> list[int]:
    """Return the label of every class of a shift's dataset, and note a projection if needed."""
    space, classes = index.card.identities, dataset.classes
    found, labels = projection(space, classes, protocol)
    if not found.identity:
        index.projections[name] = found
    return labels
