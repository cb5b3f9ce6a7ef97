"""Names and values to methods: the one place where what was typed, or stated in a file, becomes an
object.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from .errors import BenchError, UsageError
from .method import FineTuner, Method
from .plain import NAME
from .plugins import entries, is_trusted, loaded, module_of, unknown
from .storage.files import absent


def method_names() -> list[str]:
    """Names of the installed methods."""
    return list(entries("bench.methods"))


def broken_methods() -> dict[str, str]:
    """Names of the installed methods that cannot be loaded, and why: one broken package must not
    hide the others.
    """
    broken = {}
    for name in method_names():
        try:
            load_method(name)
        except BenchError as error:
            broken[name] = error.what
    return broken


def load_method(name: str) -> type[Method]:
    """The class of a method, by its name or by the path of a Python file that defines one.

    The file's own bytes are part of its fits' identity; modules of yours that it imports are not.

    Raises:
        UsageError: unknown name; the file is missing, was not named by the user (`trust`), fails to
            import, or does not define exactly one method.
    """
    if name.endswith(".py"):
        path = Path(name)
        if why := absent(path):
            raise UsageError(why, fix=f"`bench methods new {path}` writes a scaffold")
        if not is_trusted(path):
            raise UsageError(
                f"the method's file {path} is not run: a file of data names it, and not you",
                fix=(
                    "read it; then name it in the command, or start that with --allow-code where"
                    " its --config names it"
                ),
            )
        return _method_from_file(path.resolve(), path.read_bytes())
    if name not in entries("bench.methods"):
        raise unknown(
            "method",
            name,
            method_names(),
            fix="`bench methods` lists them; a file of your own ends in .py",
        )
    method: type[Method] = loaded(entries("bench.methods")[name])
    return method


@cache
def _method_from_file(path: Path, content: bytes) -> type[Method]:
    module = module_of(path, content)
    own = [
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, Method)
        and item.__module__ == module.__name__
        and hasattr(item, "name")
    ]
    if len(own) != 1:
        raise UsageError(
            f"{len(own)} methods are defined in the file, and one is expected",
            where=str(path),
            fix="define one subclass of bench.Method or bench.FineTuner that has a `name`",
        )
    method: type[Method] = own[0]
    if not re.fullmatch(NAME, method.name):
        raise UsageError(
            f"`{method.name}` cannot be a method's name",
            where=str(path),
            fix="letters, digits, `-`, `_` and `.`",
        )
    if method.name in entries("bench.methods"):
        raise UsageError(
            f"`{method.name}` is an installed method",
            where=str(path),
            fix="give yours a `name` of its own",
        )
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise UsageError(f"the method {method.name} does not implement: {missing}", where=str(path))
    method.source_sha256 = hashlib.sha256(content).hexdigest()
    return method


def method_file(method: type[Method]) -> str | None:
    """The file that a method was loaded from, which another process loads first to know the class;
    None if it is installed.
    """
    return sys.modules[method.__module__].__file__ if method.source_sha256 else None


def build_method(
    name: str, values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> Method:
    """`configure` for a method given by its name or file."""
    return configure(load_method(name), values, recipe)


def configure(
    method: type[Method], values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> Method:
    """A method with its parameters: the class's defaults, then the suite's recipe, then `values`.

    Args:
        values: parameters by name; `of.lr` reaches into a nested method.
        recipe: training defaults of a suite for every fine-tuner that has such a field; a table
            named after a method holds for that method alone, fine-tuner or not.

    Raises:
        UsageError: an unknown parameter or a value that is out of range.
    """
    recipe = dict(recipe or {})
    trains = issubclass(method, FineTuner)
    merged = {
        k: value
        for k, value in recipe.items()
        if trains and k in method.model_fields and not isinstance(value, Mapping)
    }
    own = recipe.get(method.name, {})
    if not isinstance(own, Mapping):
        raise UsageError(
            f"the recipe for {method.name} is {own!r:.60}, and no table of parameters",
            fix="mend `recipe` on the card",
        )
    merged |= own
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        first, dot, rest = key.partition(".")
        if first not in method.model_fields:
            raise unknown(
                f"parameter of {method.name}",
                first,
                method.model_fields,
                fix=f"`bench methods show {method.name}`",
            )
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            merged[first] = value
    for key, field in method.model_fields.items():
        default = field.get_default(call_default_factory=True)
        chosen = merged.get(key, default.name if isinstance(default, Method) else None)
        if chosen is not None and _holds_methods(field.annotation):
            inner, where = nested.pop(key, {}), f"`{key}` of {method.name}"
            several = not inspect.isclass(field.annotation) and isinstance(chosen, (list, tuple))
            made = [
                _as_method(one, inner, recipe, where) for one in (chosen if several else [chosen])
            ]
            merged[key] = made if several else made[0]
    if nested:
        raise UsageError(f"{method.name} has no method nested in `{next(iter(nested))}`")
    try:
        return method.model_validate(merged)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})"
            for e in error.errors()
        )
        raise UsageError(
            f"a parameter of {method.name} is wrong: {problems}",
            fix=f"`bench methods show {method.name}`",
        ) from error


def _holds_methods(annotation: Any) -> bool:
    """Whether a field is a method, or has methods in a list or a tuple."""
    own = inspect.isclass(annotation) and issubclass(annotation, Method)
    return own or any(map(_holds_methods, get_args(annotation)))


def _as_method(
    chosen: Any, values: Mapping[str, Any], recipe: Mapping[str, Any], where: str
) -> Method:
    """What was given for a field that holds methods: a method, its name, or a table of its name and
    parameters.
    """
    if isinstance(chosen, Method):
        return chosen
    table: dict[str, Any] = dict(chosen) if isinstance(chosen, Mapping) else {"name": chosen}
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(
            f"{where} is {chosen!r:.60}, and names no method", fix="such as `full-finetune`"
        )
    return build_method(name, {**table.pop("parameters", table), **values}, recipe)
