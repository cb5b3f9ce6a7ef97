"""`bench methods`: the fine-tuning methods that are installed, their parameters, and a scaffold for
one's own.
"""

from __future__ import annotations

import inspect
import keyword
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from ..configure import broken_methods, load_method, method_names
from ..errors import UsageError
from ..plugins import trust
from ..tables.table import Cell, Column, Format, FormatOption, Table, print_tables, say

if TYPE_CHECKING:
    from ..method import Method, Space

app = typer.Typer(rich_markup_mode=None)

_SCAFFOLD = '''\
"""{title}: label smoothing (Szegedy et al., 2016). A scaffold: make it yours."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import cross_entropy

from bench import Batch, Classifier, FineTuner, Space, searched


class {cls}(FineTuner):
    """Fine-tune all weights on softened labels."""

    name = "{name}"
    paper = "https://arxiv.org/abs/1512.00567"

    smoothing: float = searched(
        0.1,
        Space(low=0.0, high=0.3),
        ge=0,
        lt=1,
        description="share of the label given to all classes",
    )

    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Mean cross-entropy; `teacher`, the frozen start, is there for methods that want it."""
        return cross_entropy(student(batch.images), batch.labels, label_smoothing=self.smoothing)
'''


@app.callback(invoke_without_command=True)
def methods(context: typer.Context, form: FormatOption = Format.table) -> None:
    """List the methods, show one's parameters, or start your own.

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
    name: Annotated[str, typer.Argument(help="a method's name or file")],
    form: FormatOption = Format.table,
) -> None:
    """Show what a method is and its parameters: defaults, bounds and what a search draws."""
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
            ["A suite's recipe may set other defaults."],
        ),
    ]
    # csv is one table, and the parameters are what a program would want.
    print_tables(tables if form is not Format.csv else tables[1:], form)


@app.command()
def new(
    file: Annotated[
        Path,
        typer.Argument(
            help="the file to write, such as my_method.py; the method is named after it"
        ),
    ],
) -> None:
    """Write a method of your own to start from: one short file that already runs.

    \b
    Example:
      bench methods new my_method.py && bench check my_method.py && bench run ./my_method.py
    """
    text = scaffold(file)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise UsageError(
            "the file exists, and is left as it is", where=str(file), fix="choose another name"
        ) from error
    except OSError as error:
        raise UsageError(
            f"the file cannot be written: {error.strerror}",
            where=str(file),
            fix="choose another folder",
        ) from error
    say(f"wrote {file}; next: `bench check {file}`, then `bench run {file}`")


def scaffold(file: Path) -> str:
    """The text of a working method that is named after `file`.

    Raises:
        UsageError: the name gives no Python file, no class name, or is taken.
    """
    words = re.findall(r"[A-Za-z0-9]+", file.stem)
    cls = "".join(word[:1].upper() + word[1:] for word in words)
    if file.suffix != ".py" or not cls.isidentifier() or keyword.iskeyword(cls):
        raise UsageError(
            f"`{file.name}` names no method",
            where=str(file),
            fix="a file such as my_method.py gives `my-method`",
        )
    name = "-".join(words).lower()
    if name in method_names():
        raise UsageError(
            f"there is an installed method `{name}`",
            where=str(file),
            fix="choose another file name",
        )
    return _SCAFFOLD.format(title=" ".join(words), cls=cls, name=name)


def _row(name: str, broken: str) -> dict[str, Cell]:
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
    """First paragraph of its docstring, on one line."""
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

    if not isinstance(value, Method):
        return "chosen by backbone" if value is None else str(value)
    # A field that holds a method: what in it differs from that method's own defaults.
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
