"""Download one file: resumed where it stopped, from the first address that answers, checked before
it has its name.

huggingface_hub resumes files of its own hub alone; pooch and torch.hub begin anew when they are
interrupted.
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
from ..cards.data_set import Archive, DataSetCard
from .unpack import unpack

#: Seconds until a connection, and until the next bytes.
TIMEOUT: Final = (15.0, 60.0)

#: Attempts at one address that bring not a single byte, before the next address is tried; seconds
#: between them.
ATTEMPTS: Final = 4
PAUSE: Final = 2.0

_BLOCK = 1 << 20
_SPARE_BYTES = 64 << 20
_PAGE = re.compile(
    rb"^\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE
)


class Refused(Exception):
    """An address gave something other than the file; the message is the reason. Another address may
    do better.
    """


@dataclass(frozen=True)
class Wanted:
    """What is to be downloaded.

    Attributes:
        urls: official address first, then mirrors.
        bytes: size, if known. sha256, md5: hexadecimal, "" if nobody published one.
        page: whether the file may be a web page (never an archive's case).
    """

    urls: Sequence[str]
    bytes: int | None = None
    sha256: str = ""
    md5: str = ""
    page: bool = False


def download(
    wanted: Wanted, target: Path, *, reserve: int = 0, progress: Progress | None = None
) -> Path:
    """Bring a file to `target`; what is half there is continued, and `target` appears only once it
    is whole and checked.

    An interrupted download lies beside the target as `NAME.part`, with `NAME.part.json` saying from
    which version of the file on the server it is; a server whose file has changed since is asked
    for all of it.

    Args:
        reserve: bytes that have to stay free beside the download, for what is unpacked from it.

    Raises:
        BenchError: no address gave the file (the reason of each is named), or the disk is too
            small.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with made_by_one(target, progress):
        if target.is_file():
            return target
        reasons = []
        for url in wanted.urls:
            try:
                _bring(wanted, url, target, reserve, progress)
                return target
            except Refused as reason:
                reasons.append(f"{url}: {reason}")
    raise BenchError(
        f"{target.name} cannot be downloaded",
        where="; ".join(reasons),
        fix=(
            "run the same command again later; what has arrived is kept"
            if _length(_part(target))
            else "try again later, or get it by hand and `bench data link` its folder"
        ),
    )


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise BenchError unless `needed` bytes are free in `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise BenchError(
            f"{what} needs {size(needed)}, {size(free)} are free",
            where=str(folder),
            fix="free some space, or choose another place with --data-root",
        )


def _bring(wanted: Wanted, url: str, target: Path, reserve: int, progress: Progress | None) -> None:
    """Download from one address, again from where it stopped while that brings something, and
    check.
    """
    import requests

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
        raise Refused(f"the connection failed {ATTEMPTS} times: {reason}")
    _check(wanted, target, progress)
    sync(_part(target))
    _part(target).replace(target)
    sync(target.parent)
    _note(target).unlink(missing_ok=True)


def _continue(
    wanted: Wanted, url: str, target: Path, reserve: int, progress: Progress | None
) -> None:
    """One request for what is missing. Connection errors pass; what arrived before them is kept."""
    import requests

    part = _part(target)
    validator, have = _validator(target, url), _length(part)
    if have and not validator:
        have = 0
    # Compressed transfer would make offsets meaningless.
    headers = {"Accept-Encoding": "identity", "User-Agent": "shiftbench"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if (
                response.status_code == 416 and have
            ):  # nothing is left to send, or the file has shrunk: the check decides
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
                raise Refused(
                    f"the server's file has {total:,} bytes, the card says {wanted.bytes:,}"
                )
            check_space(
                target.parent,
                (total or 0) - start + reserve,
                f"{target.name} with what is unpacked from it",
            )
            if start == 0:
                _remember(target, url, response)
            _write(part, response.iter_content(_BLOCK), start, total, wanted, target.name, progress)
    except (
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
    ) as error:
        raise Refused(str(error)) from error
    except requests.TooManyRedirects as error:
        raise Refused("it redirects in a circle") from error
    if total is not None and _length(part) < total:
        raise requests.ConnectionError(f"it ended after {_length(part):,} of {total:,} bytes")


def _require_file(wanted: Wanted, response: requests.Response) -> None:
    """Raise Refused for an answer that is no file; ConnectionError for one that another attempt may
    mend.
    """
    import requests

    code = response.status_code
    if code in (429, 500, 502, 503, 504):
        raise requests.ConnectionError(f"the server answers {code} {response.reason}")
    if code in (401, 403):
        raise Refused(f"the server refuses access ({code} {response.reason}); it may want a login")
    if code not in (200, 206):
        raise Refused(f"the server answers {code} {response.reason}")
    if (
        not wanted.page
        and response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        == "text/html"
    ):
        raise Refused(
            f"it is a web page, not the file{_title(next(response.iter_content(1 << 16), b''))}"
        )


def _start(response: requests.Response, have: int) -> int:
    """Where the answer's bytes belong."""
    if response.status_code == 200:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) > have:
        raise Refused("the server sent another range than it was asked for")
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
        file.seek(start)
        file.truncate()
        done = start
        for block in blocks:
            if done == 0 and not wanted.page and _PAGE.match(block[:256]):
                file.truncate(0)
                raise Refused(f"it is a web page, not the file{_title(block)}")
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(f"downloading {name}", done, total or 0)


def _check(wanted: Wanted, target: Path, progress: Progress | None) -> None:
    """Compare with what was published; a file that differs is removed, since no more bytes would
    mend it.
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
            raise Refused(
                f"its {name} is {found}, the published one is {expected}; the file was removed"
            )
        return
    if wanted.bytes is not None and _length(part) != wanted.bytes:
        found_bytes = _length(part)
        _forget(target)
        raise Refused(
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
    """What says that the server's file is the one that a part is from; "" if nothing does, and the
    part is worthless.
    """
    try:
        note = json.loads(_note(target).read_text(encoding="utf-8"))
        return str(note["validator"]) if note["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _remember(target: Path, url: str, response: requests.Response) -> None:
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


def fetch_data_set(
    card: DataSetCard,
    root: Path,
    *,
    asked: str = "",
    keep_archives: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make `root/<the card's usual folder>`; the same call again continues one that was stopped.

    Everything on the way lies in `root/.NAME.fetch`, so that the data set's folder is whole or not
    there at all.

    Args:
        root: folder that holds data sets; made if it is not there.
        asked: what it was asked for by, for commands in messages: its name (default), or its card's
            file.
        keep_archives: whether the archives stay in `root/archives`.

    Raises:
        MissingPrerequisite: the data are behind a licence or a login; the message has the steps.
        BenchError: the folder is there already, an archive cannot be had, is wrong, damaged or
            unsafe, or the disk is too small.
    """
    if not card.fetch.archives:
        steps = (
            card.fetch.steps.strip() or f"see {card.homepage or 'the home page of the data set'}"
        )
        raise MissingPrerequisite(
            f"{card.title} cannot be fetched by a program",
            where=f"licence: {card.licence}",
            fix=f"{steps}\n  then: bench data link {asked or card.name} /folder/of/it",
        )
    target, staging = root / card.folders[0], root / f".{card.name}.fetch"
    if target.exists():
        raise BenchError(
            f"{card.title} is here already",
            where=str(target),
            fix=f"bench data verify {asked or card.name}",
        )
    staging.mkdir(parents=True, exist_ok=True)
    with made_by_one(staging, progress):
        known = [archive.bytes or 0 for archive in card.fetch.archives]
        check_space(
            root,
            sum(size + _unpacked(a) for size, a in zip(known, card.fetch.archives, strict=True)),
            card.title,
        )
        for number, archive in enumerate(card.fetch.archives):
            _bring_archive(archive, staging, number, progress)
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


def _bring_archive(archive: Archive, staging: Path, number: int, progress: Progress | None) -> None:
    """Download and unpack one archive into `part-NUMBER`; that folder is there only once it is
    complete.
    """
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
            f"{name} is encrypted", fix="unpack it by hand, then `bench data link`"
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
            # What is wrong with the archive stays wrong: the next attempt starts from a new
            # download.
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
