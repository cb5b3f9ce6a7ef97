"""Read parts with many images per file: tar archives and Parquet files."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...storage.atomic import Progress, in_cache
from ..cards.dataset import ParquetFiles, Part, Tars
from ..cards.locations import cache_dir
from ..collection import folder_collection
from ..fetching.download import Wanted, download
from ..pixels.image_bytes import EMPTY, OTHER, SYSTEM
from .archive import archives_at, expanded, index_archive, read_at, require_some
from .folder import COLUMNS
from .ground_truth import find_ground_truth, read_ground_truth
from .index_cache import from_cache
from .located import Dataset, Opened, labelled
from .parquet import IMAGES, INDEX, pack_parquet, rows_in
from .same_file import numbers_in, refuse
from .shard_images import ShardImages, stamp

_SAME_NAME = "under the name of another file"


def read_tars(
    dataset: Dataset,
    part: Part,
    layout: Tars,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Read a part in tar archives (see `parts.open_part`).

    Raises:
        NotHere: no image is of a requested class, or there is no list of classes.
        BenchError: an archive is damaged, a shard is missing, or two images have the same name.
    """
    assert dataset.folder is not None
    files = _shards(dataset.folder, layout.path, progress)

    def read() -> Opened:
        return _read_tars(dataset, part, layout, labels, files, cache, progress)

    # The cache's key has the time stamps of the archives, but not that of a list of classes. Parts
    # identified by content cannot be cached, as `from_cache` is for listed ones.
    if dataset.card.identity == "content" or layout.class_in == "list":
        return read()
    return from_cache(
        dataset,
        part,
        layout,
        labels,
        [(str(file), *stamp(file.stat())) for file in files],
        read,
        cache,
    )


def _read_tars(
    dataset: Dataset,
    part: Part,
    layout: Tars,
    labels: Sequence[int],
    files: Sequence[Path],
    cache: Path,
    progress: Progress | None,
) -> Opened:
    assert dataset.folder is not None
    read, what = dataset.card.identity == "content", f"{dataset.card.name} {layout.path}"
    indexes = []
    for number, file in enumerate(files):
        index = index_archive(file, read=read, cache=cache, progress=progress)
        if layout.class_in == "cls":
            index["token"] = _sidecars(file, index)
        indexes.append(index.assign(file=number, archive=file.stem))
    found = pd.concat(indexes, ignore_index=True)
    # The archive is part of the key, since each shard may number its images from 0.
    inner = found["within"].where(found["within"] != "", found["archive"])
    found["key"] = (inner + "/" + found["name"]).astype(str)
    images = found[~found["problem"].isin([SYSTEM, OTHER])].copy()
    # A tar archive may have a name twice, of which unpacking would leave the last one; `./a.png`
    # and `a.png` are the same name.
    normalised = images["key"].map(posixpath.normpath)
    again = images[normalised.duplicated(keep=False)]
    repeated = [
        f"{files[number].name}: {key}"
        for number, key in zip(again["file"], again["key"], strict=True)
    ]
    refuse(sorted(repeated), what, _SAME_NAME)
    images["inode"] = numbers_in(files, images["file"].to_numpy(), images["offset"].to_numpy())
    stems = images["name"].str.rpartition("/")[2].str.rpartition(".")[0]
    if layout.class_in == "list":
        truth = read_ground_truth(
            find_ground_truth(dataset.folder, layout.path, layout.lists), stems.tolist()
        )
        images["token"] = stems.map(truth)
    elif layout.class_in == "archive":
        images["token"] = inner[images.index].str.rpartition("/")[2].str.removesuffix(".tar")
    elif layout.class_in == "folder":
        images["token"] = images["name"].str.rpartition("/")[0].str.rpartition("/")[2]
    return _opened(
        dataset,
        part,
        layout,
        labels,
        files,
        images,
        ignored=int((found["problem"] == OTHER).sum()),
    )


