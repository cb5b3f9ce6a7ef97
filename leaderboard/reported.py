"""Read published numbers, with their sources, and show them apart from measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UsageError
from bench.storage.files import read_toml
from bench.tables.table import Column, Row, Table
from bench.validation import problems

from .board.rows import Board, BoardRow

#: One TOML file per suite, named after it.
FOLDER = Path(__file__).parent / "reported"
Percent = Annotated[float, Field(ge=0, le=100)]


class _ReportedModel(BaseModel):
    # A misspelled key in a hand-written file is an error instead of being ignored.
    model_config = ConfigDict(extra="forbid", frozen=True)


class Repeat(_ReportedModel):
    """The options of `bench run` that repeat a reported row."""

    method: str
    seeds: tuple[int, ...] = Field(min_length=1)
    set: dict[str, Any] = Field(
        default_factory=dict, description="parameters; `of.lr` is one of a nested method"
    )
    tolerance: float | dict[str, float] = Field(
        description=(
            "points by which the mean over the seeds may differ: one number, or one each for `id`,"
            " `ood` and names of shifts"
        )
    )
    note: str = Field(default="", description="known differences from the source")

    def allowed(self, quantity: str) -> float | None:
        """Return the points by which `id`, `ood` or a shift may differ; None if not stated."""
        return self.tolerance.get(quantity) if isinstance(self.tolerance, dict) else self.tolerance


class Reported(_ReportedModel):
    """One row as its source prints it, in percent."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    backbone: str = Field(
        description="name in the source; the file's `backbones` map it to a name here"
    )
    method: str
    id: Percent | None = None
    shifts: dict[str, Percent] = Field(default_factory=dict)
    ood: Percent | None = None
    source: str
    # How the number was obtained. A figure is read off a plot; `second hand` is a paper that cites
    # another.
    certainty: Literal["paper", "repository", "figure", "second hand", "measured here"]
    doubtful: bool = False
    note: str = ""
    recipe: Repeat | None = None

    def quantities(self) -> dict[str, float]:
        """Return the reported numbers in percent: `id`, each shift, and `ood`."""
        numbers = {"id": self.id, **self.shifts, "ood": self.ood}
        return {key: value for key, value in numbers.items() if value is not None}


class ReportedFile(_ReportedModel):
    """One TOML file of `reported/`.

    Attributes:
        suite: name of the suite, or path of its card relative to the file's folder.
        backbones: name in the sources -> name here.
        sources: short name -> full reference.
        rows: the reported rows.
    """

    suite: str
    backbones: dict[str, str]
    sources: dict[str, str]
    rows: tuple[Reported, ...]


