"""The ID/OOD scatter of a board, from plain frames to Altair. Accuracies are shares in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from ..statistics.tradeoff import on_front
from .style import DARK, EDGE, LIGHT, Axis, Palette, configured, inline, legend, percent, style


def scatter(
    points: pd.DataFrame,
    *,
    curve: pd.DataFrame | None = None,
    baseline: Callable[[float], float | None] | None = None,
    logit: bool = False,
    dark: bool = False,
    title: str = "",
    subtitle: str | Sequence[str] = "",
    x: str = "ID accuracy",
    y: str = "OOD average",
    width: int | Literal["container"] = 560,
    height: int = 420,
    zoom: bool = True,
) -> alt.LayerChart:
    """ID against OOD, a mark per row, with intervals, the yardstick's interpolation curve, a
    baseline and the Pareto front.

    Args:
        points: one row per row of the board: `key` (unique), `row` (its name), `id`, `ood`; and
            where known `id_low`, `id_high`, `ood_low`, `ood_high` (ends of the intervals), `kind`
            (`measured` or `reported`, drawn hollow), `front` (whether no other measured row beats
            it on both axes; found here if the column is missing), `seeds`, `family` (see `style`),
            `says` (what a mark says when it is pointed at; the row's name if missing: a reported
            row has name, colour and shape of the measured one).
        curve: `alpha`, `id`, `ood`, and where there are several curves `of` (what is interpolated)
            and `key` (unique; `of` if missing); drawn in the order of alpha.
        baseline: ID accuracy -> accuracy that standard models reach (Taori et al., 2020).
        logit: scale both axes by the logit.
        zoom: wheel and drag zoom and move.

    Returns:
        A layered chart. The marks' data set is called `points`; the selections `hover` and `chosen`
            hold the field `key`.
        A click chooses a row, Shift adds one, a double click lets all go.
    """
    across, up = Axis(x, logit), Axis(y, logit)
    palette = DARK if dark else LIGHT
    drawn = points.reset_index(drop=True).copy()
    for column in ("id_low", "id_high", "ood_low", "ood_high", "seeds"):
        if column not in drawn:
            drawn[column] = None
    drawn["kind"] = drawn.get("kind", "measured")
    drawn["says"] = drawn["says"].fillna(drawn["row"]) if "says" in drawn else drawn["row"]
    if "front" not in drawn:
        places = zip(drawn["id"].where(drawn["kind"] == "measured"), drawn["ood"], strict=True)
        known = [(None, None) if x != x or y != y else (x, y) for x, y in places]
        drawn["front"] = [bool(own) for own in on_front(known)]
    seen = (
        [drawn["id"], drawn["id_low"], drawn["id_high"]],
        [
            drawn["ood"],
            drawn["ood_low"],
            drawn["ood_high"],
        ],
    )
    for column in ("id", "id_low", "id_high"):
        drawn[f"x_{column}"] = across.place(drawn[column])
    for column in ("ood", "ood_low", "ood_high"):
        drawn[f"y_{column}"] = up.place(drawn[column])
    if curve is not None:
        seen[0].append(curve["id"])
        seen[1].append(curve["ood"])
    low_x, high_x = _range(seen[0])
    if baseline is not None:  # how far the marks lie from it is what it is drawn for
        seen[1].append(pd.Series([baseline(low_x), baseline(high_x)], dtype="float64"))
    low_y, high_y = _range(seen[1])
    plane_x = alt.X("x_id:Q", axis=across.axis(low_x, high_x), scale=_scale(across, low_x, high_x))
    plane_y = alt.Y("y_ood:Q", axis=up.axis(low_y, high_y), scale=_scale(up, low_y, high_y))
    colours, shapes = style(drawn, dark)

    hover = alt.selection_point(
        name="hover", fields=["key"], on="pointerover", clear="pointerout", empty=False
    )
    chosen = alt.selection_point(name="chosen", fields=["key"], clear="dblclick")
    marks = alt.Chart(inline("points", drawn))
    faint = alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(0.25))
    named = legend(drawn["row"])
    colour = alt.Color("row:N", scale=colours, legend=named)
    layers: list[alt.Chart] = []
    if baseline is not None:
        layers.append(_baseline(baseline, across, up, (low_x, high_x), palette))
    if curve is not None and len(curve):
        layers += _curve(curve, across, up, palette)
    if drawn["front"].sum() > 1:
        edge = marks.transform_filter("datum.front").mark_line(
            strokeDash=[2, 3], color=palette.quiet, strokeWidth=1.2
        )
        layers.append(
            edge.encode(
                x=plane_x, y=plane_y, order=alt.Order("x_id:Q"), tooltip=alt.value("Pareto front")
            )
        )
    bars = marks.encode(color=colour, opacity=faint)
    layers += [
        bars.transform_filter("isValid(datum.id_low)")
        .mark_rule(strokeWidth=1.4)
        .encode(x="x_id_low:Q", x2="x_id_high:Q", y=plane_y),
        bars.transform_filter("isValid(datum.ood_low)")
        .mark_rule(strokeWidth=1.4)
        .encode(x=plane_x, y="y_ood_low:Q", y2="y_ood_high:Q"),
    ]
    layers.append(
        marks.mark_point(filled=True, strokeWidth=1.4)
        .encode(
            x=plane_x,
            y=plane_y,
            color=colour,
            # A rim of the ground's colour keeps marks apart that lie upon each other; hollow ones
            # have the row's.
            stroke=alt.when("datum.kind == 'reported'")
            .then(alt.Stroke("row:N", scale=colours, legend=None))
            .otherwise(alt.value(palette.background)),
            shape=alt.Shape("row:N", scale=shapes, legend=named),
            fillOpacity=alt.when("datum.kind == 'reported'")
            .then(alt.value(0.0))
            .otherwise(alt.value(1.0)),
            opacity=faint,
            size=alt.when(hover).then(alt.value(300)).otherwise(alt.value(150)),
            tooltip=_tooltip(drawn),
        )
        .add_params(
            hover, chosen, *([alt.selection_interval(name="view", bind="scales")] if zoom else [])
        )
    )
    drawn_lines = [
        (
            "grey line: interpolation from the start to the fine-tuned weights"
            if curve is not None and len(curve)
            else ""
        ),
        "dashed: what standard models reach" if baseline is not None else "",
        "dotted: Pareto front" if drawn["front"].sum() > 1 else "",
        "hollow: reported, not measured" if (drawn["kind"] == "reported").any() else "",
    ]
    below = [
        *([subtitle] if isinstance(subtitle, str) else subtitle),
        "; ".join(filter(None, drawn_lines)),
    ]
    head = alt.TitleParams(title, subtitle=[line for line in below if line])
    chart = alt.layer(*layers).properties(width=width, height=height, title=head)
    finished: alt.LayerChart = configured(chart, dark)
    return finished


def _tooltip(points: pd.DataFrame) -> list[alt.Tooltip]:
    shown = [alt.Tooltip("says:N", title="row"), percent("id", "ID"), percent("ood", "OOD")]
    for name, label in (("id", "ID"), ("ood", "OOD")):
        if points[f"{name}_low"].notna().any():
            shown += [
                percent(f"{name}_low", f"{label}, low"),
                percent(f"{name}_high", f"{label}, high"),
            ]
    if points["seeds"].notna().any():
        shown.append(alt.Tooltip("seeds:N", title="seeds"))
    return [*shown, alt.Tooltip("kind:N", title="kind")]


def _range(columns: Sequence[pd.Series[Any]]) -> tuple[float, float]:
    known = pd.to_numeric(
        pd.concat([pd.Series(column, dtype="float64") for column in columns])
    ).dropna()
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _scale(axis: Axis, low: float, high: float) -> alt.Scale:
    """The data's range with a twentieth of room at either end."""
    first, last = axis.place(low), axis.place(high)
    room = max(0.05 * (last - first), 0.005)
    return alt.Scale(domain=[first - room, last + room], nice=False, zero=False)


