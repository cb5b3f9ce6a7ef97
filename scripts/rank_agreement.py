"""Compare the measured ranking of methods with published ones, or with one of another store.

python scripts/rank_agreement.py --store STORE --suite mini-shifts [--with OTHER_STORE]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy import stats

from bench.leaderboard.reported import FOLDER, Reported, read
from bench.results.record import RunRecord
from bench.results.store import Store, store_root
from bench.tables.table import Column, Format, FormatOption, Row, StoreOption, Table, print_tables


def reported(suite: str) -> list[Reported]:
    """Return the published rows of a suite with an OOD average, one per backbone and method."""
    # By the convention of the file, the first row of a backbone and method stands for it.
    first: dict[tuple[str, str], Reported] = {}
    for row in read(FOLDER / f"{suite}.toml").rows:
        if row.ood is not None:
            first.setdefault((row.backbone, row.method), row)
    return list(first.values())


def measured(records: Sequence[RunRecord]) -> dict[str, float]:
    """Return the OOD average of every method, as the mean over seeds, by the method's name.

    A method may have several rows with different parameters. The row that a search chose is used,
    or else the one with most seeds.
    """
    # Method -> label of a row -> seed -> run.
    rows: dict[str, dict[str, dict[int, RunRecord]]] = {}
    for record in records:
        if (
            record.status == "done"
            and record.phase == "final"
            and record.limit is None
            and record.ood is not None
        ):
            rows.setdefault(record.method["name"], {}).setdefault(record.label, {})[record.seed] = (
                record
            )

    def rank(runs: Mapping[int, RunRecord]) -> tuple[int, int]:
        return max(run.search_trials for run in runs.values()), len(runs)

    best = {name: max(of.values(), key=rank) for name, of in rows.items()}
    return {name: float(np.mean([run.ood for run in runs.values()])) for name, runs in best.items()}


def agreement(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, int]:
    """Compare two rankings of methods.

    Args:
        one: OOD average by method.
        other: The same from another source.

    Returns:
        Spearman's rank correlation over the methods that both have, and their number. The
        correlation is NaN for fewer than three methods, of which it would be 1 or -1 in any case.
    """
    shared = sorted(one.keys() & other.keys())
    if len(shared) < 3:
        return float("nan"), len(shared)
    return float(
        stats.spearmanr([one[m] for m in shared], [other[m] for m in shared]).statistic
    ), len(shared)


def table(mine: Mapping[str, float], others: Mapping[str, float]) -> Table:
    """Return the rank correlations with every published backbone and with another store.

    Args:
        mine: OOD average by method.
        others: The same from the other store; empty if there is none.
    """
    rows: list[Row] = []

    def add(name: str, theirs: Mapping[str, float]) -> None:
        rho, count = agreement(mine, theirs)
        rows.append(
            {
                "with": name,
                "rho": rho,
                "methods": count,
                "which": ", ".join(sorted(mine.keys() & theirs.keys())),
            }
        )

    published = reported("imagenet-shifts")
    for backbone in dict.fromkeys(row.backbone for row in published):
        # A row whose published number is doubtful can change the correlation of so few methods, so
        # both values are shown.
        for doubtful in (True, False):
            selected = [
                r for r in published if r.backbone == backbone and (doubtful or not r.doubtful)
            ]
            theirs = {r.method: r.ood for r in selected if r.ood is not None}
            name = f"published, {backbone}" + ("" if doubtful else ", without the doubtful row")
            if doubtful or any(r.doubtful for r in published if r.backbone == backbone):
                add(name, theirs)
    if others:
        add("the other store", others)
    columns = [Column("with", "ranking by OOD average"), Column("rho", "Spearman", "number")]
    return Table([*columns, Column("methods", kind="count"), Column("which")], rows)


def main(
    suite: Annotated[str, typer.Option(help="suite of the runs")] = "mini-shifts",
    store: StoreOption = None,
    other: Annotated[
        Path | None,
        typer.Option("--with", help="another store, all runs of which make one ranking"),
    ] = None,
    form: FormatOption = Format.md,
) -> None:
    """Print the rank correlations."""
    mine = measured(
        [record for _, record in Store(store_root(store)).records() if record.suite == suite]
    )
    others = measured([record for _, record in Store(other).records()]) if other else {}
    print_tables([table(mine, others)], form)


if __name__ == "__main__":
    typer.run(main)
