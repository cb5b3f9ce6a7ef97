"""The page's figures as Vega-Lite specifications without data: the page fills in the rows that it
shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from ..charts.diagrams import reliability
from ..charts.scatter import scatter
from ..charts.style import DARK, LIGHT, configured, percent

#: Colour on a light ground -> the one on a dark ground. Every colour of a specification is one of
#: these.
RECOLOUR = dict(zip(LIGHT.rows, DARK.rows, strict=True)) | {
    getattr(LIGHT, name): getattr(DARK, name) for name in ("background", "ink", "quiet", "grid")
}
#: Height of the scatter's plane and of its labels' letters, in pixels; the page places labels by
#: them.
HEIGHT, LABEL_SIZE = 420, 12
#: The corner of a mark at which a label may stand, off the cross of its intervals -> how it is
#: aligned, and its distance.
CORNERS = {
    "ne": ("left", 6, -10),
    "nw": ("right", -6, -10),
    "se": ("left", 6, 11),
    "sw": ("right", -6, 11),
}


def figures(rows: Sequence[dict[str, Any]], splits: Sequence[str]) -> dict[str, Any]:
    """Figure's name -> specification; one that nothing could stand in is left out, and the page
    leaves out what is empty.

    Args:
        rows: as they stand in the document.
        splits: the shifts.
    """
    made = {}
    if any(row["cells"].get("id", [None])[0] is not None for row in rows):
        made["scatter"] = _scatter()
    if splits:
        made["bars"] = _finished(_bars())
    if any(row.get("bins") for row in rows):
        one = pd.DataFrame(
            [{"panel": "", "key": "", "row": "", "confidence": 0.5, "accuracy": 0.5, "images": 1}]
        )
        made["reliability"] = _finished(reliability(one, columns=5))
    return made


def _scatter() -> dict[str, Any]:
    """The scatter of `bench plot` with a layer of labels per corner of a mark; the page fits axes
    and places labels.
    """
    middle = dict.fromkeys(("id", "id_low", "id_high", "ood", "ood_low", "ood_high"), 0.5)
    marks = pd.DataFrame(
        [{"key": "", "row": "", "front": True, "kind": "measured", "seeds": 1} | middle] * 2
    )
    curve = pd.DataFrame([{"key": "", "of": "", "alpha": 0.0, "id": 0.5, "ood": 0.5}])
    chart = scatter(
        marks, curve=curve, baseline=lambda x: x, width="container", height=HEIGHT, zoom=False
    )
    specification = _finished(chart)
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
    """A bar per shift and row, with its interval."""
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
    """The specification without data, legends (the table names the marks) and title."""
    specification: dict[str, Any] = chart.to_dict()
    for key in ("datasets", "title", "$schema"):
        specification.pop(key, None)
    _strip(specification)
    specification["config"]["padding"] = 4
    for parameter in specification.get("params", ()):
        if parameter["name"] == "chosen":
            parameter["select"]["toggle"] = "true"  # a finger has no Shift key
    return specification


def _strip(part: Any) -> None:
    """Data sets become names; colour and shape become fields of the data, lest every scale list all
    rows.
    """
    if isinstance(part, list):
        for item in part:
            _strip(item)
    elif isinstance(part, dict):
        data = part.get("data")
        if isinstance(data, dict) and "name" in data:
            part["data"] = {"name": data["name"]}
        if isinstance(part.get("mark"), dict) and part["mark"].get("type") == "rule":
            part["mark"]["clip"] = True
        for channel, field in (("color", "colour"), ("stroke", "colour"), ("shape", "shape")):
            own = part.get(channel)
            own = own.get("condition", own) if isinstance(own, dict) else own
            for one in own if isinstance(own, list) else [own]:
                if isinstance(one, dict) and one.get("field") == "row":
                    one |= {"field": field, "legend": None, "scale": None}
        for item in part.values():
            _strip(item)
