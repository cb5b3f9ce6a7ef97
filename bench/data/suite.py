"""A suite on this machine: its card, what is on disk, what is missing, and its splits on demand."""

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
from .equal import Repetition
from .indexing import WHOLE, Index, index_data_sets, index_root, places
from .pixels.cache import cached_pixels
from .pixels.decoder import Pixels
from .pixels.image_bytes import UNREADABLE
from .readers.kept import divided, fingerprint_of
from .readers.same_file import refuse_parted
from .rendered import rendered_split
from .split import DecodedPixels, MappedPixels, Split, opened

__all__ = ["Split", "Suite", "open_suite"]

#: Splits whose pixels need more than this are decoded whenever they are read (ImageNet's training
#: images: 193 GB).
_MOST_CACHED_BYTES = 40e9

#: Images per class, and the seed that draws them.
Shots = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A collection's images as pixels. position: (N,) row of the .npy file, -1 if unreadable or not
    asked for.
    """

    file: Path
    position: Rows


class Suite:
    """Made by `open_suite`.

    Attributes:
        card: what the suite is.
        split_names: `train`, `id-val`, `id-test` and the shifts, those that are missing included.
        holes: reason for every shift that is missing (and for `train` and `id-val`, if nobody will
            train).
        projections: shift -> how its label space lies in the suite's, where they differ.
        warnings: what the user should know about the data, one sentence each.
        id_names: the data sets whose images the ID images are, however they were prepared.
        cut: whether the limit has left out an image of a loaded split.
        problems: every file that is not a plain image under its right name: columns of
            `folder.COLUMNS`.
    """

    def __init__(
        self, index: Index, *, limit: int | None, skip_unreadable: int, progress: Progress | None
    ) -> None:
        self.card, self._index = index.card, index
        self.split_names = (*ID_SPLITS, *(shift.name for shift in self.card.shifts))
        self.holes, self.warnings, self.problems = index.holes, index.warnings, index.problems
        self.id_names = index.id_names
        self.projections: dict[str, Projection] = index.projections
        self.cut = False
        self._limit, self._skip, self._progress = limit, skip_unreadable, progress
        self._equal: dict[tuple[str, str], int | None] = {}
        self._divisions: dict[str, dict[str, Rows]] = {}
        self._decoded: dict[tuple[int, int, Pixels], _Decoded] = {}
        self._splits: dict[tuple[str, Pixels, Shots | None], Split] = {}

    def load(self, split: str, pixels: Pixels, shots: Shots | None = None) -> Split:
        """A split with its pixels, decoded now unless they are in the cache; kept in memory (as a
        memory map).

        Args:
            shots: how many images of every class to keep, and the seed that draws them.

        Raises:
            UsageError: there is no such split.
            MissingPrerequisite: the shift is missing on disk (see `holes`).
            BenchError: more images than allowed cannot be read, each named with its reason.
        """
        self._check_name(split)
        pixels = self.pixels_of(split, pixels)
        if (split, pixels, shots) not in self._splits:
            self._splits[split, pixels, shots] = self._load(split, pixels, shots)
        return self._splits[split, pixels, shots]

    def fingerprint(self, split: str, pixels: Pixels, shots: Shots | None = None) -> str:
        """The fingerprint of a split, from the index alone: no image is decoded.

        Only where unreadable images may be left out do the pixels tell which ones remain.

        Raises:
            As `load`.
        """
        self._check_name(split)
        name = self._collection_of(split)
        collection, rows = self._collection(name), self._rows(split, shots)
        if self._skip or np.isin(collection.problems[rows], UNREADABLE).any():
            return self.load(split, pixels, shots).fingerprint
        return fingerprint_of(collection, rows)

    def count(self, split: str, shots: Shots | None = None) -> int:
        """Count the images of a split by the index alone: unreadable ones are among them, and none
        is decoded.

        Raises:
            As `load`.
        """
        self._check_name(split)
        return len(self._rows(split, shots))

    def complete(self, split: str) -> bool:
        """Whether the card states how many images a split has, and they are all there and
        loaded.
        """
        name = self._collection_of(split)
        stated = self._index.counts.get(name)
        return name == split and stated == len(self._division(name)[split]) == len(
            self._collection(name)
        )

    def leave_out_what_is_too_few(self) -> None:
        """Where nobody trains, training images that are too few to hold id-val out are as good as
        missing.
        """
        if WHOLE in self._index.collections and "id-test" in self._index.places:
            try:
                self._division(WHOLE)
            except BenchError as why:
                self.holes.update(dict.fromkeys(("train", "id-val"), why.what))

    def miscounted(self, split: str) -> str:
        """How many images a split's collection has and how many the card states, where these
        differ; "" if they do not.
        """
        return self._index.miscounted.get(self._collection_of(split), "")

    def ignored(self, split: str) -> int:
        """How many files lie among the images of a split's collection that are none, or belong to
        no class.
        """
        return self._collection(self._collection_of(split)).ignored

    def duplicates(self, splits: Sequence[str]) -> dict[str, int]:
        """How many images of these splits repeat another of the split, and how many (`id-test in
        train`) are also in train or id-val where these are among the splits. What nobody has
        compared is not there.
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
        """See `EqualImages.contents`; of the images of a split."""
        return self._index.equal.contents(self._collection(self._collection_of(split)))[
            self._rows(split, None)
        ]

    def compare(self) -> list[Repetition]:
        """Compare all images byte by byte, as far as it has not been done before; it is kept for
        the runs to come.

        Returns:
            Where equal images are, and how many the cards state.

        Raises:
            BenchError: an image cannot be read.
        """
        for split in self.split_names:
            if split not in self.holes:
                self._collection(self._collection_of(split))
        self._index.equal.compare(list(self._index.collections.values()), self._progress)
        self._equal.clear()
        return self._index.repetitions()

    def pixels_of(self, split: str, pixels: Pixels) -> Pixels:
        """How the images of a split are brought to a backbone's input: as the backbone says, unless
        the card knows better.
        """
        cropped = any(shift.cropped for shift in self.card.shifts if shift.name == split)
        return pixels.model_copy(update={"resize": pixels.size}) if cropped else pixels

    def _check_name(self, split: str) -> None:
        if split not in self.split_names:
            raise UsageError(
                f"no split {split!r}",
                where=f"suite {self.card.name}",
                fix=f"one of {', '.join(self.split_names)}",
            )
        if split in self.holes:
            raise MissingPrerequisite(
                f"the images of {split} are missing",
                where=self.holes[split],
                fix=self._index.get_of(split),
            )

    def _load(self, split: str, pixels: Pixels, shots: Shots | None) -> Split:
        name = self._collection_of(split)
        collection, rows = self._collection(name), self._rows(split, shots)
        taken: MappedPixels | DecodedPixels
        if isinstance(collection.originals, CorruptedOriginals):
            # The clean images are decoded once for all corruptions; what a corruption makes of them
            # is too much to keep.
            made = collection.originals
            decoded = self._pixels(made.clean, BEFORE, rows)
            readable = rows[decoded.position[rows] >= 0]
            crops = MappedPixels(decoded.file, decoded.position)
            taken = DecodedPixels(dataclasses.replace(made, crops=crops), readable, pixels)
        elif (
            _are_corrupted(collection.originals)
            or len(rows) * pixels.size**2 * 3 > _MOST_CACHED_BYTES
        ):
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
            # Of a suite's own images all splits together; of data sets, whose training images may
            # be many and not asked for, the split's alone.
            together = self.card.source is not None
            needed = (
                np.sort(np.concatenate(list(self._division(name).values()))) if together else rows
            )
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
        return split if split in self._index.places else WHOLE

    def _collection(self, name: str) -> Collection:
        if name not in self._index.collections:
            source, (place,) = self.card.source, self._index.places[name]
            assert isinstance(source, RenderedSource), (
                "folders are indexed when the suite is opened"
            )
            made = rendered_split(
                source, place, cache=cache_dir("rendered"), progress=self._progress
            )
            collection = rendered_collection(place, made)
            if not np.isin(collection.labels, np.arange(len(self.card.classes))).all():
                raise BenchError(
                    "a label is not the number of a class", where=f"{source.world}, split {place}"
                )
            self._index.add(name, collection)
            self._index.check_counts([name], None)
        return self._index.collections[name]

    def _division(self, name: str) -> dict[str, Rows]:
        """The rows of every split of a collection, after the limit."""
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
        """These rows decoded, each distinct content once."""
        key = (id(collection), hash(needed.tobytes()), pixels)  # the index keeps every collection
        if key in self._decoded:
            return self._decoded[key]
        known_bad = np.isin(collection.problems[needed], UNREADABLE)
        reasons = {int(row): str(collection.problems[row]) for row in needed[known_bad]}
        wanted = needed[~known_bad]
        cached_as = collection.cached_as(wanted)
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
                "restore the files, or go on without them, counted in the record:"
                f" --skip-unreadable {len(named)}"
            ),
        )


