"""Make a copy of a dataset with smaller images in tar shards, which is read faster."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from ..errors import BenchError, UsageError
from ..identity import digest
from ..storage.atomic import Progress, sync, write_text
from ..storage.files import toml_of
from .cards.locations import cache_dir
from .collection import Collection, fingerprint
from .pixels.cache import available_cores
from .pixels.image_bytes import UNREADABLE, Undecodable
from .readers.located import Dataset, NotHere, present_layout
from .readers.parts import open_part

#: Images per shard. An interrupted run loses the shard that it was writing, and no more.
SHARD: Final = 2000

#: Part of the digest in `_claim`: increase it when the same input gives other files.
_VERSION: Final = 1


@dataclass(frozen=True)
class Preparation:
    """How images are made smaller.

    Attributes:
        size: short side in pixels, resized as for evaluation (PIL, bicubic, antialiased). Smaller
            images keep their size.
        lossless: write PNG, so that a recipe that resizes to `size` gets the same pixels as from
            the originals; otherwise JPEG.
        quality: quality of the JPEG files.
    """

    size: int
    lossless: bool = False
    quality: int = 95

    @property
    def name(self) -> str:
        """Name for files and cards, such as `short256-jpeg95`."""
        return f"short{self.size}-" + ("png" if self.lossless else f"jpeg{self.quality}")


def prepare(
    dataset: Dataset,
    parts: Sequence[str],
    how: Preparation,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Path:
    """Write shards of the parts and a card below `folder`; skip shards that are complete.

    The labels stay the same: every image is in a folder named after its class's identity. The
    images do not (names and sizes, or bytes), so the copy has another fingerprint, and its fits and
    scores are never mistaken for those of the originals.

    Args:
        dataset: the originals.
        parts: names of the parts to copy.
        how: size and format of the copies.
        folder: target folder; created if it does not exist.
        progress: called with what is done, how far, and out of how many.

    Returns:
        Path of the copy's card.

    Raises:
        UsageError: a part is unknown, or the size is below 1.
        BenchError: a part is missing, an image cannot be read, a shard cannot be written, or
            `folder` holds another preparation.
    """
    unknown = sorted(set(parts) - set(dataset.card.parts))
    if unknown or how.size < 1:
        raise UsageError(
            (
                f"{dataset.card.name} has no part {', '.join(unknown)}"
                if unknown
                else f"the size must be at least 1 pixel, not {how.size}"
            ),
            fix=f"the parts are {', '.join(dataset.card.parts)}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    labels = list(range(len(dataset.classes)))
    for part in parts:
        try:
            collection = open_part(
                dataset, part, labels, cache=cache_dir("index"), progress=progress
            ).collection
        except NotHere as why:
            raise BenchError(f"{part} of {dataset.card.title} is missing", where=str(why)) from why
        _claim(folder / f"{part}.json", how, collection)
        _shards(collection, part, dataset.classes.ids, how, folder, progress)
    # Last, when all shards are there: a copy without a card cannot be used by mistake.
    card = folder / f"{dataset.card.name}-{how.name}.toml"
    text = _card(dataset, parts, how)
    write_text(card, text)
    return card


def _shards(
    collection: Collection,
    part: str,
    ids: Sequence[str],
    how: Preparation,
    folder: Path,
    progress: Progress | None,
) -> None:
    # Before anything is written: a copy with images left out would be another dataset.
    bad = [row for row in range(len(collection)) if collection.problems[row] in UNREADABLE]
    if bad:
        named = ", ".join(collection.originals.place(row) for row in bad[:5])
        raise BenchError(
            f"{len(bad)} images cannot be read",
            where=named,
            fix="list all of them with `bench data verify`, and restore them",
        )
    # In the order of the originals' paths, so that neighbours in a folder are neighbours in a shard
    # and the originals are read in sequence.
    order = np.argsort(collection.keys, kind="stable")
    names = _names(collection, ids, order, how)
    starts = range(0, len(order), SHARD)
    digits = max(5, len(str(len(starts))))

    def encoded(position: int) -> bytes:
        row = int(order[position])
        try:
            return _encoded(collection.originals.open(row), how)
        except Undecodable as error:
            raise BenchError(
                f"the image cannot be read: {error}", where=collection.originals.place(row)
            ) from error

    # Threads decode and encode; only this one writes, since a tar file has one end. `pool.map`
    # returns the images in order.
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="prepare")
    try:
        for number, start in enumerate(starts):
            shard = folder / f"{part}-{number:0{digits}d}.tar"
            stop = min(start + SHARD, len(order))
            if not shard.exists():
                # Written under another name and renamed when complete: what has the name of a shard
                # is whole, and the next run skips it.
                written = folder / f"{shard.name}.part"
                try:
                    # PAX: names in UTF-8 of any length. The members have no time or owner, so the
                    # same images give the same shard.
                    with tarfile.open(written, "w", format=tarfile.PAX_FORMAT) as tar:
                        for position, data in zip(
                            range(start, stop), pool.map(encoded, range(start, stop)), strict=True
                        ):
                            info = tarfile.TarInfo(names[position])
                            info.size = len(data)
                            tar.addfile(info, io.BytesIO(data))
                            if progress is not None and position % 64 == 0:
                                progress(f"preparing {part}", position, len(order))
                    sync(written)
                    os.replace(written, shard)
                except OSError as error:
                    written.unlink(missing_ok=True)
                    raise BenchError(
                        f"{shard.name} cannot be written: {error.strerror}",
                        where=str(folder),
                        fix=(
                            "free some space and run the same command again, which continues; or"
                            " choose another folder with --out"
                        ),
                    ) from error
            if progress is not None:
                progress(f"preparing {part}", stop, len(order))
    finally:
        pool.shutdown(cancel_futures=True)


def _claim(note: Path, how: Preparation, collection: Collection) -> None:
    """Note what the shards of a part are made from, or refuse a folder that notes otherwise.

    Existing shards may be reused only if they were made from the same images in the same way.
    Pillow's version is part of that: another one may encode other bytes.
    """
    made = digest(
        [
            _VERSION,
            PIL.__version__,
            how.name,
            fingerprint(collection, np.arange(len(collection))),
            SHARD,
        ]
    )
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made:
        raise BenchError(
            "the folder has shards of another preparation",
            where=str(note.parent),
            fix="choose another folder with --out",
        )
    write_text(note, json.dumps(made))


def _names(
    collection: Collection, ids: Sequence[str], order: NDArray[np.int64], how: Preparation
) -> list[str]:
    """Return `class/file name` of every image in a shard.

    Where names differ only in suffix or folder, the second and later ones are numbered.
    """
    seen: Counter[str] = Counter()
    names = []
    for row in order.tolist():
        file = str(collection.keys[row]).rpartition("/")[2]
        stem = f"{ids[collection.labels[row]]}/{file.rpartition('.')[0]}"
        seen[stem] += 1
        names.append(
            stem
            + (f"-{seen[stem]}" if seen[stem] > 1 else "")
            + (".png" if how.lossless else ".jpg")
        )
    return names


def _encoded(image: Image.Image, how: Preparation) -> bytes:
    width, height = image.size
    short = min(width, height)
    if short > how.size:
        # Rounded down, as torchvision's `Resize` does: the pixels of a lossless copy have to be
        # those of a recipe that resizes the original.
        size = tuple(
            how.size if side == short else int(how.size * side / short) for side in (width, height)
        )
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if how.lossless:
        # Level 3 of zlib: files are a little larger than at the default 6, in less time.
        image.save(file, "PNG", compress_level=3)
    else:
        image.save(file, "JPEG", quality=how.quality)
    return file.getvalue()


def _card(dataset: Dataset, parts: Sequence[str], how: Preparation) -> str:
    """Return the copy's card as TOML; parts that were not prepared are read from the originals."""
    card = dataset.card
    made: dict[str, Any] = {
        "name": f"{card.name}-{how.name}",
        "title": f"{card.title}, short side {how.size} ({how.name})",
        **{key: getattr(card, key) for key in ("licence", "citation", "homepage", "identity")},
        "made_of": card.made_of or card.name,
        "folders": ["."],
        "classes": _classes(dataset),
        # Equal images stay equal, since each goes through the same steps.
        "duplicates": {
            where: count
            for where, count in card.duplicates.items()
            if {*where.split(" in ")} <= {*parts}
        },
        "parts": {},
    }
    for name, part in card.parts.items():
        stated: dict[str, Any] = {} if part.images is None else {"images": part.images}
        if name in parts:
            layout: dict[str, Any] = {"kind": "tar", "path": f"{name}-*.tar"}
        else:
            found = (
                present_layout(part, dataset.folder, dataset.classes)
                if dataset.folder is not None
                else None
            )
            # A part that is not on this machine has no path that the card could name.
            if found is None or dataset.folder is None:
                continue
            layout = _absolute(
                {"kind": found.kind} | found.model_dump(exclude_defaults=True), dataset.folder
            )
            stated |= {"pre_crop": part.pre_crop} if part.pre_crop else {}
        made["parts"][name] = stated | {"layouts": [layout]}
    return f"# Made by `bench data prepare {card.name}`, version {_VERSION}.\n{toml_of(made)}"


def _classes(dataset: Dataset) -> str | tuple[str, ...]:
    """Return the classes as on the card; a list next to the card as an absolute path."""
    classes = dataset.card.classes
    if (
        isinstance(classes, str)
        and classes.endswith((".tsv", ".txt"))
        and dataset.card_folder is not None
    ):
        return str((dataset.card_folder / classes).resolve())
    return classes


def _absolute(layout: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the table of a layout with absolute paths, for a card in another folder."""

    def absolute(path: str) -> str:
        return path if path.startswith(("http://", "https://")) else str(folder / path)

    placed = dict(layout)
    for key in ("path", "images", "labels"):
        if key in placed:
            placed[key] = absolute(placed[key])
    for key in ("more", "lists"):
        if key in placed:
            placed[key] = [absolute(path) for path in placed[key]]
    # The only layout whose image folder has a default, the folder of the dataset, which has to be
    # written out here.
    if layout["kind"] == "table":
        placed["images"] = absolute(layout.get("images", "."))
        if layout.get("join"):
            placed["join"] = layout["join"] | {"path": absolute(layout["join"]["path"])}
    return placed
