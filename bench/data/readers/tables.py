"""Read image files that a table lists: a CSV file, or lines of `path label`.

WILDS, Waterbirds and DomainNet are published in this form.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import BenchError
from ...storage.atomic import Progress
from ...storage.files import regular
from ..cards.dataset import FileTable, Part
from ..cards.labels import ClassList
from ..collection import folder_collection
from ..pixels.image_bytes import OTHER, SYSTEM
from .folder import COLUMNS, index_folder, key_prefix, remarks_on
from .listing import list_folder
from .located import Dataset, NotHere, Opened
from .same_file import TWICE, refuse


def read_table(
    dataset: Dataset,
    part: Part,
    layout: FileTable,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Read a part that a table lists (see `parts.open_part`).

    Images that are listed but missing on disk are reported in the remarks and are not an error.

    Raises:
        NotHere: none of the listed images is on disk.
        BenchError: the table cannot be read, lacks a column, has a value that is not a class, or
            lists an image twice.
    """
    assert dataset.folder is not None
    card, what = dataset.card, f"{dataset.card.name} {layout.path}"
    rows = _rows(dataset.folder, layout)
    if card.identity == "listing":
        index = list_folder(dataset.folder, layout.images, cache=cache, progress=progress).frame()
    else:
        index = index_folder(dataset.folder, layout.images, cache=cache, progress=progress)
    prefix = key_prefix(layout.images)
    listed = pd.DataFrame(
        {
            "key": prefix + _found_as(_files(rows, layout), index["key"].str.removeprefix(prefix)),
            "number": _numbers(rows[layout.label], dataset.classes, layout),
            "group": _groups(rows, layout),
        }
    )
    listed["label"] = listed["number"].map(dict(enumerate(labels))).astype("int64")
    listed["class"] = listed["number"].map(dict(enumerate(dataset.classes.ids)))
    # Before classes are left out: an image under a class that is not requested and under another
    # one has an uncertain label.
    if not listed["key"].is_unique:
        again = listed[listed["key"].duplicated(keep=False)].groupby("key")["class"]
        refuse([f"{key} ({' and '.join(sorted(classes))})" for key, classes in again], what, TWICE)
    listed = listed[listed["label"] >= 0]
    # An inner join: files that the table does not list are usually those of other parts.
    found = index[~index["problem"].isin([SYSTEM, OTHER])].merge(listed, on="key", how="inner")
    if found.empty:
        raise NotHere(
            f"{card.title}: none of the images that {layout.path} lists is below"
            f" {dataset.folder / layout.images}"
        )
    remarks = remarks_on(found, what)
    missing = sorted(set(listed["key"]) - set(found["key"]))
    if missing:
        remarks.insert(
            0,
            f"{what}: {len(missing)} of {len(listed)} listed images are missing:"
            f" {', '.join(missing[:3])}",
        )
    collection = folder_collection(
        what,
        dataset.folder,
        found,
        grouped=bool(layout.group),
        listed=card.identity == "listing",
        pre_crop=part.pre_crop,
    )
    return Opened(collection, remarks, found[found["problem"] != ""][list(COLUMNS)])


def _rows(folder: Path, layout: FileTable) -> pd.DataFrame:
    """Return the rows of the table that belong to the part, with every value as text."""
    table = _read(folder / layout.path, layout.separator, header=layout.header)
    # Numbered before rows are filtered: FMoW's files are named by the row in the whole table.
    table["row"] = np.arange(len(table)).astype(str)
    if layout.join is not None:
        other = _read(folder / layout.join.path, ",", header=True)
        _check_columns(other, (layout.join.key, layout.join.value), folder / layout.join.path)
        _check_columns(table, (layout.join.column,), folder / layout.path)
        # A key may repeat as long as it has one value; the second table may have more columns.
        pairs = other[[layout.join.key, layout.join.value]].drop_duplicates()
        again = pairs[pairs[layout.join.key].duplicated(keep=False)].sort_values(
            layout.join.key, kind="stable"
        )
        ambiguous = [f"{key} ({value})" for key, value in again.itertuples(index=False, name=None)]
        refuse(
            ambiguous,
            str(folder / layout.join.path),
            f"listed with different values for the same {layout.join.key}",
        )
        values = dict(pairs.itertuples(index=False, name=None))
        table[layout.join.value] = (
            table[layout.join.column].map(values).fillna(layout.join.otherwise)
        )
    needed = [
        layout.label,
        *layout.where,
        *layout.since,
        *layout.before,
        *_columns(layout.group),
        *_fields(layout.file),
    ]
    _check_columns(table, needed, folder / layout.path)
    # Comparison of text, which is right for ISO dates and their prefixes: "2013" <= "2013-05-01".
    selected = pd.Series(True, index=table.index)
    for column, wanted in layout.where.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        selected &= table[column].isin([str(value) for value in allowed])
    for column, least in layout.since.items():
        selected &= table[column] >= least
    for column, limit in layout.before.items():
        selected &= table[column] < limit
    return table[selected]