def _are_corrupted(originals: Originals) -> bool:
    """Whether these are several corrupted parts as one: all of them are, then, since all are
    treated alike.
    """
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
    """Find a suite's images and index them; nothing is decoded or rendered yet.

    Args:
        card_path: file of the card, which a `source.root` such as `./images` is relative to.
        data_root: value of `--data-root`, searched before BENCH_DATA and the user configuration.
        limit: at most this many images per split, classes balanced; another limit is another
            fingerprint.
        skip_unreadable: how many images of the ID data, and of every shift, may be unreadable and
            are left out.
        training: whether somebody will train; without, training images and id-val may be missing
            like a shift.
        progress: called with what is done, how far, and out of how many.

    Raises:
        MissingPrerequisite: the ID images are not there.
        BenchError: class folders do not match the card; counts differ on a card with strict counts;
            a file is not readable for lack of permission.
        UsageError: a limit below 1 or a negative `skip_unreadable`.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} images are no split", where="--limit", fix="give at least 1")
    if skip_unreadable < 0:
        raise UsageError(
            f"{skip_unreadable} is no number of images",
            where="--skip-unreadable",
            fix="give at least 0",
        )
    source, roots = card.source, data_roots(data_root)
    if isinstance(source, FolderSource):
        index = index_root(
            card, source, find_root(card, roots, card_path=card_path), progress, training=training
        )
    elif source is None:
        beside = card_path.parent if card_path is not None else None
        index = index_data_sets(card, roots, beside, progress, training=training)
    else:
        index = Index(card, places(card))
        index.counts = {shift.name: shift.count for shift in card.shifts}
    suite = Suite(index, limit=limit, skip_unreadable=skip_unreadable, progress=progress)
    if not training:
        suite.leave_out_what_is_too_few()
    return suite
