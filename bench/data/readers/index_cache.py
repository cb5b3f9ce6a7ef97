"""Cache large listed parts as memory-mapped arrays, so that a million images open in a second.

ImageNet's listing, order, division and fingerprints take about 11 seconds of CPU to compute, on
every start of every run. Mapped arrays are shared between processes and loaded only where read.
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
from ...storage.atomic import cached_folder, in_cache, write_text, write_with
from ..cards.dataset import Layout, Part
from ..cards.suite_card import InDistribution
from ..collection import Collection, FolderOriginals, Originals, Rows, divide, fingerprint
from ..pixels import image_bytes
from . import listing
from .folder import COLUMNS
from .located import Dataset, Opened
from .shard_images import ShardImages

#: Part of the cache key; raise it when the same listing gives another collection, division or
#: fingerprint.
_VERSION: Final = 3
#: Written last: a folder without it is incomplete.
_ABOUT: Final = "about.json"


def from_cache(
    dataset: Dataset,
    part: Part,
    layout: Layout,
    labels: Sequence[int],
    made_of: object,
    make: Callable[[], Opened],
    cache: Path,
) -> Opened:
    """Return a listed part from the cache, or make it, and cache it if it is large.

    Args:
        dataset: dataset of the part.
        part: part as on the dataset's card.
        layout: layout that is read.
        labels: label of every class, as in `parts.open_part`.
        made_of: a JSON value that changes with the files, such as the stamp of a listing, or sizes
            and time stamps of archives.
        make: called if the part is not cached; its result must not have groups.
        cache: folder of cached listings.
    """
    # The folder's name is a hash of everything that the result depends on. So a folder never
    # changes its meaning: other processes may have mapped it, and add divisions and fingerprints.
    card, classes = dataset.card, dataset.classes
    requested = [
        card.name,
        str(dataset.folder),
        layout.model_dump(),
        part.pre_crop,
        list(labels),
        classes.ids,
        classes.names,
    ]
    folder = (
        cache / f"{digest([*requested, made_of, _VERSION, image_bytes.VERSION])[:32]}.collection"
    )
    if not _is_whole(folder):
        opened = make()
        if len(opened.collection) < listing.TRUSTED_FROM:
            return opened
        cached_folder(folder, lambda place: _write(place, opened), _is_whole)
    with in_cache(folder):
        return _read(folder)


def _write(folder: Path, opened: Opened) -> None:
    collection, originals = opened.collection, opened.collection.originals
    assert isinstance(originals, FolderOriginals | ShardImages)
    for name in ("keys", "labels", "content", "problems", "stamps", "files", "distinct_files"):
        np.save(folder / f"{name}.npy", getattr(collection, name), allow_pickle=False)
    for name in ("sizes", "file", "offsets") if isinstance(originals, ShardImages) else ("sizes",):
        np.save(folder / f"{name}.npy", getattr(originals, name), allow_pickle=False)
    opened.problems.to_parquet(folder / "problems.parquet", index=False)
    # The paths are absolute, so a folder of the cache belongs to one place on disk; the dataset's
    # folder and the archives' paths are part of its name.
    about = {
        "what": collection.what,
        "root": str(originals.root) if isinstance(originals, FolderOriginals) else None,
        "files": (
            [str(file) for file in originals.files] if isinstance(originals, ShardImages) else None
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
        originals = ShardImages(
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
        cache_folder=folder,
        files=arrays["files"],
    )
    # These cached properties take a second to compute. Setting them in the instance's dictionary
    # is what `cached_property` does, and works although the class is frozen.
    vars(collection).update(distinct_files=arrays["distinct_files"], listing=about["listing"])
    problems = pd.read_parquet(folder / "problems.parquet")
    return Opened(collection, list(about["remarks"]), problems[list(COLUMNS)])


def divided(collection: Collection, id_data: InDistribution) -> dict[str, Rows]:
    """Divide a collection as `collection.divide` does, and cache the result.

    Dividing a million images takes a second. The result is stored with a collection that is itself
    in the cache, and computed again for others.
    """
    if collection.cache_folder is None:
        return divide(collection, id_data)
    # scikit-learn's version as well, since its splitters may change between releases.
    how = {**id_data.model_dump(), "sklearn": version("scikit-learn")}
    file = collection.cache_folder / f"division-{digest(how)[:16]}.npz"
    if not file.is_file():
        parts = divide(collection, id_data)
        write_with(file, lambda place: _save(place, parts))
    with np.load(file) as stored:
        return dict(stored)


def _save(file: Path, parts: dict[str, Any]) -> None:
    with file.open("wb") as opened:
        np.savez(opened, **parts)


def fingerprint_of(collection: Collection, rows: Rows) -> str:
    """Return the fingerprint of rows as `collection.fingerprint` does, cached like a division."""
    if collection.cache_folder is None:
        return fingerprint(collection, rows)
    chosen = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
    file = (
        collection.cache_folder / f"fingerprint-{digest([collection.treatment, chosen])[:32]}.txt"
    )
    try:
        known = file.read_text(encoding="utf-8")
    except OSError:
        known = ""
    # A SHA-256 in hexadecimal digits; anything else is a missing or damaged file.
    if len(known) != 64:
        known = fingerprint(collection, rows)
        write_text(file, known)
    return known