def _read(path: Path, separator: str, *, header: bool) -> pd.DataFrame:
    # Text throughout: pandas would turn class "007" into 7, and a class named "NA" into a
    # missing value.
    try:
        table = pd.read_csv(
            regular(path),
            encoding="utf-8-sig",
            sep=separator,
            header=0 if header else None,
            dtype=str,
            keep_default_na=False,
        )
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise BenchError(
            f"the table cannot be read: {error}", where=str(path), fix="restore the file"
        ) from error
    table.columns = [str(column) for column in table.columns]
    return table


def _check_columns(table: pd.DataFrame, needed: Sequence[str], path: Path) -> None:
    missing = sorted(set(needed) - set(table.columns))
    if missing:
        raise BenchError(
            f"the table has no column {', '.join(missing)}; its columns are"
            f" {', '.join(map(str, table.columns))}",
            where=str(path),
            fix="use the table that comes with the dataset, or fix the card",
        )


def _fields(file: str) -> list[str]:
    """Return the columns in a pattern of file names, or the column itself."""
    return re.findall(r"\{([^{}]*)\}", file) or [file]


def _files(rows: pd.DataFrame, layout: FileTable) -> pd.Series[str]:
    if "{" not in layout.file:
        return rows[layout.file]
    columns = _fields(layout.file)
    values = rows[columns].itertuples(index=False, name=None)
    return pd.Series(
        [_filled(layout.file, dict(zip(columns, row, strict=True))) for row in values],
        index=rows.index,
    )


def _filled(pattern: str, values: dict[str, str]) -> str:
    # Not `str.format`, which would interpret format specifications and attributes on the card.
    return re.sub(r"\{([^{}]*)\}", lambda field: values[field[1]], pattern)


def _found_as(paths: pd.Series[str], present: pd.Series[str]) -> pd.Series[str]:
    """Return the paths of a table as they are in the listing of the folder.

    A table is often from another machine. `./a.png` and `b//../a.png` are normalised, and so is
    `b\\a.png` unless there is a file of that name. Accents are compared in composed form. The
    leading folders of absolute paths are removed.
    """
    by_form = {unicodedata.normalize("NFC", name): name for name in present}

    def normalised(path: str) -> str:
        form = unicodedata.normalize("NFC", path)
        if form not in by_form:
            form = posixpath.normpath(form.replace("\\", "/"))
        return by_form.get(form, form)

    found = paths.map({path: normalised(path) for path in paths.unique()})
    # The first absolute path that ends in an existing one decides what to remove from all of them:
    # removing more from some would find files of the same name in other folders.
    elsewhere = [
        path for path in found.unique() if path.startswith("/") or re.match("[A-Za-z]:/", path)
    ]
    for path in elsewhere:
        parts = path.split("/")
        for first in range(1, len(parts)):
            if "/".join(parts[first:]) in by_form:
                above = "/".join(parts[:first]) + "/"
                return found.map(
                    lambda one, above=above: by_form.get(
                        one.removeprefix(above), one.removeprefix(above)
                    )
                )
    return found


def _numbers(values: pd.Series[str], classes: ClassList, layout: FileTable) -> pd.Series[int]:
    # Once per distinct value: a table of a million rows has a few hundred.
    names = classes.labels_of(values.unique(), (layout.labelled_by,))
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise BenchError(
            f"the column {layout.label} has values that are not a class: {', '.join(unknown[:5])}",
            where=layout.path,
            fix="use the table that comes with the dataset, or fix the card",
        )
    return values.map(names).astype("int64")


def _columns(group: str) -> list[str]:
    return [column.strip() for column in group.split(",") if column.strip()]


def _groups(rows: pd.DataFrame, layout: FileTable) -> pd.Series[int]:
    """Return the number of every row's group, -1 for rows without one."""
    columns = _columns(layout.group)
    if not columns:
        return pd.Series(-1, index=rows.index, dtype="int64")
    # Numbered in sorted order among the rows of this part. Numbers are not comparable between
    # parts that have other groups; the worst group of a part does not depend on them.
    values = rows[columns].agg(", ".join, axis=1)
    names = sorted(set(values) - set(layout.ungrouped))
    return (
        values.map({name: number for number, name in enumerate(names)}).fillna(-1).astype("int64")
    )
