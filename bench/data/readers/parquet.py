"""Hugging Face Parquet files of images: copied once, as they are, into one file from which any
image can be read at once.
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
from ...storage.atomic import Progress, stored_folder
from ..fetching.download import check_space
from ..pixels import image_bytes
from ..pixels.image_bytes import EMPTY

IMAGES: Final = "images.bin"
INDEX: Final = "index.parquet"

_VERSION: Final = 1
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
    """A folder with a file of all images (`IMAGES`), and a table of where every image lies in it
    (`INDEX`).

    Parquet is compressed in groups of many rows: reading one image means reading its group. So the
    images are copied to the cache, byte by byte the same, in one pass.

    Args:
        image: column of the images: encoded bytes, or a struct with `bytes` and `path` as Hugging
            Face writes them.
        label: column of the class: a number, or its name or identity.
        named: give the names that the files have for the numbers (`ClassLabel`), not the numbers.

    Returns:
        The folder. The table's columns: `name` (file name of the original where it is known),
            `offset`, `size`, `token` (the
        label as text), `sha256`, `format`, `problem`.

    Raises:
        BenchError: a file is no Parquet file or lacks the columns, or the disk is too small.
    """
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

    def build(part: Path) -> None:
        check_space(
            part, sum(size for _, size, _ in stamps), "copying the images of the Parquet files"
        )
        _copy(files, image, label, named, part, progress)

    stored_folder(
        folder, build, lambda at: (at / IMAGES).is_file() and (at / INDEX).is_file(), progress
    )
    return folder


def rows_in(files: Sequence[Path]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the files every row of the table is of, and its number there."""
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
    rows: list[tuple[object, ...]] = []
    offset = 0
    with (part / IMAGES).open("wb") as packed:
        for number, file in enumerate(files, start=1):
            try:
                opened = pq.ParquetFile(file)
                missing = {image, label} - set(opened.schema_arrow.names)
                if missing:
                    raise BenchError(
                        f"no column {', '.join(sorted(missing))}",
                        where=str(file),
                        fix="mend the data set's card",
                    )
                names = _class_names(opened, label) if named else {}
                for batch in opened.iter_batches(_ROWS, columns=[image, label]):
                    entries = batch.to_pylist()
                    _check_embedded([entry[image] for entry in entries], image, file)
                    for entry in entries:
                        data, name = _image(entry[image], f"{file.stem}-{len(rows):07d}")
                        token = names.get(entry[label], str(entry[label]))
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
    """Raise BenchError if all of these values only say where images are on somebody's machine."""
    if values and all(
        isinstance(one, str) or (isinstance(one, dict) and one.get("path") and not one.get("bytes"))
        for one in values
    ):
        raise BenchError(
            f"the column {image} holds paths of images and no images",
            where=str(file),
            fix=(
                "write it again with the images in it: datasets' `embed_external_files`, or"
                " `push_to_hub`"
            ),
        )


def _image(value: object, default: str) -> tuple[bytes, str]:
    """Bytes and file name of an image."""
    if not isinstance(value, dict):
        return (value if isinstance(value, bytes) else b""), default
    name = str(value.get("path") or default).rpartition("/")[2]
    data = value.get("bytes")
    return (data if isinstance(data, bytes) else b""), name


def _class_names(opened: object, label: str) -> dict[object, str]:
    """What the numbers of the label column mean, where the file's own description says it
    (`ClassLabel`).
    """
    import json

    metadata = opened.schema_arrow.metadata or {}  # type: ignore[attr-defined]
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return {number: str(name) for number, name in enumerate(names)}
    except (KeyError, ValueError, TypeError):
        return {}
