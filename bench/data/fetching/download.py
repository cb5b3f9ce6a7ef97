"""Download files and datasets: resumable, from several mirrors, checked and all or nothing.

Libraries do not cover this: huggingface_hub resumes only files of its own hub, and pooch and
torch.hub start over after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests
from rich.filesize import decimal as size

from ...errors import BenchError, MissingPrerequisite
from ...storage.atomic import Progress, made_by_one, sync, write_text
from ..cards.dataset import Archive, DatasetCard
from .unpack import unpack

#: Seconds to wait for a connection, and for the next bytes.
TIMEOUT: Final = (15.0, 60.0)

#: Attempts at one address without a single new byte before the next address is tried. An attempt
#: that gets further starts the count again: a bad line may drop a 150 GB file a hundred times.
ATTEMPTS: Final = 4
#: Seconds to wait after the first fruitless attempt; longer after the next ones.
PAUSE: Final = 2.0

_BLOCK = 1 << 20
#: Bytes to leave free on the disk, for the notes and whatever else writes there.
_SPARE_BYTES = 64 << 20
#: Login forms and "quota exceeded" pages are often sent with status 200 and a binary content type.
_PAGE = re.compile(
    rb"^\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE
)


class BadAddress(Exception):
    """An address did not return the file; the message is the reason. Another one may."""


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Attributes:
        urls: official address first, then mirrors.
        bytes: size, if known.
        sha256: hexadecimal SHA-256, or "" if none was published.
        md5: hexadecimal MD5, or "" if none was published.
        page: whether the file may be a web page, which an archive never is.
    """

    urls: Sequence[str]
    bytes: int | None = None
    sha256: str = ""
    md5: str = ""
    page: bool = False


