"""`bench pack` and `bench merge`: export runs to a file, and import runs after checking them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal as size

from bench.console.options import DataOption
from bench.tables.table import (
    Column,
    Format,
    FormatOption,
    Row,
    StoreOption,
    Table,
    print_tables,
    say,
)

from .selection import BackbonesOption, MethodsOption, OutputOption, SuitesOption


def pack(
    output: OutputOption,
    store: StoreOption = None,
    suite: SuitesOption = None,
    backbone: BackbonesOption = None,
    method: MethodsOption = None,
    logits: Annotated[
        bool,
        typer.Option(
            "--logits/--without-logits",
            help="include the logits; a pack without them is a fifth of the size",
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="replace an existing file")] = False,
) -> None:
    """Write runs to one file, for `bench merge` on another machine.

    The file contains records, predictions and hashes. Without logits, accuracy, NLL and ECE can
    still be recomputed; Brier score and temperature scaling cannot.

    \b
    Examples:
      bench pack -o board.shiftpack
      bench pack --suite mini-shifts --method 'wise-ft*' --without-logits -o wise.shiftpack
    """
    from bench.errors import UsageError
    from bench.results.store import Store, store_root

    from ..packs.pack import write_pack
    from .selection import results

    root = Store(store_root(store))
    if output.exists() and not force:
        raise UsageError(
            "the file exists already",
            where=str(output),
            fix="choose another name, or add --force",
        )
    # Results only: what others merge counts on their boards, where trials and search runs do not.
    chosen = results(root, suite, backbone, method)
    write_pack(root, chosen, output, logits=logits)
    say(f"{len(chosen)} run(s), {size(output.stat().st_size)}: {output}")


def merge(
    packs: Annotated[
        list[Path], typer.Argument(help="files written by `bench pack`", show_default=False)
    ],
    store: StoreOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, write nothing")
    ] = False,
    check_data: Annotated[
        bool,
        typer.Option(
            "--check-data",
            help="check labels against the suite's images on this machine too (decodes them once)",
        ),
    ] = False,
    data_root: DataOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Check the runs of packs and add them to a store; one inconsistent run, and nothing is added.

    Metrics are recomputed from the predictions and ids from the contents that they hash. Labels are
    compared with those of other runs on the same data. Whether the weights were trained as stated
    cannot be checked; merged runs are marked. If the store has a run with other scores under the
    same id, both are saved, one counts (a local run before one from a pack), and the largest
    difference is reported.

    \b
    Examples:
      bench merge theirs.shiftpack ours.shiftpack --store board
      bench merge theirs.shiftpack --dry-run --check-data

    Exit codes: 0 done, 1 a pack is invalid, 3 the data to check against is missing.
    """
    from bench.results.store import Store, store_root

    from ..packs.copies import unequal
    from ..packs.merge import merge as merged
    from ..packs.true_labels import data_here

    root = store_root(store)
    # All packs in one call: two packs may have the same run, or contradict each other's labels.
    found = merged(
        packs, Store(root), dry_run=dry_run, data=data_here(data_root) if check_data else None
    )
    rows: list[Row] = [
        {"pack": str(one.path), "runs": len(records), "what": what}
        for one in found
        for what, records in one.runs.items()
    ]
    note = "nothing was written (--dry-run)" if dry_run else f"the store is {root}"
    # A row per pack and outcome, since a pack can have new runs and runs that are here already.
    columns = [Column("pack"), Column("runs", kind="count"), Column("what", "result")]
    print_tables(
        [
            Table(columns, rows, notes=[note]),
            *unequal([copy for one in found for copy in one.copies]),
        ],
        form,
    )
