"""A suite's card: the TOML file that states its classes, splits, sources, metric and training defaults."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import UsageError

Metric = Literal["accuracy", "macro_f1", "worst_group"]

#: Names of suites and shifts become folders and files of the run store.
_SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(_Card):
    """Image files in class folders, below a root that is looked up in the data roots."""

    kind: Literal["folder"] = "folder"
    root: str = Field(description="folder of the data set below a data root, such as `pacs`; an absolute or ./relative path too")
    folders: tuple[str, ...] | None = Field(None, description="folder of each class in label order; default: the class names")
    groups: tuple[str, ...] | None = Field(
        None, description="names of the subfolders that divide every class folder into groups, in the order of the group numbers"
    )


class RenderedSource(_Card):
    """Images made by code; nothing to download."""

    kind: Literal["rendered"]
    world: str = Field(description="`module:Class` with `render(split) -> pixels, labels, groups`")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the class, part of the identity")


class InDistribution(_Card):
    """Where the ID images are and how they are divided. Either one path that is split here, or three ready splits."""

    path: str | None = Field(None, description="folder that holds all ID images; split by `split_seed`, stratified by class")
    count: int | None = Field(None, description="true number of images below `path`")
    val_fraction: float = Field(0.2, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0
    train: str | None = None
    val: str | None = None
    test: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> InDistribution:
        ready = (self.train, self.val, self.test)
        if (self.path is None) == all(part is None for part in ready) or (self.path is None and None in ready):
            raise ValueError("give either `path` (split by the card) or all of `train`, `val` and `test`")
        if self.path is not None and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leave nothing to train on")
        return self


class Shift(_Card):
    """One OOD test set."""

    name: str = Field(pattern=_SAFE_NAME)
    path: str = Field(description="folder below the root, or name of a rendered split")
    count: int | None = Field(None, description="true number of images")
    in_average: bool = Field(True, description="whether the OOD average includes it")
    metric: Metric | None = Field(None, description="default: the suite's metric")
    factors: dict[str, str] = Field(default_factory=dict, description="what is changed and what is kept, such as style = changed")


class SuiteCard(_Card):
    """One ID data set and its shifts, sharing one label space."""

    name: str = Field(pattern=_SAFE_NAME)
    title: str
    licence: str
    citation: str = ""
    homepage: str = ""
    get: str = Field("", description="how to obtain the data, shown when it is missing")
    classes: tuple[str, ...] = Field(min_length=2)
    templates: tuple[str, ...] = ("a photo of a {}.",)
    metric: Metric = "accuracy"
    source: FolderSource | RenderedSource = Field(discriminator="kind")
    id: InDistribution
    shifts: tuple[Shift, ...]
    strict_counts: bool = Field(
        False, description="whether counts that differ from the card are an error, because another card describes such a copy"
    )
    backbone: str | None = Field(None, description="default backbone of this suite")
    recipe: dict[str, Any] = Field(
        default_factory=dict,
        description="training defaults of this suite for every fine-tuner that has such a field; a table named after a method "
        "holds for that method alone",
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> SuiteCard:
        names = ["train", "id-val", "id-test", *(shift.name for shift in self.shifts)]
        for kind, values in (("split", names), ("class", list(self.classes))):
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
        if source.groups is None and "worst_group" in (self.metric, *(shift.metric for shift in self.shifts)):
            raise ValueError("the metric worst_group needs source.groups")

    @property
    def class_folders(self) -> tuple[str, ...]:
        """Folder of each class, in label order (folder sources)."""
        folders = self.source.folders if isinstance(self.source, FolderSource) else None
        return folders or self.classes


def read_card(path: Path) -> SuiteCard:
    """Read and validate a card.

    Raises:
        UsageError: the file is not TOML, or a field is wrong (named in the message).
    """
    try:
        return SuiteCard.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"the suite card cannot be read: {error}", where=str(path)) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"the suite card is wrong: {problems}", where=str(path), fix="mend these fields") from error