def download(
    wanted: Wanted, target: Path, *, reserve: int = 0, progress: Progress | None = None
) -> Path:
    """Download a file to `target`, which appears only when it is complete and checked.

    An interrupted download stays next to the target as `NAME.part` and is resumed by the next call.
    `NAME.part.json` notes which version of the server's file it comes from. If that has changed,
    the download starts over.

    Args:
        wanted: the file.
        target: where to put it; returned at once if it exists.
        reserve: bytes that have to stay free in addition, for what is unpacked from the file.
        progress: called with what is done, the bytes so far, and their number (0 if unknown).

    Returns:
        `target`.

    Raises:
        BenchError: no address returned the file (with the reason for each), or the disk is too
            small.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with made_by_one(target, progress):
        # Checked under the lock: another process may have downloaded it while this one waited.
        if target.is_file():
            return target
        reasons = []
        for url in wanted.urls:
            try:
                _bring(wanted, url, target, reserve, progress)
                return target
            except BadAddress as reason:
                reasons.append(f"{url}: {reason}")
    raise BenchError(
        f"{target.name} cannot be downloaded",
        where="; ".join(reasons),
        fix=(
            "run the same command again later, which resumes the download"
            if _length(_part(target))
            else "try again later, or download it by hand and `bench data link` its folder"
        ),
    )


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise BenchError unless `needed` bytes are free in `folder`; `what` is for the message."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise BenchError(
            f"{what} needs {size(needed)}, {size(free)} are free",
            where=str(folder),
            fix="free some space, or choose another folder with --data-root",
        )


def _bring(wanted: Wanted, url: str, target: Path, reserve: int, progress: Progress | None) -> None:
    """Download from one address, resuming while that makes progress, and check the file."""
    fruitless, reason = 0, ""
    while fruitless < ATTEMPTS:
        before = _length(_part(target))
        try:
            _continue(wanted, url, target, reserve, progress)
            break
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            reason = _short(error)
            fruitless = 0 if _length(_part(target)) > before else fruitless + 1
            if fruitless < ATTEMPTS:
                time.sleep(PAUSE * fruitless)
    else:
        raise BadAddress(f"the connection failed {ATTEMPTS} times: {reason}")
    _check(wanted, target, progress)
    # Synced before it is renamed: after a power cut, the name must not stand for an empty file.
    sync(_part(target))
    _part(target).replace(target)
    sync(target.parent)
    _note(target).unlink(missing_ok=True)


def _continue(
    wanted: Wanted, url: str, target: Path, reserve: int, progress: Progress | None
) -> None:
    """Request the missing bytes once; what arrives before a connection error is saved."""
    part = _part(target)
    validator, have = _validator(target, url), _length(part)
    # Without a validator nothing shows that the server's file is still the same, and two halves of
    # different versions would pass where no checksum is published.
    if have and not validator:
        have = 0
    # Compressed transfer would make offsets meaningless.
    headers = {"Accept-Encoding": "identity", "User-Agent": "shiftbench"}
    # If-Range: a server whose file has changed answers with all of it (200) instead of a part.
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            # 416: no bytes are left to send, or the file has shrunk.
            if response.status_code == 416 and have:
                total = _total(response.headers.get("Content-Range", ""))
                if total == have:
                    return
                _forget(target)
                raise requests.ConnectionError("the file on the server has changed")
            _require_file(wanted, response)
            start = _start(response, have)
            total = (
                start + int(response.headers["Content-Length"])
                if "Content-Length" in response.headers
                else wanted.bytes
            )
            if wanted.bytes is not None and total is not None and total != wanted.bytes:
                raise BadAddress(
                    f"the server's file has {total:,} bytes, the card says {wanted.bytes:,}"
                )
            check_space(
                target.parent,
                (total or 0) - start + reserve,
                f"{target.name} with what is unpacked from it",
            )
            # Noted before the first byte is written, so that no part is without its validator.
            if start == 0:
                _remember(target, url, response)
            _write(part, response.iter_content(_BLOCK), start, total, wanted, target.name, progress)
    except (
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
    ) as error:
        raise BadAddress(str(error)) from error
    except requests.TooManyRedirects as error:
        raise BadAddress("it redirects in a circle") from error
    # A server that closes the connection early is no error for requests, unless the transfer is
    # chunked.
    if total is not None and _length(part) < total:
        raise requests.ConnectionError(f"it ended after {_length(part):,} of {total:,} bytes")


def _require_file(wanted: Wanted, response: requests.Response) -> None:
    """Raise BadAddress if the response is not the file, ConnectionError if a retry may help."""
    code = response.status_code
    # Too many requests, and errors of a server that is overloaded or restarting.
    if code in (429, 500, 502, 503, 504):
        raise requests.ConnectionError(f"the server responds with {code} {response.reason}")
    if code in (401, 403):
        raise BadAddress(
            f"the server refuses access ({code} {response.reason}); it may want a login"
        )
    if code not in (200, 206):
        raise BadAddress(f"the server responds with {code} {response.reason}")
    if (
        not wanted.page
        and response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        == "text/html"
    ):
        raise BadAddress(
            f"it is a web page, not the file{_title(next(response.iter_content(1 << 16), b''))}"
        )


def _start(response: requests.Response, have: int) -> int:
    """Return the offset in the file of the first byte of a response."""
    # 200 even though a range was requested: the server does not support ranges, or its file has
    # changed. Either way this is the whole file.
    if response.status_code == 200:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) > have:
        raise BadAddress("the server sent another range than the requested one")
    return int(match[1])


def _write(
    part: Path,
    blocks: Iterable[bytes],
    start: int,
    total: int | None,
    wanted: Wanted,
    name: str,
    progress: Progress | None,
) -> None:
    with part.open("r+b" if start else "wb") as file:
        # A server may send from an earlier offset than requested; what follows it is replaced.
        file.seek(start)
        file.truncate()
        done = start
        for block in blocks:
            # Truncated, so that the next attempt does not resume a web page.
            if done == 0 and not wanted.page and _PAGE.match(block[:256]):
                file.truncate(0)
                raise BadAddress(f"it is a web page, not the file{_title(block)}")
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(f"downloading {name}", done, total or 0)


def _check(wanted: Wanted, target: Path, progress: Progress | None) -> None:
    """Compare a file with its published checksum or size; remove it if it differs.

    More bytes could not fix it, so the next attempt has to start over.
    """
    part = _part(target)
    for name, expected in (("SHA-256", wanted.sha256), ("MD5", wanted.md5)):
        if not expected:
            continue
        found = _hash(
            part,
            hashlib.sha256() if name == "SHA-256" else hashlib.md5(usedforsecurity=False),
            progress,
        )
        if found != expected:
            _forget(target)
            raise BadAddress(
                f"its {name} is {found}, the published one is {expected}; the file was removed"
            )
        # One checksum is enough: MD5 is compared only where no SHA-256 was published.
        return
    if wanted.bytes is not None and _length(part) != wanted.bytes:
        found_bytes = _length(part)
        _forget(target)
        raise BadAddress(
            f"it has {found_bytes:,} bytes, the card says {wanted.bytes:,}; the file was removed"
        )


def _hash(file: Path, hasher: hashlib._Hash, progress: Progress | None) -> str:
    total, done = _length(file), 0
    with file.open("rb") as opened:
        while block := opened.read(8 * _BLOCK):
            hasher.update(block)
            done += len(block)
            if progress is not None:
                progress(f"checking {file.name.removesuffix('.part')}", done, total)
    return hasher.hexdigest()


def _part(target: Path) -> Path:
    return target.parent / f"{target.name}.part"


def _note(target: Path) -> Path:
    return target.parent / f"{target.name}.part.json"


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _validator(target: Path, url: str) -> str:
    """Return the ETag or date of the server's file that a part comes from.

    "" if it is unknown or from another address; the part cannot be resumed then.
    """
    try:
        note = json.loads(_note(target).read_text(encoding="utf-8"))
        return str(note["validator"]) if note["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _remember(target: Path, url: str, response: requests.Response) -> None:
    # Weak tags ("W/") are equal for files that differ in bytes; If-Range does not allow them.
    tag = response.headers.get("ETag", "")
    validator = (
        tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    )
    write_text(_note(target), json.dumps({"url": url, "validator": validator}))


def _forget(target: Path) -> None:
    for file in (_part(target), _note(target)):
        file.unlink(missing_ok=True)


def _total(content_range: str) -> int | None:
    match = re.search(r"/(\d+)$", content_range)
    return int(match[1]) if match else None


def _title(page: bytes) -> str:
    match = re.search(rb"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    return f" (titled {' '.join(match[1].decode('utf-8', 'replace').split())!r})" if match else ""


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def fetch_dataset(
    card: DatasetCard,
    root: Path,
    *,
    requested: str = "",
    keep_archives: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Download and unpack a dataset below `root`; a repeated call resumes an interrupted one.

    Archives and unpacked files are first in `root/.NAME.fetch`, so that the folder of the dataset
    is complete or does not exist.

    Args:
        card: the dataset's card, which has the addresses and the name of the folder.
        root: folder of datasets; created if it does not exist.
        requested: name or card file that the user gave, for commands in messages; default: the name
            on the card.
        keep_archives: whether to move the archives to `root/archives` instead of deleting them.
        progress: called with what is done, how far, and out of how many.

    Returns:
        The folder of the dataset.

    Raises:
        MissingPrerequisite: the data are behind a licence or a login; the message has the steps.
        BenchError: the folder exists; an archive cannot be downloaded, is wrong, damaged or unsafe;
            or the disk is too small.
    """
    if not card.fetch.archives:
        steps = card.fetch.steps.strip() or f"see {card.homepage or 'the home page of the dataset'}"
        raise MissingPrerequisite(
            f"{card.title} cannot be downloaded automatically",
            where=f"licence: {card.licence}",
            fix=f"{steps}\n  then: bench data link {requested or card.name} /folder/of/it",
        )
    target, staging = root / card.folders[0], root / f".{card.name}.fetch"
    if target.exists():
        raise BenchError(
            f"{card.title} already exists",
            where=str(target),
            fix=f"check it with `bench data verify {requested or card.name}`, or delete the folder",
        )
    staging.mkdir(parents=True, exist_ok=True)
    with made_by_one(staging, progress):
        # Archives and their contents at the same time: an archive is deleted at the end, when all
        # of them are unpacked.
        known = [archive.bytes or 0 for archive in card.fetch.archives]
        check_space(
            root,
            sum(size + _unpacked(a) for size, a in zip(known, card.fetch.archives, strict=True)),
            card.title,
        )
        for number, archive in enumerate(card.fetch.archives):
            _bring_archive(archive, staging, number, progress)
        # What an earlier call had merged when it was interrupted goes: parts that it moved are
        # unpacked again.
        whole = staging / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        for number, archive in enumerate(card.fetch.archives):
            _merge(staging / f"part-{number}", whole / archive.into)
        if keep_archives:
            _merge(staging / "downloads", root / "archives")
        # The step that makes the dataset exist. Staging is below the root, and so on the same
        # disk, where a rename is atomic.
        sync(whole)
        whole.rename(target)
        sync(root)
        shutil.rmtree(staging, ignore_errors=True)
    Path(f"{staging}.lock").unlink(missing_ok=True)
    return target


