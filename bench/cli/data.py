"""`bench data`: the data sets that exist, what is here, whether it is right, and how to get and to
prepare it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal as size

from ..data.cards.data_set import Part, find_data_set
from ..data.cards.inheritance import data_set_paths, suite_names
from ..data.cards.locations import data_roots, writable_root
from ..data.cards.suite_card import find_card
from ..errors import BenchError, Interrupted, MissingPrerequisite, UsageError
from ..plain import plain
from ..stopping import stop_if_asked
from ..tables.table import Cell, Column, Format, FormatOption, Table, print_tables, say, shortened
from .suites import DataRootOption

if TYPE_CHECKING:
    from ..data.readers.here import DataSet
    from ..storage.atomic import Progress

app = typer.Typer(rich_markup_mode=None)

NameArgument = Annotated[
    str, typer.Argument(help="a data set's name, or a card of your own (.toml)")
]


@app.callback(invoke_without_command=True)
def data(
    context: typer.Context, data_root: DataRootOption = None, form: FormatOption = Format.table
) -> None:
    """List the data sets; link, check, download or prepare one.

    \b
    Examples:
      bench data                                        what there is, and what is here
      bench data show imagenet-r                        licence, parts, where it comes from
      bench data link imagenet /datasets/ILSVRC2012     use a folder where it lies
      bench data fetch imagenet-r                       download, check, unpack
      bench data verify imagenet-r                      compare with the card
      bench data prepare imagenet --size 256            a smaller copy that is read faster
    """
    if context.invoked_subcommand is None:
        print_data_sets(data_root, form)


@app.command("list")
def print_data_sets(data_root: DataRootOption = None, form: FormatOption = Format.table) -> None:
    """List the data sets: images, download, licence, where they are, and which suites need them."""
    users = _users()
    brief = form is Format.table
    rows = [_row(name, data_root, users.get(name, []), brief=brief) for name in data_set_paths()]
    columns = [
        Column("name", whole=True),
        Column("title", human=not brief),
        Column("images", kind="count"),
        Column("download", whole=True),
        Column("licence"),
        Column("suites"),
        Column("data"),
    ]
    notes = [
        "`bench data show NAME` has everything about one; `bench data fetch NAME` downloads it, or"
        " says how to obtain it."
    ]
    print_tables([Table(columns, rows, notes=notes)], form)


@app.command()
def show(
    name: NameArgument, data_root: DataRootOption = None, form: FormatOption = Format.table
) -> None:
    """Show a data set: licence, citation, what is uncertain, its parts and their counts, where it
    comes from.
    """
    from ..data.readers.here import open_data_set

    data_set = open_data_set(name, data_roots(data_root))
    card = data_set.card
    about: dict[str, Cell] = {
        **{
            key: getattr(card, key)
            for key in ("name", "title", "licence", "citation", "homepage", "uncertain")
        },
        "data": str(data_set.folder) if data_set.folder else "missing",
        "looked for as": ", ".join(card.folders),
        "classes": len(data_set.classes),
        "identity": card.identity,
        "duplicates": ", ".join(f"{where}: {count}" for where, count in card.duplicates.items()),
        "suites": ", ".join(_users().get(card.name, [])),
        "steps": card.fetch.steps.strip(),
        "note": card.fetch.note.strip(),
    }
    pairs: list[dict[str, Cell]] = [
        {"field": key, "value": value} for key, value in about.items() if value
    ]
    parts: list[dict[str, Cell]] = [
        {
            "part": part,
            "images": stated.images,
            "layouts": ", ".join(dict.fromkeys(layout.path for layout in stated.layouts)),
        }
        for part, stated in card.parts.items()
    ]
    archives: list[dict[str, Cell]] = [
        {
            "address": archive.urls[0],
            "size": archive.bytes,
            "checked by": (
                "SHA-256"
                if archive.sha256
                else "MD5"
                if archive.md5
                else "size"
                if archive.bytes
                else "nothing"
            ),
        }
        for archive in card.fetch.archives
    ]
    part_table = Table(
        [Column("part", whole=True), Column("images", kind="count"), Column("layouts")],
        parts,
        "parts",
    )
    tables = [Table([Column("field"), Column("value")], pairs, card.title), part_table]
    if archives:
        tables.append(
            Table(
                [Column("address"), Column("size", kind="bytes"), Column("checked by")],
                archives,
                "downloads",
            )
        )
    print_tables(tables if form is not Format.csv else [part_table], form)


@app.command()
def link(
    name: NameArgument,
    path: Annotated[Path, typer.Argument(help="folder of the data set as it is on this machine")],
    force: Annotated[
        bool,
        typer.Option("--force", help="replace an earlier link, or link a folder that looks wrong"),
    ] = False,
    data_root: DataRootOption = None,
) -> None:
    """Use a folder where it lies: a link to it is made in the data root, under the name that suites
    look for.
    """
    from ..data.readers.here import class_folders, open_data_set, present_layout

    data_set = open_data_set(name, [])
    card, folder = data_set.card, path.expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    parts: dict[str, Part] = card.parts
    found = [
        part
        for part, stated in parts.items()
        if present_layout(stated, folder, data_set.classes) is not None
    ]
    if not found and not force:
        looked = sorted({layout.path for part in parts.values() for layout in part.layouts})
        raise BenchError(
            f"{folder} does not look like {card.title}",
            where=f"its classes were looked for in: {', '.join(looked[:8])}"
            + (", ..." if looked[8:] else ""),
            fix="name the folder that holds these, or link it all the same with --force",
        )
    place = writable_root(data_root) / card.folders[0]
    if place.is_symlink() and (force or place.resolve() == folder.resolve()):
        place.unlink()
    if place.exists() or place.is_symlink():
        raise BenchError(
            f"{card.name} is here already",
            where=str(place),
            fix="remove it; an earlier link: --force",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder, target_is_directory=True)
    missing = [part for part in parts if part not in found]
    say(f"{place} -> {folder}")
    some = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
    say(f"found: {', '.join(found[:5]) or 'nothing'}" + (f"; not found: {some}" if missing else ""))
    for part in found:
        own, others = class_folders(parts[part], folder, data_set.classes)
        if own and (own < len(data_set.classes) or others):
            say(
                f"{part}: folders of {own} of its {len(data_set.classes)} classes, and {others} of"
                " none of them"
            )
    say(f"`bench data verify {name}` compares it with the card")


@app.command()
def verify(
    name: NameArgument,
    full: Annotated[
        bool, typer.Option("--full", help="decode every image, and print a checksum of all pixels")
    ] = False,
    data_root: DataRootOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Compare a data set with its card: layout, images per class, unreadable files, equal images.
    Exit code 1 if it differs.

    Images are equal if all their bytes are; those that share their size are read for it, at both
    ends first.
    """
    from ..data.verify import verify as look

    data_set = _here(name, data_root)
    with shown_progress() as progress:
        verdicts = look(data_set, full=full, progress=progress)
    rows: list[dict[str, Cell]] = [
        {
            "part": verdict.part,
            "verdict": verdict.word,
            "images": verdict.images,
            "stated": data_set.card.parts[verdict.part].images,
            "classes": verdict.classes,
            "of": len(data_set.classes),
            "checksum": verdict.checksum,
        }
        for verdict in verdicts
    ]
    kinds = {"images": "count", "stated": "count", "classes": "count", "of": "count"}
    keys = ["part", "verdict", "images", "stated", "classes", "of", *(["checksum"] if full else [])]
    tables = [
        Table(
            [Column(key, kind=kinds.get(key, "text")) for key in keys],  # type: ignore[arg-type]
            rows,
            str(data_set.folder),
        )
    ]
    notes: list[dict[str, Cell]] = [
        {"part": verdict.part, "what": text, "kind": kind}
        for verdict in verdicts
        for kind, texts in (
            ("missing", [verdict.missing] if verdict.missing else []),
            ("difference", verdict.differences),
            ("remark", verdict.remarks),
        )
        for text in texts
    ]
    if notes:
        tables.append(Table([Column("part"), Column("kind"), Column("what")], notes, "details"))
    print_tables(tables if form is not Format.csv else tables[:1], form)
    if any(verdict.word == "differs" for verdict in verdicts) or all(
        verdict.missing for verdict in verdicts
    ):
        raise typer.Exit(1)


