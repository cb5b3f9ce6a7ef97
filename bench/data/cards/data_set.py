"""A data set's card: the TOML file that states its licence, its classes, how it lies on people's
disks and where to get it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from ...errors import UsageError
from ...plain import NAME
from ...plugins import unknown
from ...storage.files import absent
from .inheritance import data_set_paths, read_table

#: How the folder of a class may be called: by the class's identity, its name, or its number in the
#: list of classes.
Naming = Literal["id", "name", "number"]


#: Known numbers of equal images: of a set of images, such as `val`, or of one in another, such as
#: `val in train`.
Duplicates = dict[str, Annotated[int, Field(gt=0)]]


def check_duplicates(duplicates: Duplicates, names: Iterable[str]) -> None:
    """Raise ValueError unless all are of these names."""
    unknown = sorted({name for key in duplicates for name in key.split(" in ")} - set(names))
    if unknown:
        raise ValueError(
            f"duplicates: no {', '.join(unknown)}; `NAME` or `NAME in OTHER`, of {', '.join(names)}"
        )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Folders(_Part):
    """Image files in class folders below `path`."""

    kind: Literal["folders"] = "folders"
    path: str = Field(description='below the data set\'s folder; "." for the folder itself')
    named_by: tuple[Naming, ...] = Field(
        default=("id",),
        description="what the class folders may be called; detected where there are several",
    )


class Flat(_Part):
    """Image files in one folder without class folders, labelled by a list: ImageNet's validation
    images as they are unpacked.
    """

    kind: Literal["flat"]
    path: str = Field(description="folder of the images")
    lists: tuple[str, ...] = Field(
        min_length=1,
        description=(
            "lists of classes (see `ground_truth`), below the data set's folder; the first that"
            " exists is read"
        ),
    )
    named_by: tuple[Naming, ...] = ("id",)


class Join(_Part):
    """A second table that says more about a column's values."""

    path: str
    column: str = Field(description="of the first table")
    key: str = Field(description="column of the second table with the same values")
    value: str = Field(description="column of the second table that is taken over, under its name")
    otherwise: str = Field(default="", description="value where the second table says nothing")


class Table(_Part):
    """Image files that a table lists: a CSV file, or lines of `path label`. Values are compared as
    text.
    """

    kind: Literal["table"]
    path: str = Field(description="of the table")
    images: str = Field(
        default=".", description="folder that the paths in the table are relative to"
    )
    file: str = Field(
        description=(
            "column of the path; `{column}` inserts a value; `{row}` is the row in the table"
        )
    )
    label: str = Field(description="column of the class: its identity, name or number")
    labelled_by: Naming = "number"
    where: dict[str, Any] = Field(
        default_factory=dict,
        description="column -> value (or list of values) of the rows that belong here",
    )
    since: dict[str, str] = Field(
        default_factory=dict, description="column -> least value, such as an ISO date"
    )
    before: dict[str, str] = Field(
        default_factory=dict, description="column -> first value that is too large"
    )
    group: str = Field(
        default="",
        description=(
            "column, or columns joined by a comma, whose values are the groups; none if empty"
        ),
    )
    ungrouped: tuple[str, ...] = Field(
        default=(), description="values that are no group of their own"
    )
    join: Join | None = None
    separator: str = ","
    header: bool = Field(default=True, description="without one, columns are called 0, 1, ...")


class Arrays(_Part):
    """Images and labels as arrays in files."""

    kind: Literal["arrays"]
    format: Literal["numpy", "cifar-python", "cifar-binary", "cifar-100-binary", "stl10-binary"] = (
        Field(
            default="numpy",
            description=(
                "numpy: .npy files of (N, H, W, 3) uint8 images and (N,) class numbers, or one .npz"
                " file with both"
            ),
        )
    )
    path: str = Field(description="file of the images")
    more: tuple[str, ...] = Field(
        default=(), description="further files, of CIFAR's training batches"
    )
    labels: str = Field(default="", description="file of the labels, where it is another one")
    keys: tuple[str, str] = Field(
        default=("images", "labels"), description="arrays of an .npz file"
    )
    first_label: int = Field(
        default=0, description="number of the first class: STL-10 counts from 1"
    )
    rows: tuple[int, int] | None = Field(
        default=None, description="first row and the one behind the last; default: all"
    )


class Tars(_Part):
    """Images in tar archives that are read where they are: WebDataset's shards, or archives as they
    are downloaded.
    """

    kind: Literal["tar"]
    path: str = Field(
        description=(
            "the archive, or shards: `*` stands for anything, `{000..127}` for numbers. Shards at"
            " http:// or https:// are brought to the cache when they are first read"
        )
    )
    class_in: Literal["folder", "archive", "cls", "list"] = Field(
        default="folder",
        description=(
            "where an image's class is: its last folder; the inner archive that it lies in; a file"
            " of its name that ends in .cls; a list"
        ),
    )
    lists: tuple[str, ...] = Field(
        default=(),
        description="lists of classes (see `ground_truth`), the first that exists is read",
    )
    named_by: tuple[Naming, ...] = ("id",)


class ParquetFiles(_Part):
    """Images in Parquet files, as the Hugging Face hub keeps them."""

    kind: Literal["parquet"]
    path: str = Field(description="the files; `*` stands for anything")
    image: str = Field(
        default="image",
        description="column of the images: encoded bytes, or a struct with `bytes` and `path`",
    )
    label: str = Field(default="label", description="column of the classes")
    named_by: tuple[Naming, ...] = Field(
        default=("number",), description="what the labels are; names may be those in the files"
    )


