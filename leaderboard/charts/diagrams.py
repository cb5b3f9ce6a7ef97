"""Plot interpolation curves, reliability diagrams and radars with Altair.

All take plain data frames, in which shares are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from .style import DARK, LIGHT, Axis, configured, inline, legend, percent, style

#: The line of a reliability diagram skips bins with fewer images, whose accuracy is mostly noise.
#: Their marks stay.
FEWEST_IN_LINE = 10
#: Accuracies at which a radar has rings.
_RINGS = (0.2, 0.4, 0.6, 0.8, 1.0)


def _head(title: str, subtitle: str | Sequence[str]) -> alt.TitleParams:
    return alt.TitleParams(
        title,
        subtitle=[line for line in ([subtitle] if isinstance(subtitle, str) else subtitle) if line],
    )


def curve(
    points: pd.DataFrame,
    *,
    logit: bool = False,
    dark: bool = False,
    title: str = "",
    subtitle: str | Sequence[str] = "",
) -> alt.LayerChart:
    """Plot accuracy against alpha, from the start (0) to the fine-tuned weights (1).

    Each split has a line.

    Args:
        points: columns `alpha`, `split` and `score` (mean over seeds), and where known `low` and
            `high`, plotted as a band. The line of the split `OOD average` is thick.
        logit: scale accuracies by the logit.
        dark: use colours for a dark background.
        title: title of the chart.
        subtitle: one line or several; empty ones are left out.
    """
    up = Axis("accuracy", logit)
    frame = points.reset_index(drop=True).copy()
    for column in ("score", "low", "high"):
        frame[column] = pd.to_numeric(frame[column]) if column in frame else float("nan")
        # Vega has no logit scale: values are placed here, and the axis labels places with shares.
        frame[f"y_{column}"] = up.place(frame[column])
    colours, shapes = style(frame.assign(row=frame["split"]), dark)
    values = pd.concat([frame["score"], frame["low"], frame["high"]])
    height = alt.Y(
        "y_score:Q",
        axis=up.axis(float(values.min()), float(values.max())),
        scale=alt.Scale(zero=False),
    )
    across = alt.X("alpha:Q", axis=alt.Axis(title="alpha (0: start, 1: fine-tuned)"))
    colour = alt.Color("split:N", scale=colours, legend=alt.Legend(title=None))
    base = alt.Chart(inline("curve", frame)).encode(x=across, color=colour, detail="split:N")
    thick = alt.when("datum.split == 'OOD average'").then(alt.value(4)).otherwise(alt.value(1.8))
    # Without intervals there is nothing to fill.
    band = base.transform_filter("isValid(datum.low)").mark_area(fillOpacity=0.15)
    marks = base.mark_point(filled=True, size=46, opacity=1).encode(
        y=height,
        shape=alt.Shape("split:N", scale=shapes, legend=alt.Legend(title=None)),
        tooltip=[alt.Tooltip("split:N"), alt.Tooltip("alpha:Q"), percent("score", "accuracy")],
    )
    chart = alt.layer(
        band.encode(y="y_low:Q", y2="y_high:Q"),
        base.mark_line().encode(y=height, strokeWidth=thick),
        marks,
    )
    finished: alt.LayerChart = configured(
        chart.properties(width=560, height=380, title=_head(title, subtitle)), dark
    )
    return finished


def reliability(
    bins: pd.DataFrame,
    *,
    columns: int = 3,
    dark: bool = False,
    title: str = "",
    subtitle: str | Sequence[str] = "",
) -> alt.FacetChart:
    """Plot accuracy against confidence, a panel for each `panel`.

    The area of a mark is the share of images behind it.

    Args:
        bins: columns `panel`, `key` (unique) and `row` (name) of what is compared in a panel, its
            `family` (see `style`), `confidence` and `accuracy` (means of the bin), and `images`.
        columns: number of panels next to each other.
        dark: use colours for a dark background.
        title: title of the chart.
        subtitle: one line or several; empty ones are left out.
    """
    palette = DARK if dark else LIGHT
    frame = bins[bins["images"] > 0].reset_index(drop=True)
    frame["share"] = frame["images"] / frame.groupby(["panel", "key"])["images"].transform("sum")
    colours, shapes = style(frame, dark)
    data = alt.Chart(inline("bins", frame))

    def axis(word: str) -> alt.Axis:
        return alt.Axis(
            title=f"{word} (%)",
            values=[0, 0.25, 0.5, 0.75, 1],
            labelExpr="format(100 * datum.value, '~g')",
        )

    # A facet splits one dataset for all of its layers. The diagonal is therefore a mark of the
    # same data: the same line, once for each bin.
    diagonal = data.mark_rule(color=palette.quiet, strokeDash=[5, 4]).encode(
        x=alt.XDatum(0), y=alt.YDatum(0), x2=alt.X2Datum(1), y2=alt.Y2Datum(1)
    )
    whole = alt.Scale(domain=[0, 1])
    x = alt.X("confidence:Q", axis=axis("confidence"), scale=whole)
    y = alt.Y("accuracy:Q", axis=axis("accuracy"), scale=whole)
    named = legend(frame["row"])
    colour = alt.Color("row:N", scale=colours, legend=named)
    enough = data.transform_filter(f"datum.images >= {FEWEST_IN_LINE}")
    line = enough.mark_line(strokeWidth=1.5).encode(
        x=x, y=y, color=colour, detail="key:N", order="confidence:Q"
    )
    marks = data.mark_point(filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=alt.Shape("row:N", scale=shapes, legend=named),
        size=alt.Size("share:Q", scale=alt.Scale(range=[15, 220]), legend=None),
        tooltip=[
            alt.Tooltip("row:N"),
            alt.Tooltip("panel:N", title="split"),
            percent("confidence", "confidence"),
            percent("accuracy", "accuracy"),
            alt.Tooltip("images:Q"),
        ],
    )
    panels = alt.layer(diagonal, line, marks).properties(width=210, height=210)
    # In the order of the frame; Vega-Lite would sort by name.
    order = list(dict.fromkeys(frame["panel"]))
    chart = panels.facet(facet=alt.Facet("panel:N", title=None, sort=order), columns=columns)
    # Each panel has axes of its own. Shared ones are at the bottom, below nothing where the last
    # row of panels is not full.
    chart = chart.resolve_axis(x="independent", y="independent").properties(
        title=_head(title, subtitle)
    )
    finished: alt.FacetChart = configured(chart, dark)
    return finished


def radar(
    scores: pd.DataFrame,
    *,
    dark: bool = False,
    title: str = "",
    subtitle: str | Sequence[str] = "",
    size: int = 420,
) -> alt.LayerChart:
    """Plot each row as a polygon over the splits, from 0 % at the centre to 100 % at the rim.

    Args:
        scores: columns `key` (unique), `row` (name), `split`, `score`, and `family` (see `style`).
            The spokes are in the order in which the splits first occur. A row that lacks a split is
            an open line over the others.
        dark: use colours for a dark background.
        title: title of the chart.
        subtitle: one line or several; empty ones are left out.
        size: width and height in pixels.
    """
    palette = DARK if dark else LIGHT
    spokes = list(dict.fromkeys(scores["split"]))
    # The first spoke points up, and the others follow clockwise.
    angle = {split: math.pi / 2 - 2 * math.pi * i / len(spokes) for i, split in enumerate(spokes)}

    def at(split: str, radius: float) -> dict[str, float]:
        return {"x": radius * math.cos(angle[split]), "y": radius * math.sin(angle[split])}

    vertices: list[dict[str, Any]] = []
    for (key, row), own in scores.dropna(subset=["score"]).groupby(["key", "row"], sort=False):
        by_split = dict(zip(own["split"], own["score"], strict=True))
        path = [(split, by_split[split]) for split in spokes if split in by_split]
        # A polygon that skips a split would suggest a value there.
        closed = [*path, path[0]] if len(path) == len(spokes) else path
        vertices += [
            {
                "key": key,
                "row": row,
                "split": split,
                "score": score,
                "step": step,
                **at(split, score),
            }
            for step, (split, score) in enumerate(closed)
        ]
    rings = [
        {"ring": ring, "step": step, **at(split, ring)}
        for ring in _RINGS
        for step, split in enumerate([*spokes, spokes[0]])
    ]
    names = [
        {
            "split": split,
            **at(split, 1.1),
            "left": math.cos(angle[split]) < -0.1,
            "right": math.cos(angle[split]) > 0.1,
        }
        for split in spokes
    ]
    # Room around the unit circle for the names, which are at a radius of 1.1.
    plane = alt.Scale(domain=[-1.15, 1.15])
    x, y = alt.X("x:Q", axis=None, scale=plane), alt.Y("y:Q", axis=None, scale=plane)
    grid = (
        alt.Chart(inline("rings", pd.DataFrame(rings)))
        .mark_line(color=palette.grid, strokeWidth=1)
        .encode(x, y, detail="ring:N", order="step:Q")
    )
    values = pd.DataFrame(
        [{"label": f"{100 * ring:.0f}", **at(spokes[0], ring)} for ring in _RINGS]
    )
    scale = (
        alt.Chart(inline("values", values))
        .mark_text(color=palette.quiet, dx=4, align="left", fontSize=10)
        .encode(x, y, text="label:N")
    )
    # Names extend away from the circle, so that they do not cover it. Alignment is a property of
    # the mark and not of the data, which takes a layer for each side.
    sides: tuple[tuple[Literal["left", "center", "right"], list[dict[str, Any]]], ...] = (
        ("right", [n for n in names if n["left"]]),
        ("left", [n for n in names if n["right"]]),
        ("center", [n for n in names if not n["left"] and not n["right"]]),
    )
    labels = [
        alt.Chart(inline(f"names-{side}", pd.DataFrame(part, columns=["split", "x", "y"])))
        .mark_text(color=palette.ink, fontSize=12, align=side, limit=0)
        .encode(x, y, text="split:N")
        for side, part in sides
        if part
    ]
    colours, shapes = style(scores, dark)
    named = legend(scores["row"])
    colour = alt.Color("row:N", scale=colours, legend=named)
    data = alt.Chart(
        inline(
            "radar",
            pd.DataFrame(vertices, columns=["key", "row", "split", "score", "step", "x", "y"]),
        )
    )
    lines = data.mark_line(strokeWidth=1.8).encode(
        x, y, color=colour, detail="key:N", order="step:Q"
    )
    marks = data.mark_point(filled=True, size=50, opacity=1).encode(
        x,
        y,
        color=colour,
        shape=alt.Shape("row:N", scale=shapes, legend=named),
        tooltip=[alt.Tooltip("row:N"), alt.Tooltip("split:N"), percent("score", "score")],
    )
    chart = alt.layer(grid, scale, *labels, lines, marks).properties(
        width=size, height=size, title=_head(title, subtitle)
    )
    finished: alt.LayerChart = configured(chart, dark).configure_view(stroke=None)
    return finished
