"""Bring a data set to this machine as its card says: download, check, unpack, and only then give it its name."""

from __future__ import annotations

import shutil
import urllib.parse
from pathlib import Path

from ...errors import BenchError, MissingPrerequisite
from ...storage.atomic import sync
from ...storage.cache import Progress, made_by_one
from ..cards.data_set import Archive, DataSetCard
from .download import Wanted, check_space, download
from .unpack import unpack


def fetch_data_set(
    card: DataSetCard, root: Path, *, asked: str = "", keep_archives: bool = False, progress: Progress | None = None
) -> Path:
    """Make `root/<the card's usual folder>`; the same call again continues one that was stopped.

    Everything on the way lies in `root/.NAME.fetch`, so that the data set's folder is whole or not there at all.

    Args:
        root: folder that holds data sets; made if it is not there.
        asked: what it was asked for by, for commands in messages: its name (default), or its card's file.
        keep_archives: whether the archives stay in `root/archives`.

    Raises:
        MissingPrerequisite: the data are behind a licence or a login; the message has the steps.
        BenchError: the folder is there already, an archive cannot be had, is wrong, damaged or unsafe, or the disk is too small.
    """
    if not card.fetch.archives:
        steps = card.fetch.steps.strip() or f"see {card.homepage or 'the home page of the data set'}"
        raise MissingPrerequisite(
            f"{card.title} cannot be fetched by a program",
            where=f"licence: {card.licence}",
            fix=f"{steps}\n  then: bench data link {asked or card.name} /folder/of/it",
        )
    target, staging = root / card.folders[0], root / f".{card.name}.fetch"
    if target.exists():
        raise BenchError(f"{card.title} is here already", where=str(target), fix=f"bench data verify {asked or card.name}")
    staging.mkdir(parents=True, exist_ok=True)
    with made_by_one(staging, progress):
        known = [archive.bytes or 0 for archive in card.fetch.archives]
        check_space(root, sum(size + _unpacked(a) for size, a in zip(known, card.fetch.archives, strict=True)), card.title)
        for number, archive in enumerate(card.fetch.archives):
            _bring(archive, staging, number, progress)
        whole = staging / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        for number, archive in enumerate(card.fetch.archives):
            _merge(staging / f"part-{number}", whole / archive.into)
        if keep_archives:
            _merge(staging / "downloads", root / "archives")
        sync(whole)
        whole.rename(target)
        sync(root)
        shutil.rmtree(staging, ignore_errors=True)
    Path(f"{staging}.lock").unlink(missing_ok=True)
    return target


def _bring(archive: Archive, staging: Path, number: int, progress: Progress | None) -> None:
    """Download and unpack one archive into `part-NUMBER`; that folder is there only once it is complete."""
    done = staging / f"part-{number}"
    if done.is_dir():
        return
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(archive.urls[0]).path)).name or f"download-{number}"
    file = staging / "downloads" / name
    if archive.kind != "file" and archive.password:
        raise MissingPrerequisite(f"{name} is encrypted", fix="unpack it by hand, then `bench data link`")
    wanted = Wanted(archive.urls, archive.bytes, archive.sha256, archive.md5, page=archive.kind == "file")
    download(wanted, file, reserve=_unpacked(archive), progress=progress)
    unpacking = staging / f"part-{number}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir()
    if archive.kind == "file":
        shutil.copy2(file, unpacking / name)
    else:
        try:
            unpack(file, archive.kind, unpacking, strip=archive.strip, unpacked_bytes=archive.unpacked_bytes, progress=progress)
        except BenchError:
            # What is wrong with the archive stays wrong: the next attempt starts from a new download.
            shutil.rmtree(unpacking, ignore_errors=True)
            file.unlink(missing_ok=True)
            raise
    unpacking.rename(done)


def _unpacked(archive: Archive) -> int:
    """Bytes that the archive's content will take; images are as large in an archive as outside."""
    return archive.unpacked_bytes or archive.bytes or 0


def _merge(source: Path, target: Path) -> None:
    """Move everything in `source` into `target`."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if place.is_dir() and entry.is_dir():
            _merge(entry, place)
        elif place.exists():
            raise BenchError(f"two archives hold the same file: {entry.name}", where=str(place))
        else:
            entry.rename(place)