def _bring_archive(archive: Archive, staging: Path, number: int, progress: Progress | None) -> None:
    """Download and unpack an archive into `part-NUMBER`, which exists only when complete."""
    done = staging / f"part-{number}"
    if done.is_dir():
        return
    name = (
        Path(urllib.parse.unquote(urllib.parse.urlsplit(archive.urls[0]).path)).name
        or f"download-{number}"
    )
    file = staging / "downloads" / name
    if archive.kind != "file" and archive.password:
        raise MissingPrerequisite(
            f"{name} is encrypted",
            fix="unpack it by hand, then link the folder with `bench data link`",
        )
    wanted = Wanted(
        archive.urls, archive.bytes, archive.sha256, archive.md5, page=archive.kind == "file"
    )
    download(wanted, file, reserve=_unpacked(archive), progress=progress)
    unpacking = staging / f"part-{number}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir()
    if archive.kind == "file":
        shutil.copy2(file, unpacking / name)
    else:
        try:
            unpack(
                file,
                archive.kind,
                unpacking,
                strip=archive.strip,
                unpacked_bytes=archive.unpacked_bytes,
                progress=progress,
            )
        except BenchError:
            # A damaged archive stays damaged: the next attempt has to download it again.
            shutil.rmtree(unpacking, ignore_errors=True)
            file.unlink(missing_ok=True)
            raise
    unpacking.rename(done)


def _unpacked(archive: Archive) -> int:
    """Return how many bytes an archive unpacks to: its own size, as images hardly compress."""
    return archive.unpacked_bytes or archive.bytes or 0


def _merge(source: Path, target: Path) -> None:
    """Move everything in `source` into `target`, merging folders that both have."""
    # Renamed, not copied: both are below the root.
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if place.is_dir() and entry.is_dir():
            _merge(entry, place)
        elif place.exists():
            raise BenchError(f"two archives have the same file: {entry.name}", where=str(place))
        else:
            entry.rename(place)
