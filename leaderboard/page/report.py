"""A report: one folder with the tables, the figures and a paragraph on the protocol, ready to
quote.
"""

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
from bench.spec import SEARCH_SEED
from bench.storage.atomic import write_text
from bench.tables.table import Format, Table, markdown_text, render

from ..board.frames import yardstick
from ..board.groups import load
from ..board.printed import bibtex, in_words
from ..board.rows import Board
from ..board.tables import View, board_table, boards, title, unvaried
from ..charts.style import FORMATS, save
from ..commands.plot import curve_of, radar_of, reliability_of, scatter_of
from ..statistics.predictions import Predictions

#: Lies in every folder that a report was written to; no other folder is ever replaced.
MARK = ".shiftbench-report"


def check_folder(folder: Path) -> None:
    """Tell whether a report may be written there.

    Raises:
        UsageError: something is there that no report wrote.
    """
    if (
        folder.exists()
        and not (folder / MARK).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise UsageError(
            "the folder holds something that is not a report, and is left alone",
            where=str(folder),
            fix="name another folder",
        )


def write_report(
    records: Sequence[RunRecord],
    store: Store,
    folder: Path,
    *,
    dark: bool = False,
    figures: Sequence[str] = FORMATS,
) -> list[str]:
    """Write the report of some runs, in place of an earlier one.

    Args:
        figures: endings of the files that a figure is written to; .svg is shown in the report.

    Returns:
        What could not be drawn, a sentence each.

    Raises:
        UsageError: see `check_folder`.
        BenchError: a file cannot be written; an earlier report is then still there.
    """
    check_folder(folder)
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
        while (folder / name).exists():  # two names may differ in nothing but odd characters
            name += "_"
        place = folder / name
        own = board_table(board, view)
        for form, ending in (
            (Format.md, "md"),
            (Format.latex, "tex"),
            (Format.csv, "csv"),
            (Format.json, "json"),
        ):
            write_text(place / f"board.{ending}", render([own], form))
        parts += [
            f"## {_heading(board)}",
            "",
            *_paragraph(in_words(board)),
            *_paragraph(protocol(board)),
            _untitled(own),
            "",
        ]
        for what, draw in _charts(board, store, dark).items():
            try:
                chart = draw()
            except NothingMatched as why:
                missing.append(f"{title(board)}: no {what}, since {why.what}")
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
                f"The table as `{name}/board.tex`, `.csv`, `.json` and `.md`; the figures as"
                f" {_listed(figures)}."
            ),
            "",
        ]
    parts += [f"- {markdown_text(plain(why))}." for why in missing]
    write_text(folder / "report.md", "\n".join(parts) + "\n")
    write_text(folder / "references.bib", bibtex(records))
    return missing


_CAPTIONS = {
    "scatter": "ID against OOD, a mark per row.",
    "curve": (
        "Accuracy along the straight line from the start (alpha 0) to the fine-tuned weights"
        " (alpha 1)."
    ),
    "reliability": (
        "Accuracy against confidence. On the diagonal confidence is right; below it, it is too"
        " high."
    ),
    "radar": "Accuracy on ID and every shift of the average.",
}


def _caption(what: str, board: Board) -> str:
    if what != "scatter" or yardstick(board) is None:
        return _CAPTIONS[what]
    return (
        f"{_CAPTIONS[what]} What lies above the grey line offers more OOD at its ID than the"
        " interpolation from the start to the fine-tuned weights does."
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _heading(board: Board) -> str:
    return markdown_text(plain(title(board)))


def _paragraph(text: str) -> list[str]:
    """Text that came from records as a Markdown paragraph: names stay names."""
    return [markdown_text(plain(text)), ""] if text else []


def _charts(board: Board, store: Store, dark: bool) -> dict[str, Callable[[], Any]]:
    splits = ["id-test", *board.shifts.shared]
    return {
        "scatter": lambda: scatter_of(board, dark=dark),
        "curve": lambda: curve_of(board, splits, dark=dark),
        "reliability": lambda: reliability_of(board, splits, store, dark=dark),
        "radar": lambda: radar_of(board, splits, dark=dark),
    }


def _untitled(table: Table) -> str:
    return render([Table(table.columns, table.rows, "", table.notes)], Format.md)


def protocol(board: Board) -> str:
    """The protocol of a board in sentences, every one of them from its records."""
    records = board.records
    first = records[0]
    metric = next((r.metrics["id-test"].metric for r in records if "id-test" in r.metrics), "")
    images = {
        split: metrics.images for record in records for split, metrics in record.metrics.items()
    }
    shifts = _sizes({shift: images[shift] for shift in board.shifts.all if shift in images})
    left_out = [shift for shift in board.shifts.all if shift not in board.shifts.shared]
    trained = [record for record in records if record.phase != "external"]
    sentences = [
        (
            f"The backbone is {first.backbone} (weights with SHA-256 {first.backbone_sha256[:16]}),"
            f" the suite {first.suite}; images are seen as {first.pixels}."
        ),
        f"ID is {metric} on id-test ({images['id-test']:,} images)." if metric else "",
        f"The shifts are {shifts}." if shifts else "",
        (
            f"OOD is the unweighted mean over {', '.join(board.shifts.shared)}"
            + (f"; {', '.join(left_out)} stand outside it." if left_out else ".")
            if board.shifts.shared
            else ""
        ),
        (
            "Training is given the training split alone, and whatever a search or a method chooses"
            " (parameters, a point along a path) is chosen on held-out ID data alone (id-val,"
            f" {images['id-val']:,} images), and on no shift."
            if "id-val" in images
            else ""
        ),
        _search(trained),
        _seeds(board),
        _machine(trained),
        (
            "Rows from checkpoints of others are marked; their training is not verified."
            if len(trained) < len(records)
            else ""
        ),
        (
            f"{merged} run(s) were merged from packs of others: re-scored from their predictions,"
            " not trained again."
            if (merged := sum(bool(record.origin) for record in records))
            else ""
        ),
        (
            "The backbone was pre-trained on the suite's own training images, so that id-val is"
            " seen data."
            if any(record.id_val_seen for record in records)
            else ""
        ),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _sizes(images: Mapping[str, int]) -> str:
    """Splits with their numbers of images, which are said once if they are alike."""
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
    many = str(trials[0]) if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
    by_hand = (
        " Rows with 0 trials have the recipe's parameters or those that they name, whose choice is"
        " not on record."
    )
    searched = (
        f"Parameters were chosen with {many} trials per row, on seed {SEARCH_SEED}, which no"
        " reported run has."
    )
    return searched + (by_hand if 0 in trials else "")


def _seeds(board: Board) -> str:
    counts = sorted({len(row.records) for row in board.rows})
    if counts == [1]:
        return "Every row is one run of one seed, so that no spread is known."
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = sorted({record.seed for record in board.records})
    which = ("" if counts == [len(seeds)] else "of ") + ", ".join(map(str, seeds))
    said = (
        f"Rows are means over {many} seeds ({which}) with sample SD (n - 1); the figures have 95 %"
        " t-intervals over seeds."
    )
    return " ".join([said, *unvaried(board)])


def _machine(records: Sequence[RunRecord]) -> str:
    def known(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value))

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
