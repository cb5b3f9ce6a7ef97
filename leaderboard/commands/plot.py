"""`bench plot`: write one chart of a leaderboard to an SVG, PDF, PNG or HTML file."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import NothingMatched, UsageError
from bench.tables.table import StoreOption, say

from .selection import BackbonesOption, MethodsOption, OutputOption, SuitesOption, results

if TYPE_CHECKING:
    from ..board.rows import Board


class Chart(StrEnum):
    """The kind of chart."""

    scatter = "scatter"
    curve = "curve"
    reliability = "reliability"
    radar = "radar"


# An option that a chart would ignore is an error: the file would otherwise look as if it had had an
# effect.
_TAKES = {
    Chart.scatter: ("--y", "--logit", "--reported"),
    Chart.curve: ("--split", "--logit"),
    Chart.reliability: ("--split", "--scaled"),
    Chart.radar: ("--split",),
}


def plot(
    what: Annotated[
        Chart, typer.Argument(help="scatter, curve, reliability or radar", show_default=False)
    ],
    output: OutputOption,
    store: StoreOption = None,
    suite: SuitesOption = None,
    backbone: BackbonesOption = None,
    method: MethodsOption = None,
    y: Annotated[
        str, typer.Option("--y", help="scatter: the vertical axis, such as a shift")
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
        bool, typer.Option("--reported", help="scatter: show published rows too, as hollow marks")
    ] = False,
    dark: Annotated[bool, typer.Option("--dark", help="colours for a dark background")] = False,
) -> None:
    """Write a chart of a board to a file.

    scatter: ID against OOD with 95 % intervals over seeds, the interpolation curve of full
    fine-tuning, the Pareto front and the line of standard models where it is known. curve: accuracy
    along that interpolation. reliability: accuracy against confidence. radar: accuracy on every
    split. The file's suffix selects the format: .svg, .pdf, .png or .html (interactive).

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
    # What differs from the default was requested; `--y ood` changes nothing and is accepted.
    given = {
        "--y": y != "ood",
        "--split": bool(split),
        "--logit": logit,
        "--scaled": scaled,
        "--reported": reported,
    }
    for option in (
        name for name, requested in given.items() if requested and name not in _TAKES[what]
    ):
        raise UsageError(
            f"a {what.value} chart has no {option}",
            where=option,
            fix=f"remove it; {what.value} takes {', '.join(_TAKES[what])}",
        )
    root = Store(store_root(store))
    # The whole store is passed too: reference curve and standard models may be outside the filters.
    board = only(boards(results(root, suite, backbone, method), View(), None, load(root)).boards)
    title = f"{board.group.suite} · {board.group.backbone}"
    # The functions below return charts and write nothing: `bench report` uses them too.
    if what is Chart.scatter:
        chart = scatter_of(board, y=y, logit=logit, dark=dark, reported=reported)
    elif what is Chart.curve:
        chart = curve_of(board, _splits(board, split), logit=logit, dark=dark)
    elif what is Chart.reliability:
        chart = reliability_of(board, _splits(board, split), root, scaled=scaled, dark=dark)
    else:
        chart = radar_of(board, _splits(board, split), dark=dark)
    save(chart, output, f"{title}: {what.value}")
    say(f"{what.value} of {title}: {output}")


def only(found: list[Board]) -> Board:
    """Return the only ranked board of a selection.

    Raises:
        UsageError: the selection has several.
    """
    # At least one is ranked: `results` raises for an empty selection, and the largest group of
    # comparable runs of a suite and backbone is always its ranked board.
    ranked = [board for board in found if board.kind == "ranked"]
    if len(ranked) > 1:
        names = ", ".join(f"{board.group.suite} · {board.group.backbone}" for board in ranked)
        raise UsageError(
            "a chart shows one board, but several match",
            where=names,
            fix="choose with --suite and --backbone",
        )
    return ranked[0]


def _splits(board: Board, requested: list[str] | None) -> list[str]:
    known = ["id-test", *board.shifts.all]
    # id-val is accepted but not suggested: parameters were selected on it.
    unknown = [split for split in requested or [] if split not in (*known, "id-val")]
    if unknown:
        raise UsageError(
            f"there is no split `{unknown[0]}`", where="--split", fix=f"one of: {', '.join(known)}"
        )
    return requested or ["id-test", *board.shifts.shared]


def _seeds(board: Board) -> str:
    """Describe what a mark and its bars are, for the subtitle."""
    counts = sorted({len(row.records) for row in board.rows})
    if counts[-1] == 1:
        return "one seed per row"
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    fixed = "; no interval: deterministic" if any(row.deterministic for row in board.rows) else ""
    return f"mean and 95 % t-interval over {many} seeds{fixed}"


