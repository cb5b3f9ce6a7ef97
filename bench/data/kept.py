"""Large parts of data sets as arrays on disk: a million images are opened in milliseconds, and what nobody reads is not loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..identity import digest
from .card import InDistribution
from .collection import Collection, FolderOriginals, Rows, divide, fingerprint
from .folder import COLUMNS
from .sources import Opened
from .stored import stored_folder, write_text

#: Raised when the same listing gives another collection, division or fingerprint.
_VERSION: Final = 1
_ARRAYS: Final = ("keys", "labels", "content", "problems", "stamps", "sizes")


def kept(cache: Path, name: str, stamp: str, make: Callable[[], Opened]) -> Opened:
    """A part of a data set in class folders: from the cache if it was made from the same listing, else made now and kept.

    Args:
        cache: folder of remembered listings. name: of what is made, apart from the files.
        stamp: of the listing that it is made from; another one replaces what is kept.
        make: only called when nothing is kept; what it returns is not grouped.
    """
    folder = cache / f"{name}.collection"
    wanted = digest([_VERSION, stamp])
    stored_folder(folder, lambda part: _write(part, make(), wanted), lambda at: _stamp_of(at) == wanted)
    return _read(folder)


def _write(folder: Path, opened: Opened, stamp: str) -> None:
    collection = opened.collection
    originals = collection.originals
    assert isinstance(originals, FolderOriginals), "of class folders"
    arrays = (collection.keys, collection.labels, collection.content, collection.problems, collection.stamps, originals.sizes)
    for name, array in zip(_ARRAYS, arrays, strict=True):
        assert array is not None
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    opened.problems.to_parquet(folder / "problems.parquet", index=False)
    about = {
        "stamp": stamp,
        "what": collection.what,
        "root": str(originals.root),
        "pre_crop": originals.pre_crop,
        "treatment": collection.treatment,
        "remarks": opened.remarks,
    }
    write_text(folder / "about.json", json.dumps(about))


def _stamp_of(folder: Path) -> str:
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return str(about["stamp"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read(folder: Path) -> Opened:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    arrays: dict[str, NDArray[Any]] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    originals = FolderOriginals(Path(about["root"]), arrays["keys"], None, arrays["sizes"], about["pre_crop"])
    collection = Collection(
        what=about["what"],
        keys=arrays["keys"],
        labels=arrays["labels"],
        groups=None,
        content=arrays["content"],
        problems=arrays["problems"],
        originals=originals,
        stamps=arrays["stamps"],
        listed=True,
        treatment=about["treatment"],
        kept_in=folder,
    )
    problems = pd.read_parquet(folder / "problems.parquet")
    return Opened(collection, list(about["remarks"]), problems[list(COLUMNS)])


def divided(collection: Collection, id_data: InDistribution) -> dict[str, Rows]:
    """As `collection.divide`, which takes a second for a million images: kept beside a collection that is kept."""
    if collection.kept_in is None:
        return divide(collection, id_data)
    how = {**id_data.model_dump(), "sklearn": version("scikit-learn")}
    folder = collection.kept_in / f"division-{digest(how)[:16]}"
    names = ("train", "id-val") if id_data.path is None else ("train", "id-val", "id-test")

    def build(part: Path) -> None:
        for name, rows in divide(collection, id_data).items():
            np.save(part / f"{name}.npy", rows, allow_pickle=False)

    stored_folder(folder, build, lambda at: all((at / f"{name}.npy").is_file() for name in names))
    return {name: np.load(folder / f"{name}.npy") for name in names}


def fingerprint_of(collection: Collection, rows: Rows) -> str:
    """As `collection.fingerprint`, kept in the same way."""
    if collection.kept_in is None:
        return fingerprint(collection, rows)
    chosen = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
    file = collection.kept_in / f"fingerprint-{digest([collection.treatment, chosen])[:32]}.txt"
    try:
        known = file.read_text(encoding="utf-8")
    except OSError:
        known = ""
    if len(known) != 64:
        known = fingerprint(collection, rows)
        write_text(file, known)
    return known
