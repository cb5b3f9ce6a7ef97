"""Charts of a board, from plain frames to Altair: the ID/OOD scatter, interpolation curves, reliability diagrams, radars.

Every function is pure and takes accuracies as shares in [0, 1]. Rows are told apart by colour and shape together, so that
neither a colour-blind reader nor a grey print loses them; names are never cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import pandas as pd

#: Okabe and Ito's colours (2008), told apart under every common colour blindness; the yellow is darkened to be seen on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#B8A800", "#7A7A7A")
#: Their number has no divisor in common with that of the colours, so that 56 rows differ in the pair.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
#: On a dark ground the blue and the vermilion need more light.
COLOURS_ON_DARK = ("#4BA3E3", "#FF8A3D", "#19C494", "#E39BC6", "#8FD3FF", "#F5B72B", "#E5DA3A", "#B5B5B5")
#: Where a logit-scaled axis may have a tick, from coarse to fine; the first that gives five of them is taken.
_TICKS = (
    (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99),
    (0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99),
    (0.01, 0.02, *(i / 20 for i in range(1, 20)), 0.98, 0.99, 0.995),
    tuple(i / 50 for i in range(1, 50)),
    tuple(i / 100 for i in range(1, 100)),
)
_EDGE = 1e-3

Kind = Literal["svg", "png", "html"]


@dataclass(frozen=True)
class Palette:
    """Colours of the ground, of what is written on it, and of the rows."""

    background: str
    ink: str
    quiet: str
    grid: str
    rows: tuple[str, ...]


LIGHT = Palette("#ffffff", "#1b1b1f", "#5f6368", "#e4e4e7", COLOURS)
DARK = Palette("#16181d", "#f0f0f3", "#a3a8b1", "#33363d", COLOURS_ON_DARK)


@dataclass(frozen=True)
class Axis:
    """An accuracy axis: plain, or scaled by the logit, on which equal steps are equal odds ratios (Taori et al., 2020)."""

    title: str
    logit: bool = False

    def place(self, share: Any) -> Any:
        """Where a share, or a series of them, stands on the axis; shares beyond 0.1 % of either end are drawn there."""
        if not self.logit:
            return share
        held = pd.to_numeric(pd.Series(share)).clip(_EDGE, 1 - _EDGE)
        placed = (held / (1 - held)).map(math.log, na_action="ignore")
        return placed if isinstance(share, pd.Series) else float(placed.iloc[0])

    def axis(self, low: float, high: float) -> alt.Axis:
        """Ticks and labels in per cent for data between the shares `low` and `high`."""
        if not self.logit:
            return alt.Axis(title=f"{self.title} (%)", labelExpr="format(100 * datum.value, '~g')")
        inside = [[tick for tick in ticks if low <= tick <= high] for ticks in _TICKS]
        ticks = [self.place(tick) for tick in next((ticks for ticks in inside if len(ticks) >= 5), inside[-1])]
        label = "format(100 / (1 + exp(-datum.value)), '~g')"
        return alt.Axis(title=f"{self.title} (%, logit scale)", values=ticks or alt.Undefined, labelExpr=label)


def style(rows: Sequence[str], dark: bool = False) -> tuple[alt.Scale, alt.Scale]:
    """Colour and shape of every row, the same in every chart that lists the rows in this order."""
    names = list(dict.fromkeys(rows))
    colours = (DARK if dark else LIGHT).rows
    return (
        alt.Scale(domain=names, range=[colours[i % len(colours)] for i in range(len(names))]),
        alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))]),
    )


def _configured(chart: Any, dark: bool) -> Any:
    palette = DARK if dark else LIGHT
    axis = {"labelColor": palette.ink, "titleColor": palette.ink, "gridColor": palette.grid, "domainColor": palette.quiet}
    return (
        chart.configure(background=palette.background, padding=12, font="system-ui, -apple-system, 'Segoe UI', sans-serif")
        .configure_axis(**axis, tickColor=palette.quiet, labelFontSize=12, titleFontSize=13, titleFontWeight=600, labelLimit=0)
        .configure_legend(labelColor=palette.ink, titleColor=palette.ink, labelLimit=0, titleLimit=0, labelFontSize=12)
        .configure_title(
            color=palette.ink, subtitleColor=palette.quiet, anchor="start", fontSize=15, subtitleFontSize=12, limit=0
        )
        .configure_header(labelColor=palette.ink, titleColor=palette.ink, labelFontSize=12, labelLimit=0)
        .configure_view(stroke=palette.grid)
    )


def _data(name: str, frame: pd.DataFrame) -> alt.InlineData:
    """The frame as a data set of this name in the specification, so that a page can find and change it; NaN becomes null."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return alt.InlineData(values=rows, name=name)


