"""`bench pack` and `bench merge`: runs in one file for others, and runs of others after they have
been checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    pass


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
            help="keep the logits; a pack without them is a fifth of the size",
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
) -> None:
    """Make one file of runs, with records, predictions and hashes, for somebody else's `bench
    merge`.

    Without logits, accuracy, NLL and ECE can still be computed anew; Brier score and temperature
    scaling cannot.

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
            "there is a file of that name",
            where=str(output),
            fix="name another one, or add --force",
        )
    chosen = results(root, suite, backbone, method)
    write_pack(root, chosen, output, logits=logits)
    say(f"{len(chosen)} run(s), {size(output.stat().st_size)}: {output}")


def merge(
    packs: Annotated[
        list[Path], typer.Argument(help="files that `bench pack` made", show_default=False)
    ],
    store: StoreOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, write nothing")
    ] = False,
    check_data: Annotated[
        bool,
        typer.Option(
            "--check-data",
            help="hold labels against the suite's images on this machine too (decodes them once)",
        ),
    ] = False,
    data_root: DataOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Take runs of others into a store, once all that they state adds up; else say what does not,
    and write nothing.

    Metrics are computed anew from the predictions, ids from what they are the hashes of; labels are
    held against those of other runs on the same data. That the weights were trained as stated
    cannot be seen from here: merged runs are marked. Of a run that is here with other scores both
    are kept, one counts (one made here before one from a pack), and it is told where they differ
    most.

    \b
    Examples:
      bench merge theirs.shiftpack ours.shiftpack --store board
      bench merge theirs.shiftpack --dry-run --check-data

    Exit codes: 0 done, 1 a pack was refused, 3 the data to check against is missing.
    """
    from bench.results.store import Store, store_root

    from ..packs.copies import unequal
    from ..packs.merge import merge as merged
    from ..packs.truths import data_here

    root = store_root(store)
    found = merged(
        packs, Store(root), dry_run=dry_run, data=data_here(data_root) if check_data else None
    )
    rows: list[Row] = [
        {"pack": str(one.path), "runs": len(records), "what": what}
        for one in found
        for what, records in one.runs.items()
    ]
    note = "nothing was written (--dry-run)" if dry_run else f"the store is {root}"
    columns = [Column("pack"), Column("runs", kind="count"), Column("what", "what became of them")]
    print_tables(
        [
            Table(columns, rows, notes=[note]),
            *unequal([copy for one in found for copy in one.copies]),
        ],
        form,
    )
