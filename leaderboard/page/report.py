"""Write a report: a folder with a board's tables, figures and a description of the protocol."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError, NothingMatched, UsageError
from bench.plain import plain
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.run_spec import SEARCH_SEED
from bench.storage.atomic import write_text
from bench.tables.table import Format, Table, markdown_text, render

from ..board.frames import reference
from ..board.groups import load
from ..board.notes import title, unvaried
from ..board.rows import Board
from ..board.tables import View, board_table, boards
from ..board.typesetting import bibtex, in_words
from ..charts.style import FORMATS, save
from ..commands.plot import curve_of, radar_of, reliability_of, scatter_of
from ..statistics.predictions import Predictions

#: File in every folder that a report was written to. No other folder is ever replaced.
MARK = ".shiftbench-report"


def check_folder(folder: Path) -> None:
    """Check that a report may be written to a folder.

    Raises:
        UsageError: the folder has other content than a report.
    """
    if (
        folder.exists()
        and not (folder / MARK).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise UsageError(
            "the folder is not a report, and is not replaced",
            where=str(folder),
            fix="choose another folder",
        )


def write_report(
    records: Sequence[RunRecord],
    store: Store,
    folder: Path,
    *,
    dark: bool = False,
    figures: Sequence[str] = FORMATS,
) -> list[str]:
    """Write the report of runs, in place of an earlier one.

    Args:
        records: the runs.
        store: their store.
        folder: the report's folder.
        dark: use the colours for a dark background in figures.
        figures: file suffixes of the figures; the report shows the .svg.

    Returns:
        A sentence for every figure that could not be plotted.

    Raises:
        UsageError: the folder has other content than a report.
        BenchError: a file cannot be written; an earlier report is unchanged.
    """
    check_folder(folder)
    # Everything is written to a new folder next to the target, which then takes its place: an error
    # half way leaves an earlier report whole, and no mixture of two.
    made = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        write_text(made / MARK, "Written by `bench report`, which may replace this folder.\n")
        missing = _fill(records, store, made, dark, figures)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    except OSError as error:
        raise BenchError(
            f"the report cannot be written: {error.strerror}", where=str(folder)
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return missing


def _fill(
    records: Sequence[RunRecord], store: Store, folder: Path, dark: bool, figures: Sequence[str]
) -> list[str]:
    predictions, view = Predictions(store), View(ties="models")
    # Ranked boards only: trials and runs that are not comparable are not results to quote.
    found = [
        board
        for board in boards(records, view, predictions, load(store)).boards
        if board.kind == "ranked"
    ]
    parts, missing = ["# Report", ""], []
    for board in found:
        name = "".join(
            c if c.isalnum() or c in "-_." else "_"
            for c in f"{board.group.suite}_{board.group.backbone}"
        )
        # Two names may differ only in characters that were replaced.
        while (folder / name).exists():
            name += "_"
        place = folder / name
        # The board as files.
        own = board_table(board, view)
        for form, ending in (
            (Format.md, "md"),
            (Format.latex, "tex"),
            (Format.csv, "csv"),
            (Format.json, "json"),
        ):
            write_text(place / f"board.{ending}", render([own], form))
        # Its section: what it shows, the protocol, the table.
        parts += [
            f"## {_heading(board)}",
            "",
            *_paragraph(in_words(board)),
            *_paragraph(protocol(board)),
            _untitled(own),
            "",
        ]
        # Its figures. One without data is a note, not an error: few boards have a curve.
        for what, plot in _charts(board, store, dark).items():
            try:
                chart = plot()
            except NothingMatched as why:
                missing.append(f"{title(board)}: no {what}: {why.what}")
                continue
            for ending in figures:
                save(chart, place / f"{what}{ending}", f"{title(board)}: {what}")
            parts += [
                f"![{what} of {_heading(board)}]({name}/{what}.svg)",
                "",
                *_paragraph(_caption(what, board)),
            ]
        parts += [
            (
                f"The table is in `{name}/board.tex`, `.csv`, `.json` and `.md`, the figures as"
                f" {_listed(figures)}."
            ),
            "",
        ]
    parts += [f"- {markdown_text(plain(why))}." for why in missing]
    write_text(folder / "report.md", "\n".join(parts) + "\n")
    write_text(folder / "references.bib", bibtex(records))
    return missing


_CAPTIONS = {
    "scatter": "ID against OOD, one mark per row.",
    "curve": (
        "Accuracy along the straight line from the initial weights (alpha 0) to the fine-tuned"
        " weights (alpha 1)."
    ),
    "reliability": (
        "Accuracy against confidence. On the diagonal, confidence is calibrated; below it, it is"
        " too high."
    ),
    "radar": "Accuracy on ID and every shift of the average.",
}


def _caption(what: str, board: Board) -> str:
    if what != "scatter" or reference(board) is None:
        return _CAPTIONS[what]
    return (
        f"{_CAPTIONS[what]} A mark above the grey line has a higher OOD accuracy than the"
        " interpolation from the initial to the fine-tuned weights has at the same ID accuracy."
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _heading(board: Board) -> str:
    return markdown_text(plain(title(board)))


def _paragraph(text: str) -> list[str]:
    """Return text from records as a Markdown paragraph, with characters of names escaped."""
    return [markdown_text(plain(text)), ""] if text else []


def _charts(board: Board, store: Store, dark: bool) -> dict[str, Callable[[], Any]]:
    # Functions instead of charts, so that each can fail by itself.
    splits = ["id-test", *board.shifts.shared]
    return {
        "scatter": lambda: scatter_of(board, dark=dark),
        "curve": lambda: curve_of(board, splits, dark=dark),
        "reliability": lambda: reliability_of(board, splits, store, dark=dark),
        "radar": lambda: radar_of(board, splits, dark=dark),
    }


def _untitled(table: Table) -> str:
    """Return the table as Markdown without its title, which is the section's heading."""
    return render([Table(table.columns, table.rows, "", table.notes)], Format.md)


