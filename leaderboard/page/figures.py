"""The page's figures as Vega-Lite specifications without data: the page fills in the rows that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from ..chart_style import DARK, LIGHT, configured, percent, style
from ..charts import scatter
from ..diagrams import reliability

#: Colour on a light ground -> the one on a dark ground. Every colour of a specification is one of these.
RECOLOUR = dict(zip(LIGHT.rows, DARK.rows, strict=True)) | {
    getattr(LIGHT, name): getattr(DARK, name) for name in ("background", "ink", "quiet", "grid")
}


@dataclass(frozen=True)
class Figures:
    """Specifications for one board.

    Attributes:
        names: of all rows; a row has the same colour and shape in every figure. splits: shifts in the suite's order.
    """

    names: Sequence[str]
    splits: Sequence[str]

    def of(self, rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Figure's name -> specification; a figure that would be empty is left out.

        Args:
            rows, curves: as they stand in the document.
        """
        made = {}
        points = [point for row in rows if (point := _extent(row))]
        if points:
            curve = pd.DataFrame(curves)[["of", "alpha", "id", "ood"]] if curves else None
            made["scatter"] = self._finished(
                scatter(pd.DataFrame(points), curve=curve, width="container", height=400, zoom=False)
            )
        if self.splits:
            made["bars"] = self._finished(self._bars())
        if any(row.get("bins") for row in rows):
            one = pd.DataFrame([{"panel": "", "row": "", "confidence": 0.5, "accuracy": 0.5, "images": 1}])
            made["reliability"] = self._finished(reliability(one, columns=5))
        return made

    def _bars(self) -> alt.LayerChart:
        """A bar per shift and row, with its interval."""
        colours, _ = style(self.names)
        base = alt.Chart(alt.NamedData("bars")).encode(
            y=alt.Y("split:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=8)),
            yOffset=alt.YOffset("row:N", sort=None, scale=alt.Scale(paddingInner=0.15)),
        )
        label = "format(100 * datum.value, '~g')"
        x = alt.X("score:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="accuracy (%)", labelExpr=label, tickCount=5))
        tooltip = [alt.Tooltip("row:N"), alt.Tooltip("split:N", title="shift"), percent("score", "accuracy")]
        bar = base.mark_bar(cornerRadiusEnd=2).encode(
            x=x,
            color=alt.Color("row:N", scale=colours, legend=None),
            tooltip=[*tooltip, percent("low", "low"), percent("high", "high")],
        )
        interval = base.transform_filter("isValid(datum.low)").mark_rule(color=LIGHT.ink, strokeWidth=1.2)
        chart = alt.layer(bar, interval.encode(x=alt.X("low:Q"), x2="high:Q")).properties(width="container")
        finished: alt.LayerChart = configured(chart, dark=False)
        return finished

    def _finished(self, chart: Any) -> dict[str, Any]:
        """The specification without data, legends (the table names the marks) and title, with all rows in its scales."""
        specification: dict[str, Any] = chart.to_dict()
        for key in ("datasets", "title", "$schema"):
            specification.pop(key, None)
        colours, shapes = (scale.to_dict() for scale in style(self.names))
        _strip(specification, {"color": colours, "stroke": colours, "shape": shapes})
        specification["config"]["padding"] = 4
        for parameter in specification.get("params", ()):
            if parameter["name"] == "chosen":
                parameter["select"]["toggle"] = "true"  # a finger has no Shift key
        return specification


def _extent(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row as a point whose intervals decide the scatter's range: value and SD, and the interval over images.

    The interval over seeds is clipped: with two seeds it may be wider than the picture.
    """
    made: dict[str, Any] = {"key": row["id"], "row": row["name"], "kind": row["kind"], "front": True, "seeds": len(row["runs"])}
    for name in ("id", "ood"):
        value, sd, _, _, low, high = [*row["cells"].get(name, ()), *[None] * 6][:6]
        if value is None:
            return None
        ends = [value, value - (sd or 0), value + (sd or 0), *(end for end in (low, high) if end is not None)]
        made |= {name: value, f"{name}_low": min(ends), f"{name}_high": max(ends)}
    return made


def _strip(part: Any, scales: dict[str, dict[str, Any]]) -> None:
    if isinstance(part, list):
        for item in part:
            _strip(item, scales)
    elif isinstance(part, dict):
        data = part.get("data")
        if isinstance(data, dict) and "name" in data:
            part["data"] = {"name": data["name"]}
        if isinstance(part.get("mark"), dict) and part["mark"].get("type") == "rule":
            part["mark"]["clip"] = True
        for channel, scale in scales.items():
            own = part.get(channel)
            if isinstance(own, dict) and own.get("field") == "row":
                own |= {"legend": None, "scale": scale}
        for item in part.values():
            _strip(item, scales)
