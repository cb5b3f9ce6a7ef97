"""`bench plot`: a board as a chart, in a file that needs no network."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import NothingMatched, UsageError
from bench.tables.table import StoreOption, say

from .selection import BackbonesOption, MethodsOption, OutputOption, SuitesOption, results

if TYPE_CHECKING:
    from ..board.rows import Board


class What(StrEnum):
    """Which chart."""

    scatter = "scatter"
    curve = "curve"
    reliability = "reliability"
    radar = "radar"


_TAKES = {
    What.scatter: ("--y", "--logit", "--reported"),
    What.curve: ("--split", "--logit"),
    What.reliability: ("--split", "--scaled"),
    What.radar: ("--split",),
}


def plot(
    what: Annotated[
        What, typer.Argument(help="scatter, curve, reliability or radar", show_default=False)
    ],
    output: OutputOption,
    store: StoreOption = None,
    suite: SuitesOption = None,
    backbone: BackbonesOption = None,
    method: MethodsOption = None,
    y: Annotated[
        str, typer.Option("--y", help="scatter: what stands against ID, such as a shift")
    ] = "ood",
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            help="curve, reliability, radar: these splits",
            show_default="id-test and the averaged shifts",
        ),
    ] = None,
    logit: Annotated[
        bool, typer.Option("--logit", help="scatter, curve: logit-scaled axes")
    ] = False,
    scaled: Annotated[
        bool, typer.Option("--scaled", help="reliability: after temperature scaling on id-val")
    ] = False,
    reported: Annotated[
        bool, typer.Option("--reported", help="scatter: published rows too, hollow")
    ] = False,
    dark: Annotated[bool, typer.Option("--dark", help="for a dark ground")] = False,
) -> None:
    """Draw a board.

    scatter: ID against OOD with 95 % intervals over seeds, the interpolation curve of full
    fine-tuning, the Pareto front and, where it is known, what standard models reach. curve:
    accuracy along that interpolation. reliability: accuracy against confidence. radar: every split
    at a glance. The file's ending says what is written: .svg, .pdf, .png or .html (interactive).

    \b
    Examples:
      bench plot scatter -o board.svg
      bench plot scatter --y sketch --logit -o sketch.html
      bench plot curve --method full-finetune -o curve.png
      bench plot reliability --method zero-shot --method wise-ft -o reliability.png --dark

    Exit codes: 0 done, 2 usage, 5 nothing matched.
    """
    from bench.results.store import Store, store_root

    from ..board.groups import load
    from ..board.tables import View, boards
    from ..charts.style import check_ending, save

    check_ending(output)
    given = {
        "--y": y != "ood",
        "--split": bool(split),
        "--logit": logit,
        "--scaled": scaled,
        "--reported": reported,
    }
    for option in (name for name, asked in given.items() if asked and name not in _TAKES[what]):
        raise UsageError(
            f"a {what.value} has no {option}",
            where=option,
            fix=f"leave it out; it takes {', '.join(_TAKES[what])}",
        )
    root = Store(store_root(store))
    board = only(boards(results(root, suite, backbone, method), View(), None, load(root)).boards)
    title = f"{board.group.suite} · {board.group.backbone}"
    if what is What.scatter:
        chart = scatter_of(board, y=y, logit=logit, dark=dark, reported=reported)
    elif what is What.curve:
        chart = curve_of(board, _splits(board, split), logit=logit, dark=dark)
    elif what is What.reliability:
        chart = reliability_of(board, _splits(board, split), root, scaled=scaled, dark=dark)
    else:
        chart = radar_of(board, _splits(board, split), dark=dark)
    save(chart, output, f"{title}: {what.value}")
    say(f"{what.value} of {title}: {output}")


def only(found: list[Board]) -> Board:
    """The one ranked board of a selection.

    Raises:
        UsageError: there are several.
    """
    ranked = [board for board in found if board.kind == "ranked"]
    if len(ranked) > 1:
        names = ", ".join(f"{board.group.suite} · {board.group.backbone}" for board in ranked)
        raise UsageError(
            "one chart shows one board, and several match",
            where=names,
            fix="choose with --suite and --backbone",
        )
    return ranked[0]


def _splits(board: Board, asked: list[str] | None) -> list[str]:
    known = ["id-test", *board.shifts.all]
    unknown = [split for split in asked or [] if split not in (*known, "id-val")]
    if unknown:
        raise UsageError(
            f"there is no split `{unknown[0]}`", where="--split", fix=f"one of: {', '.join(known)}"
        )
    return asked or ["id-test", *board.shifts.shared]


def _seeds(board: Board) -> str:
    counts = sorted({len(row.records) for row in board.rows})
    if counts[-1] == 1:
        return "one seed per row"
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    fixed = "; without one: deterministic" if any(row.deterministic for row in board.rows) else ""
    return f"mean and 95 % t-interval over {many} seeds{fixed}"


def scatter_of(
    board: Board, *, y: str = "ood", logit: bool = False, dark: bool = False, reported: bool = False
) -> Any:
    """`charts.scatter` of a board, against the OOD average or another accuracy.

    Raises:
        UsageError: `y` is no accuracy of the board.
        NothingMatched: no row has both.
    """
    import pandas as pd

    from ..board.frames import points, standard_line, yardstick
    from ..charts.scatter import scatter
    from ..reported import beside

    measure = board.measure(y)
    if measure is None or measure.kind != "percent" or not measure.splits or y == "id":
        known = [m.key for m in board.columns if m.kind == "percent" and m.splits and m.key != "id"]
        raise UsageError(
            f"`{y}` is no accuracy to stand against ID",
            where="--y",
            fix=f"one of: {', '.join(known)}",
        )
    drawn = points(board, "id", y)
    if drawn.empty:
        raise NothingMatched(f"no row has both ID and {measure.title}")
    if reported:
        theirs = beside(board, y)
        drawn = (
            pd.concat([drawn.assign(kind="measured"), theirs], ignore_index=True)
            if len(theirs)
            else drawn
        )
    over = f"OOD: mean over {', '.join(board.shifts.shared)}" if y == "ood" else ""
    return scatter(
        drawn,
        curve=yardstick(board, measure.key),
        baseline=standard_line(board, measure.key),
        logit=logit,
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}",
        subtitle=[_seeds(board), over],
        y="OOD average" if y == "ood" else f"accuracy on {measure.title}",
    )


def curve_of(board: Board, splits: list[str], *, logit: bool = False, dark: bool = False) -> Any:
    """`diagrams.curve` of the yardstick, or of the only row that has a curve.

    Raises:
        NothingMatched: no run has one.
    """
    from bench.spec import REFERENCE

    from ..board.frames import curve_of as frame
    from ..charts import diagrams

    with_curve = [row for row in board.rows if any(record.curve for record in row.records)]
    against = list(board.curves.values())
    row = next(
        (row for row in with_curve if against and against[0] in row.records),
        next(iter(with_curve), None),
    )
    if row is None:
        raise NothingMatched(
            "no run has a curve", fix=f"`bench run {REFERENCE} --curve` measures one"
        )
    found = frame([record for record in row.records if record.curve], board.shifts.shared)
    assert found is not None
    seeds = found["runs"].max()
    subtitle = f"mean and 95 % t-interval over {seeds} seeds" if seeds > 1 else "one seed"
    if found["low"].isna().all() and seeds > 1:
        subtitle = f"deterministic: {seeds} seeds say the same"
    return diagrams.curve(
        found[found["split"].isin([*splits, "OOD average"])],
        logit=logit,
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}: {row.name}",
        subtitle=subtitle,
    )


def _legible(board: Board, most: int = 6) -> tuple[Board, str]:
    """The board with every method's first row, where all rows would be a tangle, and the words that
    say so and by what.
    """
    from dataclasses import replace

    if len(board.rows) <= most:
        return board, ""
    best = {row.family: row for row in reversed(board.rows)}
    rows = [row for row in board.rows if row in best.values()][:most]
    by = (
        "OOD average"
        if board.sort == "ood"
        else getattr(board.measure(board.sort), "title", board.sort)
    )
    which = (
        f"{len(rows)} of {len(board.rows)} rows, the best of a method each by {by}; --method"
        " chooses others"
    )
    return replace(board, rows=rows), which


def reliability_of(
    board: Board, splits: list[str], store: Any, *, scaled: bool = False, dark: bool = False
) -> Any:
    """`diagrams.reliability` of the rows, or of the best one of every method if there are many.

    Raises:
        NothingMatched: no row has kept what it needs.
    """
    from ..board.frames import bins
    from ..charts import diagrams
    from ..statistics.predictions import Predictions

    shown, which = _legible(board)
    found = bins(shown, splits, Predictions(store), after=scaled)
    if found.empty:
        raise NothingMatched(
            "no predictions are kept that a reliability diagram could be drawn of",
            where=str(store.root),
        )
    when = "after temperature scaling fitted on id-val" if scaled else "as trained"
    return diagrams.reliability(
        found,
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}: reliability",
        subtitle=[
            (
                f"{when}; 15 bins of equal width, the images of all seeds together; area: share of"
                f" the images; bins with fewer than {diagrams.FEWEST_IN_LINE} images are off the"
                " line"
            ),
            which,
        ],
    )


def radar_of(board: Board, splits: list[str], *, dark: bool = False) -> Any:
    """`diagrams.radar` of the rows, or of the best one of every method if there are many."""
    from ..board.frames import scores
    from ..charts import diagrams

    shown, which = _legible(board)
    return diagrams.radar(
        scores(shown, splits),
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}",
        subtitle=["accuracy (%), mean over seeds", which],
    )
