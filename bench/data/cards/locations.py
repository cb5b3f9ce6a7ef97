"""Locate datasets and caches by command-line option, environment and user configuration."""

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
    """A folder that contains datasets, and which setting named it (for messages)."""

    path: Path
    origin: str


def user_configuration() -> Path:
    """Return the path of the user's configuration file, which may not exist."""
    return Path(user_config_dir(_APPLICATION)) / "config.toml"


def data_roots(argument: Path | None = None) -> list[DataRoot]:
    """Return the folders to search for datasets, in the order of precedence.

    Args:
        argument: value of `--data-root`.

    Raises:
        UsageError: the user configuration is not TOML, or its `data_roots` is not a list of paths.
    """
    # The more specific setting comes first, and later ones still apply: a dataset that is not
    # below --data-root is found where it usually is.
    roots = [DataRoot(argument.expanduser(), "--data-root")] if argument is not None else []
    for entry in os.environ.get("BENCH_DATA", "").split(os.pathsep):
        if entry:
            roots.append(DataRoot(Path(entry).expanduser(), "BENCH_DATA"))
    roots += _configured_roots(user_configuration())
    # Last, and only once `bench data fetch` or `link` has created it.
    own = _own_root()
    return [*roots, DataRoot(own, "the user's data folder")] if own.is_dir() else roots


def writable_root(argument: Path | None = None) -> Path:
    """Return the folder for new datasets: the first data root, or the user's data folder."""
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
    """Return the folder of a suite's images: the first existing `<data root>/<source.root>`.

    A `source.root` that is absolute, or that starts with `./` or `../` (then relative to the card's
    file), is not searched for in the data roots.

    Args:
        card: the suite's card.
        roots: folders to search, in the order of precedence.
        card_path: file of the card; default: the card is in the working directory.

    Raises:
        MissingPrerequisite: the folder does not exist; the message lists every searched place and
            how to obtain the data.
        ValueError: the card's source is not a folder.
    """
    if not isinstance(card.source, FolderSource):
        raise ValueError(f"{card.name} is not read from a folder")
    wanted = card.source.root
    # As in a shell, `./` distinguishes a folder relative to the card from a name to search for.
    if Path(wanted).is_absolute() or wanted in (".", "..") or wanted.startswith(("./", "../")):
        base = card_path.parent if card_path is not None else Path.cwd()
        places = [
            (
                base / wanted,
                "the card" if card_path is not None else "the card, from the working directory",
            )
        ]
    else:
        places = [(root.path / wanted, root.origin) for root in roots]
    for place, _ in places:
        if found := _in_any_case(place):
            return found.resolve()
    searched = "searched " + "; ".join(f"{place} ({origin})" for place, origin in places)
    no_root = (
        "no data root is set by --data-root, by BENCH_DATA or in the user configuration"
        f" {user_configuration()}"
    )
    raise MissingPrerequisite(
        f"the images of {card.title} were not found",
        where=searched if places else no_root,
        fix=_how_to_get(card, wanted, roots),
    )


def _in_any_case(place: Path) -> Path | None:
    """Return the folder, or the only one whose name differs from it in upper and lower case."""
    if place.is_dir():
        return place
    # Authors unpack PACS and VLCS in capital letters, and the names on cards are lower case. With
    # two candidates the choice would depend on the order of the file system.
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
    """Return the fix of the error for missing images."""
    # The most common mistake: the dataset itself is given as the data root.
    for root in roots:
        if root.path.name.casefold() == wanted.casefold() and root.path.is_dir():
            return (
                f"{root.path} looks like the dataset itself; use its parent folder: export"
                f" BENCH_DATA={root.path.parent}"
            )
    get = f"{card.get.strip().rstrip('.')}; then: " if card.get.strip() else ""
    if Path(wanted).is_absolute() or wanted.startswith("."):
        return f"{get}put the images there, or change source.root on the card"
    return f"{get}export BENCH_DATA=/folder/that/contains/{wanted.partition('/')[0]}"


def cache_dir(*parts: str) -> Path:
    """Return a folder of the cache and create it if necessary.

    The cache is in BENCH_CACHE, or else in the user's cache folder.

    Raises:
        BenchError: the folder cannot be created.
    """
    # An empty BENCH_CACHE counts as unset, as shells and CI export variables without a value.
    top = Path(os.environ.get("BENCH_CACHE") or user_cache_dir(_APPLICATION)).expanduser()
    folder = top.joinpath(*parts).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(
            f"the cache folder cannot be created: {error.strerror}",
            where=str(folder),
            fix="export BENCH_CACHE=/a/writable/folder",
        ) from error
    return folder
