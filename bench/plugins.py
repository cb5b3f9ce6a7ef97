"""Find and load plug-ins, from entry points of installed packages or from a single file."""

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
    """Return the entry points of a group, by name.

    Raises:
        UsageError: two installed packages use the same name for different objects.
    """
    # The same object twice is no conflict.
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
    """Import the object of an entry point.

    Raises:
        BenchError: the import failed, or the plug-in itself raised one (a missing package).
    """
    try:
        with foreign():
            return entry.load()
    # Any exception: a plug-in may raise anything when it is imported.
    except Exception as error:
        # A plug-in's own BenchError says better what is wrong than a sentence around it.
        if isinstance(error, BenchError) and not isinstance(error, EndedByPlugin):
            raise
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        raise BenchError(
            f"the plug-in `{entry.name}`{package} cannot be loaded: {_message(error)}",
            where=entry.value,
            fix="fix its package, or uninstall it",
        ) from error


def _message(error: Exception) -> str:
    return error.what if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"


def unknown(kind: str, name: str, known: Iterable[str], *, fix: str = "") -> UsageError:
    """Return the error for an unknown name, with the nearest known one as a suggestion.

    Args:
        kind: what the name is of, such as `method`.
        name: the unknown name.
        known: all known names.
        fix: what to do if no known name is near.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else fix
    return UsageError(
        f"unknown {kind}: `{name}`",
        where=f"known: {', '.join(known) or 'none'}",
        fix=hint or fix,
    )


#: Files of code that the user named. Records, packs, cards and configurations may come from others,
#: and may name a file of code too; such a file is not run. Otherwise, looking at somebody's results
#: could run their code.
_trusted: set[Path] = set()


def code_files(named: Any) -> set[Path]:
    """Return the files of methods that are named in a text, or anywhere in a table or a list.

    Args:
        named: NAME or NAME:KEY=VALUE,KEY=VALUE, in nested tables and lists; other types are
            ignored.
    """
    if isinstance(named, Mapping):
        named = [*named.values()]
    if isinstance(named, (list, tuple)):
        return {file for one in named for file in code_files(one)}
    # The whole text too, for a path that contains one of the separators.
    texts = (named, *re.split("[:,=]", named)) if isinstance(named, str) else ()
    return {Path(text).resolve() for text in texts if text.endswith(".py")}


def trust(named: Any) -> None:
    """Allow files of methods to be run.

    Call it with what the user typed or a program passed, never with the content of a file.

    Args:
        named: see `code_files`.
    """
    _trusted.update(code_files(named))


def is_trusted(path: Path) -> bool:
    """Return whether the user named this file of code."""
    return path.resolve() in _trusted


@cache
def module_of(path: Path, content: bytes) -> types.ModuleType:
    """Import a file that the user named.

    Args:
        path: the file.
        content: its bytes.

    Raises:
        UsageError: the file raised an exception.
    """
    # Compiled from the bytes that were hashed for the fit's identity. `import` would read the file
    # again, or take older bytecode from __pycache__. The name contains the hash, so that an edited
    # file is another module; it is registered, since pickle and inspect look classes up there.
    name = f"bench_plugin_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        with foreign():
            exec(compile(content, str(path), "exec"), module.__dict__)
    # Any exception: whatever a plug-in raises, its author has to see.
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"the method's file cannot be imported: {_message(error)}",
            where=str(path),
            fix="fix the file",
        ) from error
    return module


def named_files(group: str, kind: str) -> dict[str, Path]:
    """Return the files that the entry points of a group provide, by name.

    Args:
        group: name of the group; each entry point is a function that returns names and files.
        kind: what the files are, for the message.

    Raises:
        UsageError: two packages provide the same name.
    """
    found: dict[str, Path] = {}
    for entry in entries(group).values():
        for name, path in loaded(entry)().items():
            if name in found:
                raise UsageError(
                    f"two {kind}s have the name `{name}`: {found[name]} and {path}",
                    fix="rename one of them",
                )
            found[name] = path
    return dict(sorted(found.items()))


def backbone_kinds() -> list[str]:
    """Return the kinds of backbones: the part of a backbone's name before the first colon."""
    return list(entries("bench.backbones"))
