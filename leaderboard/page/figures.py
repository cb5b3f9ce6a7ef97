"""Build the page's figures as Vega-Lite specifications without data, which the page adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from ..charts.diagrams import reliability
from ..charts.scatter import scatter
from ..charts.style import DARK, LIGHT, configured, percent

#: Colour on a light background -> on a dark one. A specification uses no other colours, so that the
#: page can change its theme by replacing strings.
RECOLOUR = dict(zip(LIGHT.rows, DARK.rows, strict=True)) | {
    getattr(LIGHT, name): getattr(DARK, name) for name in ("background", "ink", "quiet", "grid")
}
#: Height of the scatter's plotting area and of its labels, in pixels. The page needs them to find
#: out which labels overlap.
HEIGHT, LABEL_SIZE = 420, 12
#: Corner of a mark for a label -> (text alignment, horizontal and vertical offset in pixels). Only
#: corners, since a mark's intervals are a cross that a label at its side would cover.
CORNERS = {
    "ne": ("left", 6, -10),
    "nw": ("right", -6, -10),
    "se": ("left", 6, 11),
    "sw": ("right", -6, 11),
}


def figures(rows: Sequence[dict[str, Any]], splits: Sequence[str]) -> dict[str, Any]:
    """Return the specifications by figure, without figures that could not show any row.

    Args:
        rows: the rows of the document's board.
        splits: the names of its shifts.
    """
    made = {}
    if any(row["cells"].get("id", [None])[0] is not None for row in rows):
        made["scatter"] = _scatter()
    if splits:
        made["bars"] = _finished(_bars())
    # A chart is made from one row of data, since the specification depends on its columns only.
    if any(row.get("bins") for row in rows):
        one = pd.DataFrame(
            [{"panel": "", "key": "", "row": "", "confidence": 0.5, "accuracy": 0.5, "images": 1}]
        )
        made["reliability"] = _finished(reliability(one, columns=5))
    return made


def _scatter() -> dict[str, Any]:
    """Return the scatter of `bench plot`, with a layer of labels per corner of a mark.

    The page sets the axes and assigns a corner to every label that fits.
    """
    # Two marks, so that layers which need several (the Pareto front) are included.
    middle = dict.fromkeys(("id", "id_low", "id_high", "ood", "ood_low", "ood_high"), 0.5)
    marks = pd.DataFrame(
        [{"key": "", "row": "", "front": True, "kind": "measured", "seeds": 1} | middle] * 2
    )
    curve = pd.DataFrame([{"key": "", "of": "", "alpha": 0.0, "id": 0.5, "ood": 0.5}])
    chart = scatter(
        marks, curve=curve, baseline=lambda x: x, width="container", height=HEIGHT, zoom=False
    )
    specification = _finished(chart)
    # Text offsets cannot depend on data in Vega-Lite: a layer per corner, filtered by it.
    for corner, (align, across, up) in CORNERS.items():
        specification["layer"].append(
            {
                "data": {"name": "points"},
                "transform": [{"filter": f"datum.corner == '{corner}'"}],
                "mark": {
                    "type": "text",
                    "align": align,
                    "baseline": "middle",
                    "dx": across,
                    "dy": up,
                    "color": LIGHT.ink,
                }
                | {"fontSize": LABEL_SIZE, "limit": 0},
                "encoding": {
                    "x": {"field": "x_id", "type": "quantitative"},
                    "y": {"field": "y_ood", "type": "quantitative"},
                    "text": {"field": "label"},
                    "opacity": {"condition": {"param": "chosen", "value": 1}, "value": 0.25},
                },
            }
        )
    return specification


def _bars() -> alt.LayerChart:
    """Return bars per shift and row, with an interval each."""
    base = alt.Chart(alt.NamedData("bars")).encode(
        y=alt.Y(
            "split:N",
            sort=None,
            title=None,
            axis=alt.Axis(ticks=False, domain=False, labelPadding=8),
        ),
        yOffset=alt.YOffset("key:N", sort=None, scale=alt.Scale(paddingInner=0.15)),
    )
    label = "format(100 * datum.value, '~g')"
    x = alt.X(
        "score:Q",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(title="accuracy (%)", labelExpr=label, tickCount=5),
    )
    tooltip = [
        alt.Tooltip("row:N"),
        alt.Tooltip("split:N", title="shift"),
        percent("score", "accuracy"),
    ]
    bar = base.mark_bar(cornerRadiusEnd=2).encode(
        x=x,
        color=alt.Color("row:N"),
        tooltip=[*tooltip, percent("low", "low"), percent("high", "high")],
    )
    interval = base.transform_filter("isValid(datum.low)").mark_rule(
        color=LIGHT.ink, strokeWidth=1.2
    )
    chart = alt.layer(bar, interval.encode(x=alt.X("low:Q"), x2="high:Q")).properties(
        width="container"
    )
    finished: alt.LayerChart = configured(chart, dark=False)
    return finished


def _finished(chart: Any) -> dict[str, Any]:
    """Return a chart's specification without data, title and legends: the table names the marks."""
    specification: dict[str, Any] = chart.to_dict()
    for key in ("datasets", "title", "$schema"):
        specification.pop(key, None)
    _strip(specification)
    specification["config"]["padding"] = 4
    for parameter in specification.get("params", ()):
        # A click adds to the selection without the Shift key, which a touch screen does not have.
        if parameter["name"] == "chosen":
            parameter["select"]["toggle"] = "true"
    return specification


def _strip(part: Any) -> None:
    """Replace data by names, and scales of colour and shape by fields of the data, in place.

    A scale over rows would list every row in its domain; the page sets each row's colour instead.
    """
    if isinstance(part, list):
        for item in part:
            _strip(item)
    elif isinstance(part, dict):
        data = part.get("data")
        if isinstance(data, dict) and "name" in data:
            part["data"] = {"name": data["name"]}
        # Axes fit the marks, and an interval over few seeds can reach far beyond them.
        if isinstance(part.get("mark"), dict) and part["mark"].get("type") == "rule":
            part["mark"]["clip"] = True
        for channel, field in (("color", "colour"), ("stroke", "colour"), ("shape", "shape")):
            # A channel is a definition, or has one or several in its condition (hollow marks).
            own = part.get(channel)
            own = own.get("condition", own) if isinstance(own, dict) else own
            for one in own if isinstance(own, list) else [own]:
                if isinstance(one, dict) and one.get("field") == "row":
                    one |= {"field": field, "legend": None, "scale": None}
        for item in part.values():
            _strip(item)
