"""A suite on this machine: its card, what is on disk, what is missing, and its splits on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import BenchError, MissingPrerequisite, UsageError
from .card import FolderSource, RenderedSource, SuiteCard
from .collection import Collection, Rows, divide, duplicates, fingerprint, folder_collection, limited, rendered_collection
from .folder import class_images, has_images, index_folder
from .image_bytes import EMPTY, UNREADABLE
from .locations import cache_dir, data_roots, find_root
from .pixel_cache import cached_pixels
from .pixels import Pixels
from .rendered import rendered_split
from .split import MappedPixels, Split
from .stored import Progress

__all__ = ["Split", "Suite", "open_suite"]

_ID_SPLITS = ("train", "id-val", "id-test")
#: Name of the collection of ID images that the card's seed divides.
_WHOLE = "ID data"


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A collection's images as pixels. position: (N,) row of the .npy file, -1 if unreadable or not asked for."""

    file: Path
    position: Rows


class Suite:
    """Made by `open_suite`.

    Attributes:
        card: what the suite is.
        split_names: `train`, `id-val`, `id-test` and the shifts, those that are missing included.
        holes: reason for every shift that is missing.
        warnings: what the user should know about the data, one sentence each.
        cut: whether the limit has left out an image of a loaded split.
        problems: every file that is not a plain image under its right name: columns of `folder.COLUMNS`.
        root: folder of the images; None for a rendered suite.
    """

    def __init__(
        self,
        card: SuiteCard,
        root: Path | None,
        *,
        limit: int | None,
        skip_unreadable: int,
        progress: Progress | None,
    ) -> None:
        self.card, self.root = card, root
        self.split_names = (*_ID_SPLITS, *(shift.name for shift in card.shifts))
        self.holes: dict[str, str] = {}
        self.warnings: list[str] = []
        self.cut = False
        self.problems = pd.DataFrame()
        self._limit, self._skip, self._progress = limit, skip_unreadable, progress
        self._paths = _paths(card)
        self._collections: dict[str, Collection] = {}
        self._divisions: dict[str, dict[str, Rows]] = {}
        self._decoded: dict[tuple[str, Pixels], _Decoded] = {}
        self._splits: dict[tuple[str, Pixels], Split] = {}

    def load(self, split: str, pixels: Pixels) -> Split:
        """A split with its pixels, decoded now unless they are in the cache; kept in memory (as a memory map).

        Raises:
            UsageError: there is no such split.
            MissingPrerequisite: the shift is missing on disk (see `holes`).
            BenchError: more images than allowed cannot be read, each named with its reason.
        """
        if split not in self.split_names:
            raise UsageError(f"no split {split!r}", where=f"suite {self.card.name}", fix=f"one of {', '.join(self.split_names)}")
        if split in self.holes:
            raise MissingPrerequisite(f"the shift {split} is missing", where=self.holes[split], fix=self.card.get)
        if (split, pixels) not in self._splits:
            self._splits[split, pixels] = self._load(split, pixels)
        return self._splits[split, pixels]

    def _load(self, split: str, pixels: Pixels) -> Split:
        name = self._collection_of(split)
        collection, rows = self._collection(name), self._division(name)[split]
        decoded = self._pixels(name, pixels)
        readable = rows[decoded.position[rows] >= 0]
        if not len(readable):
            raise BenchError("no image is left", where=f"suite {self.card.name}, split {split}")
        return Split(
            name=split,
            keys=collection.keys[readable],
            labels=collection.labels[readable],
            groups=None if collection.groups is None else collection.groups[readable],
            fingerprint=fingerprint(collection, readable),
            skipped=len(rows) - len(readable),
            size=pixels.size,
            _pixels=MappedPixels(decoded.file, decoded.position[readable]),
            _originals=collection.originals,
            _original_rows=readable,
        )

    def _collection_of(self, split: str) -> str:
        return _WHOLE if _WHOLE in self._paths and split in _ID_SPLITS else split

    def _collection(self, name: str) -> Collection:
        if name not in self._collections:
            source = self.card.source
            assert isinstance(source, RenderedSource), "folders are indexed when the suite is opened"
            made = rendered_split(source, self._paths[name], cache=cache_dir("rendered"), progress=self._progress)
            collection = rendered_collection(self._paths[name], made)
            if not np.isin(collection.labels, np.arange(len(self.card.classes))).all():
                raise BenchError("a label is not the number of a class", where=f"{source.world}, split {self._paths[name]}")
            self._add(name, collection)
            self._check_counts({name: len(collection)})
        return self._collections[name]

    def _division(self, name: str) -> dict[str, Rows]:
        """The rows of every split of a collection, after the limit."""
        if name not in self._divisions:
            collection = self._collection(name)
            whole = {name: np.arange(len(collection), dtype=np.int64)}
            parts = divide(collection, self.card.id) if name == _WHOLE else whole
            self._divisions[name] = {split: limited(collection, rows, self._limit) for split, rows in parts.items()}
            self.cut |= any(len(self._divisions[name][split]) < len(rows) for split, rows in parts.items())
        return self._divisions[name]

    def _pixels(self, name: str, pixels: Pixels) -> _Decoded:
        """Decode what the splits of a collection need, each distinct content once."""
        if (name, pixels) in self._decoded:
            return self._decoded[name, pixels]
        collection = self._collection(name)
        needed = np.sort(np.concatenate(list(self._division(name).values())))
        known_bad = np.isin(collection.problems[needed], UNREADABLE)
        reasons = {int(row): str(collection.problems[row]) for row in needed[known_bad]}
        wanted = needed[~known_bad]
        contents, first = np.unique(collection.content[wanted], return_index=True)
        cached = cached_pixels(
            [str(content) for content in contents],
            lambda row: collection.originals.open(int(wanted[first[row]])),
            pixels,
            cache=cache_dir("pixels"),
            what=f"{self.card.name} {name}",
            progress=self._progress,
        )
        position = np.full(len(collection), -1, dtype=np.int64)
        position[wanted] = np.searchsorted(contents, collection.content[wanted])
        for row in wanted[np.isin(position[wanted], list(cached.unreadable))]:
            reasons[int(row)] = cached.unreadable[int(position[row])]
            position[row] = -1
        if len(reasons) > self._skip:
            self._refuse(collection, reasons)
        self._decoded[name, pixels] = _Decoded(cached.path, position)
        return self._decoded[name, pixels]

    def _refuse(self, collection: Collection, reasons: dict[int, str]) -> None:
        named = [f"{self._place(collection, row)} ({reason})" for row, reason in sorted(reasons.items())]
        some = "; ".join(named[:5]) + (f"; and {len(named) - 5} more" if len(named) > 5 else "")
        raise BenchError(
            f"unreadable images in {self.card.name} {collection.what}: {len(named)} (allowed: {self._skip})",
            where=some,
            fix=f"restore the files, or go on without them, counted in the record: --skip-unreadable {len(named)}",
        )

    def _place(self, collection: Collection, row: int) -> str:
        return str(self.root / str(collection.keys[row])) if self.root is not None else str(collection.keys[row])

    def _index(self, source: FolderSource, root: Path) -> None:
        """Index all folders; find holes and what the user should know."""
        problems: list[pd.DataFrame] = []
        for name, part in self._paths.items():
            hole = "" if (root / part).is_dir() else f"no folder {root / part}"
            if not hole:
                index = index_folder(root, part, cache=cache_dir("index"), progress=self._progress)
                hole = "" if has_images(index) else f"no image below {root / part}"
            if hole and (name in _ID_SPLITS or name == _WHOLE):
                raise MissingPrerequisite(f"the ID images of {self.card.title} are missing", where=hole, fix=self.card.get)
            if hole:
                self.holes[name] = hole
                continue
            images, remarks = class_images(index, part, self.card.class_folders, source.groups)
            self.warnings += remarks
            problems.append(index[index["problem"] != ""])
            self._add(name, folder_collection(part, root, images, grouped=source.groups is not None))
        self.problems = pd.concat(problems, ignore_index=True)
        self._check_counts({name: len(collection) for name, collection in self._collections.items()})
        self._compare_contents()

    def _add(self, name: str, collection: Collection) -> None:
        self._collections[name] = collection
        repeated, contradictory = duplicates(collection)
        if repeated:
            together = "; they stay on one side of the ID division" if name == _WHOLE else ""
            self.warnings.append(f"{collection.what}: {repeated} images repeat another's content{together}")
        if contradictory:
            self.warnings.append(f"{collection.what}: {contradictory} contents appear under more than one class")

    def _check_counts(self, found: dict[str, int]) -> None:
        stated = {shift.name: shift.count for shift in self.card.shifts} | {_WHOLE: self.card.id.count}
        wrong = [
            f"{self._paths[name]} holds {count} images, the card says {stated[name]}"
            for name, count in found.items()
            if stated.get(name) not in (None, count)
        ]
        if wrong and self.card.strict_counts:
            raise BenchError(
                f"these are not the images of {self.card.title}: {'; '.join(wrong)}",
                where=str(self.root or self.card.name),
                fix="complete the copy, or use the card that describes it (`bench suites`)",
            )
        self.warnings += wrong

    def _compare_contents(self) -> None:
        """Warn of test images that are also ID images (of ready-made splits: in train)."""
        base = _WHOLE if _WHOLE in self._collections else "train"
        seen: NDArray[np.str_] = self._collections[base].content
        for name, collection in self._collections.items():
            shared = int(np.isin(collection.content[collection.problems != EMPTY], seen).sum())
            if shared and name != base:
                what, where = collection.what, self._collections[base].what
                self.warnings.append(f"{what}: {shared} images are also in {where} (same bytes)")


