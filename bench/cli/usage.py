"""Explain a wrong command line: what is wrong, where, and what was probably meant."""

from __future__ import annotations

import ast
import difflib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..plugins import entries

#: Command -> the one that does what its name suggests.
_MEANT = {
    "bench data check": "bench data verify",
    "bench data download": "bench data fetch",
    "bench data get": "bench data fetch",
    "bench train": "bench run",
    "bench finetune": "bench run",
    "bench eval": "bench evaluate",
    "bench board": "bench leaderboard",
    "bench list": "bench methods",
}
#: (command, option that it has no longer) -> what to type instead.
_RENAMED = {
    ("bench run", "search"): "--id-val-only to fit and score id-val only, --trials N to search",
}
#: What Typer, or pydantic within it, says of a value -> what it must be.
_VALUES = (
    (r"Input should be a valid integer.*|.* is not a valid integer\.?", "must be a whole number"),
    (r"Input should be a valid number.*|.* is not a valid float\.?", "must be a number"),
    (r"Input should be greater than or equal to (\S+)", r"must be at least \1"),
    (r".* is not in the range x>=(\S+?)\.?", r"must be at least \1"),
)


def wrong_usage(error: Any, arguments: list[str]) -> UsageError:
    """Return the error to report for one of Typer's.

    Args:
        error: a usage error of Typer, with its context if it has one.
        arguments: of the command line.
    """
    command = error.ctx.command_path if error.ctx is not None else "bench"
    where, help_ = command, f"`{command} --help`"
    # Only the error of an unknown option has them.
    if hasattr(error, "possibilities"):
        return _unknown_option(error, command, arguments)
    if unknown := re.match(r"No such command '(.+?)'", error.format_message()):
        given = f"{command} {unknown[1]}"
        meant = _MEANT.get(given)
        if meant is None:
            known = error.ctx.command.list_commands(error.ctx)
            near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.5)
            meant = f"{command} {near[0]}" if near else None
        return UsageError(
            f"there is no command `{given}`", fix=f"`{meant}`" if meant is not None else help_
        )
    message = error.format_message().removesuffix(".").replace("Value error, ", "")
    option, colon, reason = message.partition(": ")
    if colon and (named := re.match(r"Invalid value for '?(.+?)'?$", option)):
        for pattern, english in _VALUES:
            reason = re.sub(rf"^(?:{pattern})$", english, reason)
        return UsageError(f"{named[1]}: {reason}", where=where, fix=help_)
    return UsageError(message[:1].lower() + message[1:], where=where, fix=help_)


def _unknown_option(error: Any, command: str, arguments: list[str]) -> UsageError:
    name = error.option_name
    key = name.lstrip("-").replace("-", "_")
    what = f"`{command}` has no option {name}"
    if command in ("bench run", "bench sweep") and key in _parameters():
        # Both `--epochs 3` and `--epochs=3`.
        places = [i for i, one in enumerate(arguments) if one.partition("=")[0] == name]
        words = [
            word for i in places for word in (arguments[i].partition("=")[2], *arguments[i + 1 :])
        ]
        value = next(filter(None, words), "VALUE")
        return UsageError(f"{what}: `{key}` is a parameter", fix=f"--set {key}={value}")
    if (command, key) in _RENAMED:
        return UsageError(what, fix=_RENAMED[command, key])
    near = difflib.get_close_matches(name, error.possibilities or (), n=1, cutoff=0.6)
    return UsageError(what, fix=f"did you mean {near[0]}?" if near else f"`{command} --help`")


def _parameters() -> set[str]:
    """Return the names of the parameters of all installed methods."""
    # From their sources: importing a method takes the seconds of torch, which a mistyped option
    # should not cost.
    modules = {"bench.method", *(entry.module for entry in entries("bench.methods").values())}
    found: set[str] = set()
    for module in modules:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        found |= {
            node.target.id
            for kind in ast.walk(tree)
            if isinstance(kind, ast.ClassDef)
            for node in kind.body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and "ClassVar" not in ast.unparse(node.annotation)
        }
    return found
