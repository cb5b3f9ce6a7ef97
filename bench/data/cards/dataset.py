"""Read a dataset's card: a TOML file with its licence, classes, layouts on disk and downloads.

A card lists every layout in which people commonly have the data, so that an existing copy is used
in place. `bench.data.readers` has a reader for each layout.
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
from ...validation import problems
from .inheritance import dataset_paths, read_table

#: What identifies a class in the data: its identity, its name, or its number in the class list.
Naming = Literal["id", "name", "number"]


#: Known numbers of equal images, either within one set of images (`val`) or between two
#: (`val in train`).
Duplicates = dict[str, Annotated[int, Field(gt=0)]]


def check_duplicates(duplicates: Duplicates, names: Iterable[str]) -> None:
    """Raise ValueError if a key of `duplicates` refers to a name that is not in `names`."""
    unknown = sorted({name for key in duplicates for name in key.split(" in ")} - set(names))
    if unknown:
        raise ValueError(
            f"duplicates: no {', '.join(unknown)}; keys are `NAME` or `NAME in OTHER`, where the"
            f" names are {', '.join(names)}"
        )


class _CardModel(BaseModel):
    # Unknown fields are an error: a misspelled field would otherwise fall back to its default and
    # change what is measured without notice.
    model_config = ConfigDict(frozen=True, extra="forbid")


class Folders(_CardModel):
    """Image files in class folders below `path`."""

    # The only layout that may omit its kind; `_kind` supplies the default for tables from TOML.
    kind: Literal["folders"] = "folders"
    path: str = Field(description='below the dataset\'s folder; "." for the folder itself')
    named_by: tuple[Naming, ...] = Field(
        default=("id",),
        description="how class folders may be named; detected if there are several ways",
    )


class Flat(_CardModel):
    """Image files in one folder without class folders, labelled by a list.

    ImageNet's validation images are unpacked in this layout.
    """

    kind: Literal["flat"]
    path: str = Field(description="folder of the images")
    lists: tuple[str, ...] = Field(
        min_length=1,
        description=(
            "lists of classes (see `ground_truth`) below the dataset's folder; the first that"
            " exists is read"
        ),
    )
    named_by: tuple[Naming, ...] = ("id",)


class Join(_CardModel):
    """A second table that adds a column to the first, matched by a column's values."""

    path: str
    column: str = Field(description="column of the first table to match")
    key: str = Field(description="column of the second table with the same values")
    value: str = Field(description="column of the second table to add, under its own name")
    otherwise: str = Field(default="", description="value for rows without a match")


class FileTable(_CardModel):
    """Image files that a table lists: a CSV file, or lines of `path label`.

    All values are compared as text, so that class numbers, ISO dates and names need no types on
    the card.
    """

    kind: Literal["table"]
    path: str = Field(description="file of the table")
    images: str = Field(
        default=".", description="folder that the paths in the table are relative to"
    )
    file: str = Field(
        description=(
            "column of the path, or a pattern: `{column}` inserts a value, `{row}` the number of"
            " the row"
        )
    )
    label: str = Field(description="column of the class: its identity, name or number")
    labelled_by: Naming = "number"
    where: dict[str, Any] = Field(
        default_factory=dict,
        description="column -> value (or list of values) of the rows that belong to this part",
    )
    # Bounds are text as well. ISO dates sort as text in the order of time.
    since: dict[str, str] = Field(
        default_factory=dict, description="column -> smallest value (inclusive), such as a date"
    )
    before: dict[str, str] = Field(
        default_factory=dict, description="column -> upper bound (exclusive)"
    )
    group: str = Field(
        default="",
        description="column, or columns joined by a comma, whose values define the groups",
    )
    # FMoW's images from countries without a region ("Other") count in the accuracy, but not as a
    # region whose accuracy could be the worst.
    ungrouped: tuple[str, ...] = Field(
        default=(), description="values that do not form a group; their images have no group"
    )
    join: Join | None = None
    separator: str = ","
    header: bool = Field(
        default=True, description="whether there is a header; else columns are 0, 1, ..."
    )


