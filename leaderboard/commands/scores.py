"""`bench scores`: calibration, OOD detection, and accuracy per class or group of saved runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bench.errors import NothingMatched, UsageError
from bench.tables.table import (
    Cell,
    Column,
    Format,
    FormatOption,
    Kind,
    Row,
    StoreOption,
    Table,
    print_tables,
)

from .selection import BackbonesOption, MethodsOption, SuitesOption

if TYPE_CHECKING:
    from bench.results.record import RunRecord

    from ..board.rows import Board, BoardRow
    from ..statistics.predictions import Predictions


class Scores(StrEnum):
    """The kind of scores."""

    calibration = "calibration"
    reliability = "reliability"
    detection = "detection"
    classes = "classes"
    groups = "groups"


def scores(
    what: Annotated[
        Scores,
        typer.Argument(help="calibration, reliability (the bins), detection, classes, groups"),
    ],
    store: StoreOption = None,
    suite: SuitesOption = None,
    backbone: BackbonesOption = None,
    method: MethodsOption = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            help="only this split, likewise",
            show_default="id-test and the shifts in the OOD average",
        ),
    ] = None,
    worst: Annotated[
        int,
        typer.Option("--worst", min=0, help="classes, groups: show the N worst; 0 for all"),
    ] = 5,
    form: FormatOption = Format.table,
) -> None:
    """Compute scores beyond accuracy from saved predictions, without a GPU or a model.

    calibration: NLL, calibration errors and Brier score, before and after temperature scaling
    fitted on id-val. detection: a shift's images against ID images, by maximum softmax probability
    and by energy. classes, groups: accuracy of each, with its number of images. Exit code 5 if
    nothing matched.

    \b
    Examples:
      bench scores calibration
      bench scores detection --method 'wise-ft*' --split sketch
      bench scores classes --split '*' --worst 3
      bench scores reliability --method zero-shot --format csv > bins.csv
    """
    from bench.results.store import Store, store_root

    from ..board.groups import load, select
    from ..board.notes import title
    from ..board.tables import View, boards
    from ..statistics.predictions import Predictions

    root = Store(store_root(store))
    chosen = select(load(root), suites=suite or (), backbones=backbone or (), methods=method or ())
    found = boards(chosen, View()).boards
    if not found:
        raise NothingMatched(
            "there are no results to score",
            where=str(root.root),
            fix="run `bench leaderboard` for the results of this store",
        )
    predictions = Predictions(root)
    made = []
    for board in found:
        # Detection is of a shift against id-test: id-test itself is never one of its splits.
        splits = _splits(board, split, [] if what is Scores.detection else [_ID])
        # A table of classes is long (ImageNet has 1,000 per split): id-test alone by default.
        if what in (Scores.classes, Scores.groups) and not split:
            splits = splits[:1] if what is Scores.classes else splits
        table = _MAKERS[what](
            board,
            [s for s in splits if what is not Scores.detection or s != _ID],
            predictions,
            worst,
        )
        if table.rows or table.notes:
            made.append(Table(table.columns, table.rows, f"{title(board)}: {what}", table.notes))
    # A table may have notes only: the reasons why nothing could be computed.
    if not any(table.rows for table in made):
        why = next((table.notes[-1] for table in made if table.notes), "")
        raise NothingMatched(
            f"there is nothing to score: {why or _NOTHING[what]}",
            where=str(root.root),
            fix="choose splits with --split; `bench suites show NAME` lists those of a suite",
        )
    print_tables(made, form)


_ID = "id-test"
# Why there is nothing to score, where no table gives a reason of its own.
_NOTHING = {
    Scores.calibration: "no run has these splits",
    Scores.reliability: "no run has these splits",
    Scores.detection: f"{_ID} is what shifts are compared with",
    Scores.classes: "no run has these splits",
    Scores.groups: "none of these splits has groups",
}


def _splits(board: Board, patterns: Sequence[str] | None, default: list[str]) -> list[str]:
    from fnmatch import fnmatchcase

    # id-val can be requested, but is not a default: parameters were selected on it.
    every = ["id-val", _ID, *board.shifts.all]
    if not patterns:
        return [*default, *board.shifts.shared]
    found = [
        s for s in every if any(s == pattern or fnmatchcase(s, pattern) for pattern in patterns)
    ]
    if not found:
        raise UsageError(
            f"no split matches {' or '.join(patterns)}",
            where="--split",
            fix=f"one of: {', '.join(every)}",
        )
    return found


#: The first columns of every table; a table's title has suite and backbone for people.
NAMES = (
    Column("suite", human=False),
    Column("backbone", human=False),
    Column("method"),
    Column("split"),
)


def _names(board: Board, row: BoardRow, split: str) -> dict[str, Cell]:
    return {
        "suite": board.group.suite,
        "backbone": board.group.backbone,
        "method": row.name,
        "split": split,
    }


def _averaged(
    row: BoardRow, of: Callable[[RunRecord], dict[str, float | None]], keys: Sequence[str]
) -> dict[str, Cell]:
    """Average the scores of a row's runs, with the sample SD over them.

    Args:
        row: the row.
        of: the scores of one run.
        keys: the scores to average. One that a run does not have is left out.
    """
    from ..statistics.intervals import mean_and_sd

    found = [of(record) for record in row.records]
    made = _over_seeds(row)
    for key in keys:
        values = [one[key] for one in found]
        # A mean over some of the seeds is not comparable with one over all of them.
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            mean, sd = mean_and_sd(known)
            made |= {key: mean, f"{key}_sd": None if row.deterministic else sd}
    return made


def _over_seeds(row: BoardRow) -> dict[str, Cell]:
    # A word for people and a flag for machines: an SD of 0 would read as a small sample's luck.
    return {
        "over_seeds": "deterministic" if row.deterministic else "",
        "deterministic": row.deterministic,
    }


class _Missing:
    """The reasons why numbers are missing, each with the rows and splits it applies to."""

    def __init__(self) -> None:
        # reason -> (rows, splits). Dictionaries as sets, since they keep the order.
        self._found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}

    def add(self, why: str, row: BoardRow, split: str) -> None:
        """Add a reason; an empty one is ignored."""
        if why:
            rows, splits = self._found.setdefault(why, ({}, {}))
            rows[row.name], splits[split] = None, None

    @property
    def notes(self) -> list[str]:
        """Return a sentence for each reason."""
        return [
            f"{why} ({_listed(rows)}; {_listed(splits, 12)})."
            for why, (rows, splits) in self._found.items()
        ]


def _listed(names: Collection[str], most: int = 4) -> str:
    # Notes are sentences under a table, and a board may have hundreds of rows.
    return ", ".join(list(names)[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _columns(kinds: dict[str, tuple[str, Kind]], board: Board) -> list[Column]:
    return [
        *(Column(key, title, kind, spread=f"{key}_sd") for key, (title, kind) in kinds.items()),
        *_fixed(board),
    ]


def _fixed(board: Board) -> list[Column]:
    """Return the columns on whether seeds change a row; people see them where one row has it."""
    some = any(row.deterministic for row in board.rows)
    return [Column("over_seeds", "over seeds", human=some), Column("deterministic", human=False)]


# Key in csv and json -> heading and format.
_CALIBRATION: dict[str, tuple[str, Kind]] = {
    "temperature": ("T", "number"),
    "nll": ("NLL", "number"),
    "nll_scaled": ("NLL at T", "number"),
    "ece": ("ECE", "percent"),
    "ece_scaled": ("ECE at T", "percent"),
    "ece_adaptive": ("adaptive ECE", "percent"),
    "ece_adaptive_scaled": ("adaptive ECE at T", "percent"),
    "brier": ("Brier", "number"),
    "brier_scaled": ("Brier at T", "number"),
}


def _calibration(
    board: Board, splits: Sequence[str], predictions: Predictions, worst: int
) -> Table:
    from ..statistics.calibration import scaled

    missing = _Missing()

    def of(record: RunRecord, row: BoardRow, split: str) -> dict[str, float | None]:
        found = scaled(record, split, predictions)
        missing.add(found.missing, row, split)
        made: dict[str, float | None] = {"temperature": found.temperature}
        for ending, part in (("", found.before), ("_scaled", found.after)):
            made |= {
                f"{key}{ending}": getattr(part, key, None)
                for key in ("nll", "ece", "ece_adaptive", "brier")
            }
        return made

    rows = [
        {
            **_names(board, row, split),
            # The defaults bind this row and split; a closure would see those of the last iteration.
            **_averaged(
                row,
                lambda r, o=row, s=split: of(r, o, s),  # type: ignore[misc]
                list(_CALIBRATION),
            ),
        }
        for split in splits
        for row in board.rows
    ]
    note = (
        "Means ± sample SD over seeds. ECE over 15 bins of equal width or, if adaptive, of equal"
        " numbers of images. T: the temperature that minimizes NLL on id-val, the only split it is"
        " fitted on. NLL in nats."
    )
    return Table([*NAMES, *_columns(_CALIBRATION, board)], rows, notes=[note, *missing.notes])


def _reliability(
    board: Board, splits: Sequence[str], predictions: Predictions, worst: int
) -> Table:
    from ..statistics.calibration import scaled

    rows: list[Row] = []
    missing = _Missing()
    # Bins are per seed, not averaged: a bin's images differ from seed to seed.
    for split in splits:
        for row in board.rows:
            for record in row.records:
                found = scaled(record, split, predictions)
                missing.add(found.missing, row, split)
                for name, diagram in (
                    ("as trained", found.diagram),
                    ("at T", found.scaled_diagram),
                ):
                    for b in diagram:
                        bin_: dict[str, Cell] = {"low": b.low, "high": b.high, "images": b.images}
                        bin_ |= {
                            "confidence": b.confidence,
                            "accuracy": b.accuracy,
                            "seed": record.seed,
                            "scaling": name,
                        }
                        rows.append({**_names(board, row, split), **bin_})
    columns = [
        *NAMES,
        Column("seed", kind="count"),
        Column("scaling"),
        Column("low", kind="percent"),
        Column("high", kind="percent"),
    ]
    columns += [Column("images", kind="count")]
    columns += [Column("confidence", kind="percent"), Column("accuracy", kind="percent")]
    return Table(columns, rows, notes=missing.notes)


_DETECTION: dict[str, tuple[str, Kind]] = {
    "probability_auroc": ("AUROC, max probability", "percent"),
    "probability_fpr95": ("its FPR95", "percent"),
    "energy_auroc": ("AUROC, energy", "percent"),
    "energy_fpr95": ("its FPR95", "percent"),
}


def _detection(board: Board, splits: Sequence[str], predictions: Predictions, worst: int) -> Table:
    from ..statistics.calibration import detection

    missing = _Missing()

    def of(record: RunRecord, row: BoardRow, split: str) -> dict[str, float | None]:
        found = detection(record, split, predictions)
        missing.add(found.missing, row, split)
        return {
            f"{score}_{number}": getattr(getattr(found, score), number, None)
            for score in ("probability", "energy")
            for number in ("auroc", "fpr95")
        }

    # Split by split, so that the rows of one shift are next to each other.
    rows = [
        {
            **_names(board, row, split),
            **_averaged(
                row,
                lambda r, o=row, s=split: of(r, o, s),  # type: ignore[misc]
                list(_DETECTION),
            ),
        }
        for split in splits
        for row in board.rows
    ]
    note = (
        "A shift's images against those of id-test, means ± sample SD over seeds. AUROC 50 is"
        " chance. FPR95: share of the shift's images that pass as ID at the threshold that 95 % of"
        " the ID images pass."
    )
    return Table(
        [*NAMES, *_columns(_DETECTION, board)], rows, notes=[note, *missing.notes] if rows else []
    )


def _parts(by: Literal["class", "group"]) -> Any:
    """Return the maker of the table of classes or of groups."""

    def made(board: Board, splits: Sequence[str], predictions: Predictions, worst: int) -> Table:
        from ..statistics.strata import NotPaired, parts

        rows: list[Row] = []
        missing = _Missing()
        names = _class_names(board.group.suite) if by == "class" else ()
        for split in splits:
            for row in board.rows:
                try:
                    # By number where accuracies are equal, so that the order is reproducible.
                    found = sorted(
                        parts(row.records, split, by, predictions),
                        key=lambda part: (part.accuracy, part.number),
                    )
                except NotPaired as why:
                    missing.add(str(why), row, split)
                    continue
                for part in found[: worst or None]:
                    cells = {**_over_seeds(row), "number": part.number, "accuracy": part.accuracy}
                    cells["accuracy_sd"] = None if row.deterministic else part.sd
                    cells |= {
                        "name": names[part.number] if part.number < len(names) else "",
                        "images": part.images,
                    }
                    if part.interval:
                        cells |= {"low": part.interval.low, "high": part.interval.high}
                    rows.append({**_names(board, row, split), **cells})
        columns = [*NAMES, Column("number", by, "count"), Column("name", human=bool(names))]
        columns += [
            Column("accuracy", kind="percent", spread="accuracy_sd"),
            Column("low", "95 % from", "percent"),
        ]
        columns += [Column("high", "to", "percent"), Column("images", kind="count"), *_fixed(board)]
        shown = f"The {worst} worst of every row and split" if worst else f"Every {by}"
        note = f"{shown}; mean ± sample SD over seeds; Wilson interval over the images of one {by}."
        return Table(columns, rows, notes=[note, *missing.notes] if rows else missing.notes)

    return made


def _class_names(suite: str) -> tuple[str, ...]:
    """Return the class names of an installed suite; records contain class numbers only."""
    from bench.data.cards.suite_card import find_card

    try:
        return find_card(suite)[0].classes
    except UsageError:
        return ()


# All have one signature, so that the command can call any of them; `worst` is for the last two.
_MAKERS: dict[Scores, Callable[[Board, Sequence[str], Predictions, int], Table]] = {
    Scores.calibration: _calibration,
    Scores.reliability: _reliability,
    Scores.detection: _detection,
    Scores.classes: _parts("class"),
    Scores.groups: _parts("group"),
}
