"""Copy the images of Hugging Face Parquet files into one file that can be read at random.

Parquet is compressed in groups of many rows, so reading one image means reading its whole group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...errors import BenchError
from ...identity import digest
from ...storage.atomic import Progress, cached_folder
from ..fetching.download import check_space
from ..pixels import image_bytes
from ..pixels.image_bytes import EMPTY

#: Files of a copy: the images one after another, and where each of them is.
IMAGES: Final = "images.bin"
INDEX: Final = "index.parquet"

#: Part of the cache key; raise it when the same files give another copy.
_VERSION: Final = 1
#: Rows decoded at a time, which bounds the memory: a row group may have gigabytes of images.
_ROWS: Final = 64


def pack_parquet(
    files: Sequence[Path],
    image: str,
    label: str,
    *,
    named: bool = False,
    cache: Path,
    progress: Progress | None = None,
) -> Path:
    """Copy images from Parquet files to the cache, unless they are there, and return the folder.

    The images keep their bytes.

    Args:
        files: the Parquet files.
        image: column of the images: encoded bytes, or a struct with `bytes` and `path` as Hugging
            Face writes them.
        label: column of the class: a number, or its name or identity.
        named: whether to use the names of the classes in the files (`ClassLabel`) instead of their
            numbers.
        cache: folder of such copies.
        progress: called with the number of copied files.

    Returns:
        The folder with the images (`IMAGES`) and a table (`INDEX`). Its columns are `name` (file
        name of the original, if known), `offset`, `size`, `token` (the label as text), `sha256`,
        `format` and `problem`.

    Raises:
        BenchError: a file cannot be read or lacks the columns, or there is not enough disk space.
    """
    # Sizes and time stamps, not content: hashing would read all files on every start.
    stamps = [
        (str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    key = digest(
        {
            "files": stamps,
            "image": image,
            "label": label,
            "named": named,
            "version": [_VERSION, image_bytes.VERSION],
        }
    )
    folder = cache / key[:32]

    # The images are encoded, so Parquet hardly compresses them: the copy is as large as the files.
    def build(part: Path) -> None:
        check_space(
            part, sum(size for _, size, _ in stamps), "copying the images of the Parquet files"
        )
        _copy(files, image, label, named, part, progress)

    cached_folder(
        folder, build, lambda at: (at / IMAGES).is_file() and (at / INDEX).is_file(), progress
    )
    return folder


def rows_in(files: Sequence[Path]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the file and the number of the row in it, (N,) each, of every image."""
    # From the footers, without reading any image.
    counts = [pq.read_metadata(file).num_rows for file in files]
    return np.repeat(np.arange(len(files)), counts), np.concatenate(
        [np.arange(count) for count in counts]
    )


def _copy(
    files: Sequence[Path],
    image: str,
    label: str,
    named: bool,
    part: Path,
    progress: Progress | None,
) -> None:
    """Write the images and their table to the folder `part`."""
    rows: list[tuple[object, ...]] = []
    offset = 0
    with (part / IMAGES).open("wb") as packed:
        for number, file in enumerate(files, start=1):
            try:
                opened = pq.ParquetFile(file)
                missing = {image, label} - set(opened.schema_arrow.names)
                if missing:
                    raise BenchError(
                        f"the Parquet file has no column {', '.join(sorted(missing))}",
                        where=str(file),
                        fix="fix `image` and `label` on the dataset's card",
                    )
                names = _class_names(opened, label) if named else {}
                for batch in opened.iter_batches(_ROWS, columns=[image, label]):
                    entries = batch.to_pylist()
                    _check_embedded([entry[image] for entry in entries], image, file)
                    for entry in entries:
                        data, name = _image(entry[image], f"{file.stem}-{len(rows):07d}")
                        token = names.get(entry[label], str(entry[label]))
                        # A row without an image is counted as empty, so that rows of the table and
                        # of the files correspond (see `rows_in`).
                        judged = image_bytes.inspect(data, name) if data else ("", EMPTY)
                        rows.append(
                            (
                                name,
                                offset,
                                len(data),
                                token,
                                hashlib.sha256(data).hexdigest(),
                                *judged,
                            )
                        )
                        packed.write(data)
                        offset += len(data)
            except (pa.ArrowInvalid, OSError) as error:
                raise BenchError(
                    f"the Parquet file cannot be read: {error}", where=str(file)
                ) from error
            if progress is not None:
                progress("copying Parquet files", number, len(files))
    columns = ["name", "offset", "size", "token", "sha256", "format", "problem"]
    pd.DataFrame(rows, columns=columns).to_parquet(part / INDEX, index=False)


def _check_embedded(values: Sequence[object], image: str, file: Path) -> None:
    """Raise BenchError if all values are paths on another machine and none has an image's bytes."""
    # If only some rows are like this, they are reported as empty images instead.
    if values and all(
        isinstance(one, str) or (isinstance(one, dict) and one.get("path") and not one.get("bytes"))
        for one in values
    ):
        raise BenchError(
            f"the column {image} has paths of images instead of images",
            where=str(file),
            fix=(
                "write the file again with the images embedded, by `embed_external_files` or"
                " `push_to_hub` of the package datasets"
            ),
        )


def _image(value: object, default: str) -> tuple[bytes, str]:
    """Return the bytes and the file name of an image; no bytes if there is none."""
    if not isinstance(value, dict):
        return (value if isinstance(value, bytes) else b""), default
    name = str(value.get("path") or default).rpartition("/")[2]
    data = value.get("bytes")
    return (data if isinstance(data, bytes) else b""), name


def _class_names(opened: object, label: str) -> dict[object, str]:
    """Return number -> name of the label column, from the file's `ClassLabel` if it has one."""
    import json

    # The `datasets` package describes its features in the schema's metadata. Files of others lack
    # it, and then the labels are used as they are.
    metadata = opened.schema_arrow.metadata or {}  # type: ignore[attr-defined]
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return {number: str(name) for number, name in enumerate(names)}
    except (KeyError, ValueError, TypeError):
        return {}
