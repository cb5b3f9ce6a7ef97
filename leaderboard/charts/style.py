"""What all charts share: colours and shapes, accuracy axes, light and dark, and files that need no
network.
"""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from bench.errors import UsageError
from bench.plain import plain, plain_within
from bench.storage.atomic import write_text, write_with

#: Told apart with every common colour blindness (distances of Lab under Machado et al., 2009), and
#: seen on the ground: 3 to 1.
COLOURS = ("#074CCC", "#E15600", "#0B3C33", "#D269A7", "#3B97EE", "#A48760", "#78350C", "#560676")
#: The same on a dark ground.
COLOURS_ON_DARK = (
    "#5D5BFF",
    "#FF9137",
    "#35A17E",
    "#DA8AFF",
    "#69F8F7",
    "#B2EB94",
    "#9B6633",
    "#82739D",
)
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
)
#: Where a logit-scaled axis may have a tick, from coarse to fine; the first that gives five of them
#: is taken.
_TICKS = (
    (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99),
    (0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99),
    (0.01, 0.02, *(i / 20 for i in range(1, 20)), 0.98, 0.99, 0.995),
    tuple(i / 50 for i in range(1, 50)),
    tuple(i / 100 for i in range(1, 100)),
)
EDGE = 1e-3


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
    """An accuracy axis: plain, or scaled by the logit, on which equal steps are equal odds ratios
    (Taori et al., 2020).
    """

    title: str
    logit: bool = False

    def place(self, share: Any) -> Any:
        """Where a share, or a series of them, stands on the axis; shares beyond 0.1 % of either end
        are drawn there.
        """
        if not self.logit:
            return share
        held = pd.to_numeric(pd.Series(share)).clip(EDGE, 1 - EDGE)
        placed = (held / (1 - held)).map(math.log, na_action="ignore")
        return placed if isinstance(share, pd.Series) else float(placed.iloc[0])

    def axis(self, low: float, high: float) -> alt.Axis:
        """Ticks and labels in per cent for data between the shares `low` and `high`."""
        if not self.logit:
            return alt.Axis(title=f"{self.title} (%)", labelExpr="format(100 * datum.value, '~g')")
        inside = [[tick for tick in ticks if low <= tick <= high] for ticks in _TICKS]
        ticks = [
            self.place(tick)
            for tick in next((ticks for ticks in inside if len(ticks) >= 5), inside[-1])
        ]
        label = "format(100 / (1 + exp(-datum.value)), '~g')"
        return alt.Axis(
            title=f"{self.title} (%, logit scale)", values=ticks or alt.Undefined, labelExpr=label
        )


