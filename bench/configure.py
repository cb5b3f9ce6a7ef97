"""Build methods from names and parameters, as they are typed or stated in a file."""

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
from .validation import problems


def method_names() -> list[str]:
    """Return the names of the installed methods."""
    return list(entries("bench.methods"))


def broken_methods() -> dict[str, str]:
    """Return the installed methods that cannot be loaded, with the reason."""
    # For listings, where one broken package must not hide the other methods.
    broken = {}
    for name in method_names():
        try:
            load_method(name)
        except BenchError as error:
            broken[name] = error.what
    return broken


def load_method(name: str) -> type[Method]:
    """Return the class of a method, by its name or by the path of a Python file that defines it.

    The file's own bytes are part of its fits' identity. Modules of yours that it imports are not.

    Raises:
        UsageError: the name is unknown; or the file is missing, was not named by the user (see
            `trust`), cannot be imported, or does not define exactly one method.
    """
    if name.endswith(".py"):
        path = Path(name)
        if why := absent(path):
            raise UsageError(why, fix=f"`bench methods new {path}` writes a scaffold")
        if not is_trusted(path):
            raise UsageError(
                f"the method's file {path} is not run: a data file names it, not you",
                fix=(
                    "read the file; then name it in the command, or add --allow-code if a --config"
                    " names it"
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


# Cached by content: a file that is edited in between is loaded again, and one that is not gives the
# same class, which `isinstance` and pickle need.
@cache
def _method_from_file(path: Path, content: bytes) -> type[Method]:
    module = module_of(path, content)
    # Defined there, not imported: a file that subclasses `full-finetune` imports that method too.
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
            f"the file defines {len(own)} methods, expected exactly one",
            where=str(path),
            fix="define one subclass of bench.Method or bench.FineTuner that has a `name`",
        )
    method: type[Method] = own[0]
    if not re.fullmatch(NAME, method.name):
        raise UsageError(
            f"`{method.name}` is not a valid name of a method",
            where=str(path),
            fix="use letters, digits, `-`, `_` and `.`",
        )
    if method.name in entries("bench.methods"):
        raise UsageError(
            f"`{method.name}` is the name of an installed method",
            where=str(path),
            fix="choose another `name`",
        )
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise UsageError(f"the method {method.name} does not implement: {missing}", where=str(path))
    method.source_sha256 = hashlib.sha256(content).hexdigest()
    return method


def method_file(method: type[Method]) -> str | None:
    """Return the file that a method was loaded from, or None if the method is installed.

    Another process has to load the file before it can unpickle the method.
    """
    return sys.modules[method.__module__].__file__ if method.source_sha256 else None


def build_method(
    name: str, values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> Method:
    """Build a method by its name or file; see `configure`."""
    return configure(load_method(name), values, recipe)


def configure(
    method: type[Method], values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> Method:
    """Build a method: `values` override the suite's recipe, which overrides the class's defaults.

    Args:
        method: the class.
        values: parameters by name; `of.lr` is a parameter of the nested method `of`.
        recipe: a suite's training defaults, for every fine-tuner that has such a field. A table
            named after a method is for that method only, fine-tuner or not.

    Raises:
        UsageError: a parameter is unknown, or a value is out of range.
    """
    # The recipe. Only a fine-tuner takes the shared part: a field of the same name means something
    # else in another method, such as `lr` in the probe's gradient solver.
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
            f"the recipe for {method.name} is {own!r:.60}, not a table of parameters",
            fix="fix `recipe` in the card",
        )
    merged |= own
    # The values: of this method, and of nested ones by the field that holds them.
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
    # The nested methods. They are built even if nothing was given for them, since the recipe holds
    # for them too.
    for key, field in method.model_fields.items():
        default = field.get_default(call_default_factory=True)
        chosen = merged.get(key, default.name if isinstance(default, Method) else None)
        if chosen is not None and _holds_methods(field.annotation):
            # Parameters of a list of methods apply to each of them.
            inner, where = nested.pop(key, {}), f"`{key}` of {method.name}"
            several = not inspect.isclass(field.annotation) and isinstance(chosen, (list, tuple))
            made = [
                _as_method(one, inner, recipe, where) for one in (chosen if several else [chosen])
            ]
            merged[key] = made if several else made[0]
    if nested:
        raise UsageError(f"`{next(iter(nested))}` of {method.name} does not hold a method")
    try:
        return method.model_validate(merged)
    except ValidationError as error:
        raise UsageError(
            f"invalid parameter of {method.name}: {problems(error, method, given=True)}",
            fix=f"`bench methods show {method.name}`",
        ) from error


def _holds_methods(annotation: Any) -> bool:
    """Return whether a field is a method, or a list or tuple of methods."""
    own = inspect.isclass(annotation) and issubclass(annotation, Method)
    return own or any(map(_holds_methods, get_args(annotation)))


def _as_method(
    chosen: Any, values: Mapping[str, Any], recipe: Mapping[str, Any], where: str
) -> Method:
    """Build a nested method from a method, its name, or a table of its name and parameters."""
    if isinstance(chosen, Method):
        return chosen
    table: dict[str, Any] = dict(chosen) if isinstance(chosen, Mapping) else {"name": chosen}
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(
            f"{where} is {chosen!r:.60}, not the name of a method",
            fix="give a name such as `full-finetune`",
        )
    # A table in a file has the parameters themselves; a method's identity, in a record, has them
    # under `parameters`.
    return build_method(name, {**table.pop("parameters", table), **values}, recipe)