def protocol(board: Board) -> str:
    """Describe the protocol of a board in sentences.

    Only what the records contain is stated; what they lack is named as not on record.
    """
    records = board.records
    first = records[0]
    metric = next((r.metrics["id-test"].metric for r in records if "id-test" in r.metrics), "")
    images = {
        split: metrics.images for record in records for split, metrics in record.metrics.items()
    }
    shifts = _sizes({shift: images[shift] for shift in board.shifts.all if shift in images})
    left_out = [shift for shift in board.shifts.all if shift not in board.shifts.shared]
    trained = [record for record in records if record.phase != "external"]
    # In the order in which a paper describes an experiment: data and model, metrics, selection,
    # seeds, hardware, caveats. What does not apply is "".
    sentences = [
        (
            f"The backbone is {first.backbone} (weights with SHA-256 {first.backbone_sha256[:16]}),"
            f" the suite {first.suite}; images are seen as {first.pixels}."
        ),
        f"ID is {metric} on id-test ({images['id-test']:,} images)." if metric else "",
        f"The shifts are {shifts}." if shifts else "",
        (
            f"OOD is the unweighted mean over {', '.join(board.shifts.shared)}"
            + (f"; {', '.join(left_out)} are not in it." if left_out else ".")
            if board.shifts.shared
            else ""
        ),
        (
            "Training uses the training split only. Whatever a search or a method selects"
            " (parameters, a point along a path) is selected on held-out ID data only (id-val,"
            f" {images['id-val']:,} images), never on a shift."
            if "id-val" in images
            else ""
        ),
        _search(trained),
        _seeds(board),
        _machine(trained),
        (
            "Rows from external checkpoints are marked; their training is not verified."
            if len(trained) < len(records)
            else ""
        ),
        (
            f"{merged} run(s) were merged from packs: re-scored from their predictions, not"
            " trained again."
            if (merged := sum(bool(record.origin) for record in records))
            else ""
        ),
        (
            "The backbone was pre-trained on the suite's training images, so id-val is not unseen"
            " data."
            if any(record.id_val_seen for record in records)
            else ""
        ),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _sizes(images: Mapping[str, int]) -> str:
    """Return splits with their numbers of images, which are stated once if all are equal."""
    if len(images) > 1 and len(set(images.values())) == 1:
        return f"{', '.join(images)}, each of {next(iter(images.values())):,} images"
    return ", ".join(f"{split} ({count:,} images)" for split, count in images.items())


def _search(records: Sequence[RunRecord]) -> str:
    trials = sorted({record.search_trials for record in records})
    if not trials or trials == [0]:
        return (
            "Parameters are those of the suite's recipe or those that a row names, whose choice is"
            " not on record."
        )
    # Trials are a cost and an advantage: a reader has to know how many each row had.
    many = str(trials[0]) if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
    by_hand = (
        " Rows with 0 trials have the recipe's parameters or those that they name, whose choice is"
        " not on record."
    )
    searched = (
        f"Parameters were selected with {many} trials per row, on seed {SEARCH_SEED}, which no"
        " reported run uses."
    )
    return searched + (by_hand if 0 in trials else "")


def _seeds(board: Board) -> str:
    counts = sorted({len(row.records) for row in board.rows})
    if counts == [1]:
        return "Every row is one run of one seed, so no spread is known."
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = sorted({record.seed for record in board.records})
    # Rows with fewer seeds have some of those listed.
    which = ("" if counts == [len(seeds)] else "of ") + ", ".join(map(str, seeds))
    means = (
        f"Rows are means over {many} seeds ({which}) with sample SD (n - 1); figures show 95 %"
        " t-intervals over seeds."
    )
    return " ".join([means, *unvaried(board)])


def _machine(records: Sequence[RunRecord]) -> str:
    def known(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value))

    # Records of earlier versions and of other tools may lack any of these.
    provenance = [record.provenance for record in records]
    versions = [p.get("versions") or {} for p in provenance]
    bench, torch = (
        known([v.get("shiftbench") for v in versions]),
        known([v.get("torch") for v in versions]),
    )
    machine = known([p.get("gpu") or p.get("processor") for p in provenance])
    if not bench:
        return ""
    return f"ShiftBench {bench} with PyTorch {torch}" + (f" on {machine}." if machine else ".")
