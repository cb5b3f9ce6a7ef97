"""Parts of data sets whose images lie many to a file: tar archives and Parquet files."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...storage.atomic import Progress, in_cache
from ..cards.data_set import ParquetFiles, Part, Tars
from ..cards.locations import cache_dir
from ..collection import folder_collection
from ..fetching.download import Wanted, download
from ..pixels.image_bytes import EMPTY, OTHER, SYSTEM
from .archive import archives_at, expanded, index_archive, read_at, require_some
from .folder import COLUMNS
from .ground_truth import find_truth, read_truth
from .here import DataSet, Opened, labelled
from .kept import kept
from .packed_originals import PackedOriginals, stamp
from .parquet import IMAGES, INDEX, pack_parquet, rows_in
from .same_file import numbers_in, refuse

_NAMESAKES = "under a name that another has, too"


def read_tars(
    data_set: DataSet,
    part: Part,
    layout: Tars,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """See `parts.open_part`."""
    assert data_set.folder is not None
    files = _shards(data_set.folder, layout.path, progress)

    def read() -> Opened:
        return _read_tars(data_set, part, layout, labels, files, cache, progress)

    if data_set.card.identity == "content" or layout.class_in == "list":
        return read()
    return kept(
        data_set,
        part,
        layout,
        labels,
        [(str(file), *stamp(file.stat())) for file in files],
        read,
        cache,
    )


def _read_tars(
    data_set: DataSet,
    part: Part,
    layout: Tars,
    labels: Sequence[int],
    files: Sequence[Path],
    cache: Path,
    progress: Progress | None,
) -> Opened:
    assert data_set.folder is not None
    read, what = data_set.card.identity == "content", f"{data_set.card.name} {layout.path}"
    indexes = []
    for number, file in enumerate(files):
        index = index_archive(file, read=read, cache=cache, progress=progress)
        if layout.class_in == "cls":
            index["token"] = _sidecars(file, index)
        indexes.append(index.assign(file=number, archive=file.stem))
    found = pd.concat(indexes, ignore_index=True)
    inner = found["within"].where(found["within"] != "", found["archive"])
    found["key"] = (inner + "/" + found["name"]).astype(str)
    images = found[~found["problem"].isin([SYSTEM, OTHER])].copy()
    plain = images["key"].map(posixpath.normpath)
    again = images[plain.duplicated(keep=False)]
    told = [
        f"{files[number].name}: {key}"
        for number, key in zip(again["file"], again["key"], strict=True)
    ]
    refuse(sorted(told), what, _NAMESAKES)
    images["inode"] = numbers_in(files, images["file"].to_numpy(), images["offset"].to_numpy())
    stems = images["name"].str.rpartition("/")[2].str.rpartition(".")[0]
    if layout.class_in == "list":
        truth = read_truth(find_truth(data_set.folder, layout.path, layout.lists), stems.tolist())
        images["token"] = stems.map(truth)
    elif layout.class_in == "archive":
        images["token"] = inner[images.index].str.rpartition("/")[2].str.removesuffix(".tar")
    elif layout.class_in == "folder":
        images["token"] = images["name"].str.rpartition("/")[0].str.rpartition("/")[2]
    return _opened(
        data_set,
        part,
        layout,
        labels,
        files,
        images,
        ignored=int((found["problem"] == OTHER).sum()),
    )


def read_parquet(
    data_set: DataSet,
    part: Part,
    layout: ParquetFiles,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """See `parts.open_part`."""
    assert data_set.folder is not None
    files, what = archives_at(data_set.folder, layout.path), f"{data_set.card.name} {layout.path}"
    named = "number" not in layout.named_by
    packed = pack_parquet(
        files, layout.image, layout.label, named=named, cache=cache_dir("packed"), progress=progress
    )

    def read() -> Opened:
        images = pd.read_parquet(packed / INDEX)
        images = images.assign(
            file=0, key=[f"{row:07d}/{name}" for row, name in enumerate(images["name"])]
        )
        images["inode"] = numbers_in(files, *rows_in(files))
        again = images[
            images.duplicated(["name", "sha256"], keep=False) & (images["problem"] != EMPTY)
        ]
        told = [f"{key} ({token})" for key, token in zip(again["key"], again["token"], strict=True)]
        refuse(
            sorted(told, key=lambda one: one.partition("/")[2]),
            what,
            f"{_NAMESAKES} and the same bytes",
        )
        return _opened(data_set, part, layout, labels, [packed / IMAGES], images)

    with in_cache(packed):
        if data_set.card.identity == "content":
            return read()
        return kept(
            data_set,
            part,
            layout,
            labels,
            [packed.name, (packed / IMAGES).stat().st_mtime_ns],
            read,
            cache,
        )


def _opened(
    data_set: DataSet,
    part: Part,
    layout: Tars | ParquetFiles,
    labels: Sequence[int],
    files: Sequence[Path],
    images: pd.DataFrame,
    ignored: int = 0,
) -> Opened:
    what, listed = f"{data_set.card.name} {layout.path}", data_set.card.identity == "listing"
    chosen, remarks = labelled(data_set, labels, images, layout.named_by, what)
    # An archive that is replaced has another time stamp, and so have the decoded pixels that are
    # kept of it.
    stamps = np.array([file.stat().st_mtime_ns for file in files])
    chosen = chosen.assign(mtime_ns=stamps[chosen["file"].to_numpy()], ctime_ns=0, read_ns=0)
    collection = folder_collection(
        what, Path(), chosen, grouped=False, listed=listed, pre_crop=part.pre_crop, ignored=ignored
    )
    rows = chosen.set_index("key").loc[collection.keys.tolist()]
    originals = PackedOriginals(
        files,
        rows["file"].to_numpy(dtype=np.int64),
        rows["offset"].to_numpy(dtype=np.int64),
        rows["size"].to_numpy(dtype=np.int64),
        collection.keys,
        None if listed else collection.content,
        part.pre_crop,
    )
    return Opened(
        dataclasses.replace(collection, originals=originals),
        remarks,
        chosen[chosen["problem"] != ""][list(COLUMNS)],
    )


def _shards(folder: Path, path: str, progress: Progress | None) -> list[Path]:
    if not path.startswith(("http://", "https://")):
        files = archives_at(folder, path)
        require_some(files, path, folder)
        return files
    place = cache_dir("shards", hashlib.sha256(path.encode()).hexdigest()[:16])
    urls = expanded(path)
    return [
        download(Wanted([url]), place / url.rpartition("/")[2], progress=progress) for url in urls
    ]


def _sidecars(file: Path, index: pd.DataFrame) -> pd.Series[str]:
    """The content of `KEY.cls` for every image `KEY.jpg`: WebDataset takes all files up to the
    first dot for one sample.
    """
    folder, name = index["name"].str.rpartition("/")[0], index["name"].str.rpartition("/")[2]
    sample = folder + "/" + name.str.partition(".")[0]
    beside = index[name.str.endswith(".cls")]
    again = sample[beside.index].duplicated(keep=False)
    refuse(sorted(beside["name"][again]), str(file), _NAMESAKES)
    with file.open("rb") as opened:
        contents = [
            read_at(opened.fileno(), offset, size).decode("utf-8-sig", "replace").strip()
            for offset, size in zip(beside["offset"], beside["size"], strict=True)
        ]
    classes = dict(zip(sample[beside.index], contents, strict=True))
    return sample.map(classes)
