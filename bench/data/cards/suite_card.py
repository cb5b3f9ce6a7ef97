"""A suite's card: the TOML file that states its classes, splits, sources, metric and training
defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import UsageError
from ...plain import NAME
from .data_set import Duplicates, check_duplicates
from .inheritance import find_list, read_table, suite_file
from .labels import Protocol, list_lines, read_class_list

ID_SPLITS = ("train", "id-val", "id-test")

Metric = Literal["accuracy", "macro_f1", "worst_group"]

#: Names of suites and shifts become folders and files of the run store.


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(_Card):
    """Image files in class folders, below a root that is looked up in the data roots."""

    kind: Literal["folder"] = "folder"
    root: str = Field(
        description=(
            "folder of the data set below a data root, such as `pacs`; an absolute or ./relative"
            " path too"
        )
    )
    folders: tuple[str, ...] | None = Field(
        default=None, description="folder of each class in label order; default: the class names"
    )
    groups: tuple[str, ...] | None = Field(
        default=None,
        description=(
            "names of the subfolders that divide every class folder into groups, in the order of"
            " the group numbers"
        ),
    )


class RenderedSource(_Card):
    """Images made by code; nothing to download."""

    kind: Literal["rendered"]
    world: str = Field(
        description="in the entry-point group bench.worlds: a class with `render(split)`"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the class, part of the identity"
    )


class InDistribution(_Card):
    """Where the ID images are and how they are divided.

    One `path` that is split here in three; or three ready splits; or ready `train` and `test`, and
    id-val taken out of train; or `test` alone, of a suite on which nothing is trained. Each is a
    folder below the root, the name of a rendered split or, with `data`, a part of a data set.
    """

    data: str = Field(
        default="",
        description=(
            "data set that the ID images are parts of; empty if the card has a source of its own"
        ),
    )
    path: str | tuple[str, ...] | None = Field(
        default=None,
        description=(
            "what holds all ID images, or several parts of a data set; split by `split_seed`,"
            " stratified by class"
        ),
    )
    count: int | None = Field(default=None, description="true number of images below `path`")
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = 0
    train: str | None = None
    val: str | None = None
    val_count: int | None = Field(
        default=None, gt=0, description="images that id-val takes out of train, stratified by class"
    )
    test: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> InDistribution:
        ready = (self.train, self.val, self.test)
        held_out = (
            self.val_count is not None and None not in (self.train, self.test) and self.val is None
        )
        some = self.path is None and None in ready and not held_out and not self.test_only
        if (self.path is None) == all(part is None for part in ready) or some:
            raise ValueError(
                "give `path` (split by the card), or all of `train`, `test` and one of `val` and"
                " `val_count`, or `test` alone"
            )
        if isinstance(self.path, tuple) and not self.data:
            raise ValueError("several paths are parts of a data set (`data`)")
        if self.val_count is not None and not held_out:
            raise ValueError("val_count goes with `train` and `test`, and without `val`")
        if self.path is not None and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leave nothing to train on")
        return self

    @property
    def test_only(self) -> bool:
        """Whether there are images to test on, and none to train on or to choose by."""
        return self.test is not None and (self.path, self.train, self.val) == (None, None, None)


class Shift(_Card):
    """One OOD test set: a part of a data set, or a folder (or rendered split) of the card's own
    source.
    """

    name: str = Field(pattern=NAME)
    path: str = Field(default="", description="folder below the root, or name of a rendered split")
    data: str = Field(
        default="", description="data set, in place of `path`; a card's file ends in .toml"
    )
    part: str = Field(default="test", description="part of the data set")
    projection: Protocol | None = Field(default=None, description="default: the suite's")
    cropped: bool = Field(
        default=False,
        description=(
            "whether the files are crops already: their short side is brought to that of the"
            " backbone's crop, so that files of 224 pixels stay as they are for a backbone of 224"
        ),
    )
    family: str = Field(
        default="",
        description=(
            "shifts of one kind, such as the severities of a corruption, that boards may show"
            " as one"
        ),
    )
    count: int | None = Field(default=None, description="true number of images")
    in_average: bool = Field(default=True, description="whether the OOD average includes it")
    metric: Metric | None = Field(default=None, description="default: the suite's metric")
    factors: dict[str, str] = Field(
        default_factory=dict,
        description="what is changed and what is kept, such as style = changed",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Shift:
        if bool(self.path) == bool(self.data):
            raise ValueError("a shift has either a `path` or a data set (`data`)")
        return self


class Relative(_Card):
    """A score relative to a reference's: 100 times the mean over families of (sum of errors / sum
    of the reference's errors).
    """

    name: str = Field(description="such as mCE")
    source: str = Field(description="where the reference's errors are published")
    reference: dict[str, float] = Field(
        description="family -> mean error of the reference over its shifts, a share in [0, 1]"
    )


class Known(_Card):
    """Published zero-shot accuracies of a backbone; a run that lands elsewhere has something wrong
    with it.
    """

    backbones: tuple[str, ...] = Field(description="names of the backbone, as on the command line")
    source: str
    accuracy: dict[str, float] = Field(description="split -> accuracy, a share in [0, 1]")
    tolerance: float = Field(default=0.01, gt=0, description="largest difference that is no alarm")


class SuiteCard(_Card):
    """One ID data set and its shifts, sharing one label space."""

    name: str = Field(pattern=NAME)
    title: str
    licence: str
    citation: str = ""
    homepage: str = ""
    get: str = Field(default="", description="how to obtain the data, shown when it is missing")
    classes: tuple[str, ...] = Field(
        min_length=2, description="names in label order, or the name of a list of classes"
    )
    ids: tuple[str, ...] = Field(
        default=(),
        description="identity of every class, by which data sets are matched; default: the names",
    )
    templates: tuple[str, ...] = Field(
        default=("a photo of a {}.",), description="prompts, or the name of a list of prompts"
    )
    metric: Metric = "accuracy"
    projection: Protocol = Field(
        default="masked",
        description=(
            "of shifts with other classes: `masked` compares their classes alone, `full` lets all"
            " compete"
        ),
    )
    source: FolderSource | RenderedSource | None = Field(
        default=None,
        discriminator="kind",
        description=(
            "where the images are; none if the ID data and the shifts are parts of data sets"
        ),
    )
    id: InDistribution
    shifts: tuple[Shift, ...]
    duplicates: Duplicates = Field(
        default_factory=dict,
        description=(
            "equal images that are known of, where the data sets' cards do not say it: split -> how"
            " many repeat another of it, `split in other` -> how many are also in the other; `id`"
            " is what the card divides"
        ),
    )
    strict_counts: bool = Field(
        default=False,
        description=(
            "whether counts that differ from the card are an error, because another card describes"
            " such a copy"
        ),
    )
    backbone: str | None = Field(default=None, description="default backbone of this suite")
    recipe: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "training defaults of this suite for every fine-tuner that has such a field; a table"
            " named after a method holds for that method alone"
        ),
    )
    relative: Relative | None = None
    known: tuple[Known, ...] = ()

    @property
    def identities(self) -> tuple[str, ...]:
        """Identity of every class, in label order."""
        return self.ids or self.classes

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The data sets that the suite refers to, each once."""
        return tuple(
            dict.fromkeys(
                name for name in (self.id.data, *(shift.data for shift in self.shifts)) if name
            )
        )

    @model_validator(mode="after")
    def _places_agree(self) -> SuiteCard:
        inline = [self.id.data == "", *(shift.data == "" for shift in self.shifts)]
        if self.source is None and any(inline):
            raise ValueError(
                "a suite without a `source` takes its ID images and every shift from data sets"
                " (`data`)"
            )
        if self.source is not None and not all(inline):
            raise ValueError(
                "a suite has either a `source` of its own or data sets (`data`), not both"
            )
        if self.ids and len(self.ids) != len(self.classes):
            raise ValueError(f"{len(self.ids)} ids for {len(self.classes)} classes")
        if isinstance(self.source, RenderedSource) and self.id.val_count is not None:
            raise ValueError(
                "the splits of a rendered suite are ready; val_count has nothing to divide"
            )
        return self

    @model_validator(mode="after")
    def _duplicates_are_of_splits(self) -> SuiteCard:
        ready = [
            name
            for name, place in zip(
                ID_SPLITS, (self.id.train, self.id.val, self.id.test), strict=True
            )
            if place
        ]
        divided = self.id.path is not None or self.id.val_count is not None
        names = ["id", *(name for name in ready if name != "train")] if divided else ready
        check_duplicates(self.duplicates, [*names, *(shift.name for shift in self.shifts)])
        return self

    @model_validator(mode="after")
    def _nothing_is_trained_and_tested_on(self) -> SuiteCard:
        own, shifts = self.id, self.shifts
        tested = [
            (own.data, own.test, "id.test"),
            *((s.data, s.path or s.part, f"the shift {s.name}") for s in shifts),
        ]
        paths = own.path if isinstance(own.path, tuple) else (own.path,)
        chosen_on = [
            *((path, "id.path") for path in paths),
            (own.train, "id.train"),
            (own.val, "id.val"),
        ]
        for number, (place, name) in enumerate(chosen_on):
            others = [*tested, *((own.data, *one) for one in chosen_on[number + 1 :])]
            same = [
                other
                for data, where, other in others
                if place and (data, where) == (own.data, place)
            ]
            if same:
                raise ValueError(f"{name} and {same[0]} are the same images")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> SuiteCard:
        names = [*ID_SPLITS, *(shift.name for shift in self.shifts)]
        for kind, values in (("split", names), ("class", list(self.identities))):
            double = sorted({value for value in values if values.count(value) > 1})
            if double:
                raise ValueError(f"{kind} names must be unique, these are not: {', '.join(double)}")
        if isinstance(self.source, FolderSource):
            self._check_folders(self.source)
        if any("{}" not in template for template in self.templates):
            raise ValueError("every prompt template needs a {} for the class name")
        return self

    def _check_folders(self, source: FolderSource) -> None:
        if source.folders is not None and len(source.folders) != len(self.classes):
            raise ValueError(f"{len(source.folders)} folders for {len(self.classes)} classes")
        for kind, names in (("class folder", self.class_folders), ("group", source.groups or ())):
            if len(set(names)) < len(names) or any("/" in name for name in names):
                raise ValueError(f"{kind} names must be unique and plain, without a slash")
        if source.groups is None and "worst_group" in (
            self.metric,
            *(shift.metric for shift in self.shifts),
        ):
            raise ValueError("the metric worst_group needs source.groups")

    @property
    def class_folders(self) -> tuple[str, ...]:
        """Folder of each class, in label order (folder sources)."""
        folders = self.source.folders if isinstance(self.source, FolderSource) else None
        return folders or self.classes


def read_card(path: Path) -> SuiteCard:
    """Read and validate a card; a card that `extends` another is that one with its own fields over
    it.

    Raises:
        UsageError: the file is not TOML, a card or list that it names is unknown, or a field is
            wrong (named in the message).
    """
    table = read_table(path)
    try:
        return SuiteCard.model_validate(_with_lists(table, path))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors()
        )
        raise UsageError(
            f"the suite card is wrong: {problems}", where=str(path), fix="mend these fields"
        ) from error


def _with_lists(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """The card's table with the lists that it names put in."""
    table = dict(table)
    if isinstance(table.get("classes"), str):
        listed = read_class_list(find_list(table["classes"], path.parent))
        table["classes"], table["ids"] = listed.names, listed.ids
    if isinstance(table.get("templates"), str):
        table["templates"] = tuple(list_lines(find_list(table["templates"], path.parent)))
    return table


def find_card(name: str) -> tuple[SuiteCard, Path]:
    """The card of a suite, by name or by the path of a TOML file, and where it lies.

    Raises:
        UsageError: unknown name, or the card is wrong.
    """
    path = suite_file(name)
    return read_card(path), path
