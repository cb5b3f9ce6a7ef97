"""Names to plug-ins: methods, backbones, suites and commands, found through entry points or in a single file, lazily."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BenchError, EndedByPlugin, UsageError
from .stopping import foreign
from .storage.files import absent

if TYPE_CHECKING:
    from .backbones.backbone import Backbone
    from .data.cards.data_set import DataSetCard
    from .data.cards.suite_card import SuiteCard
    from .method import Method


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
                f"two installed packages provide `{entry.name}`: {found[entry.name].value} and {entry.value}",
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
    return UsageError(f"there is no {kind} `{name}`", where=f"known: {', '.join(known) or 'none'}", fix=hint or fix)


#: Files of code that the user named. One that a card, a record, a pack or a configuration names is not run.
_trusted: set[Path] = set()


def code_files(named: Any) -> set[Path]:
    """The files of methods that are named in a text (NAME or NAME:KEY=VALUE,KEY=VALUE), or anywhere in a table or a list."""
    if isinstance(named, Mapping):
        named = [*named.values()]
    if isinstance(named, (list, tuple)):
        return {file for one in named for file in code_files(one)}
    texts = (named, *re.split("[:,=]", named)) if isinstance(named, str) else ()
    return {Path(text).resolve() for text in texts if text.endswith(".py")}


def trust(named: Any) -> None:
    """Let files of methods be run. Call it with what the user typed or a program passed, never with what a file says.

    Args:
        named: see `code_files`.
    """
    _trusted.update(code_files(named))


def method_names() -> list[str]:
    """Names of the installed methods."""
    return list(entries("bench.methods"))


def broken_methods() -> dict[str, str]:
    """Names of the installed methods that cannot be loaded, and why: one broken package must not hide the others."""
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
        UsageError: unknown name; the file is missing, was not named by the user (`trust`), fails to import, or does not define
            exactly one method.
    """
    if name.endswith(".py"):
        path = Path(name)
        if why := absent(path):
            raise UsageError(why, fix=f"`bench methods new {path}` writes a scaffold")
        if path.resolve() not in _trusted:
            raise UsageError(
                f"the method's file {path} is not run: a file of data names it, and not you",
                fix="read it; then name it in the command, or start that with --allow-code where its --config names it",
            )
        return _method_from_file(path.resolve(), path.read_bytes())
    if name not in entries("bench.methods"):
        raise unknown("method", name, method_names(), fix="`bench methods` lists them; a file of your own ends in .py")
    method: type[Method] = loaded(entries("bench.methods")[name])
    return method


@cache
def _method_from_file(path: Path, content: bytes) -> type[Method]:
    from .method import Method

    sha = hashlib.sha256(content).hexdigest()
    name = f"bench_plugin_{path.stem}_{sha[:12]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        # The very bytes that were hashed are run: an import might take older bytecode from a cache beside the file.
        with foreign():
            exec(compile(content, str(path), "exec"), module.__dict__)
    except Exception as error:  # whatever a plug-in raises is its author's to see, with its place
        del sys.modules[name]
        raise UsageError(f"the method's file fails to import: {_told(error)}", where=str(path), fix="mend the file") from error
    own = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Method) and item.__module__ == name and hasattr(item, "name")
    ]
    if len(own) != 1:
        raise UsageError(
            f"{len(own)} methods are defined in the file, and one is expected",
            where=str(path),
            fix="define one subclass of bench.Method or bench.FineTuner that has a `name`",
        )
    method: type[Method] = own[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", method.name):
        raise UsageError(f"`{method.name}` cannot be a method's name", where=str(path), fix="letters, digits, `-`, `_` and `.`")
    if method.name in entries("bench.methods"):
        raise UsageError(f"`{method.name}` is an installed method", where=str(path), fix="give yours a `name` of its own")
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise UsageError(f"the method {method.name} does not implement: {missing}", where=str(path))
    method.source_sha256 = sha
    return method


def method_file(method: type[Method]) -> str | None:
    """The file that a method was loaded from, which another process loads first to know the class; None if it is installed."""
    return sys.modules[method.__module__].__file__ if method.source_sha256 else None


def build_method(name: str, values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Method:
    """`configure` for a method given by its name or file."""
    return configure(load_method(name), values, recipe)


def configure(method: type[Method], values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Method:
    """A method with its parameters: the class's defaults, then the suite's recipe, then `values`.

    Args:
        values: parameters by name; `of.lr` reaches into a nested method.
        recipe: training defaults of a suite for every fine-tuner that has such a field; a table named after a method holds
            for that method alone, fine-tuner or not.

    Raises:
        UsageError: an unknown parameter or a value that is out of range.
    """
    from pydantic import ValidationError

    from .method import FineTuner, Method

    recipe = dict(recipe or {})
    trains = issubclass(method, FineTuner)
    merged = {k: value for k, value in recipe.items() if trains and k in method.model_fields and not isinstance(value, Mapping)}
    own = recipe.get(method.name, {})
    if not isinstance(own, Mapping):
        raise UsageError(
            f"the recipe for {method.name} is {own!r:.60}, and no table of parameters", fix="mend `recipe` on the card"
        )
    merged |= own
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        first, dot, rest = key.partition(".")
        if first not in method.model_fields:
            raise unknown(f"parameter of {method.name}", first, method.model_fields, fix=f"`bench methods show {method.name}`")
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            merged[first] = value
    for key, field in method.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Method):
            chosen = merged.get(key, default.name)
            if isinstance(chosen, Method):
                continue
            inner: dict[str, Any] = dict(chosen) if isinstance(chosen, Mapping) else {"name": chosen}
            inner_name = inner.pop("name", None)
            if not isinstance(inner_name, str):
                raise UsageError(
                    f"`{key}` of {method.name} is {chosen!r:.60}, and names no method", fix=f'such as "{default.name}"'
                )
            inner = inner.pop("parameters", inner)
            merged[key] = build_method(inner_name, {**inner, **nested.pop(key, {})}, recipe)
    if nested:
        raise UsageError(f"{method.name} has no method nested in `{next(iter(nested))}`")
    try:
        return method.model_validate(merged)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})" for e in error.errors())
        raise UsageError(
            f"a parameter of {method.name} is wrong: {problems}", fix=f"`bench methods show {method.name}`"
        ) from error


