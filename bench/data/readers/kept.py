"""Large parts of data sets as arrays on disk: a million images are opened at once, and what nobody
reads is not loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...identity import digest
from ...storage.atomic import in_cache, stored_folder, write_text, write_with
from ..cards.data_set import Layout, Part
from ..cards.suite_card import InDistribution
from ..collection import Collection, FolderOriginals, Originals, Rows, divide, fingerprint
from ..pixels import image_bytes
from . import listing
from .folder import COLUMNS
from .here import DataSet, Opened
from .packed_originals import PackedOriginals

#: Raised when the same listing gives another collection, division or fingerprint.
_VERSION: Final = 3
_ABOUT: Final = "about.json"


def kept(
    data_set: DataSet,
    part: Part,
    layout: Layout,
    labels: Sequence[int],
    made_of: object,
    make: Callable[[], Opened],
    cache: Path,
) -> Opened:
    """A listed part of a data set: from the cache if it was made of the same files, else made now,
    and kept if it is large.

    Args:
        part, layout, labels: as in `parts.open_part`.
        made_of: what changes with the files (canonical JSON): the stamp of a listing, or sizes and
            time stamps of archives.
        make: called unless it is kept; what it returns has no groups.
        cache: folder of remembered listings. A folder there is never replaced by another part:
            others may have mapped it, and add divisions and fingerprints to it.
    """
    card, classes = data_set.card, data_set.classes
    asked = [
        card.name,
        str(data_set.folder),
        layout.model_dump(),
        part.pre_crop,
        list(labels),
        classes.ids,
        classes.names,
    ]
    folder = cache / f"{digest([*asked, made_of, _VERSION, image_bytes.VERSION])[:32]}.collection"
    if not _is_whole(folder):
        opened = make()
        if len(opened.collection) < listing.TRUSTED_FROM:
            return opened
        stored_folder(folder, lambda place: _write(place, opened), _is_whole)
    with in_cache(folder):
        return _read(folder)


def _write(folder: Path, opened: Opened) -> None:
    collection, originals = opened.collection, opened.collection.originals
    assert isinstance(originals, FolderOriginals | PackedOriginals)
    for name in ("keys", "labels", "content", "problems", "stamps", "files", "distinct_files"):
        np.save(folder / f"{name}.npy", getattr(collection, name), allow_pickle=False)
    for name in (
        ("sizes", "file", "offsets") if isinstance(originals, PackedOriginals) else ("sizes",)
    ):
        np.save(folder / f"{name}.npy", getattr(originals, name), allow_pickle=False)
    opened.problems.to_parquet(folder / "problems.parquet", index=False)
    about = {
        "what": collection.what,
        "root": str(originals.root) if isinstance(originals, FolderOriginals) else None,
        "files": (
            [str(file) for file in originals.files]
            if isinstance(originals, PackedOriginals)
            else None
        ),
        "pre_crop": originals.pre_crop,
        "treatment": collection.treatment,
        "ignored": collection.ignored,
        "listing": collection.listing,
        "remarks": opened.remarks,
    }
    write_text(folder / _ABOUT, json.dumps(about))


def _is_whole(folder: Path) -> bool:
    return (folder / _ABOUT).is_file()


def _read(folder: Path) -> Opened:
    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    arrays: dict[str, NDArray[Any]] = {
        file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")
    }
    keys, sizes, pre_crop = arrays["keys"], arrays["sizes"], int(about["pre_crop"])
    originals: Originals
    if about["files"] is None:
        originals = FolderOriginals(Path(about["root"]), keys, None, sizes, pre_crop)
    else:
        files = [Path(file) for file in about["files"]]
        originals = PackedOriginals(
            files, arrays["file"], arrays["offsets"], sizes, keys, None, pre_crop
        )
    collection = Collection(
        what=about["what"],
        keys=keys,
        labels=arrays["labels"],
        groups=None,
        content=arrays["content"],
        problems=arrays["problems"],
        originals=originals,
        stamps=arrays["stamps"],
        listed=True,
        treatment=about["treatment"],
        ignored=about["ignored"],
        kept_in=folder,
        files=arrays["files"],
    )
    # What takes a second to compute is kept, too.
    vars(collection).update(distinct_files=arrays["distinct_files"], listing=about["listing"])
    problems = pd.read_parquet(folder / "problems.parquet")
    return Opened(collection, list(about["remarks"]), problems[list(COLUMNS)])


def divided(collection: Collection, id_data: InDistribution) -> dict[str, Rows]:
    """As `collection.divide`, which takes a second for a million images: kept beside a collection
    that is kept.
    """
    if collection.kept_in is None:
        return divide(collection, id_data)
    how = {**id_data.model_dump(), "sklearn": version("scikit-learn")}
    file = collection.kept_in / f"division-{digest(how)[:16]}.npz"
    if not file.is_file():
        parts = divide(collection, id_data)
        write_with(file, lambda place: _save(place, parts))
    with np.load(file) as stored:
        return dict(stored)


def _save(file: Path, parts: dict[str, Any]) -> None:
    with file.open("wb") as opened:
        np.savez(opened, **parts)


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
