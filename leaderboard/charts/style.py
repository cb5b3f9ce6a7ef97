"""Define what all charts share: colours, shapes, accuracy axes, themes, and file formats."""

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

#: Colours of rows on a light background. They stay distinct with every common colour blindness
#: (distances in Lab under Machado et al., 2009), and have a contrast of 3 to 1 with the background;
#: tests/leaderboard/test_looks.py computes both.
COLOURS = ("#074CCC", "#E15600", "#0B3C33", "#D269A7", "#3B97EE", "#A48760", "#78350C", "#560676")
#: The same on a dark background.
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
#: Ticks of a logit-scaled axis, from coarse to fine. An axis takes the first list that has five
#: ticks in its range.
_TICKS = (
    (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99),
    (0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99),
    (0.01, 0.02, *(i / 20 for i in range(1, 20)), 0.98, 0.99, 0.995),
    tuple(i / 50 for i in range(1, 50)),
    tuple(i / 100 for i in range(1, 100)),
)
#: A logit axis ends here and at 1 - EDGE, since 0 and 1 have no logit.
EDGE = 1e-3


@dataclass(frozen=True)
class Palette:
    """Colours of the background, of text and lines on it, and of the rows."""

    background: str
    ink: str
    quiet: str
    grid: str
    rows: tuple[str, ...]


LIGHT = Palette("#ffffff", "#1b1b1f", "#5f6368", "#e4e4e7", COLOURS)
DARK = Palette("#16181d", "#f0f0f3", "#a3a8b1", "#33363d", COLOURS_ON_DARK)


@dataclass(frozen=True)
class Axis:
    """An accuracy axis, plain or scaled by the logit.

    On the logit scale, equal steps are equal odds ratios (Taori et al., 2020).
    """

    title: str
    logit: bool = False

    def place(self, share: Any) -> Any:
        """Return the position of a share, or of a series of shares, on the axis.

        On the logit scale, shares less than 0.1 % from either end are moved to 0.1 %.
        """
        if not self.logit:
            return share
        clipped = pd.to_numeric(pd.Series(share)).clip(EDGE, 1 - EDGE)
        placed = (clipped / (1 - clipped)).map(math.log, na_action="ignore")
        return placed if isinstance(share, pd.Series) else float(placed.iloc[0])

    def axis(self, low: float, high: float) -> alt.Axis:
        """Return ticks and labels in percent for data between the shares `low` and `high`."""
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
    """Return the colour and the shape of every row, as indices.

    Up to eight rows have a colour and a shape each. Beyond that, the colour is that of the family,
    and rows of one colour differ in their shape, up to eight of them.

    Args:
        families: row -> family, in the order in which rows are listed.
    """
    # With few rows each is a family of its own.
    of = families if len(families) > len(COLOURS) else {row: row for row in families}
    colours = {family: i % len(COLOURS) for i, family in enumerate(dict.fromkeys(of.values()))}
    taken: Counter[int] = Counter()
    found = {}
    for row, family in of.items():
        colour = colours[family]
        # Counting shapes from the colour's index gives families different first shapes, so that
        # they can be distinguished in black and white.
        found[row] = colour, (colour + taken[colour]) % len(SHAPES)
        taken[colour] += 1
    return found


def style(rows: pd.DataFrame, dark: bool = False) -> tuple[alt.Scale, alt.Scale]:
    """Return the scales of colour and shape for the column `row`.

    They follow from the rows alone (`family`, or the row itself without one), so that a row looks
    the same in every chart of these rows.
    """
    families = rows["family"].fillna(rows["row"]) if "family" in rows else rows["row"]
    found = looks(dict(zip(rows["row"], families, strict=True)))
    colours = (DARK if dark else LIGHT).rows
    return (
        alt.Scale(domain=list(found), range=[colours[colour] for colour, _ in found.values()]),
        alt.Scale(domain=list(found), range=[SHAPES[shape] for _, shape in found.values()]),
    )


def legend(rows: Iterable[str]) -> alt.Legend:
    """Return a legend with one row below the other.

    The parameters of a name, which are in brackets, go to lines of their own.
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
        # A label that is an array becomes several lines, and JSON keeps a name from being read as
        # an expression.
        labelExpr=f"({json.dumps(lines)})[datum.label]",
    )


def configured(chart: Any, dark: bool) -> Any:
    """Return the chart with colours and sizes for a light or a dark background."""
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
            # Vega shortens labels beyond a limit of pixels; 0 is no limit.
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
    """Return the frame as a named dataset of the specification; NaN becomes null.

    The page finds and replaces datasets by name.
    """
    plain = frame.astype(object).where(frame.notna(), None)
    rows = [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]
    return alt.InlineData(values=rows, name=name)


def percent(field: str, title: str) -> alt.Tooltip:
    """Return a tooltip field that shows a share in percent."""
    return alt.Tooltip(field, type="quantitative", format=".1%", title=title)


#: File types that `save` writes.
FORMATS = (".svg", ".pdf", ".png", ".html")

#: A page with everything inside, which works offline. The policy permits no connection;
#: `unsafe-eval` is there because Vega compiles expressions.
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
    """Raise an error for a file type that `save` does not write, before anything is rendered.

    Raises:
        UsageError: the ending is not one of `FORMATS`.
    """
    if path.suffix not in FORMATS:
        raise UsageError(
            f"a chart cannot be written as `{path.suffix}`",
            where=str(path),
            fix=f"use one of these endings: {', '.join(FORMATS)}",
        )


def save(chart: Any, path: Path, title: str) -> None:
    """Write a chart as SVG, PDF, PNG or HTML page, by the ending of the file.

    A PNG has two pixels per point. The page contains its JavaScript and may open no connection.

    Args:
        chart: an Altair chart.
        path: file to write.
        title: title of an HTML page.

    Raises:
        UsageError: another ending.
        BenchError: the file cannot be written.
    """
    import vl_convert

    check_ending(path)
    # vl_convert ends the whole process at a control character, which a name on the board may have.
    specification = plain_within(chart.to_dict())
    if path.suffix == ".svg":
        write_text(path, vl_convert.vegalite_to_svg(specification))
    elif path.suffix == ".png":
        image = vl_convert.vegalite_to_png(specification, scale=2)
        write_with(path, lambda temporary: temporary.write_bytes(image))
    elif path.suffix == ".pdf":
        document = vl_convert.vegalite_to_pdf(specification)
        write_with(path, lambda temporary: temporary.write_bytes(document))
    else:
        page = _PAGE.format(
            title=html.escape(plain(title)),
            background=specification["config"]["background"],
            library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
            # A name on the board may contain `</script>`, which would end the element. Escaped, it
            # is the same text inside the JSON.
            specification=json.dumps(specification).replace("<", "\\u003c"),
        )
        write_text(path, page)