def scatter_of(
    board: Board, *, y: str = "ood", logit: bool = False, dark: bool = False, reported: bool = False
) -> Any:
    """Plot ID accuracy against the OOD average or another accuracy.

    Args:
        board: the board.
        y: key of the column on the vertical axis.
        logit: scale both axes by the logit.
        dark: use the colours for a dark background.
        reported: add the published rows of the board's suite and backbone.

    Returns:
        An Altair chart.

    Raises:
        UsageError: `y` is not an accuracy of the board.
        NothingMatched: no row has both accuracies.
    """
    import pandas as pd

    from ..board.frames import points, reference, standard_line
    from ..charts.scatter import scatter
    from ..reported import reported_points

    measure = board.measure(y)
    if measure is None or measure.kind != "percent" or not measure.splits or y == "id":
        known = [m.key for m in board.columns if m.kind == "percent" and m.splits and m.key != "id"]
        raise UsageError(
            f"`{y}` is not an accuracy that can be plotted against ID",
            where="--y",
            fix=f"one of: {', '.join(known)}",
        )
    plotted = points(board, "id", y)
    if plotted.empty:
        raise NothingMatched(f"no row has both ID and {measure.title}")
    if reported:
        published = reported_points(board, y)
        # pandas warns when one of the frames is empty.
        plotted = (
            pd.concat([plotted.assign(kind="measured"), published], ignore_index=True)
            if len(published)
            else plotted
        )
    # What the average is over, since boards of one suite can differ in it.
    over = f"OOD: mean over {', '.join(board.shifts.shared)}" if y == "ood" else ""
    return scatter(
        plotted,
        curve=reference(board, measure.key),
        baseline=standard_line(board, measure.key),
        logit=logit,
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}",
        subtitle=[_seeds(board), over],
        y="OOD average" if y == "ood" else f"accuracy on {measure.title}",
    )


def curve_of(board: Board, splits: list[str], *, logit: bool = False, dark: bool = False) -> Any:
    """Plot accuracy along an interpolation: the reference's, or else the first row's with a curve.

    Args:
        board: the board.
        splits: the splits to plot; the OOD average is added.
        logit: scale the accuracy axis by the logit.
        dark: use the colours for a dark background.

    Returns:
        An Altair chart.

    Raises:
        NothingMatched: no run has a curve.
    """
    from bench.run_spec import REFERENCE

    from ..board.frames import curve_of as frame
    from ..charts import diagrams

    with_curve = [row for row in board.rows if any(record.curve for record in row.records)]
    # `board.curves` are the runs that rows are measured against. They may be of no row of this
    # board, if a filter excludes full fine-tuning.
    references = list(board.curves.values())
    row = next(
        (row for row in with_curve if references and references[0] in row.records),
        next(iter(with_curve), None),
    )
    if row is None:
        raise NothingMatched(
            "no run has a curve", fix=f"run `bench run {REFERENCE} --curve` to measure one"
        )
    found = frame([record for record in row.records if record.curve], board.shifts.shared)
    assert found is not None
    seeds = found["runs"].max()
    subtitle = f"mean and 95 % t-interval over {seeds} seeds" if seeds > 1 else "one seed"
    # Several seeds without any interval: no seed changes the scores.
    if found["low"].isna().all() and seeds > 1:
        subtitle = f"deterministic: {seeds} seeds have equal scores"
    return diagrams.curve(
        found[found["split"].isin([*splits, "OOD average"])],
        logit=logit,
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}: {row.name}",
        subtitle=subtitle,
    )


def _legible(board: Board, most: int = 6) -> tuple[Board, str]:
    """Reduce a board of more than `most` rows to the best row per method, with a note on that."""
    from dataclasses import replace

    if len(board.rows) <= most:
        return board, ""
    # Rows are sorted best first; reversed, the best row of a method is the last to be assigned.
    best = {row.family: row for row in reversed(board.rows)}
    rows = [row for row in board.rows if row in best.values()][:most]
    by = (
        "OOD average"
        if board.sort == "ood"
        else getattr(board.measure(board.sort), "title", board.sort)
    )
    which = (
        f"{len(rows)} of {len(board.rows)} rows: the best of each method by {by}; use --method for"
        " others"
    )
    return replace(board, rows=rows), which


def reliability_of(
    board: Board, splits: list[str], store: Any, *, scaled: bool = False, dark: bool = False
) -> Any:
    """Plot reliability diagrams of the rows, or of the best row per method if there are many.

    Args:
        board: the board.
        splits: a panel each.
        store: the store of the board's runs, for their predictions.
        scaled: use the confidences after temperature scaling on id-val.
        dark: use the colours for a dark background.

    Returns:
        An Altair chart.

    Raises:
        NothingMatched: no row has saved predictions.
    """
    from ..board.frames import bins
    from ..charts import diagrams
    from ..statistics.predictions import Predictions

    shown, which = _legible(board)
    found = bins(shown, splits, Predictions(store), after=scaled)
    if found.empty:
        raise NothingMatched(
            "no saved predictions for a reliability diagram", where=str(store.root)
        )
    when = "after temperature scaling fitted on id-val" if scaled else "as trained"
    return diagrams.reliability(
        found,
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}: reliability",
        subtitle=[
            (
                f"{when}; 15 bins of equal width, images of all seeds pooled; area: share of the"
                f" images; bins with fewer than {diagrams.FEWEST_IN_LINE} images are not on the"
                " line"
            ),
            which,
        ],
    )


def radar_of(board: Board, splits: list[str], *, dark: bool = False) -> Any:
    """Plot a radar chart of the rows, or of the best row per method if there are many.

    Args:
        board: the board.
        splits: an axis each.
        dark: use the colours for a dark background.

    Returns:
        An Altair chart.
    """
    from ..board.frames import scores
    from ..charts import diagrams

    shown, which = _legible(board)
    return diagrams.radar(
        scores(shown, splits),
        dark=dark,
        title=f"{board.group.suite} · {board.group.backbone}",
        subtitle=["accuracy (%), mean over seeds", which],
    )