def read(path: Path) -> ReportedFile:
    """Read and check a file of reported rows.

    Raises:
        UsageError: the file cannot be read, or a row is wrong.
    """
    try:
        found = ReportedFile.model_validate(read_toml(path))
    except ValidationError as error:
        raise UsageError(
            f"the reported rows are invalid: {problems(error, ReportedFile)}",
            where=str(path),
            fix="fix these fields",
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the reported rows: {error}", where=str(path)) from error
    # References between the parts of a file, which pydantic does not check.
    names = [row.name for row in found.rows]
    wrong = [f"{name} occurs twice" for name in sorted({n for n in names if names.count(n) > 1})]
    wrong += [
        f"{row.name}: unknown source {row.source}"
        for row in found.rows
        if row.source not in found.sources
    ]
    wrong += [
        f"{row.name}: unknown backbone {row.backbone}"
        for row in found.rows
        if row.backbone not in found.backbones
    ]
    if wrong:
        raise UsageError(
            f"the reported rows are invalid: {'; '.join(wrong[:5])}",
            where=str(path),
            fix="fix these rows",
        )
    return found


def shipped() -> dict[str, ReportedFile]:
    """Return the rows that come with ShiftBench, by suite."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.toml"))}


def of(board: Board) -> list[Reported]:
    """Return the reported rows on a board's suite and backbone."""
    file = shipped().get(board.group.suite)
    return (
        [row for row in file.rows if file.backbones[row.backbone] == board.group.backbone]
        if file
        else []
    )


def reported_points(board: Board, y: str = "ood") -> pd.DataFrame:
    """Return the reported rows that have ID and `y`, for `charts.scatter`.

    Args:
        board: measured rows of the same suite and backbone.
        y: key of the column that is plotted against ID.

    Returns:
        Columns `key`, `row`, `family`, `says`, `id`, `ood` and `kind`.
    """
    import pandas as pd

    points = []
    for row in of(board):
        numbers = row.quantities()
        name = f"{row.method} (reported: {row.source})"
        measured = stands_for(row, board)
        if {"id", y} <= numbers.keys():
            # With the name of the measured row it gets the same colour and shape; `says` is what
            # distinguishes them in the tooltip.
            who = (f"reported/{row.name}", measured.name if measured else name, row.method, name)
            points.append((*who, numbers["id"] / 100, numbers[y] / 100))
    return pd.DataFrame(points, columns=["key", "row", "family", "says", "id", "ood"]).assign(
        kind="reported"
    )


def stands_for(row: Reported, board: Board) -> BoardRow | None:
    """Return the measured row of a reported one, or None.

    With a recipe, it is a row that has the recipe's parameters; without one, the method with its
    defaults.
    """
    same = [
        r
        for r in board.rows
        if str(r.records[0].method.get("name")) == row.method and not r.external
    ]
    if row.recipe is not None:
        same = [r for r in same if _has(r.records[0].method, row.recipe.set)]
    return next(
        # A label without brackets is the method with the parameters of the suite's recipe. Others
        # may stand for the reported row only if a recipe says so.
        (r for r in same if r.name == row.method),
        same[0] if row.recipe is not None and same else None,
    )


def _has(method: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Return whether a method has these parameters; `of.lr` is `lr` of the method in `of`."""
    # Nested methods are parameters of their outer method, each with `name` and `parameters`.
    for key, value in parameters.items():
        inner: Any = method
        for part in key.split("."):
            inner = (inner.get("parameters") or {}).get(part) if isinstance(inner, dict) else None
        if inner != value:
            return False
    return True


def tables(
    boards: Sequence[Board], suites: Sequence[str] = (), backbones: Sequence[str] = ()
) -> list[Table]:
    """Return a table for each suite and backbone that has reported rows.

    Args:
        boards: their suites and backbones are shown.
        suites: patterns of suites to show without a board.
        backbones: patterns of backbones; empty for all of these suites.
    """
    # A gap to a run on other data or on fewer images would say nothing.
    ranked = {(b.group.suite, b.group.backbone): b for b in boards if b.kind == "ranked"}
    made = []
    for suite, file in shipped().items():
        for name, backbone in file.backbones.items():
            board = ranked.get((suite, backbone))
            # Without a pattern, published rows of suites that nobody ran would fill the screen.
            requested = any(fnmatchcase(suite, p) for p in suites) and (
                not backbones or any(fnmatchcase(backbone, p) for p in backbones)
            )
            rows = [row for row in file.rows if row.backbone == name]
            if rows and (board or requested):
                made.append(_table(suite, backbone, rows, file, board))
    return made


def _table(
    suite: str, backbone: str, rows: Sequence[Reported], file: ReportedFile, board: Board | None
) -> Table:
    shifts = list(dict.fromkeys(shift for row in rows for shift in row.shifts))
    filled: list[Row] = []
    for row in rows:
        cells: dict[str, Any] = {
            "name": f"{suite}/{row.name}",
            "method": row.method + (" (doubtful)" if row.doubtful else ""),
        }
        # Sources print percent, and columns of percent take shares.
        cells |= {key: value / 100 for key, value in row.quantities().items()}
        measured = stands_for(row, board) if board else None
        for key in ("id", "ood"):
            own = measured.cells[key].value if measured else None
            if own is not None and key in row.quantities():
                cells[f"gap_{key}"] = own - row.quantities()[key] / 100
        recipe = "yes" if row.recipe else None
        filled.append(
            {
                **cells,
                "source": row.source,
                "certainty": row.certainty,
                "note": row.note or None,
                "recipe": recipe,
            }
        )
    columns = [
        Column("name", human=False),
        Column("method", "reported, not measured"),
        Column("id", "ID", "percent"),
        *(Column(shift, kind="percent") for shift in shifts),
        Column("ood", "OOD", "percent"),
        Column(
            "gap_id",
            "measured - reported ID",
            "percent",
            human=any("gap_id" in row for row in filled),
        ),
        Column(
            "gap_ood",
            "measured - reported OOD",
            "percent",
            human=any("gap_ood" in row for row in filled),
        ),
        Column("source"),
        Column("certainty"),
        Column("note", human=False),
        Column("recipe", human=False),
    ]
    used = dict.fromkeys(row.source for row in rows)
    notes = [f"{source}: {file.sources[source]}." for source in used]
    notes.insert(
        0,
        "Copied from their sources, each with its own protocol; OOD as the source averages it."
        " Never ranked with measured rows.",
    )
    return Table(
        columns, filled, f"{suite} · {backbone}: reported, not measured in this store", notes
    )