@app.command()
def fetch(
    name: NameArgument,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="keep the downloaded archives")
    ] = False,
    data_root: DataRootOption = None,
) -> None:
    """Download a data set from its official address, check and unpack it. Run it again to continue.

    Data behind a licence or a login are not downloaded; the steps are shown instead (exit code 3).
    """
    from ..data.fetching.download import fetch_data_set

    card, _ = find_data_set(name)
    root = writable_root(data_root)
    if card.fetch.archives:
        say(f"{card.title}: to {root / card.folders[0]}")
        say(f"licence: {card.licence}")
        if card.fetch.note:
            say(card.fetch.note.strip())
    try:
        with shown_progress("bytes") as progress:
            place = fetch_data_set(
                card, root, asked=name, keep_archives=keep_archives, progress=progress
            )
    except Interrupted as stop:
        raise Interrupted(
            "interrupted; what has arrived is kept",
            fix=f"bench data fetch {name} continues",
            signal=stop.exit_code - 128,
        ) from stop
    say(f"done: {place}; `bench data verify {name}` compares it with the card")


@app.command()
def prepare(
    name: NameArgument,
    side: Annotated[int, typer.Option("--size", help="short side in pixels")] = 256,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="what to prepare (repeatable); default: train"),
    ] = None,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="PNG: larger, and the very pixels of a resize to --size"),
    ] = False,
    quality: Annotated[int, typer.Option("--quality", min=50, max=100, help="of JPEG files")] = 95,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the copy; default: beside the data set")
    ] = None,
    data_root: DataRootOption = None,
) -> None:
    """Make a copy with smaller images in tar shards, for training. Run it again to continue.

    The copy is a data set of its own, with its own card: results on it are not mixed with those on
    the originals.
    """
    from ..data.prepare import Preparation
    from ..data.prepare import prepare as make

    data_set = _here(name, data_root)
    assert data_set.folder is not None
    parts = part or (["train"] if "train" in data_set.card.parts else [])
    if not parts:
        raise UsageError(
            f"{name} has no part `train`", fix=f"--part, one of: {', '.join(data_set.card.parts)}"
        )
    how = Preparation(side, lossless, quality)
    folder = out or data_set.folder.parent / f"{data_set.card.name}-{how.name}"
    try:
        with shown_progress() as progress:
            card = make(data_set, parts, how, folder, progress=progress)
    except Interrupted as stop:
        raise Interrupted(
            "interrupted; finished shards are kept",
            fix="the same command continues",
            signal=stop.exit_code - 128,
        ) from stop
    total = sum(file.stat().st_size for file in folder.glob("*.tar"))
    say(f"done: {folder}, {size(total)}")
    say(
        'a suite on it: a card of its own with `extends = "SUITE"`, a new `name`, and under [id]:'
        f' data = "{card.resolve()}"'
    )