def _curve(curve: pd.DataFrame, across: Axis, up: Axis, palette: Palette) -> list[alt.Chart]:
    drawn = curve.assign(x=across.place(curve["id"]), y=up.place(curve["ood"]))
    drawn["of"] = drawn.get("of", "interpolation")
    drawn["key"] = drawn.get("key", drawn["of"])
    tooltip = [
        alt.Tooltip("of:N", title="curve"),
        alt.Tooltip("alpha:Q", format=".2f"),
        percent("id", "ID"),
        percent("ood", "OOD"),
    ]
    base = alt.Chart(inline("curve", drawn)).encode(
        x="x:Q", y="y:Q", detail="key:N", tooltip=tooltip
    )
    line = base.mark_line(color=palette.quiet, strokeWidth=1.6, opacity=0.8).encode(order="alpha:Q")
    return [line, base.mark_point(color=palette.quiet, filled=True, size=16, opacity=0.9)]


def _baseline(
    reached: Callable[[float], float | None],
    across: Axis,
    up: Axis,
    xs: tuple[float, float],
    palette: Palette,
) -> alt.Chart:
    steps = [min(max(xs[0] + (xs[1] - xs[0]) * i / 60, EDGE), 1 - EDGE) for i in range(61)]
    line = pd.DataFrame({"id": steps, "ood": [reached(step) for step in steps]}).dropna()
    line = line.assign(x=across.place(line["id"]), y=up.place(line["ood"]))
    chart = alt.Chart(inline("baseline", line)).mark_line(
        color=palette.ink, strokeDash=[7, 4], strokeWidth=1.4, clip=True
    )
    drawn: alt.Chart = chart.encode(
        x="x:Q", y="y:Q", tooltip=alt.value("what standard models reach")
    )
    return drawn
