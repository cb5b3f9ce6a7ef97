"""Published numbers: what papers report, with their source and how sure we are of it; shown apart
from what was measured.
"""

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

from .board.rows import Board, BoardRow

FOLDER = Path(__file__).parent / "reported"
Percent = Annotated[float, Field(ge=0, le=100)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recipe(_Part):
    """What `bench run` has to be given to repeat a reported row."""

    method: str
    seeds: tuple[int, ...] = Field(min_length=1)
    set: dict[str, Any] = Field(
        default_factory=dict, description="parameters; `of.lr` reaches a nested method"
    )
    tolerance: float | dict[str, float] = Field(
        description=(
            "points by which the mean over the seeds may differ: one number, or by `id`, `ood` and"
            " name of a shift"
        )
    )
    note: str = Field(default="", description="in what the recipe is known to differ")

    def allowed(self, quantity: str) -> float | None:
        """Points by which `id`, `ood` or a shift may differ; None if the recipe does not say."""
        return self.tolerance.get(quantity) if isinstance(self.tolerance, dict) else self.tolerance


class Reported(_Part):
    """One row as its source prints it, in per cent."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    backbone: str = Field(
        description="as the source calls it; the file's `backbones` say what it is here"
    )
    method: str
    id: Percent | None = None
    shifts: dict[str, Percent] = Field(default_factory=dict)
    ood: Percent | None = None
    source: str
    certainty: Literal["paper", "repository", "figure", "second hand", "measured here"]
    doubtful: bool = False
    note: str = ""
    recipe: Recipe | None = None

    def quantities(self) -> dict[str, float]:
        """`id`, every shift and `ood`, those that are reported; per cent."""
        every = {"id": self.id, **self.shifts, "ood": self.ood}
        return {key: value for key, value in every.items() if value is not None}


class ReportedFile(_Part):
    """One TOML file of `reported/`.

    Attributes:
        suite: name of the suite, or path of its card from the file's folder.
        backbones: as the sources call them -> name here.
        sources: short name -> what it is.
    """

    suite: str
    backbones: dict[str, str]
    sources: dict[str, str]
    rows: tuple[Reported, ...]


def read(path: Path) -> ReportedFile:
    """A file of reported rows.

    Raises:
        UsageError: it cannot be read, or a row is wrong.
    """
    try:
        found = ReportedFile.model_validate(read_toml(path))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]
        )
        raise UsageError(
            f"the reported rows are wrong: {problems}", where=str(path), fix="mend these fields"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the reported rows cannot be read: {error}", where=str(path)) from error
    names = [row.name for row in found.rows]
    wrong = [f"{name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
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
            f"the reported rows are wrong: {'; '.join(wrong[:5])}",
            where=str(path),
            fix="mend these rows",
        )
    return found


def shipped() -> dict[str, ReportedFile]:
    """Suite -> the rows that come with ShiftBench."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.toml"))}


def of(board: Board) -> list[Reported]:
    """The reported rows on a board's suite and backbone."""
    file = shipped().get(board.group.suite)
    return (
        [row for row in file.rows if file.backbones[row.backbone] == board.group.backbone]
        if file
        else []
    )


def beside(board: Board, y: str = "ood") -> pd.DataFrame:
    """Reported rows that have ID and `y`, for `charts.scatter`: `key`, `row`, `family`, `says`,
    `id`, `ood`, `kind`.

    Where a row of the board stands for a reported one, that has its name, and so its colour and
    shape.
    """
    import pandas as pd

    drawn = []
    for row in of(board):
        have, name, measured = (
            row.quantities(),
            f"{row.method} (reported: {row.source})",
            stands_for(row, board),
        )
        if {"id", y} <= have.keys():
            who = (f"reported/{row.name}", measured.name if measured else name, row.method, name)
            drawn.append((*who, have["id"] / 100, have[y] / 100))
    return pd.DataFrame(drawn, columns=["key", "row", "family", "says", "id", "ood"]).assign(
        kind="reported"
    )


def stands_for(row: Reported, board: Board) -> BoardRow | None:
    """The measured row of a reported one: the one with its recipe's parameters; without a recipe
    the method by default.
    """
    same = [
        r
        for r in board.rows
        if str(r.records[0].method.get("name")) == row.method and not r.external
    ]
    if row.recipe is not None:
        same = [r for r in same if _has(r.records[0].method, row.recipe.set)]
    return next(
        (r for r in same if r.name == row.method),
        same[0] if row.recipe is not None and same else None,
    )


def _has(method: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether a method's identity has these parameters; `of.lr` is `lr` of the method in `of`."""
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
    """One table per suite and backbone with reported rows: those of the boards, and those that the
    filters name.

    Args:
        suites, backbones: patterns; without any, only what is on a board is shown.
    """
    ranked = {(b.group.suite, b.group.backbone): b for b in boards if b.kind == "ranked"}
    made = []
    for suite, file in shipped().items():
        for name, backbone in file.backbones.items():
            board = ranked.get((suite, backbone))
            asked = any(fnmatchcase(suite, p) for p in suites) and (
                not backbones or any(fnmatchcase(backbone, p) for p in backbones)
            )
            rows = [row for row in file.rows if row.backbone == name]
            if rows and (board or asked):
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
