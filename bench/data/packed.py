"""Parts of data sets whose images lie many to a file: tar archives and Parquet files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ..errors import BenchError
from .archive import archives_at, expanded, index_archive, read_at, require_some
from .collection import decode_unchanged, folder_collection
from .data_set import ParquetFiles, Part, Tars
from .download import Wanted, download
from .folder import COLUMNS, remarks_on
from .ground_truth import read_truth
from .image_bytes import OTHER, SYSTEM
from .locations import cache_dir
from .parquet import pack_parquet
from .sources import DataSet, NotHere, Opened
from .stored import Progress


@dataclass(eq=False)
class PackedOriginals:
    """Images in files that hold many: image i is `sizes[i]` bytes from `offsets[i]` on of `files[file[i]]`.

    Attributes:
        content: what their SHA-256 has to be; None if only the file's size and time stamp are compared.
        pre_crop: pixels that are cut from every side, before anything else.
    """

    files: Sequence[Path]
    file: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.str_]
    content: NDArray[np.str_] | None
    pre_crop: int = 0
    _stamps: list[tuple[int, int]] = field(default_factory=list)
    _descriptors: dict[int, int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._stamps = [_stamp(os.stat(file)) for file in self.files]

    def open(self, row: int) -> Image.Image:
        """Raises Undecodable, or BenchError if the file is gone or has changed since it was indexed."""
        number = int(self.file[row])
        try:
            data = read_at(self._descriptor(number), int(self.offsets[row]), int(self.sizes[row]))
        except OSError as error:
            raise BenchError(f"it cannot be read: {error.strerror}", where=str(self.files[number])) from error
        except EOFError:
            data = b""
        content = None if self.content is None else str(self.content[row])
        return decode_unchanged(data, int(self.sizes[row]), content, self.pre_crop, where=self.place(row))

    def place(self, row: int) -> str:
        """The file, and the image's name in it."""
        return f"{self.files[int(self.file[row])]}: {self.keys[row]}"

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._descriptors:
                descriptor = os.open(self.files[number], os.O_RDONLY)
                if _stamp(os.fstat(descriptor)) != self._stamps[number]:
                    os.close(descriptor)
                    raise BenchError("the file changed while it was in use", where=str(self.files[number]))
                self._descriptors[number] = descriptor
            return self._descriptors[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptors": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def read_tars(
    data_set: DataSet, part: Part, layout: Tars, labels: Sequence[int], *, cache: Path, progress: Progress | None
) -> Opened:
    """See `sources.open_part`."""
    assert data_set.folder is not None
    files = _shards(data_set.folder, layout.path, progress)
    read = data_set.card.identity == "content"
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
    stems = images["name"].str.rpartition("/")[2].str.rpartition(".")[0]
    if layout.class_in == "list":
        truth = read_truth(_list(data_set.folder, layout), stems.tolist())
        images["token"] = stems.map(truth)
    elif layout.class_in == "archive":
        images["token"] = inner[images.index].str.rpartition("/")[2].str.removesuffix(".tar")
    elif layout.class_in == "folder":
        images["token"] = images["name"].str.rpartition("/")[0].str.rpartition("/")[2]
    return _opened(data_set, part, layout, labels, files, images)


def read_parquet(
    data_set: DataSet, part: Part, layout: ParquetFiles, labels: Sequence[int], *, progress: Progress | None
) -> Opened:
    """See `sources.open_part`."""
    assert data_set.folder is not None
    files = archives_at(data_set.folder, layout.path)
    named = "number" not in layout.named_by
    packed, images = pack_parquet(files, layout.image, layout.label, named=named, cache=cache_dir("packed"), progress=progress)
    images = images.assign(file=0, key=[f"{row:07d}/{name}" for row, name in enumerate(images["name"])])
    return _opened(data_set, part, layout, labels, [packed], images)


def _opened(
    data_set: DataSet,
    part: Part,
    layout: Tars | ParquetFiles,
    labels: Sequence[int],
    files: Sequence[Path],
    images: pd.DataFrame,
) -> Opened:
    card, what = data_set.card, f"{data_set.card.name} {layout.path}"
    tokens = sorted(set(images["token"].dropna()))
    numbers = data_set.classes.labels_of(tokens, layout.named_by)
    wanted = {token: labels[number] for token, number in numbers.items() if labels[number] >= 0}
    if not wanted:
        raise NotHere(f"{card.title}: no image of a known class in {what}")
    chosen = images[images["token"].isin(list(wanted))].copy()
    chosen["folder"] = chosen["token"]
    chosen["label"] = chosen["token"].map(wanted).astype("int64")
    chosen["class"] = chosen["token"].map({token: data_set.classes.ids[number] for token, number in numbers.items()})
    # An archive that is replaced has another time stamp, and so have the decoded pixels that are kept of it.
    stamps = np.array([file.stat().st_mtime_ns for file in files])
    chosen = chosen.assign(group=-1, mtime_ns=stamps[chosen["file"].to_numpy()], ctime_ns=0, read_ns=0)
    listed = card.identity == "listing"
    collection = folder_collection(what, Path(), chosen, grouped=False, listed=listed, pre_crop=part.pre_crop)
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
    remarks = _class_remarks(what, data_set, tokens, numbers) + remarks_on(chosen, what)
    return Opened(dataclasses.replace(collection, originals=originals), remarks, chosen[chosen["problem"] != ""][list(COLUMNS)])


def _class_remarks(what: str, data_set: DataSet, tokens: Sequence[str], numbers: dict[str, int]) -> list[str]:
    remarks = []
    missing = [data_set.classes.ids[number] for number in sorted(set(range(len(data_set.classes))) - set(numbers.values()))]
    if missing:
        remarks.append(f"{what}: {len(missing)} of {len(data_set.classes)} classes have no image: {', '.join(missing[:5])}")
    extra = [token for token in tokens if token not in numbers]
    if extra:
        remarks.append(f"{what}: {len(extra)} labels are none of its classes (left out): {', '.join(extra[:5])}")
    return remarks


def _shards(folder: Path, path: str, progress: Progress | None) -> list[Path]:
    if not path.startswith(("http://", "https://")):
        files = archives_at(folder, path)
        require_some(files, path, folder)
        return files
    place = cache_dir("shards", hashlib.sha256(path.encode()).hexdigest()[:16])
    urls = expanded(path)
    return [download(Wanted([url]), place / url.rpartition("/")[2], progress=progress) for url in urls]


def _list(folder: Path, layout: Tars) -> Path:
    for name in layout.lists:
        if (folder / name).exists():
            return folder / name
    raise NotHere(f"{folder / layout.path} is here, but no list of its classes: {', '.join(layout.lists)}")


def _sidecars(file: Path, index: pd.DataFrame) -> pd.Series[str]:
    """The content of `KEY.cls` for every image `KEY.jpg`: WebDataset takes all files up to the first dot for one sample."""
    folder, name = index["name"].str.rpartition("/")[0], index["name"].str.rpartition("/")[2]
    sample = folder + "/" + name.str.partition(".")[0]
    beside = index[name.str.endswith(".cls")]
    with file.open("rb") as opened:
        contents = [
            read_at(opened.fileno(), offset, size).decode("utf-8", "replace").strip()
            for offset, size in zip(beside["offset"], beside["size"], strict=True)
        ]
    classes = dict(zip(sample[beside.index], contents, strict=True))
    return sample.map(classes)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
