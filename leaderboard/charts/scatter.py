"""Plot the ID/OOD scatter of a board with Altair, from plain data frames.

Accuracies are shares in [0, 1].
"""

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
    """Plot ID against OOD, a mark per row, with intervals and a Pareto front.

    Args:
        points: one row per row of the board, with columns `key` (unique), `row` (its name), `id`
            and `ood`. Optional columns are `id_low`, `id_high`, `ood_low`, `ood_high` (ends of the
            intervals); `kind` (`measured`, or `reported` for hollow marks); `front` (whether no
            other measured row beats it on both axes; computed if missing); `seeds`; `family` (see
            `style`); and `says` (name in the tooltip; the row's name if missing, since a reported
            row has name, colour and shape of the measured one).
        curve: interpolation curves, with columns `alpha`, `id` and `ood`, and for several curves
            `of` (what is interpolated) and `key` (unique; `of` if missing). Plotted in the order of
            alpha.
        baseline: ID accuracy -> accuracy that standard models reach (Taori et al., 2020).
        logit: scale both axes by the logit.
        dark: use colours for a dark background.
        title: title of the chart.
        subtitle: one line or several; empty ones are left out.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        width: in pixels, or `container`.
        height: in pixels.
        zoom: whether wheel and drag zoom and move.

    Returns:
        A layered chart. The dataset of the marks is called `points`; the selections `hover` and
        `chosen` have the field `key`. A click chooses a row, Shift adds one, a double click clears
        the choice.
    """
    across, up = Axis(x, logit), Axis(y, logit)
    palette = DARK if dark else LIGHT
    frame = points.reset_index(drop=True).copy()
    for column in ("id_low", "id_high", "ood_low", "ood_high", "seeds"):
        if column not in frame:
            frame[column] = None
    frame["kind"] = frame.get("kind", "measured")
    frame["says"] = frame["says"].fillna(frame["row"]) if "says" in frame else frame["row"]
    # A reported row is under another protocol, and must not push a measured one off the front.
    if "front" not in frame:
        places = zip(frame["id"].where(frame["kind"] == "measured"), frame["ood"], strict=True)
        # NaN is not equal to itself.
        known = [(None, None) if x != x or y != y else (x, y) for x, y in places]
        frame["front"] = [bool(own) for own in on_front(known)]
    shown = (
        [frame["id"], frame["id_low"], frame["id_high"]],
        [
            frame["ood"],
            frame["ood_low"],
            frame["ood_high"],
        ],
    )
    for column in ("id", "id_low", "id_high"):
        frame[f"x_{column}"] = across.place(frame[column])
    for column in ("ood", "ood_low", "ood_high"):
        frame[f"y_{column}"] = up.place(frame[column])
    if curve is not None:
        shown[0].append(curve["id"])
        shown[1].append(curve["ood"])
    low_x, high_x = _range(shown[0])
    # The axes have to reach the baseline: the distance of the marks from it is what it is there
    # for.
    if baseline is not None:
        shown[1].append(pd.Series([baseline(low_x), baseline(high_x)], dtype="float64"))
    low_y, high_y = _range(shown[1])
    plane_x = alt.X("x_id:Q", axis=across.axis(low_x, high_x), scale=_scale(across, low_x, high_x))
    plane_y = alt.Y("y_ood:Q", axis=up.axis(low_y, high_y), scale=_scale(up, low_y, high_y))
    colours, shapes = style(frame, dark)

    # The page listens to these two selections by name, and joins them with the table by key.
    hover = alt.selection_point(
        name="hover", fields=["key"], on="pointerover", clear="pointerout", empty=False
    )
    chosen = alt.selection_point(name="chosen", fields=["key"], clear="dblclick")
    marks = alt.Chart(inline("points", frame))
    faint = alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(0.25))
    named = legend(frame["row"])
    colour = alt.Color("row:N", scale=colours, legend=named)
    layers: list[alt.Chart] = []
    if baseline is not None:
        layers.append(_baseline(baseline, across, up, (low_x, high_x), palette))
    if curve is not None and len(curve):
        layers += _curve(curve, across, up, palette)
    # A front of one row is no line.
    if frame["front"].sum() > 1:
        edge = marks.transform_filter("datum.front").mark_line(
            strokeDash=[2, 3], color=palette.quiet, strokeWidth=1.2
        )
        layers.append(
            edge.encode(
                x=plane_x, y=plane_y, order=alt.Order("x_id:Q"), tooltip=alt.value("Pareto front")
            )
        )
    # Intervals are below the marks and above curve and front: the order of layers is the order of
    # plotting.
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
            # A rim in the colour of the background separates marks that overlap. Hollow marks have
            # a rim in the colour of the row.
            stroke=alt.when("datum.kind == 'reported'")
            .then(alt.Stroke("row:N", scale=colours, legend=None))
            .otherwise(alt.value(palette.background)),
            shape=alt.Shape("row:N", scale=shapes, legend=named),
            fillOpacity=alt.when("datum.kind == 'reported'")
            .then(alt.value(0.0))
            .otherwise(alt.value(1.0)),
            opacity=faint,
            size=alt.when(hover).then(alt.value(300)).otherwise(alt.value(150)),
            tooltip=_tooltip(frame),
        )
        .add_params(
            hover, chosen, *([alt.selection_interval(name="view", bind="scales")] if zoom else [])
        )
    )
    explained = [
        (
            "grey line: interpolation from the start to the fine-tuned weights"
            if curve is not None and len(curve)
            else ""
        ),
        "dashed: what standard models reach" if baseline is not None else "",
        "dotted: Pareto front" if frame["front"].sum() > 1 else "",
        "hollow: reported, not measured" if (frame["kind"] == "reported").any() else "",
    ]
    below = [
        *([subtitle] if isinstance(subtitle, str) else subtitle),
        "; ".join(filter(None, explained)),
    ]
    head = alt.TitleParams(title, subtitle=[line for line in below if line])
    chart = alt.layer(*layers).properties(width=width, height=height, title=head)
    finished: alt.LayerChart = configured(chart, dark)
    return finished


