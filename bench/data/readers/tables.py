"""Parts of data sets that a table lists (a CSV file, or lines of `path label`): WILDS, Waterbirds,
DomainNet.
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
from ..cards.data_set import Part, Table
from ..cards.labels import ClassList
from ..collection import folder_collection
from ..pixels.image_bytes import OTHER, SYSTEM
from .folder import COLUMNS, index_folder, key_prefix, remarks_on
from .here import DataSet, NotHere, Opened
from .listing import list_folder
from .same_file import TWICE, refuse


def read_table(
    data_set: DataSet,
    part: Part,
    layout: Table,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """See `parts.open_part`. Images that the table lists and that are not there are told and not
    fatal.

    Raises:
        BenchError: the table cannot be read, or lacks a column or a class's number.
    """
    assert data_set.folder is not None
    card, what = data_set.card, f"{data_set.card.name} {layout.path}"
    rows = _rows(data_set.folder, layout)
    if card.identity == "listing":
        index = list_folder(data_set.folder, layout.images, cache=cache, progress=progress).frame()
    else:
        index = index_folder(data_set.folder, layout.images, cache=cache, progress=progress)
    prefix = key_prefix(layout.images)
    listed = pd.DataFrame(
        {
            "key": prefix + _found_as(_files(rows, layout), index["key"].str.removeprefix(prefix)),
            "number": _numbers(rows[layout.label], data_set.classes, layout),
            "group": _groups(rows, layout),
        }
    )
    listed["label"] = listed["number"].map(dict(enumerate(labels))).astype("int64")
    listed["class"] = listed["number"].map(dict(enumerate(data_set.classes.ids)))
    if not listed["key"].is_unique:
        again = listed[listed["key"].duplicated(keep=False)].groupby("key")["class"]
        refuse([f"{key} ({' and '.join(sorted(classes))})" for key, classes in again], what, TWICE)
    listed = listed[listed["label"] >= 0]
    found = index[~index["problem"].isin([SYSTEM, OTHER])].merge(listed, on="key", how="inner")
    if found.empty:
        raise NotHere(
            f"{card.title}: {layout.path} lists images of which none is below"
            f" {data_set.folder / layout.images}"
        )
    remarks = remarks_on(found, what)
    lacking = sorted(set(listed["key"]) - set(found["key"]))
    if lacking:
        remarks.insert(
            0,
            f"{what}: {len(lacking)} of {len(listed)} listed images are not there:"
            f" {', '.join(lacking[:3])}",
        )
    collection = folder_collection(
        what,
        data_set.folder,
        found,
        grouped=bool(layout.group),
        listed=card.identity == "listing",
        pre_crop=part.pre_crop,
    )
    return Opened(collection, remarks, found[found["problem"] != ""][list(COLUMNS)])


def _rows(folder: Path, layout: Table) -> pd.DataFrame:
    """The rows of the table that belong to the part, every value as text; `row` is the number of a
    row in the file.
    """
    table = _read(folder / layout.path, layout.separator, header=layout.header)
    table["row"] = np.arange(len(table)).astype(str)
    if layout.join is not None:
        other = _read(folder / layout.join.path, ",", header=True)
        _check_columns(other, (layout.join.key, layout.join.value), folder / layout.join.path)
        _check_columns(table, (layout.join.column,), folder / layout.path)
        pairs = other[[layout.join.key, layout.join.value]].drop_duplicates()
        again = pairs[pairs[layout.join.key].duplicated(keep=False)].sort_values(
            layout.join.key, kind="stable"
        )
        told = [f"{key} ({value})" for key, value in again.itertuples(index=False, name=None)]
        refuse(
            told,
            str(folder / layout.join.path),
            f"lines say different things of one {layout.join.key}",
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
    keep = pd.Series(True, index=table.index)
    for column, wanted in layout.where.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        keep &= table[column].isin([str(value) for value in allowed])
    for column, least in layout.since.items():
        keep &= table[column] >= least
    for column, beyond in layout.before.items():
        keep &= table[column] < beyond
    return table[keep]


def _read(path: Path, separator: str, *, header: bool) -> pd.DataFrame:
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
    lacking = sorted(set(needed) - set(table.columns))
    if lacking:
        raise BenchError(
            f"the table has no column {', '.join(lacking)}; it has"
            f" {', '.join(map(str, table.columns))}",
            where=str(path),
            fix="take the data set's own table, or mend the card",
        )


def _fields(file: str) -> list[str]:
    """The columns that a file's name is made of."""
    return re.findall(r"\{([^{}]*)\}", file) or [file]


def _files(rows: pd.DataFrame, layout: Table) -> pd.Series[str]:
    if "{" not in layout.file:
        return rows[layout.file]
    columns = _fields(layout.file)
    values = rows[columns].itertuples(index=False, name=None)
    return pd.Series(
        [_filled(layout.file, dict(zip(columns, row, strict=True))) for row in values],
        index=rows.index,
    )


def _filled(pattern: str, values: dict[str, str]) -> str:
    return re.sub(r"\{([^{}]*)\}", lambda field: values[field[1]], pattern)


def _found_as(paths: pd.Series[str], there: pd.Series[str]) -> pd.Series[str]:
    """The paths as a folder's listing has them.

    `./a.png`, `b//../a.png` and (where no file is called so) `b\\a.png` are made plain, accents
    that are letters of their own as macOS writes them are found, and absolute paths lose what the
    first of them that is here begins with: the list was made on another machine.
    """
    by_form = {unicodedata.normalize("NFC", name): name for name in there}

    def plain(path: str) -> str:
        form = unicodedata.normalize("NFC", path)
        if form not in by_form:
            form = posixpath.normpath(form.replace("\\", "/"))
        return by_form.get(form, form)

    found = paths.map({path: plain(path) for path in paths.unique()})
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


def _numbers(values: pd.Series[str], classes: ClassList, layout: Table) -> pd.Series[int]:
    names = classes.labels_of(values.unique(), (layout.labelled_by,))
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise BenchError(
            f"the column {layout.label} has values that are no class: {', '.join(unknown[:5])}",
            where=layout.path,
            fix="take the data set's own table, or mend the card",
        )
    return values.map(names).astype("int64")


def _columns(group: str) -> list[str]:
    return [column.strip() for column in group.split(",") if column.strip()]


def _groups(rows: pd.DataFrame, layout: Table) -> pd.Series[int]:
    """Number of every row's group in the sorted list of all groups that are no part of `ungrouped`;
    -1 without one.
    """
    columns = _columns(layout.group)
    if not columns:
        return pd.Series(-1, index=rows.index, dtype="int64")
    values = rows[columns].agg(", ".join, axis=1)
    names = sorted(set(values) - set(layout.ungrouped))
    return (
        values.map({name: number for number, name in enumerate(names)}).fillna(-1).astype("int64")
    )