class Arrays(_CardModel):
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
        default=(), description="further files, such as the other training batches of CIFAR-10"
    )
    labels: str = Field(default="", description="file of the labels, if separate")
    keys: tuple[str, str] = Field(
        default=("images", "labels"), description="names of the two arrays in an .npz file"
    )
    first_label: int = Field(
        default=0, description="number of the first class; STL-10 counts from 1"
    )
    # CIFAR-10-C has the five severities of a corruption in one array; each part is a range of it.
    rows: tuple[int, int] | None = Field(
        default=None, description="first row and the row after the last; default: all"
    )


class Tars(_CardModel):
    """Images in tar archives, read in place: WebDataset shards, or archives as downloaded."""

    kind: Literal["tar"]
    path: str = Field(
        description=(
            "the archive or shards: `*` matches anything, `{000..127}` a range of numbers. Shards"
            " at http:// or https:// are downloaded to the cache when they are first read"
        )
    )
    class_in: Literal["folder", "archive", "cls", "list"] = Field(
        default="folder",
        description=(
            "where the class of an image is: its last folder, the inner archive that contains it,"
            " the .cls file of the same sample, or a list"
        ),
    )
    lists: tuple[str, ...] = Field(
        default=(),
        description="lists of classes (see `ground_truth`); the first that exists is read",
    )
    named_by: tuple[Naming, ...] = ("id",)


class ParquetFiles(_CardModel):
    """Images in Parquet files, as the Hugging Face hub stores them."""

    kind: Literal["parquet"]
    path: str = Field(description="the files; `*` matches anything")
    image: str = Field(
        default="image",
        description="column of the images: encoded bytes, or a struct with `bytes` and `path`",
    )
    label: str = Field(default="label", description="column of the classes")
    named_by: tuple[Naming, ...] = Field(
        default=("number",),
        description="what the labels are; without `number`, the class names in the files apply",
    )


class Corrupted(_CardModel):
    """Images of another dataset's part, corrupted when they are read; nothing is on disk."""

    kind: Literal["corrupted"]
    # Named `path` as in the other layouts, which lets code that lists layouts treat all alike.
    path: str = Field(description="dataset and part of the clean images, such as `imagenet/val`")
    corruption: str
    severity: int
    seed: int = 0
    # The photographs belong to the published code of ImageNet-C and are not part of this package.
    photographs: str = Field(
        default="imagenet-c-frost/photographs",
        description="dataset and part of the photographs that the corruption frost uses",
    )


def _kind(layout: Any) -> str:
    """Return the kind of a layout, which is class folders unless stated."""
    return str(layout.get("kind", "folders") if isinstance(layout, dict) else layout.kind)


# A callable discriminator, since pydantic's plain one requires the field `kind` in every table,
# and most layouts on cards are class folders such as `{ path = "val" }`.
Layout = Annotated[
    Annotated[Folders, Tag("folders")]
    | Annotated[Flat, Tag("flat")]
    | Annotated[FileTable, Tag("table")]
    | Annotated[Arrays, Tag("arrays")]
    | Annotated[Tars, Tag("tar")]
    | Annotated[ParquetFiles, Tag("parquet")]
    | Annotated[Corrupted, Tag("corrupted")],
    Discriminator(_kind),
]


class Part(_CardModel):
    """One part of a dataset, such as its test images.

    The first of its layouts that is on disk is read.
    """

    layouts: tuple[Layout, ...] = Field(min_length=1)
    images: int | None = Field(default=None, description="true number of images")
    per_class: int | tuple[int, int] | None = Field(
        default=None, description="number of images of every class, or its minimum and maximum"
    )
    # ObjectNet's images are published with a red border, which must not reach the model.
    pre_crop: int = Field(
        default=0, ge=0, description="pixels to cut from every side before anything else"
    )


class Archive(_CardModel):
    """One file to download."""

    urls: tuple[str, ...] = Field(min_length=1, description="official address first, then mirrors")
    bytes: int | None = Field(default=None, description="size of the file")
    sha256: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="published checksum; empty if there is none",
    )
    md5: str = Field(
        default="",
        pattern=r"^([0-9a-f]{32})?$",
        description="published checksum; detects accidents, not attacks",
    )
    kind: Literal["tar", "zip", "file"] = Field(
        description="type of the file; compression of a tar is detected"
    )
    into: str = Field(
        default=".", description="folder below the dataset's folder to unpack or move it to"
    )
    strip: int = Field(
        default=0, ge=0, description="number of leading folders to remove from names in the archive"
    )
    password: str = Field(default="", description="published password of a zip")
    unpacked_bytes: int | None = None