class Corrupted(_Part):
    """Images of another data set's part, corrupted when they are read (see `corruption`); nothing
    lies on disk.
    """

    kind: Literal["corrupted"]
    path: str = Field(description="data set and part whose images they are, such as `imagenet/val`")
    corruption: str
    severity: int
    seed: int = 0
    photographs: str = Field(
        default="imagenet-c-frost/photographs",
        description="data set and part that the corruption frost pastes",
    )


def _kind(layout: Any) -> str:
    """Class folders unless the card says otherwise."""
    return str(layout.get("kind", "folders") if isinstance(layout, dict) else layout.kind)


Layout = Annotated[
    Annotated[Folders, Tag("folders")]
    | Annotated[Flat, Tag("flat")]
    | Annotated[Table, Tag("table")]
    | Annotated[Arrays, Tag("arrays")]
    | Annotated[Tars, Tag("tar")]
    | Annotated[ParquetFiles, Tag("parquet")]
    | Annotated[Corrupted, Tag("corrupted")],
    Discriminator(_kind),
]


class Part(_Part):
    """One part of a data set, such as its test images; the first of its layouts that is on disk is
    read.
    """

    layouts: tuple[Layout, ...] = Field(min_length=1)
    images: int | None = Field(default=None, description="true number of images")
    per_class: int | tuple[int, int] | None = Field(
        default=None, description="images of every class, or the least and the most"
    )
    pre_crop: int = Field(
        default=0, ge=0, description="pixels to cut from every side before anything else"
    )


class Archive(_Part):
    """One file to download."""

    urls: tuple[str, ...] = Field(min_length=1, description="official address first, then mirrors")
    bytes: int | None = Field(default=None, description="size of the file")
    sha256: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="as published; empty if nobody published one",
    )
    md5: str = Field(
        default="",
        pattern=r"^([0-9a-f]{32})?$",
        description="as published; against accidents, not against malice",
    )
    kind: Literal["tar", "zip", "file"] = Field(
        description="what it is; compression of a tar is detected"
    )
    into: str = Field(
        default=".", description="folder below the data set's in which it is unpacked, or lies"
    )
    strip: int = Field(
        default=0, ge=0, description="leading folders of the archive's names that are left out"
    )
    password: str = Field(default="", description="published password of a zip")
    unpacked_bytes: int | None = None


class Fetch(_Part):
    """How to obtain the data. With `steps` and no archives it is behind a licence or a login: the
    steps are shown instead.
    """

    archives: tuple[Archive, ...] = ()
    steps: str = Field(default="", description="what a person has to do first, or instead")
    note: str = Field(default="", description="what to know before downloading")


class DataSetCard(_Part):
    """One data set, whatever suites use it."""

    name: str = Field(pattern=NAME)
    title: str
    licence: str
    citation: str = ""
    homepage: str = ""
    uncertain: str = Field(default="", description="what this card says and nobody could check")
    made_of: str = Field(
        default="",
        description=(
            "data set whose images these are, prepared anew: who has seen those has seen these"
        ),
    )
    folders: tuple[str, ...] = Field(
        min_length=1,
        description="what its folder below a data root may be called, usual name first",
    )
    classes: str | tuple[str, ...] = Field(
        description="name of a list of classes (`lists/NAME.tsv`), or the classes themselves"
    )
    identity: Literal["content", "listing"] = Field(
        default="content",
        description=(
            "what makes an image the same: the hash of its bytes, or its class, file name and size,"
            " for sets that are too large to be read for that"
        ),
    )
    parts: dict[str, Part] = Field(min_length=1)
    duplicates: Duplicates = Field(
        default_factory=dict,
        description=(
            "equal images that the set is published with: `part` -> how many repeat another of it,"
            " `part in other` -> how many are also in the other part; byte by byte"
        ),
    )
    fetch: Fetch = Fetch()

    @property
    def is_made(self) -> bool:
        """Whether its images are made from another data set's, so that nothing of its own lies on
        disk.
        """
        return all(isinstance(part.layouts[0], Corrupted) for part in self.parts.values())

    @model_validator(mode="after")
    def _duplicates_are_of_parts(self) -> DataSetCard:
        check_duplicates(self.duplicates, self.parts)
        return self

    @model_validator(mode="after")
    def _folders_are_plain(self) -> DataSetCard:
        for folder in self.folders:
            if Path(folder).is_absolute() and len(self.folders) > 1:
                raise ValueError("alternatives are names below a data root, not absolute paths")
        return self


def read_data_set(path: Path) -> DataSetCard:
    """Read and validate a data set's card.

    Raises:
        UsageError: the file is not TOML, or a field is wrong (named in the message).
    """
    try:
        return DataSetCard.model_validate(read_table(path))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors()
        )
        raise UsageError(
            f"the data set's card is wrong: {problems}", where=str(path), fix="mend these fields"
        ) from error


def find_data_set(name: str, beside: Path | None = None) -> tuple[DataSetCard, Path]:
    """The card of a data set, by name or by the path of a TOML file, and where it lies.

    Args:
        beside: folder that the path of a file is relative to; default: the working directory.

    Raises:
        UsageError: unknown name, or the card is wrong.
    """
    if name.endswith(".toml"):
        path = (beside or Path()) / name
        if why := absent(path):
            raise UsageError(why, fix="`bench data list` lists the data sets")
        return read_data_set(path), path.resolve()
    paths = data_set_paths()
    if name not in paths:
        raise unknown(
            "data set",
            name,
            paths,
            fix="`bench data list` lists them; a card of your own ends in .toml",
        )
    return read_data_set(paths[name]), paths[name]
