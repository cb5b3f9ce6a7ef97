"""Where data sets are looked for and where caches are kept: option, environment, user
configuration, in this order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir, user_config_dir, user_data_dir

from ...errors import BenchError, MissingPrerequisite, UsageError
from ...storage.files import read_toml
from .suite_card import FolderSource, SuiteCard

_APPLICATION = "shiftbench"


@dataclass(frozen=True)
class DataRoot:
    """A folder that holds data sets, and who named it (for messages)."""

    path: Path
    origin: str


def user_configuration() -> Path:
    """The user's configuration file; it need not exist."""
    return Path(user_config_dir(_APPLICATION)) / "config.toml"


def data_roots(argument: Path | None = None) -> list[DataRoot]:
    """Every folder in which data sets are looked for, first choice first.

    Args:
        argument: value of `--data-root`.

    Raises:
        UsageError: the user configuration is not TOML, or its `data_roots` is not a list of paths.
    """
    roots = [DataRoot(argument.expanduser(), "--data-root")] if argument is not None else []
    for entry in os.environ.get("BENCH_DATA", "").split(os.pathsep):
        if entry:
            roots.append(DataRoot(Path(entry).expanduser(), "BENCH_DATA"))
    roots += _configured_roots(user_configuration())
    own = _own_root()
    return [*roots, DataRoot(own, "the user's data folder")] if own.is_dir() else roots


def writable_root(argument: Path | None = None) -> Path:
    """The folder in which new data sets are put: the first data root, or one of ours in the user's
    data folder.
    """
    roots = data_roots(argument)
    return roots[0].path.absolute() if roots else _own_root()


def _own_root() -> Path:
    return Path(user_data_dir(_APPLICATION)) / "data"


def _configured_roots(file: Path) -> list[DataRoot]:
    if not file.is_file():
        return []
    try:
        entries = read_toml(file).get("data_roots", [])
    except (ValueError, OSError) as error:
        raise UsageError(
            f"the user configuration cannot be read: {error}", where=str(file)
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UsageError(
            "`data_roots` is not a list of paths",
            where=str(file),
            fix='data_roots = ["/folder/of/data/sets"]',
        )
    return [DataRoot(Path(entry).expanduser(), str(file)) for entry in entries]


def find_root(card: SuiteCard, roots: list[DataRoot], *, card_path: Path | None = None) -> Path:
    """The folder of a suite's images: the first existing `<data root>/<source.root>`.

    A `source.root` that is absolute, or that starts with `./` or `../` (then relative to the card's
    file), is taken as it is.

    Raises:
        MissingPrerequisite: it is nowhere; the message names every place looked at and how to
            obtain the data.
        ValueError: the card's source is not a folder (nothing to find).
    """
    if not isinstance(card.source, FolderSource):
        raise ValueError(f"{card.name} is not read from a folder")
    wanted = card.source.root
    if Path(wanted).is_absolute() or wanted in (".", "..") or wanted.startswith(("./", "../")):
        beside = card_path.parent if card_path is not None else Path.cwd()
        places = [
            (
                beside / wanted,
                "the card" if card_path is not None else "the card, from the current folder",
            )
        ]
    else:
        places = [(root.path / wanted, root.origin) for root in roots]
    for place, _ in places:
        if found := _in_any_case(place):
            return found.resolve()
    looked = "looked at " + "; ".join(f"{place} ({origin})" for place, origin in places)
    nowhere = (
        "no data root is given: not by --data-root, not by BENCH_DATA, not in"
        f" {user_configuration()}"
    )
    raise MissingPrerequisite(
        f"the images of {card.title} are not found",
        where=looked if places else nowhere,
        fix=_how_to_get(card, wanted, roots),
    )


def _in_any_case(place: Path) -> Path | None:
    """The folder, or the only one beside it that is called so but for capital letters: authors
    write PACS and VLCS.
    """
    if place.is_dir():
        return place
    try:
        alike = [
            entry
            for entry in place.parent.iterdir()
            if entry.name.casefold() == place.name.casefold() and entry.is_dir()
        ]
    except OSError:
        return None
    return alike[0] if len(alike) == 1 else None


def _how_to_get(card: SuiteCard, wanted: str, roots: list[DataRoot]) -> str:
    for root in roots:
        if root.path.name.casefold() == wanted.casefold() and root.path.is_dir():
            return (
                f"{root.path} looks like the data set itself; name the folder above it: export"
                f" BENCH_DATA={root.path.parent}"
            )
    get = f"{card.get.strip().rstrip('.')}; then: " if card.get.strip() else ""
    if Path(wanted).is_absolute() or wanted.startswith("."):
        return f"{get}put the images there, or change source.root on the card"
    return f"{get}export BENCH_DATA=/folder/that/holds/{wanted.partition('/')[0]}"


def cache_dir(*parts: str) -> Path:
    """A folder of the cache, made if it is not there: BENCH_CACHE, or the user's cache folder.

    Raises:
        BenchError: it cannot be made.
    """
    top = Path(os.environ.get("BENCH_CACHE") or user_cache_dir(_APPLICATION)).expanduser()
    folder = top.joinpath(*parts).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(
            f"the cache folder cannot be made: {error.strerror}",
            where=str(folder),
            fix="export BENCH_CACHE=/a/writable/folder",
        ) from error
    return folder
