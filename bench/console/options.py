"""Options that are made of the fields of specs, and those that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..spec import parse_assignments

if TYPE_CHECKING:
    from ..engine import Engine

SuiteOption = Annotated[
    str | None,
    typer.Option(
        "--suite", help="name of a suite, or a card of your own (.toml)", show_default="mini-shifts"
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="such as timm:tf_efficientnet_lite0 (`bench backbones`)",
        show_default="the suite's own",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="folder that holds the data sets; also BENCH_DATA"),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1 or mps", show_default="the best there is"),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads", min=1, help="torch threads; part of what makes results bit-identical"
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help=(
            "TOML file with the fields; `bench sweep --dump-config` writes one; options override it"
        ),
    ),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="run the methods' files (.py) that the --config file names: read them first",
    ),
]
SeedsOption = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="run seeds 0 .. N-1", show_default="1; in a sweep 3"),
]
SeedOption = Annotated[
    list[int] | None,
    typer.Option("--seed", help="run this seed; may be repeated", show_default=False),
]


def with_options(
    model: type[BaseModel], *names: str, but: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Any]:
    """Give a command an option for each field of a model that `asked` made; they reach it as a
    dictionary, by field.

    The command takes the dictionary under the model's name in lower case; what was not given is
    None in it.

    Args:
        names: of the fields, in the order of their options; none: all.
        but: fields to leave out.
    """
    into = model.__name__.lower()
    fields = {
        name: model.model_fields[name] for name in names or model.model_fields if name not in but
    }
    fields = {
        name: field for name, field in fields.items() if isinstance(field.json_schema_extra, dict)
    }

    def decorate(command: Callable[..., None]) -> Any:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {name: _read(field, values.pop(name)) for name, field in fields.items()}
            command(**values, **{into: given})

        own = [parameter for parameter in signature.parameters.values() if parameter.name != into]
        made = [_parameter(name, field) for name, field in fields.items()]
        first = [parameter for parameter in own if parameter.name in ("methods", "weights", "name")]
        rest = [parameter for parameter in own if parameter not in first]
        every = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in (*first, *made, *rest)
        ]
        run.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return run

    return decorate


def _kind(field: FieldInfo) -> Any:
    """The type of a field, where it may be None: of what else it is."""
    if get_origin(field.annotation) in (UnionType, Union):
        return next(kind for kind in get_args(field.annotation) if kind is not NoneType)
    return field.annotation


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra: Any = field.json_schema_extra
    kind, origin = _kind(field), get_origin(_kind(field))
    least = next((value.ge for value in field.metadata if hasattr(value, "ge")), None)
    option = typer.Option(
        extra["flag"] or f"--{name.replace('_', '-')}",
        help=field.description,
        show_default=extra["shown"],
        min=least,
        metavar=extra["metavar"] or ("KEY=VALUE" if origin is dict else None),
    )
    single: Any = str if origin is Literal else list[str] if origin in (dict, tuple) else kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[single | None, option],
    )


def _read(field: FieldInfo, value: Any) -> Any:
    """What was given for a field; None for nothing."""
    if get_origin(_kind(field)) is dict and value:
        extra: Any = field.json_schema_extra
        return parse_assignments(value, option=extra["flag"] or "--set")
    return value or None if isinstance(value, list) else value


def seeds_of(count: int | None, chosen: list[int] | None) -> tuple[int, ...] | None:
    """The seeds that --seeds and --seed name; None for neither.

    Raises:
        UsageError: both are given.
    """
    from ..errors import UsageError

    if count is not None and chosen:
        raise UsageError("give either --seeds N or --seed K, not both")
    return tuple(chosen) if chosen else tuple(range(count)) if count else None


def engine(device: str | None, threads: int, workers: int | None = None) -> Engine:
    """The engine of a command that trains no sweep."""
    from ..engine import Engine, default_device

    return Engine(device=device or default_device(), threads=threads, workers=workers)
