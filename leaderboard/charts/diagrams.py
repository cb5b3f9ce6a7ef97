"""Interpolation curves, reliability diagrams and radars of a board, from plain frames to Altair.
Shares lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from .style import DARK, LIGHT, Axis, configured, inline, legend, percent, style

#: A reliability diagram's line leaves out bins with fewer images, whose accuracy is chance; their
#: marks stay.
FEWEST_IN_LINE = 10
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
    """Accuracy along the straight line from the start (alpha 0) to the fine-tuned weights (alpha
    1), a line per split.

    Args:
        points: `alpha`, `split`, `score` (mean over seeds), and where known `low`, `high` (drawn as
            a band). The line of the split `OOD average` is the thick one.
        logit: scale the accuracies by the logit.
    """
    up = Axis("accuracy", logit)
    drawn = points.reset_index(drop=True).copy()
    for column in ("score", "low", "high"):
        drawn[column] = pd.to_numeric(drawn[column]) if column in drawn else float("nan")
        drawn[f"y_{column}"] = up.place(drawn[column])
    colours, shapes = style(drawn.assign(row=drawn["split"]), dark)
    known = pd.concat([drawn["score"], drawn["low"], drawn["high"]])
    height = alt.Y(
        "y_score:Q",
        axis=up.axis(float(known.min()), float(known.max())),
        scale=alt.Scale(zero=False),
    )
    across = alt.X("alpha:Q", axis=alt.Axis(title="alpha (0: start, 1: fine-tuned)"))
    colour = alt.Color("split:N", scale=colours, legend=alt.Legend(title=None))
    base = alt.Chart(inline("curve", drawn)).encode(x=across, color=colour, detail="split:N")
    thick = alt.when("datum.split == 'OOD average'").then(alt.value(4)).otherwise(alt.value(1.8))
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
    """Accuracy against confidence per bin, a panel per `panel`; a mark's area is the share of
    images behind it.

    Args:
        bins: `panel` (what a panel shows), `key` (unique) and `row` (name) of what is told apart in
            it, its `family` (see `style`), `confidence` and `accuracy` (means of the bin),
            `images`.
    """
    palette = DARK if dark else LIGHT
    drawn = bins[bins["images"] > 0].reset_index(drop=True)
    drawn["share"] = drawn["images"] / drawn.groupby(["panel", "key"])["images"].transform("sum")
    colours, shapes = style(drawn, dark)
    data = alt.Chart(inline("bins", drawn))

    def axis(word: str) -> alt.Axis:
        return alt.Axis(
            title=f"{word} (%)",
            values=[0, 0.25, 0.5, 0.75, 1],
            labelExpr="format(100 * datum.value, '~g')",
        )

    # The diagonal is one line for every bin, with both ends given: a data set of its own could not
    # be faceted with the marks.
    diagonal = data.mark_rule(color=palette.quiet, strokeDash=[5, 4]).encode(
        x=alt.XDatum(0), y=alt.YDatum(0), x2=alt.X2Datum(1), y2=alt.Y2Datum(1)
    )
    whole = alt.Scale(domain=[0, 1])
    x = alt.X("confidence:Q", axis=axis("confidence"), scale=whole)
    y = alt.Y("accuracy:Q", axis=axis("accuracy"), scale=whole)
    named = legend(drawn["row"])
    colour = alt.Color("row:N", scale=colours, legend=named)
    settled = data.transform_filter(f"datum.images >= {FEWEST_IN_LINE}")
    line = settled.mark_line(strokeWidth=1.5).encode(
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
    order = list(dict.fromkeys(drawn["panel"]))
    chart = panels.facet(facet=alt.Facet("panel:N", title=None, sort=order), columns=columns)
    # An axis at every panel: with a last row that is not full, shared ones would hang below
    # nothing.
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
    """A polygon per row over the splits, from 0 % in the middle to 100 % at the rim.

    Args:
        scores: `key` (unique), `row` (name), `split`, `score`, and `family` (see `style`). The
            spokes stand in the order in which the splits first appear; a row that lacks one is
            drawn as an open line over those that it has.
    """
    palette = DARK if dark else LIGHT
    spokes = list(dict.fromkeys(scores["split"]))
    angle = {split: math.pi / 2 - 2 * math.pi * i / len(spokes) for i, split in enumerate(spokes)}

    def at(split: str, radius: float) -> dict[str, float]:
        return {"x": radius * math.cos(angle[split]), "y": radius * math.sin(angle[split])}

    drawn: list[dict[str, Any]] = []
    for (key, row), own in scores.dropna(subset=["score"]).groupby(["key", "row"], sort=False):
        held = dict(zip(own["split"], own["score"], strict=True))
        path = [(split, held[split]) for split in spokes if split in held]
        closed = [*path, path[0]] if len(path) == len(spokes) else path
        drawn += [
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
    names = [{"split": split, **at(split, 1.1), "left": math.cos(angle[split]) < -0.1,
    "right": math.cos(angle[split]) > 0.1}
             for split in spokes]  # fmt: skip
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
            "radar", pd.DataFrame(drawn, columns=["key", "row", "split", "score", "step", "x", "y"])
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
