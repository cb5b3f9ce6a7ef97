"""Open a suite on this machine, and load its splits on demand."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BenchError, MissingPrerequisite, UsageError
from ..storage.atomic import Progress
from .cards.labels import Projection
from .cards.locations import cache_dir, data_roots, find_root
from .cards.suite_card import ID_SPLITS, FolderSource, RenderedSource, SuiteCard
from .collection import (
    Collection,
    MergedOriginals,
    Originals,
    Rows,
    few,
    limited,
    rendered_collection,
)
from .corruptions.corrupted import BEFORE, CorruptedOriginals
from .duplicates import Repetition
from .indexing import WHOLE, Index, index_datasets, index_root, places
from .pixels.cache import cached_pixels
from .pixels.decoder import Pixels
from .pixels.image_bytes import UNREADABLE
from .readers.index_cache import divided, fingerprint_of
from .readers.same_file import refuse_parted
from .rendered import rendered_split
from .split import DecodedPixels, MappedPixels, Split, opened

__all__ = ["Split", "Suite", "open_suite"]

#: Splits whose pixels need more than this are decoded whenever they are read. ImageNet's training
#: images would take 193 GB at 224 pixels, its test images 7.5 GB.
_MOST_CACHED_BYTES = 40e9

#: Number of images per class, and the seed by which they are sampled.
Shots = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Decoded:
    """The decoded images of a collection.

    Attributes:
        file: .npy file of the pixels.
        position: (N,) row of the file, or -1 for images that are unreadable or were not requested.
    """

    file: Path
    position: Rows


class Suite:
    """A suite on this machine, as returned by `open_suite`.

    Attributes:
        card: the suite's card.
        split_names: `train`, `id-val`, `id-test` and all shifts, including missing ones.
        missing: reason for every missing shift (and for `train` and `id-val`, if the suite was
            opened without training).
        projections: shift -> how its label space maps to the suite's, where they differ.
        warnings: what the user should know about the data, one sentence each.
        id_names: names of the datasets that the ID images come from, prepared copies included.
        cut: whether the limit has left out an image of a loaded split.
        problems: every file that is not a plain image under its right name, with the columns
            `folder.COLUMNS`.
    """

    def __init__(
        self, index: Index, *, limit: int | None, skip_unreadable: int, progress: Progress | None
    ) -> None:
        self.card, self._index = index.card, index
        self.split_names = (*ID_SPLITS, *(shift.name for shift in self.card.shifts))
        self.missing, self.warnings, self.problems = index.missing, index.warnings, index.problems
        self.id_names = index.id_names
        self.projections: dict[str, Projection] = index.projections
        self.cut = False
        self._limit, self._skip, self._progress = limit, skip_unreadable, progress
        # Everything below is computed once per suite: a run, a sweep's worker and the guard load
        # the same splits again and again.
        self._equal: dict[tuple[str, str], int | None] = {}
        self._divisions: dict[str, dict[str, Rows]] = {}
        self._decoded: dict[tuple[int, int, Pixels], _Decoded] = {}
        self._splits: dict[tuple[str, Pixels, Shots | None], Split] = {}

    def load(self, split: str, pixels: Pixels, shots: Shots | None = None) -> Split:
        """Load a split with its pixels, which are decoded unless they are cached.

        Args:
            split: one of `split_names`.
            pixels: preprocessing of the backbone.
            shots: number of images to take of every class, and the seed by which they are sampled;
                None takes all.

        Raises:
            UsageError: there is no such split.
            MissingPrerequisite: the split is missing on this machine (see `missing`).
            BenchError: more images than allowed cannot be read; the first are listed with the
                reason.
        """
        self._check_name(split)
        pixels = self.pixels_of(split, pixels)
        if (split, pixels, shots) not in self._splits:
            self._splits[split, pixels, shots] = self._load(split, pixels, shots)
        return self._splits[split, pixels, shots]

    def fingerprint(self, split: str, pixels: Pixels, shots: Shots | None = None) -> str:
        """Return the fingerprint of a split from the index, without decoding its images.

        Raises:
            As `load`.
        """
        self._check_name(split)
        name = self._collection_of(split)
        collection, rows = self._collection(name), self._rows(split, shots)
        # Some damage shows only when an image is decoded. If unreadable images are left out, the
        # fingerprint depends on which ones.
        if self._skip or np.isin(collection.problems[rows], UNREADABLE).any():
            return self.load(split, pixels, shots).fingerprint
        return fingerprint_of(collection, rows)

    def count(self, split: str, shots: Shots | None = None) -> int:
        """Count the images of a split by the index, including unreadable ones.

        Raises:
            As `load`.
        """
        self._check_name(split)
        return len(self._rows(split, shots))

    def complete(self, split: str) -> bool:
        """Whether a split has as many images as its card states, and the limit leaves none out."""
        name = self._collection_of(split)
        stated = self._index.counts.get(name)
        return name == split and stated == len(self._division(name)[split]) == len(
            self._collection(name)
        )

    def leave_out_what_is_too_few(self) -> None:
        """Note train and id-val as missing if there are too few images to divide.

        For suites that are opened without training: a small copy can still be tested on.
        """
        if WHOLE in self._index.collections and "id-test" in self._index.places:
            try:
                self._division(WHOLE)
            except BenchError as why:
                self.missing.update(dict.fromkeys(("train", "id-val"), why.what))

    def miscounted(self, split: str) -> str:
        """Return a note on how many images there are and how many the card states, "" if equal."""
        return self._index.miscounted.get(self._collection_of(split), "")

    def ignored(self, split: str) -> int:
        """Count the files of a split's collection that are not images or belong to no class."""
        return self._collection(self._collection_of(split)).ignored

    def duplicates(self, splits: Sequence[str]) -> dict[str, int]:
        """Count the equal images within splits, and between them and train or id-val.

        Args:
            splits: names of splits; train and id-val are compared with the others if they are among
                them.

        Returns:
            `split` or `split in base` -> number of images. Pairs that were not compared are absent.
        """
        chosen_on = [name for name in ("train", "id-val") if name in splits]
        pairs = [(split, split) for split in splits]
        pairs += [
            (s, base)
            for n, base in enumerate(chosen_on)
            for s in splits
            if s not in chosen_on[: n + 1]
        ]
        for split, base in pairs:
            if (split, base) not in self._equal:
                self._equal[split, base] = self._repeated(split, base)
        found = {(s if s == base else f"{s} in {base}"): self._equal[s, base] for s, base in pairs}
        return {name: count for name, count in found.items() if count is not None}

    def _repeated(self, split: str, base: str) -> int | None:
        one, rows = self._collection(self._collection_of(split)), self._rows(split, None)
        if split == base:
            return self._index.equal.within(one, rows)
        return self._index.equal.among(
            one, self._collection(self._collection_of(base)), rows, self._rows(base, None)
        )

    def contents(self, split: str) -> NDArray[np.int64]:
        """Return `EqualImages.contents` of the images of a split, (N,)."""
        return self._index.equal.contents(self._collection(self._collection_of(split)))[
            self._rows(split, None)
        ]

    def compare(self) -> list[Repetition]:
        """Compare all images byte by byte, unless the result is cached.

        Returns:
            The equal images within and between splits, with the numbers that the cards state.

        Raises:
            BenchError: an image cannot be read.
        """
        for split in self.split_names:
            if split not in self.missing:
                self._collection(self._collection_of(split))
        self._index.equal.compare(list(self._index.collections.values()), self._progress)
        # Counts of before were None, or those of fewer collections.
        self._equal.clear()
        return self._index.repetitions()

    def pixels_of(self, split: str, pixels: Pixels) -> Pixels:
        """Return the preprocessing of a split: the backbone's, adapted to what the card states."""
        # The images of some shifts are already cropped (`cropped = true`): resizing them to more
        # than the crop and cropping again would cut off their borders.
        cropped = any(shift.cropped for shift in self.card.shifts if shift.name == split)
        return pixels.model_copy(update={"resize": pixels.size}) if cropped else pixels

    def _check_name(self, split: str) -> None:
        if split not in self.split_names:
            raise UsageError(
                f"no split {split!r}",
                where=f"suite {self.card.name}",
                fix=f"use one of {', '.join(self.split_names)}",
            )
        if split in self.missing:
            raise MissingPrerequisite(
                f"the images of {split} are missing",
                where=self.missing[split],
                fix=self._index.get_of(split),
            )

    def _load(self, split: str, pixels: Pixels, shots: Shots | None) -> Split:
        name = self._collection_of(split)
        collection, rows = self._collection(name), self._rows(split, shots)
        taken: MappedPixels | DecodedPixels
        # Three ways to get pixels, by what fits the cache: corrupted on the fly from cached clean
        # images, decoded on the fly, or cached as they are.
        if isinstance(collection.originals, CorruptedOriginals):
            # The clean images are decoded once for all corruptions. Their corrupted versions (75
            # for ImageNet-C) would fill a disk.
            made = collection.originals
            decoded = self._pixels(made.clean, BEFORE, rows)
            readable = rows[decoded.position[rows] >= 0]
            crops = MappedPixels(decoded.file, decoded.position)
            taken = DecodedPixels(dataclasses.replace(made, crops=crops), readable, pixels)
        elif (
            _are_corrupted(collection.originals)
            or len(rows) * pixels.size**2 * 3 > _MOST_CACHED_BYTES
        ):
            # Only damage that the index noticed can be skipped here. An image that turns out to be
            # damaged while it is decoded is an error of `DecodedPixels`.
            readable = rows[~np.isin(collection.problems[rows], UNREADABLE)]
            if len(rows) - len(readable) > self._skip:
                self._refuse(
                    collection,
                    {
                        int(row): str(collection.problems[row])
                        for row in np.setdiff1d(rows, readable)
                    },
                )
            taken = DecodedPixels(collection.originals, readable, pixels)
        else:
            # A suite with images of its own decodes all splits of a collection into one array. Of a
            # dataset only the requested split is decoded: its training images may be many, and
            # not be needed at all.
            whole = self.card.source is not None
            needed = np.sort(np.concatenate(list(self._division(name).values()))) if whole else rows
            decoded = self._pixels(collection, pixels, needed)
            readable = rows[decoded.position[rows] >= 0]
            taken = MappedPixels(decoded.file, decoded.position[readable])
        if not len(readable):
            raise BenchError("no image is left", where=f"suite {self.card.name}, split {split}")
        found = fingerprint_of(collection, readable)
        return Split(
            name=split,
            keys=collection.keys[readable],
            labels=collection.labels[readable],
            groups=None if collection.groups is None else collection.groups[readable],
            fingerprint=found,
            skipped=len(rows) - len(readable),
            size=pixels.size,
            pixels=pixels.name,
            decoder=pixels.decoder,
            cached_as=found if collection.stamps is None else _hash(collection.cached_as(readable)),
            _pixels=taken,
            _originals=collection.originals,
            _original_rows=readable,
        )

    def _collection_of(self, split: str) -> str:
        """Return the name of the collection that a split is, or is a part of."""
        return split if split in self._index.places else WHOLE

    def _collection(self, name: str) -> Collection:
        if name not in self._index.collections:
            source, (place,) = self.card.source, self._index.places[name]
            assert isinstance(source, RenderedSource), (
                "folders are indexed when the suite is opened"
            )
            # Rendered images are made on first use, and only then is their number known.
            made = rendered_split(
                source, place, cache=cache_dir("rendered"), progress=self._progress
            )
            collection = rendered_collection(place, made)
            if not np.isin(collection.labels, np.arange(len(self.card.classes))).all():
                raise BenchError(
                    "the world returned a label that is not the number of a class",
                    where=f"{source.world}, split {place}",
                )
            self._index.add(name, collection)
            self._index.check_counts([name], None)
        return self._index.collections[name]

    def _division(self, name: str) -> dict[str, Rows]:
        """Return the rows of every split of a collection, after the limit."""
        if name not in self._divisions:
            collection = self._collection(name)
            whole = {name: np.arange(len(collection), dtype=np.int64)}
            parts = divided(collection, self.card.id) if name == WHOLE else whole
            refuse_parted(collection, parts)
            self._divisions[name] = {
                split: limited(collection, rows, self._limit) for split, rows in parts.items()
            }
            self.cut |= any(
                len(self._divisions[name][split]) < len(rows) for split, rows in parts.items()
            )
        return self._divisions[name]

    def _rows(self, split: str, shots: Shots | None) -> Rows:
        name = self._collection_of(split)
        rows = self._division(name)[split]
        return rows if shots is None else few(self._collection(name), rows, *shots)

    def _pixels(self, collection: Collection, pixels: Pixels, needed: Rows) -> _Decoded:
        """Decode these rows, each distinct content once."""
        # The id is unique, since the index holds every collection as long as the suite lives.
        key = (id(collection), hash(needed.tobytes()), pixels)
        if key in self._decoded:
            return self._decoded[key]
        known_bad = np.isin(collection.problems[needed], UNREADABLE)
        reasons = {int(row): str(collection.problems[row]) for row in needed[known_bad]}
        wanted = needed[~known_bad]
        cached_as = collection.cached_as(wanted)
        # Sorted and distinct: the cache depends on neither the order nor the repetitions of the
        # images, so suites of the same images share one array.
        contents, first = np.unique(cached_as, return_index=True)
        cached = cached_pixels(
            [str(content) for content in contents],
            lambda row: opened(collection.originals, int(wanted[first[row]]), pixels.decoder),
            pixels,
            cache=cache_dir("pixels"),
            what=f"{self.card.name} {collection.what}",
            progress=self._progress,
        )
        position = np.full(len(collection), -1, dtype=np.int64)
        position[wanted] = np.searchsorted(contents, cached_as)
        # All images with an unreadable content are unreadable, each under its own name.
        for row in wanted[np.isin(position[wanted], list(cached.unreadable))]:
            reasons[int(row)] = cached.unreadable[int(position[row])]
            position[row] = -1
        if len(reasons) > self._skip:
            self._refuse(collection, reasons)
        self._decoded[key] = _Decoded(cached.path, position)
        return self._decoded[key]

    def _refuse(self, collection: Collection, reasons: dict[int, str]) -> None:
        named = [
            f"{collection.originals.place(row)} ({reason})"
            for row, reason in sorted(reasons.items())
        ]
        some = "; ".join(named[:5]) + (f"; and {len(named) - 5} more" if len(named) > 5 else "")
        raise BenchError(
            f"unreadable images in {self.card.name} {collection.what}: {len(named)} (allowed:"
            f" {self._skip})",
            where=some,
            fix=(
                f"restore the files, or leave them out with --skip-unreadable {len(named)} (the"
                " record counts them)"
            ),
        )