def _percent(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(field, type="quantitative", format=".1%", title=title)


def scatter(
    points: pd.DataFrame,
    *,
    curve: pd.DataFrame | None = None,
    baseline: tuple[float, float] | None = None,
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
    """ID against OOD, a mark per row, with intervals, the yardstick's interpolation curve, a baseline and the Pareto front.

    Args:
        points: one row per row of the board: `key` (unique), `row` (its name), `id`, `ood`; and where known `id_low`, `id_high`,
            `ood_low`, `ood_high` (ends of the intervals), `kind` (`measured` or `reported`, drawn hollow), `front` (whether no
            other measured row beats it on both axes; found here if the column is missing), `seeds`.
        curve: `alpha`, `id`, `ood`, and `of` (what is interpolated) where there are several curves; drawn in the order of alpha.
        baseline: (slope, intercept) of OOD on ID, both as logits: what standard models reach (Taori et al., 2020).
        logit: scale both axes by the logit. zoom: wheel and drag zoom and move.

    Returns:
        A layered chart. The marks' data set is called `points`; the selections `hover` and `chosen` hold the field `key`.
        A click chooses a row, Shift adds one, a double click lets all go.
    """
    across, up = Axis(x, logit), Axis(y, logit)
    palette = DARK if dark else LIGHT
    drawn = points.reset_index(drop=True).copy()
    for column in ("id_low", "id_high", "ood_low", "ood_high", "seeds"):
        if column not in drawn:
            drawn[column] = None
    drawn["kind"] = drawn.get("kind", "measured")
    if "front" not in drawn:
        drawn["front"] = pareto(drawn["id"].where(drawn["kind"] == "measured"), drawn["ood"])
    seen = [drawn["id"], drawn["id_low"], drawn["id_high"]], [drawn["ood"], drawn["ood_low"], drawn["ood_high"]]
    for column in ("id", "id_low", "id_high"):
        drawn[f"x_{column}"] = across.place(drawn[column])
    for column in ("ood", "ood_low", "ood_high"):
        drawn[f"y_{column}"] = up.place(drawn[column])
    if curve is not None:
        seen[0].append(curve["id"])
        seen[1].append(curve["ood"])
    low_x, high_x = _range(seen[0])
    low_y, high_y = _range(seen[1])
    plane_x = alt.X("x_id:Q", axis=across.axis(low_x, high_x), scale=_scale(across, low_x, high_x))
    plane_y = alt.Y("y_ood:Q", axis=up.axis(low_y, high_y), scale=_scale(up, low_y, high_y))
    colours, shapes = style(drawn["row"], dark)

    hover = alt.selection_point(name="hover", fields=["key"], on="pointerover", clear="pointerout", empty=False)
    chosen = alt.selection_point(name="chosen", fields=["key"], clear="dblclick")
    marks = alt.Chart(_data("points", drawn))
    faint = alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(0.18))
    colour = alt.Color("row:N", scale=colours, legend=alt.Legend(title=None, columns=1, symbolLimit=0, symbolSize=110))
    layers: list[alt.Chart] = []
    if baseline is not None:
        layers.append(_baseline(baseline, across, up, (low_x, high_x), (low_y, high_y), palette))
    if curve is not None and len(curve):
        layers += _curve(curve, across, up, palette)
    if drawn["front"].sum() > 1:
        edge = marks.transform_filter("datum.front").mark_line(strokeDash=[2, 3], color=palette.quiet, strokeWidth=1.2)
        layers.append(edge.encode(x=plane_x, y=plane_y, order=alt.Order("x_id:Q"), tooltip=alt.value("Pareto front")))
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
        marks.mark_point(filled=True, strokeWidth=1.8)
        .encode(
            x=plane_x,
            y=plane_y,
            color=colour,
            stroke=alt.Stroke("row:N", scale=colours, legend=None),
            shape=alt.Shape("row:N", scale=shapes, legend=alt.Legend(title=None, columns=1, symbolLimit=0, symbolSize=110)),
            fillOpacity=alt.when("datum.kind == 'reported'").then(alt.value(0.0)).otherwise(alt.value(0.9)),
            opacity=faint,
            size=alt.when(hover).then(alt.value(260)).otherwise(alt.value(110)),
            tooltip=_tooltip(drawn),
        )
        .add_params(hover, chosen, *([alt.selection_interval(name="view", bind="scales")] if zoom else []))
    )
    drawn_lines = [
        "grey line: interpolation from the start to the fine-tuned weights" if curve is not None and len(curve) else "",
        "dashed: what standard models reach" if baseline is not None else "",
        "dotted: Pareto front" if drawn["front"].sum() > 1 else "",
        "hollow: reported, not measured" if (drawn["kind"] == "reported").any() else "",
    ]
    below = [*([subtitle] if isinstance(subtitle, str) else subtitle), "; ".join(filter(None, drawn_lines))]
    head = alt.TitleParams(title, subtitle=[line for line in below if line])
    chart: alt.LayerChart = alt.layer(*layers).properties(width=width, height=height, title=head)
    finished: alt.LayerChart = _configured(chart, dark)
    return finished