def suite_paths() -> dict[str, Path]:
    """Cards of the installed suites by name."""
    return _files("bench.suites", "card")


def _files(group: str, kind: str) -> dict[str, Path]:
    """Files that the entry points of a group name, by name."""
    found: dict[str, Path] = {}
    for entry in entries(group).values():
        for name, path in loaded(entry)().items():
            if name in found:
                raise UsageError(f"two {kind}s are called `{name}`: {found[name]} and {path}", fix="rename one of them")
            found[name] = path
    return dict(sorted(found.items()))


def suite_names() -> list[str]:
    """Names of the installed suites."""
    return sorted(suite_paths())


def find_card(name: str) -> tuple[SuiteCard, Path]:
    """The card of a suite, by name or by the path of a TOML file, and where it lies.

    Raises:
        UsageError: unknown name, or the card is wrong.
    """
    from .data.cards.suite_card import read_card

    path = suite_file(name)
    return read_card(path), path


def suite_file(name: str, beside: Path | None = None) -> Path:
    """Where the card of a suite lies.

    Args:
        beside: folder that the path of a file is relative to; default: the working directory.

    Raises:
        UsageError: unknown name, or there is no such file.
    """
    if name.endswith(".toml"):
        path = (beside or Path()) / name
        if why := absent(path):
            raise UsageError(why, fix="`bench suites` lists the installed suites")
        return path.resolve()
    paths = suite_paths()
    if name not in paths:
        raise unknown("suite", name, paths, fix="`bench suites` lists them; a card of your own ends in .toml")
    return paths[name]


def data_set_paths() -> dict[str, Path]:
    """Cards of the installed data sets by name."""
    return _files("bench.data_sets", "data set's card")


def find_list(name: str, beside: Path) -> Path:
    """The file of a list of classes or prompts: an installed one by its name, or a file (.tsv or .txt) beside a card.

    Raises:
        UsageError: unknown name, or there is no such file.
    """
    if name.endswith((".tsv", ".txt")):
        if not (beside / name).is_file():
            raise UsageError(f"there is no list {beside / name}", fix="a list has a class or a prompt on every line")
        return beside / name
    lists = _files("bench.lists", "list")
    if name not in lists:
        raise unknown("list", name, lists, fix="a list of your own ends in .tsv or .txt")
    return lists[name]


def find_data_set(name: str, beside: Path | None = None) -> tuple[DataSetCard, Path]:
    """The card of a data set, by name or by the path of a TOML file, and where it lies.

    Args:
        beside: folder that the path of a file is relative to; default: the working directory.

    Raises:
        UsageError: unknown name, or the card is wrong.
    """
    from .data.cards.data_set import read_data_set

    if name.endswith(".toml"):
        path = (beside or Path()) / name
        if why := absent(path):
            raise UsageError(why, fix="`bench data list` lists the data sets")
        return read_data_set(path), path.resolve()
    paths = data_set_paths()
    if name not in paths:
        raise unknown("data set", name, paths, fix="`bench data list` lists them; a card of your own ends in .toml")
    return read_data_set(paths[name]), paths[name]


def backbone_kinds() -> list[str]:
    """Kinds of backbones: what stands before the first colon of a backbone's name."""
    return list(entries("bench.backbones"))


@cache
def load_backbone(name: str) -> Backbone:
    """A backbone with its weights, by name such as `timm:resnet50` (loaded once per process).

    Raises:
        UsageError: unknown kind or name. MissingPrerequisite: its weights are not here.
    """
    kind, _, rest = name.partition(":")
    if kind not in entries("bench.backbones"):
        raise unknown("kind of backbone", kind, backbone_kinds(), fix="`bench backbones` explains the names")
    with foreign():
        backbone: Backbone = loaded(entries("bench.backbones")[kind])(rest)
    return backbone