def _tooltip(points: pd.DataFrame) -> list[alt.Tooltip]:
    """Return the tooltip, with the fields that any point has."""
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
    """Return the lowest and the highest known value of the columns."""
    values = pd.to_numeric(
        pd.concat([pd.Series(column, dtype="float64") for column in columns])
    ).dropna()
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def _scale(axis: Axis, low: float, high: float) -> alt.Scale:
    """Return the data's range with a twentieth of room at either end."""
    first, last = axis.place(low), axis.place(high)
    # A single point, or equal values, would have a range of zero.
    room = max(0.05 * (last - first), 0.005)
    return alt.Scale(domain=[first - room, last + room], nice=False, zero=False)


def _curve(curve: pd.DataFrame, across: Axis, up: Axis, palette: Palette) -> list[alt.Chart]:
    """Return the layers of interpolation curves: lines, and their points."""
    frame = curve.assign(x=across.place(curve["id"]), y=up.place(curve["ood"]))
    frame["of"] = frame.get("of", "interpolation")
    frame["key"] = frame.get("key", frame["of"])
    tooltip = [
        alt.Tooltip("of:N", title="curve"),
        alt.Tooltip("alpha:Q", format=".2f"),
        percent("id", "ID"),
        percent("ood", "OOD"),
    ]
    base = alt.Chart(inline("curve", frame)).encode(
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
    """Return the layer of the line that standard models reach, over the range of the axis."""
    # On plain axes the line is curved, since it is straight in logit space: 60 steps make it look
    # smooth. The logit is not defined at 0 and 1.
    steps = [min(max(xs[0] + (xs[1] - xs[0]) * i / 60, EDGE), 1 - EDGE) for i in range(61)]
    line = pd.DataFrame({"id": steps, "ood": [reached(step) for step in steps]}).dropna()
    line = line.assign(x=across.place(line["id"]), y=up.place(line["ood"]))
    chart = alt.Chart(inline("baseline", line)).mark_line(
        color=palette.ink, strokeDash=[7, 4], strokeWidth=1.4, clip=True
    )
    layer: alt.Chart = chart.encode(
        x="x:Q", y="y:Q", tooltip=alt.value("what standard models reach")
    )
    return layer