def _tooltip(points: pd.DataFrame) -> list[alt.Tooltip]:
    shown = [alt.Tooltip("row:N", title="row"), _percent("id", "ID"), _percent("ood", "OOD")]
    for name, label in (("id", "ID"), ("ood", "OOD")):
        if points[f"{name}_low"].notna().any():
            shown += [_percent(f"{name}_low", f"{label}, low"), _percent(f"{name}_high", f"{label}, high")]
    return [*shown, alt.Tooltip("seeds:N", title="seeds"), alt.Tooltip("kind:N", title="kind")]


def _range(columns: Sequence[pd.Series[Any]]) -> tuple[float, float]:
    known = pd.to_numeric(pd.concat([pd.Series(column, dtype="float64") for column in columns])).dropna()
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _scale(axis: Axis, low: float, high: float) -> alt.Scale:
    """The data's range with a twentieth of room at either end."""
    first, last = axis.place(low), axis.place(high)
    room = max(0.05 * (last - first), 0.005)
    return alt.Scale(domain=[first - room, last + room], nice=False, zero=False)


def _curve(curve: pd.DataFrame, across: Axis, up: Axis, palette: Palette) -> list[alt.Chart]:
    drawn = curve.assign(x=across.place(curve["id"]), y=up.place(curve["ood"]))
    if "of" not in drawn:
        drawn["of"] = "interpolation"
    tooltip = [
        alt.Tooltip("of:N", title="curve"),
        alt.Tooltip("alpha:Q", format=".2f"),
        _percent("id", "ID"),
        _percent("ood", "OOD"),
    ]
    base = alt.Chart(_data("curve", drawn)).encode(x="x:Q", y="y:Q", detail="of:N", tooltip=tooltip)
    line = base.mark_line(color=palette.quiet, strokeWidth=1.6, opacity=0.8).encode(order="alpha:Q")
    return [line, base.mark_point(color=palette.quiet, filled=True, size=16, opacity=0.9)]


def _baseline(
    fit: tuple[float, float], across: Axis, up: Axis, xs: tuple[float, float], ys: tuple[float, float], palette: Palette
) -> alt.Chart:
    slope, intercept = fit
    steps = [xs[0] + (xs[1] - xs[0]) * i / 60 for i in range(61)]
    held = [min(max(share, _EDGE), 1 - _EDGE) for share in steps]
    ood = pd.Series([1 / (1 + math.exp(-slope * math.log(share / (1 - share)) - intercept)) for share in held])
    line = pd.DataFrame({"x": across.place(pd.Series(held)), "y": up.place(ood), "ood": ood})
    # Only what lies within the picture: the baseline must not squeeze the marks into a corner.
    line = line[(line["ood"] >= ys[0] - 0.03) & (line["ood"] <= ys[1] + 0.03)]
    chart = alt.Chart(_data("baseline", line)).mark_line(color=palette.ink, strokeDash=[7, 4], strokeWidth=1.4, clip=True)
    return chart.encode(x="x:Q", y="y:Q", tooltip=alt.value("baseline of standard models"))


def pareto(ids: pd.Series[float], oods: pd.Series[float]) -> list[bool]:
    """Whether each point is on the front: no other has at least its ID and its OOD, and more of one."""
    pairs = list(zip(ids, oods, strict=True))
    return [
        x == x and y == y and not any(a >= x and b >= y and (a > x or b > y) for a, b in pairs)
        for x, y in pairs
    ]  # fmt: skip
