"""`bench methods`: list the fine-tuning methods, show one's parameters, or create a new one."""

from __future__ import annotations

import inspect
import keyword
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from ..configure import broken_methods, load_method, method_names
from ..console import completion
from ..errors import UsageError
from ..plugins import trust
from ..tables.table import Cell, Column, Format, FormatOption, Table, print_tables, say

if TYPE_CHECKING:
    from ..method import Method, Space

app = typer.Typer(rich_markup_mode=None)

#: The file that `bench methods new` writes: the shortest method that trains, has a parameter with a
#: search space, and passes `bench check`.
_SCAFFOLD = '''\
"""{title}: label smoothing (Szegedy et al., 2016). Replace it with your method."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import cross_entropy

from bench import Batch, Classifier, FineTuner, Space, searched


class {cls}(FineTuner):
    """Fine-tune all weights on softened labels."""

    name = "{name}"
    paper = "https://arxiv.org/abs/1512.00567"

    smoothing: float = searched(0.1, Space(high=0.3), ge=0, lt=1, description="label smoothing")

    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Return the mean cross-entropy. `teacher` is the frozen model at the start of training."""
        return cross_entropy(student(batch.images), batch.labels, label_smoothing=self.smoothing)
'''


@app.callback(invoke_without_command=True)
def methods(context: typer.Context, form: FormatOption = Format.table) -> None:
    """List the methods, show a method's parameters, or create your own.

    \b
    Examples:
      bench methods
      bench methods show wise-ft
      bench methods new my_method.py
    """
    if context.invoked_subcommand is None:
        print_methods(form)


@app.command("list")
def print_methods(form: FormatOption = Format.table) -> None:
    """List the installed methods."""
    broken = broken_methods()
    rows = [_row(name, broken.get(name, "")) for name in method_names()]
    columns = [Column("name"), Column("version", kind="count"), Column("summary"), Column("paper")]
    print_tables(
        [Table(columns, rows, notes=["`bench methods show NAME` lists a method's parameters."])],
        form,
    )


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="name or file of a method", autocompletion=completion.methods)
    ],
    form: FormatOption = Format.table,
) -> None:
    """Show a method and its parameters with defaults, bounds and search spaces."""
    # The user has typed the name, so a file that it names may be executed.
    trust(name)
    method = load_method(name)
    about: dict[str, Cell] = {
        "name": method.name,
        "version": method.version,
        "summary": inspect.getdoc(method) or "",
        "paper": method.paper,
        "images of a batch interact": method().batch_coupled,
    }
    space = method.search_space()
    parameters = [
        _parameter(key, field, space.get(key)) for key, field in method.model_fields.items()
    ]
    keys = ("parameter", "type", "default", "bounds", "search", "description")
    tables = [
        Table(
            [Column("field"), Column("value")],
            [{"field": key, "value": value} for key, value in about.items()],
            method.name,
        ),
        Table(
            [Column(key) for key in keys],
            parameters,
            "parameters",
            ["The recipe of a suite may set other defaults."],
        ),
    ]
    # csv is one table, and the parameters are the one that a program can use.
    print_tables(tables if form is not Format.csv else tables[1:], form)


@app.command()
def new(
    file: Annotated[
        Path,
        typer.Argument(
            help="file to write, such as my_method.py; the method is named after the file"
        ),
    ],
) -> None:
    """Create a new method: one short file that already runs.

    \b
    Example:
      bench methods new my_method.py && bench check my_method.py && bench run ./my_method.py
    """
    text = scaffold(file)
    # Mode "x" and no check beforehand: no file is overwritten, even if another process creates it
    # at the same time.
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise UsageError(
            "the file already exists", where=str(file), fix="choose another name"
        ) from error
    except OSError as error:
        raise UsageError(
            f"the file cannot be written: {error.strerror}",
            where=str(file),
            fix="choose another folder",
        ) from error
    say(f"wrote {file}; next, run `bench check {file}`, then `bench run {file}`")


def scaffold(file: Path) -> str:
    """Return the source of a working method that is named after `file`.

    Raises:
        UsageError: The name does not end in .py, gives no class name, or is already in use.
    """
    # `my_method.py` has the class `MyMethod` and the method `my-method`.
    words = re.findall(r"[A-Za-z0-9]+", file.stem)
    cls = "".join(word[:1].upper() + word[1:] for word in words)
    if file.suffix != ".py" or not cls.isidentifier() or keyword.iskeyword(cls):
        raise UsageError(
            f"`{file.name}` cannot be the name of a method's file",
            where=str(file),
            fix="choose a name such as my_method.py, which becomes `my-method`",
        )
    name = "-".join(words).lower()
    if name in method_names():
        raise UsageError(
            f"a method `{name}` is already installed",
            where=str(file),
            fix="choose another file name",
        )
    return _SCAFFOLD.format(title=" ".join(words), cls=cls, name=name)


def _row(name: str, broken: str) -> dict[str, Cell]:
    # A method that cannot be loaded is listed with its error, and does not hide the others.
    if broken:
        return {"name": name, "summary": broken}
    method = load_method(name)
    return {
        "name": name,
        "version": method.version,
        "summary": summary(method),
        "paper": method.paper,
    }


def summary(method: type[Method]) -> str:
    """Return the first paragraph of a method's docstring on one line."""
    return " ".join((inspect.getdoc(method) or "").partition("\n\n")[0].split())


def _parameter(key: str, field: Any, space: Space | None) -> dict[str, Cell]:
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in bounds.items()
        if hasattr(item, name)
    ]
    return {
        "parameter": key,
        "type": _type_name(field.annotation),
        "default": (
            "required"
            if field.is_required()
            else _value(field.get_default(call_default_factory=True))
        ),
        "bounds": ", ".join(limits),
        "search": _space(space),
        "description": field.description or "",
    }


def _value(value: Any) -> str:
    from ..method import Method

    # None stands for a default that depends on the backbone, such as the initial head.
    if not isinstance(value, Method):
        return "chosen by backbone" if value is None else str(value)
    # A wrapper's default is another method, which is shown with the values that the wrapper
    # changes in it.
    changed = [
        f"{key}={item}" for key, item in value if item != type(value).model_fields[key].default
    ]
    return value.name + (f" ({', '.join(changed)})" if changed else "")


def _space(space: Space | None) -> str:
    if space is None:
        return ""
    if space.choices:
        return "one of " + ", ".join(map(str, space.choices))
    times = " times the suite's value" if space.relative else ""
    return f"{space.low:g} to {space.high:g}{times}" + (" (log)" if space.log else "")


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " | ".join(_type_name(part) for part in get_args(annotation) if part is not NoneType)
    return str(getattr(annotation, "__name__", annotation))