def _here(name: str, data_root: Path | None) -> DataSet:
    """A data set that is on this machine.

    Raises:
        MissingPrerequisite: it is not.
    """
    from ..data.readers.here import open_data_set

    data_set = open_data_set(name, data_roots(data_root))
    if data_set.folder is None:
        raise MissingPrerequisite(
            f"{data_set.card.title} is not here",
            where=data_set.missing,
            fix=f"bench data fetch {name}, or: bench data link {name} /folder/of/it",
        )
    return data_set


def _users() -> dict[str, list[str]]:
    """Suites by the data sets that they need."""
    users: dict[str, list[str]] = {}
    for suite in suite_names():
        try:
            card, _ = find_card(suite)
        except BenchError:  # `bench suites` shows what is wrong with it
            continue
        for name in card.data_sets:
            users.setdefault(name, []).append(suite)
    return users


def _row(name: str, data_root: Path | None, suites: list[str], *, brief: bool) -> dict[str, Cell]:
    """A line of the list.

    Args:
        brief: for people: the licence's first words, and of the suites the first.
    """
    from ..data.readers.here import open_data_set

    try:
        data_set = open_data_set(name, data_roots(data_root))
    except BenchError as error:  # one wrong card must not hide the others
        return {"name": name, "data": f"the card is wrong: {plain(error.what)}"}
    card = data_set.card
    archives = [archive.bytes for archive in card.fetch.archives]
    known = [count for count in archives if count is not None]
    download = (
        "steps" if not archives else "yes" if len(known) < len(archives) else size(sum(known))
    )
    return {
        "name": name,
        "title": card.title,
        "images": sum(part.images or 0 for part in card.parts.values()) or None,
        "download": download,
        "licence": shortened(re.split("[;:,]", card.licence)[0], 32) if brief else card.licence,
        "suites": (
            ", ".join(suites)
            if len(suites) < 2 or not brief
            else f"{suites[0]} and {len(suites) - 1} more"
        ),
        "data": (
            str(data_set.folder) if data_set.folder else "generated" if card.is_made else "missing"
        ),
    }


@contextmanager
def shown_progress(unit: str = "") -> Iterator[Progress]:
    """Show what is done on stderr: a bar on a terminal, a line per finished step on a pipe."""
    from ..console.progress import ConsoleReporter

    with ConsoleReporter() as reporter:

        def show(what: str, done: int, of: int) -> None:
            reporter.event("data", what=what, done=done, of=of, unit=unit)
            stop_if_asked(reporter)

        yield show
