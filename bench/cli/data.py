"""`bench data`: list the datasets, and link, download, verify or prepare one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal as size

from ..console import completion
from ..data.cards.dataset import Part, find_dataset
from ..data.cards.inheritance import dataset_paths, suite_names
from ..data.cards.locations import data_roots, writable_root
from ..data.cards.suite_card import find_card
from ..errors import BenchError, Interrupted, MissingPrerequisite, UsageError
from ..plain import plain
from ..stopping import stop_if_requested
from ..tables.table import Cell, Column, Format, FormatOption, Table, print_tables, say, shortened
from .suites import DataRootOption

if TYPE_CHECKING:
    from ..data.readers.located import Dataset
    from ..storage.atomic import Progress

app = typer.Typer(rich_markup_mode=None)

NameArgument = Annotated[
    str,
    typer.Argument(
        help="name of a dataset, or a card of your own (.toml)",
        autocompletion=completion.datasets,
    ),
]


@app.callback(invoke_without_command=True)
def data(
    context: typer.Context, data_root: DataRootOption = None, form: FormatOption = Format.table
) -> None:
    """List the datasets, or link, download, verify or prepare one.

    \b
    Examples:
      bench data                                        list datasets and where they are
      bench data show imagenet-r                        show licence, parts and source
      bench data link imagenet /datasets/ILSVRC2012     use a folder without copying it
      bench data fetch imagenet-r                       download, check and unpack
      bench data verify imagenet-r                      compare with the card
      bench data prepare imagenet --size 256            make a smaller copy that loads faster
    """
    if context.invoked_subcommand is None:
        print_datasets(data_root, form)


@app.command("list")
def print_datasets(data_root: DataRootOption = None, form: FormatOption = Format.table) -> None:
    """List the datasets with their size, licence, location and the suites that need them."""
    users = _users()
    # The table fits a terminal; other formats have every column in full.
    brief = form is Format.table
    rows = [_row(name, data_root, users.get(name, []), brief=brief) for name in dataset_paths()]
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
        "`bench data show NAME` shows the details. `bench data fetch NAME` downloads a dataset, or"
        " explains how to obtain it."
    ]
    print_tables([Table(columns, rows, notes=notes)], form)


@app.command()
def show(
    name: NameArgument, data_root: DataRootOption = None, form: FormatOption = Format.table
) -> None:
    """Show a dataset's licence, citation, open questions, parts, image counts and source."""
    from ..data.readers.located import open_dataset

    dataset = open_dataset(name, data_roots(data_root))
    card = dataset.card
    # `field` cells are read by programs too: their texts are part of the json output.
    about: dict[str, Cell] = {
        **{
            key: getattr(card, key)
            for key in ("name", "title", "licence", "citation", "homepage", "uncertain")
        },
        "data": str(dataset.folder) if dataset.folder else "missing",
        "looked for as": ", ".join(card.folders),
        "classes": len(dataset.classes),
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
            # The official address; the others are mirrors of it.
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
    # csv is one table, and the parts are the one that a program can use.
    print_tables(tables if form is not Format.csv else [part_table], form)


@app.command()
def link(
    name: NameArgument,
    path: Annotated[Path, typer.Argument(help="folder of the dataset on this machine")],
    force: Annotated[
        bool,
        typer.Option("--force", help="replace an earlier link, or link a folder that looks wrong"),
    ] = False,
    data_root: DataRootOption = None,
) -> None:
    """Use a folder without copying it: link to it from the data root."""
    from ..data.readers.located import class_folders, open_dataset, present_layout

    # Without data roots: only the card matters, wherever a copy may already be.
    dataset = open_dataset(name, [])
    card, folder = dataset.card, path.expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    # One part is enough: many users have, say, only the validation images of ImageNet.
    parts: dict[str, Part] = card.parts
    found = [
        part
        for part, stated in parts.items()
        if present_layout(stated, folder, dataset.classes) is not None
    ]
    if not found and not force:
        searched = sorted({layout.path for part in parts.values() for layout in part.layouts})
        raise BenchError(
            f"{folder} does not look like {card.title}",
            where=f"its classes were searched for in: {', '.join(searched[:8])}"
            + (", ..." if searched[8:] else ""),
            fix="give the folder that contains these, or link it anyway with --force",
        )
    # A link may be replaced by the same one, so that the command can be repeated, or by force. A
    # folder with images is never touched.
    place = writable_root(data_root) / card.folders[0]
    if place.is_symlink() and (force or place.resolve() == folder.resolve()):
        place.unlink()
    if place.exists() or place.is_symlink():
        raise BenchError(
            f"the data root already has {card.name}",
            where=str(place),
            fix="remove it, or replace an earlier link with --force",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder, target_is_directory=True)
    missing = [part for part in parts if part not in found]
    say(f"{place} -> {folder}")
    some = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
    say(f"found: {', '.join(found[:5]) or 'nothing'}" + (f"; not found: {some}" if missing else ""))
    # A folder with other class names than the card's is linked, but would give no images: report
    # it now rather than when a run starts.
    for part in found:
        own, others = class_folders(parts[part], folder, dataset.classes)
        if own and (own < len(dataset.classes) or others):
            say(
                f"{part}: found folders for {own} of {len(dataset.classes)} classes, and {others}"
                " other folders"
            )
    say(f"run `bench data verify {name}` to compare it with the card")


@app.command()
def verify(
    name: NameArgument,
    full: Annotated[
        bool, typer.Option("--full", help="decode every image and print a checksum of all pixels")
    ] = False,
    data_root: DataRootOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Compare a dataset with its card: layout, images per class, unreadable and duplicate files.

    Duplicates are images with identical bytes. To find them, only files of equal size are read,
    first at both ends.

    Exit code 1 if the dataset differs from its card.
    """
    from ..data.verify import verify as compare

    dataset = _here(name, data_root)
    with shown_progress() as progress:
        verdicts = compare(dataset, full=full, progress=progress)
    rows: list[dict[str, Cell]] = [
        {
            "part": verdict.part,
            "verdict": verdict.word,
            "images": verdict.images,
            "stated": dataset.card.parts[verdict.part].images,
            "classes": verdict.classes,
            "of": len(dataset.classes),
            "checksum": verdict.checksum,
        }
        for verdict in verdicts
    ]
    kinds = {"images": "count", "stated": "count", "classes": "count", "of": "count"}
    # `images` and `classes` are counted; `stated` and `of` are what the card says about them.
    keys = ["part", "verdict", "images", "stated", "classes", "of", *(["checksum"] if full else [])]
    tables = [
        Table(
            [Column(key, kind=kinds.get(key, "text")) for key in keys],  # type: ignore[arg-type]
            rows,
            str(dataset.folder),
        )
    ]
    # Only differences make a part differ; remarks, such as ignored files, do not.
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
    # A dataset may be here in part, which is no difference, but not without any part.
    if any(verdict.word == "differs" for verdict in verdicts) or all(
        verdict.missing for verdict in verdicts
    ):
        raise typer.Exit(1)


@app.command()
def fetch(
    name: NameArgument,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="do not delete the archives after unpacking")
    ] = False,
    data_root: DataRootOption = None,
) -> None:
    """Download a dataset from its official source, check it and unpack it.

    Run the command again to continue an interrupted download. A dataset that requires a login or
    the acceptance of a licence is not downloaded: the command prints the steps and exits with 3.
    """
    from ..data.fetching.download import fetch_dataset

    card, _ = find_dataset(name)
    root = writable_root(data_root)
    # Folder and licence are shown before the download, while it is cheap to stop.
    if card.fetch.archives:
        say(f"{card.title}: to {root / card.folders[0]}")
        say(f"licence: {card.licence}")
        if card.fetch.note:
            say(card.fetch.note.strip())
    try:
        with shown_progress("bytes") as progress:
            place = fetch_dataset(
                card, root, requested=name, keep_archives=keep_archives, progress=progress
            )
    except Interrupted as stop:
        raise Interrupted(
            "interrupted; the downloaded part is saved",
            fix=f"`bench data fetch {name}` continues the download",
            # `Interrupted` exits with 128 plus the signal's number, as shells do.
            signal=stop.exit_code - 128,
        ) from stop
    say(f"done: {place}; run `bench data verify {name}` to compare it with the card")


@app.command()
def prepare(
    name: NameArgument,
    side: Annotated[int, typer.Option("--size", help="short side in pixels")] = 256,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="part to prepare; may be repeated; default: train"),
    ] = None,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="write PNG: larger files, exactly the resized pixels"),
    ] = False,
    quality: Annotated[
        int, typer.Option("--quality", min=50, max=100, help="quality of the JPEG files")
    ] = 95,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="folder of the copy; default: next to the dataset"),
    ] = None,
    data_root: DataRootOption = None,
) -> None:
    """Make a copy with smaller images in tar shards, which trains faster.

    Run the command again to continue an interrupted copy. The copy is a dataset with a card of its
    own, so its results are not mixed with results on the original images.
    """
    from ..data.prepare import Preparation
    from ..data.prepare import prepare as make

    dataset = _here(name, data_root)
    assert dataset.folder is not None
    # Training reads its images once per epoch, so only it gains from smaller ones. Parts that are
    # not prepared stay in the copy's card as the originals.
    parts = part or (["train"] if "train" in dataset.card.parts else [])
    if not parts:
        raise UsageError(
            f"{name} has no part `train`",
            fix=f"choose parts with --part: {', '.join(dataset.card.parts)}",
        )
    # The folder's name has size and quality in it, so that several copies can exist.
    how = Preparation(side, lossless, quality)
    folder = out or dataset.folder.parent / f"{dataset.card.name}-{how.name}"
    try:
        with shown_progress() as progress:
            card = make(dataset, parts, how, folder, progress=progress)
    except Interrupted as stop:
        raise Interrupted(
            "interrupted; finished shards are saved",
            fix="run the same command again to continue",
            signal=stop.exit_code - 128,
        ) from stop
    total = sum(file.stat().st_size for file in folder.glob("*.tar"))
    say(f"done: {folder}, {size(total)}")
    say(
        'to use it, write a suite card with `extends = "SUITE"`, a new `name`, and under [id]:'
        f' data = "{card.resolve()}"'
    )


def _here(name: str, data_root: Path | None) -> Dataset:
    """Return a dataset that is on this machine.

    Raises:
        MissingPrerequisite: The dataset is not on this machine.
    """
    from ..data.readers.located import open_dataset

    dataset = open_dataset(name, data_roots(data_root))
    if dataset.folder is None:
        raise MissingPrerequisite(
            f"{dataset.card.title} is not on this machine",
            where=dataset.missing,
            fix=f"`bench data fetch {name}`, or `bench data link {name} /folder/of/it`",
        )
    return dataset


def _users() -> dict[str, list[str]]:
    """Return the names of the suites that need each dataset."""
    users: dict[str, list[str]] = {}
    for suite in suite_names():
        try:
            card, _ = find_card(suite)
        except BenchError:
            # An invalid card must not hide the datasets; `bench suites` reports it.
            continue
        for name in card.datasets:
            users.setdefault(name, []).append(suite)
    return users


def _row(name: str, data_root: Path | None, suites: list[str], *, brief: bool) -> dict[str, Cell]:
    """Return the dataset's row of the list.

    Args:
        brief: Shorten the licence and the list of suites.
    """
    from ..data.readers.located import open_dataset

    try:
        dataset = open_dataset(name, data_roots(data_root))
    except BenchError as error:
        # An invalid card must not hide the other datasets.
        return {"name": name, "data": f"the card is invalid: {plain(error.what)}"}
    card = dataset.card
    # Some hosts do not state the size of an archive; a sum without it would mislead.
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
            str(dataset.folder) if dataset.folder else "generated" if card.is_made else "missing"
        ),
    }


@contextmanager
def shown_progress(unit: str = "") -> Iterator[Progress]:
    """Show progress on stderr: a bar on a terminal, a line per finished step on a pipe.

    Args:
        unit: `bytes` for sizes; otherwise the name of what is counted.
    """
    from ..console.progress import ConsoleReporter

    with ConsoleReporter() as reporter:

        def show(what: str, done: int, of: int) -> None:
            reporter.event("data", what=what, done=done, of=of, unit=unit)
            # Progress is reported between two pieces of work, which is where stopping is cheap.
            stop_if_requested(reporter)

        yield show