class Fetch(_CardModel):
    """How to obtain the data.

    Data behind a licence or a login have `steps` and no archives; the steps are shown instead of
    downloading.
    """

    archives: tuple[Archive, ...] = ()
    steps: str = Field(default="", description="what to do by hand first, or instead")
    note: str = Field(default="", description="what to know before downloading")


class DatasetCard(_CardModel):
    """One dataset, independent of the suites that use it."""

    name: str = Field(pattern=NAME)
    title: str
    licence: str
    citation: str = ""
    homepage: str = ""
    uncertain: str = Field(default="", description="facts on this card that could not be checked")
    # A backbone that was trained on the original has seen the images of the prepared copy, too.
    made_of: str = Field(default="", description="dataset that this is a prepared copy of")
    folders: tuple[str, ...] = Field(
        min_length=1,
        description="names that its folder below a data root may have, usual name first",
    )
    classes: str | tuple[str, ...] = Field(
        description="name of a list of classes (`lists/NAME.tsv`), or the classes themselves"
    )
    # Hashing ImageNet would read 150 GB before the first run. Class, file name and size still
    # detect copies that were resized or compressed again.
    identity: Literal["content", "listing"] = Field(
        default="content",
        description=(
            "what identifies an image: `content` is the hash of its bytes; `listing` is its class,"
            " file name and size, for sets that are too large to hash"
        ),
    )
    parts: dict[str, Part] = Field(min_length=1)
    # Official sets contain equal images. A stated number tells those from a damaged copy.
    duplicates: Duplicates = Field(
        default_factory=dict,
        description=(
            "byte-identical images in the published set: `part` -> how many repeat another image"
            " of the part, `part in other` -> how many are also in the other part"
        ),
    )
    fetch: Fetch = Fetch()

    @property
    def is_made(self) -> bool:
        """Whether all images are generated from another dataset's and none are on disk."""
        # As in `open_part`: a part whose first layout is `Corrupted` is generated.
        return all(isinstance(part.layouts[0], Corrupted) for part in self.parts.values())

    @model_validator(mode="after")
    def _duplicates_are_of_parts(self) -> DatasetCard:
        check_duplicates(self.duplicates, self.parts)
        return self

    @model_validator(mode="after")
    def _folders_are_plain(self) -> DatasetCard:
        # An absolute path is for the card of one person's own data. Among alternatives it would
        # win on that machine alone, and others would read different images.
        for folder in self.folders:
            if Path(folder).is_absolute() and len(self.folders) > 1:
                raise ValueError(
                    "an absolute path has to be the only folder; alternatives are names below a"
                    " data root, not absolute paths"
                )
        return self


def read_dataset(path: Path) -> DatasetCard:
    """Read and validate a dataset's card.

    Raises:
        UsageError: the file is not TOML, or a field is invalid (the message names it).
    """
    try:
        return DatasetCard.model_validate(read_table(path))
    except ValidationError as error:
        raise UsageError(
            f"the dataset's card is invalid: {problems(error, DatasetCard, whole='card')}",
            where=str(path),
            fix="fix these fields",
        ) from error


def find_dataset(name: str, relative_to: Path | None = None) -> tuple[DatasetCard, Path]:
    """Return the card of a dataset and the path of its file.

    Args:
        name: name of an installed dataset, or path of a TOML file.
        relative_to: folder that the path is relative to; default: the working directory.

    Raises:
        UsageError: the name is unknown, or the card is invalid.
    """
    if name.endswith(".toml"):
        path = (relative_to or Path()) / name
        if why := absent(path):
            raise UsageError(why, fix="run `bench data list` to list the datasets")
        # Paths on the card are relative to the card's own folder, also if a link leads to it.
        return read_dataset(path), path.resolve()
    paths = dataset_paths()
    if name not in paths:
        raise unknown(
            "dataset",
            name,
            paths,
            fix=(
                "run `bench data list` to list them; the file name of your own card has to end in"
                " .toml"
            ),
        )
    return read_dataset(paths[name]), paths[name]