def read_parquet(
    dataset: Dataset,
    part: Part,
    layout: ParquetFiles,
    labels: Sequence[int],
    *,
    cache: Path,
    progress: Progress | None,
) -> Opened:
    """Read a part in Parquet files (see `parts.open_part`).

    Raises:
        NotHere: no image is of a requested class.
        BenchError: a file is damaged or lacks a column, or two rows have the same name and bytes.
    """
    assert dataset.folder is not None
    files, what = archives_at(dataset.folder, layout.path), f"{dataset.card.name} {layout.path}"
    named = "number" not in layout.named_by
    packed = pack_parquet(
        files, layout.image, layout.label, named=named, cache=cache_dir("packed"), progress=progress
    )

    def read() -> Opened:
        images = pd.read_parquet(packed / INDEX)
        images = images.assign(
            file=0, key=[f"{row:07d}/{name}" for row, name in enumerate(images["name"])]
        )
        # By the row in the original file and not by the offset in the copy, so that two parts which
        # read the same Parquet file are found to share its images.
        images["inode"] = numbers_in(files, *rows_in(files))
        # Names alone may repeat: a file from elsewhere may call every image the same.
        again = images[
            images.duplicated(["name", "sha256"], keep=False) & (images["problem"] != EMPTY)
        ]
        repeated = [
            f"{key} ({token})" for key, token in zip(again["key"], again["token"], strict=True)
        ]
        refuse(
            sorted(repeated, key=lambda text: text.partition("/")[2]),
            what,
            f"{_SAME_NAME} and have the same bytes",
        )
        return _opened(dataset, part, layout, labels, [packed / IMAGES], images)

    with in_cache(packed):
        if dataset.card.identity == "content":
            return read()
        return from_cache(
            dataset,
            part,
            layout,
            labels,
            [packed.name, (packed / IMAGES).stat().st_mtime_ns],
            read,
            cache,
        )


def _opened(
    dataset: Dataset,
    part: Part,
    layout: Tars | ParquetFiles,
    labels: Sequence[int],
    files: Sequence[Path],
    images: pd.DataFrame,
    ignored: int = 0,
) -> Opened:
    """Label the images of archives and make a collection of them."""
    what, listed = f"{dataset.card.name} {layout.path}", dataset.card.identity == "listing"
    chosen, remarks = labelled(dataset, labels, images, layout.named_by, what)
    # The time stamp of the archive stands for that of its images: if the archive is replaced, the
    # cached pixels of its listed images are not used again.
    stamps = np.array([file.stat().st_mtime_ns for file in files])
    chosen = chosen.assign(mtime_ns=stamps[chosen["file"].to_numpy()], ctime_ns=0, read_ns=0)
    collection = folder_collection(
        what, Path(), chosen, grouped=False, listed=listed, pre_crop=part.pre_crop, ignored=ignored
    )
    # `folder_collection` sorts by content and makes originals of plain files. They are replaced by
    # sections of the archives in the same order.
    rows = chosen.set_index("key").loc[collection.keys.tolist()]
    originals = ShardImages(
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
    """Return the archives of a card's path; those on a server are downloaded to the cache."""
    if not path.startswith(("http://", "https://")):
        files = archives_at(folder, path)
        require_some(files, path, folder)
        return files
    # A folder per pattern, since shards of different datasets have the same names.
    place = cache_dir("shards", hashlib.sha256(path.encode()).hexdigest()[:16])
    urls = expanded(path)
    return [
        download(Wanted([url]), place / url.rpartition("/")[2], progress=progress) for url in urls
    ]


def _sidecars(file: Path, index: pd.DataFrame) -> pd.Series[str]:
    """Return the content of `KEY.cls` for every file of the sample `KEY`, such as `KEY.jpg`."""
    # As WebDataset does: files with the same name up to the first dot are one sample.
    folder, name = index["name"].str.rpartition("/")[0], index["name"].str.rpartition("/")[2]
    sample = folder + "/" + name.str.partition(".")[0]
    sidecars = index[name.str.endswith(".cls")]
    again = sample[sidecars.index].duplicated(keep=False)
    refuse(sorted(sidecars["name"][again]), str(file), _SAME_NAME)
    with file.open("rb") as opened:
        contents = [
            read_at(opened.fileno(), offset, size).decode("utf-8-sig", "replace").strip()
            for offset, size in zip(sidecars["offset"], sidecars["size"], strict=True)
        ]
    classes = dict(zip(sample[sidecars.index], contents, strict=True))
    return sample.map(classes)