def open_suite(
    card: SuiteCard,
    *,
    card_path: Path | None = None,
    data_root: Path | None = None,
    limit: int | None = None,
    skip_unreadable: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Suite:
    """Find a suite's images and index them; nothing is decoded or rendered yet.

    Args:
        card_path: file of the card, which a `source.root` such as `./images` is relative to.
        data_root: value of `--data-root`, searched before BENCH_DATA and the user configuration.
        limit: at most this many images per split, classes balanced; another limit is another fingerprint.
        skip_unreadable: how many images of the ID data, and of every shift, may be unreadable and are left out.
        progress: called with what is done, how far, and out of how many.

    Raises:
        MissingPrerequisite: the ID images are not there.
        BenchError: class folders do not match the card; counts differ on a card with strict counts; a file is not readable
            for lack of permission.
        UsageError: a limit below 1 or a negative `skip_unreadable`.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} images are no split", where="--limit", fix="give at least 1")
    if skip_unreadable < 0:
        raise UsageError(f"{skip_unreadable} is no number of images", where="--skip-unreadable", fix="give at least 0")
    source = card.source
    if not isinstance(source, FolderSource):
        return Suite(card, None, limit=limit, skip_unreadable=skip_unreadable, progress=progress)
    root = find_root(card, data_roots(data_root), card_path=card_path)
    suite = Suite(card, root, limit=limit, skip_unreadable=skip_unreadable, progress=progress)
    suite._index(source, root)
    return suite


def _paths(card: SuiteCard) -> dict[str, str]:
    """Folder or rendered split of every collection."""
    ready = dict(zip(_ID_SPLITS, (card.id.train, card.id.val, card.id.test), strict=True))
    paths = {name: path for name, path in ready.items() if path is not None} if card.id.path is None else {_WHOLE: card.id.path}
    return paths | {shift.name: shift.path for shift in card.shifts}
