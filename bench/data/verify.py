"""Compare a data set on this machine with its card: what is there, what is missing, what differs,
which images cannot be read.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BenchError
from ..storage.atomic import Progress
from .cards.data_set import Part
from .cards.locations import cache_dir
from .collection import Collection
from .equal import EqualImages, Repetition
from .pixels.cache import available_cores
from .pixels.image_bytes import UNREADABLE, Undecodable
from .readers.here import DataSet, NotHere
from .readers.parts import open_part
from .readers.same_file import shared_files

_MOST_NAMED = 5


@dataclass
class Verdict:
    """What was found of one part.

    Attributes:
        missing: why the part is not here; "" if it is.
        images, classes: counts of what is here.
        differences: sentences on what is not as the card says.
        remarks: what else a user should know.
        checksum: SHA-256 over name, class and pixels of all images, sorted; only if they were read.
        collection: the images that are here.
    """

    part: str
    missing: str = ""
    images: int = 0
    classes: int = 0
    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    checksum: str = ""
    collection: Collection | None = None

    @property
    def word(self) -> str:
        """`as stated`, `differs` or `missing`."""
        return "missing" if self.missing else "differs" if self.differences else "as stated"


def verify(data_set: DataSet, *, full: bool, progress: Progress | None = None) -> list[Verdict]:
    """Look at every file of every part anew, whatever is remembered of it, and compare the images
    with each other.

    Args:
        full: decode every image and hash the pixels, not only names, sizes and (for data sets that
            are identified by content) bytes.

    Raises:
        BenchError: an image cannot be read, or a file is more than one image of a part.
    """
    verdicts = [
        _verify_part(data_set, part, full=full, progress=progress) for part in data_set.card.parts
    ]
    here = [verdict for verdict in verdicts if verdict.collection is not None]
    equal = EqualImages(cache_dir("index"))
    equal.compare(
        [verdict.collection for verdict in here if verdict.collection is not None],
        progress,
        anew=True,
    )
    for number, verdict in enumerate(here):
        for other in here[: number + 1]:
            _compare(data_set.card.duplicates, equal, verdict, other)
    return verdicts


def _compare(stated: Mapping[str, int], equal: EqualImages, one: Verdict, other: Verdict) -> None:
    """Tell in the first verdict what equal images there are, and whether the card states as
    many.
    """
    assert one.collection is not None
    assert other.collection is not None
    if one is not other:
        shared = shared_files(one.collection, other.collection)
        if shared is None:  # a part of a part: the card says the same images in two ways
            return
        if shared:
            one.differences.append(
                f"{len(shared)} {'file is' if len(shared) == 1 else 'files are'} also in"
                f" {other.part}: {_some(shared)}"
            )
            return
    key, reverse = (
        one.part if one is other else f"{a.part} in {b.part}"
        for a, b in ((one, other), (other, one))
    )
    if reverse in stated:
        one, other, key = other, one, reverse
    mine, theirs = one.collection, other.collection
    assert mine is not None
    assert theirs is not None
    count = equal.within(mine) if one is other else equal.among(mine, theirs)
    if count:
        found = Repetition(key, count, stated.get(key, 0), equal.pairs(mine, theirs))
        (one.remarks if found.is_stated else one.differences).append(str(found))


def _verify_part(data_set: DataSet, part: str, *, full: bool, progress: Progress | None) -> Verdict:
    stated = data_set.card.parts[part]
    labels = list(range(len(data_set.classes)))
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as fresh:
        try:
            opened = open_part(data_set, part, labels, cache=Path(fresh), progress=progress)
        except NotHere as why:
            return Verdict(part, missing=str(why))
    collection = opened.collection
    counts = np.bincount(collection.labels, minlength=len(labels))
    verdict = Verdict(
        part, images=len(collection), classes=int((counts > 0).sum()), collection=collection
    )
    verdict.differences = _counts(stated, counts, data_set.classes.ids)
    for remark in opened.remarks:
        # Files that are misnamed or no images are oddities; what is missing or cannot be read is a
        # difference.
        harmless = any(
            note in remark for note in ("(ignored)", "(read all the same)", "(left out)")
        )
        (verdict.remarks if harmless else verdict.differences).append(remark)
    if full:
        verdict.checksum = _read_all(collection, verdict, progress)
    return verdict


def _counts(stated: Part, counts: NDArray[np.int64], ids: Sequence[str]) -> list[str]:
    found = []
    total = int(counts.sum())
    if stated.images is not None and total != stated.images:
        found.append(
            f"{total:,} images, the card says {stated.images:,} ({total - stated.images:+,})"
        )
    if stated.per_class is not None:
        least, most = (
            (stated.per_class, stated.per_class)
            if isinstance(stated.per_class, int)
            else stated.per_class
        )
        wrong = [
            f"{ids[label]} has {count}"
            for label, count in enumerate(counts.tolist())
            if count and not least <= count <= most
        ]
        if wrong:
            expected = str(least) if least == most else f"{least} to {most}"
            found.append(f"{len(wrong)} classes do not have {expected} images: {_some(wrong)}")
    return found


def _read_all(collection: Collection, verdict: Verdict, progress: Progress | None) -> str:
    """Decode every image; name those that cannot be, and give the checksum of all."""

    def one(row: int) -> tuple[str, str]:
        if collection.problems[row] in UNREADABLE:
            return "", ""  # told already
        try:
            pixels = collection.originals.open(row)
        except (Undecodable, BenchError) as error:
            return (
                "",
                (
                    f"{collection.originals.place(row)}"
                    f" ({error.what if isinstance(error, BenchError) else error})"
                ),
            )
        return hashlib.sha256(f"{pixels.size}\n".encode() + pixels.tobytes()).hexdigest(), ""

    lines, broken = [], []
    names = [str(key).rpartition("/")[2] for key in collection.keys]
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="verify")
    try:
        for row, (sha256, problem) in enumerate(pool.map(one, range(len(collection)))):
            lines.append(f"{names[row]} {collection.labels[row]} {sha256}\n")
            broken += [problem] if problem else []
            if progress is not None and ((row + 1) % 64 == 0 or row + 1 == len(collection)):
                progress(f"reading {verdict.part}", row + 1, len(collection))
    finally:
        pool.shutdown(cancel_futures=True)
    if broken:
        verdict.differences.append(f"{len(broken)} images cannot be read: {_some(broken)}")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_MOST_NAMED]) + (
        f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    )
