"""Names to plug-ins: found through entry points or in a single file, lazily, and each loaded
once.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
import types
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .errors import BenchError, EndedByPlugin, UsageError
from .stopping import foreign


@cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name.

    Raises:
        UsageError: two installed packages claim the same name for different objects.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if found.get(entry.name, entry).value != entry.value:
            raise UsageError(
                f"two installed packages provide `{entry.name}`: {found[entry.name].value} and"
                f" {entry.value}",
                where=f"entry-point group {group}",
                fix="uninstall one of them",
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def loaded(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        BenchError: it cannot be imported, or says itself what it lacks.
    """
    try:
        with foreign():
            return entry.load()
    except Exception as error:  # a plug-in may raise anything when it is imported
        if isinstance(error, BenchError) and not isinstance(error, EndedByPlugin):
            raise
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        raise BenchError(
            f"the plug-in `{entry.name}`{package} cannot be loaded: {_told(error)}",
            where=entry.value,
            fix="mend its package, or uninstall it",
        ) from error


def _told(error: Exception) -> str:
    return error.what if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"


def unknown(kind: str, name: str, known: Iterable[str], *, fix: str = "") -> UsageError:
    """The error for a name that nobody provides, with the nearest known one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else fix
    return UsageError(
        f"there is no {kind} `{name}`",
        where=f"known: {', '.join(known) or 'none'}",
        fix=hint or fix,
    )


#: Files of code that the user named. One that a card, a record, a pack or a configuration names is
#: not run.
_trusted: set[Path] = set()


def code_files(named: Any) -> set[Path]:
    """The files of methods that are named in a text (NAME or NAME:KEY=VALUE,KEY=VALUE), or anywhere
    in a table or a list.
    """
    if isinstance(named, Mapping):
        named = [*named.values()]
    if isinstance(named, (list, tuple)):
        return {file for one in named for file in code_files(one)}
    texts = (named, *re.split("[:,=]", named)) if isinstance(named, str) else ()
    return {Path(text).resolve() for text in texts if text.endswith(".py")}


def trust(named: Any) -> None:
    """Let files of methods be run. Call it with what the user typed or a program passed, never with
    what a file says.

    Args:
        named: see `code_files`.
    """
    _trusted.update(code_files(named))


def is_trusted(path: Path) -> bool:
    """Whether the user named this file of code."""
    return path.resolve() in _trusted


@cache
def module_of(path: Path, content: bytes) -> types.ModuleType:
    """Run a file that the user named.

    Args:
        content: its bytes. The very bytes that were hashed are run: an import might take older
            bytecode from a cache beside it.

    Raises:
        UsageError: whatever it raises, with its place.
    """
    name = f"bench_plugin_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        with foreign():
            exec(compile(content, str(path), "exec"), module.__dict__)
    except Exception as error:  # whatever a plug-in raises is its author's to see
        del sys.modules[name]
        raise UsageError(
            f"the method's file fails to import: {_told(error)}",
            where=str(path),
            fix="mend the file",
        ) from error
    return module


def named_files(group: str, kind: str) -> dict[str, Path]:
    """Files that the entry points of a group name, by name."""
    found: dict[str, Path] = {}
    for entry in entries(group).values():
        for name, path in loaded(entry)().items():
            if name in found:
                raise UsageError(
                    f"two {kind}s are called `{name}`: {found[name]} and {path}",
                    fix="rename one of them",
                )
            found[name] = path
    return dict(sorted(found.items()))


def backbone_kinds() -> list[str]:
    """Kinds of backbones: what stands before the first colon of a backbone's name."""
    return list(entries("bench.backbones"))