def _are_corrupted(originals: Originals) -> bool:
    """Whether these are several corrupted parts merged into one collection."""
    # `merged` accepts only parts of one treatment, so the first stands for all.
    return isinstance(originals, MergedOriginals) and isinstance(
        originals.parts[0], CorruptedOriginals
    )


def _hash(texts: NDArray[np.str_]) -> str:
    return hashlib.sha256("\n".join(texts.tolist()).encode()).hexdigest()


def open_suite(
    card: SuiteCard,
    *,
    card_path: Path | None = None,
    data_root: Path | None = None,
    limit: int | None = None,
    skip_unreadable: int = 0,
    training: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Suite:
    """Find and index the images of a suite, without decoding or rendering them.

    Args:
        card: the suite's card.
        card_path: file of the card, which a `source.root` such as `./images` is relative to.
        data_root: value of `--data-root`, searched before BENCH_DATA and the user configuration.
        limit: maximum number of images per split, balanced over the classes; changes fingerprints.
        skip_unreadable: maximum number of unreadable images of the ID data, and of every shift,
            that are left out.
        training: whether the suite will be trained on; if not, train and id-val may be missing.
        progress: called with what is done, how far, and out of how many.

    Raises:
        MissingPrerequisite: the ID images are missing.
        BenchError: class folders do not match the card, counts differ on a card with strict counts,
            or a file may not be read.
        UsageError: the limit is below 1, or `skip_unreadable` is negative.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"a split cannot be limited to {limit} images", where="--limit", fix="give at least 1"
        )
    if skip_unreadable < 0:
        raise UsageError(
            f"the number of images to skip cannot be {skip_unreadable}",
            where="--skip-unreadable",
            fix="give at least 0",
        )
    source, roots = card.source, data_roots(data_root)
    if isinstance(source, FolderSource):
        index = index_root(
            card, source, find_root(card, roots, card_path=card_path), progress, training=training
        )
    elif source is None:
        card_folder = card_path.parent if card_path is not None else None
        index = index_datasets(card, roots, card_folder, progress, training=training)
    else:
        index = Index(card, places(card))
        index.counts = {shift.name: shift.count for shift in card.shifts}
    suite = Suite(index, limit=limit, skip_unreadable=skip_unreadable, progress=progress)
    if not training:
        suite.leave_out_what_is_too_few()
    return suite