def looks(families: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Give every row the places of its colour and mark: of up to eight rows each has both to
    itself.

    Beyond that the colour is the family's, and rows of a colour differ in their marks, the first
    eight of them.

    Args:
        families: row -> family, in the order in which the rows are listed.
    """
    of = families if len(families) > len(COLOURS) else {row: row for row in families}
    colours = {family: i % len(COLOURS) for i, family in enumerate(dict.fromkeys(of.values()))}
    taken: Counter[int] = Counter()
    found = {}
    for row, family in of.items():
        colour = colours[family]
        found[row] = colour, (colour + taken[colour]) % len(SHAPES)
        taken[colour] += 1
    return found


def style(rows: pd.DataFrame, dark: bool = False) -> tuple[alt.Scale, alt.Scale]:
    """Colour and shape of every `row` by its `family` (by itself without one), the same in every
    chart of these rows.
    """
    families = rows["family"].fillna(rows["row"]) if "family" in rows else rows["row"]
    found = looks(dict(zip(rows["row"], families, strict=True)))
    colours = (DARK if dark else LIGHT).rows
    return (
        alt.Scale(domain=list(found), range=[colours[colour] for colour, _ in found.values()]),
        alt.Scale(domain=list(found), range=[SHAPES[shape] for _, shape in found.values()]),
    )


def legend(rows: Iterable[str]) -> alt.Legend:
    """Names of rows, one below the other; a name's parameters, which it has in brackets, stand
    below it in lines of their own.
    """
    lines = {}
    for name in dict.fromkeys(rows):
        method, bracket, parameters = name.partition(" (")
        lines[name] = [
            *textwrap.wrap(method, 46),
            *textwrap.wrap(bracket.strip() + parameters, 46),
        ] or [name]
    return alt.Legend(
        title=None,
        columns=1,
        symbolLimit=0,
        symbolStrokeWidth=0,
        labelExpr=f"({json.dumps(lines)})[datum.label]",
    )


def configured(chart: Any, dark: bool) -> Any:
    """The chart with colours and sizes for a light or a dark ground."""
    palette = DARK if dark else LIGHT
    axis = {
        "labelColor": palette.ink,
        "titleColor": palette.ink,
        "gridColor": palette.grid,
        "domainColor": palette.quiet,
    }
    return (
        chart.configure(
            background=palette.background,
            padding=12,
            font="system-ui, -apple-system, 'Segoe UI', sans-serif",
        )
        .configure_axis(
            **axis,
            tickColor=palette.quiet,
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight=600,
            labelLimit=0,
        )
        .configure_legend(
            labelColor=palette.ink,
            titleColor=palette.ink,
            labelLimit=0,
            titleLimit=0,
            labelFontSize=12,
        )
        .configure_title(
            color=palette.ink,
            subtitleColor=palette.quiet,
            anchor="start",
            fontSize=15,
            subtitleFontSize=12,
            limit=0,
        )
        .configure_header(
            labelColor=palette.ink, titleColor=palette.ink, labelFontSize=12, labelLimit=0
        )
        .configure_view(stroke=palette.grid)
    )


def inline(name: str, frame: pd.DataFrame) -> alt.InlineData:
    """The frame as a data set of this name in the specification, so that a page can find and change
    it; NaN becomes null.
    """
    plain = frame.astype(object).where(frame.notna(), None)
    rows = [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]
    return alt.InlineData(values=rows, name=name)


def percent(field: str, title: str) -> alt.Tooltip:
    """A share in a tooltip, in per cent."""
    return alt.Tooltip(field, type="quantitative", format=".1%", title=title)


#: Endings of the files that `save` writes.
FORMATS = (".svg", ".pdf", ".png", ".html")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval';
               style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>body {{ margin: 0; background: {background}; }}</style>
</head>
<body>
<div id="chart"></div>
<script>{library}</script>
<script type="application/json" id="specification">{specification}</script>
<script>
vegaEmbed("#chart", JSON.parse(document.getElementById("specification").textContent),
          {{renderer: "svg",
            actions: {{export: true, source: false, compiled: false, editor: false}}}});
</script>
</body>
</html>
"""


def check_ending(path: Path) -> None:
    """Tell a wrong ending before anything is drawn.

    Raises:
        UsageError: it is not one of `FORMATS`.
    """
    if path.suffix not in FORMATS:
        raise UsageError(
            f"a chart cannot be written as `{path.suffix}`",
            where=str(path),
            fix=f"end in {', '.join(FORMATS)}",
        )


def save(chart: Any, path: Path, title: str) -> None:
    """Write a chart as SVG, PDF, PNG (two pixels a point) or a page that carries its JavaScript and
    may open no connection.

    Raises:
        UsageError: another ending.
        BenchError: the file cannot be written.
    """
    import vl_convert

    check_ending(path)
    specification = plain_within(
        chart.to_dict()
    )  # the library ends the process at a control character
    if path.suffix == ".svg":
        write_text(path, vl_convert.vegalite_to_svg(specification))
    elif path.suffix == ".png":
        picture = vl_convert.vegalite_to_png(specification, scale=2)
        write_with(path, lambda temporary: temporary.write_bytes(picture))
    elif path.suffix == ".pdf":
        document = vl_convert.vegalite_to_pdf(specification)
        write_with(path, lambda temporary: temporary.write_bytes(document))
    else:
        page = _PAGE.format(
            title=html.escape(plain(title)),
            background=specification["config"]["background"],
            library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
            # A name on the board may be a closing script tag; as an escape it stays text inside the
            # JSON.
            specification=json.dumps(specification).replace("<", "\\u003c"),
        )
        write_text(path, page)
