"""Compare a dataset on this machine with its card."""

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
from .cards.dataset import Part
from .cards.locations import cache_dir
from .collection import Collection
from .duplicates import EqualImages, Repetition
from .pixels.cache import available_cores
from .pixels.image_bytes import UNREADABLE, Undecodable
from .readers.located import Dataset, NotHere
from .readers.parts import open_part
from .readers.same_file import shared_files

#: Items to list in a message; the rest is a number. Half a dataset may be missing.
_MOST_NAMED = 5


@dataclass
class PartCheck:
    """The result of comparing one part with its card.

    Attributes:
        part: name of the part.
        missing: why the part is missing; "" if it is not.
        images: number of images on this machine.
        classes: number of classes with images.
        differences: sentences on what differs from the card.
        remarks: what else a user should know.
        checksum: SHA-256 of name, class and pixels of all images, sorted; "" unless they were read.
        collection: the images on this machine.
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
        """Result in a word: `as stated`, `differs` or `missing`."""
        return "missing" if self.missing else "differs" if self.differences else "as stated"


def verify(dataset: Dataset, *, full: bool, progress: Progress | None = None) -> list[PartCheck]:
    """Compare all parts of a dataset with its card and with each other, ignoring cached indexes.

    Args:
        dataset: the dataset.
        full: decode every image and hash its pixels, instead of comparing only names, sizes and
            (for datasets that are identified by content) bytes.
        progress: called with what is done, how far, and out of how many.

    Raises:
        BenchError: an image cannot be read, or a file is more than one image of a part.
    """
    verdicts = [
        _verify_part(dataset, part, full=full, progress=progress) for part in dataset.card.parts
    ]
    here = [verdict for verdict in verdicts if verdict.collection is not None]
    # The real cache, unlike the index of `_verify_part`: later runs report what is found here.
    equal = EqualImages(cache_dir("index"))
    equal.compare(
        [verdict.collection for verdict in here if verdict.collection is not None],
        progress,
        force=True,
    )
    for number, verdict in enumerate(here):
        for other in here[: number + 1]:
            _compare(dataset.card.duplicates, equal, verdict, other)
    return verdicts


def _compare(
    stated: Mapping[str, int], equal: EqualImages, one: PartCheck, other: PartCheck
) -> None:
    """Add the equal images of two parts, or of one, to a check, as a remark or a difference."""
    assert one.collection is not None
    assert other.collection is not None
    if one is not other:
        shared = shared_files(one.collection, other.collection)
        # None: one part is contained in the other. The card describes the same images twice, as
        # with subsets, and that is no mistake.
        if shared is None:
            return
        if shared:
            one.differences.append(
                f"{len(shared)} {'file is' if len(shared) == 1 else 'files are'} also in"
                f" {other.part}: {_some(shared)}"
            )
            return
    # A card may state the pair in either direction, `test in train` or `train in test`. The counts
    # differ (two copies in one part may equal one image of the other), so its direction is used.
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


def _verify_part(
    dataset: Dataset, part: str, *, full: bool, progress: Progress | None
) -> PartCheck:
    stated = dataset.card.parts[part]
    labels = list(range(len(dataset.classes)))
    # An empty index makes the readers look at every file again, and leaves the real one as it is.
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as fresh:
        try:
            opened = open_part(dataset, part, labels, cache=Path(fresh), progress=progress)
        except NotHere as why:
            return PartCheck(part, missing=str(why))
    collection = opened.collection
    counts = np.bincount(collection.labels, minlength=len(labels))
    verdict = PartCheck(
        part, images=len(collection), classes=int((counts > 0).sum()), collection=collection
    )
    verdict.differences = _counts(stated, counts, dataset.classes.ids)
    for remark in opened.remarks:
        # Misnamed files and files that are not images do no harm. What is missing or unreadable is
        # a difference. Remarks are plain sentences; these marks are the readers' own (see
        # `readers.folder`).
        harmless = any(note in remark for note in ("(ignored)", "(read anyway)", "(left out)"))
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


def _read_all(collection: Collection, verdict: PartCheck, progress: Progress | None) -> str:
    """Decode every image, note those that fail, and return the checksum of all."""

    def one(row: int) -> tuple[str, str]:
        # The readers have already reported these.
        if collection.problems[row] in UNREADABLE:
            return "", ""
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
        # Pixels, not bytes: a copy that was compressed again without loss has the same checksum.
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
