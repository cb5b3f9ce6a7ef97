"""Command-line options: those that commands share, and those made from the fields of a spec."""

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

from ..run_spec import parse_assignments
from . import completion

if TYPE_CHECKING:
    from ..engine import Engine

# The default of an option below is None where the spec, the suite or the machine fills it in;
# `show_default` says with what.

SuiteOption = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="name of a suite, or a card of your own (.toml)",
        show_default="mini-shifts",
        autocompletion=completion.suites,
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="such as timm:tf_efficientnet_lite0 (`bench backbones`)",
        show_default="the suite's own",
        autocompletion=completion.backbones,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="folder of the datasets; also BENCH_DATA"),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1 or mps", show_default="the best available"),
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
        help=("TOML file with these fields, as --dump-config writes one; options override it"),
    ),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="execute the .py files of methods that --config names; read them first",
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
    """Decorate a command with an option for each field of a model that `requested` made.

    The command receives the values as a dictionary by field name, in the parameter that has the
    model's name in lower case. The value of an option that was not given is None, so that a
    configuration file can supply it.

    Args:
        model: The spec whose fields become options.
        names: Fields to use, in the order of their options; all if none are given.
        but: Fields to leave out.
    """
    into = model.__name__.lower()
    fields = {
        name: model.model_fields[name] for name in names or model.model_fields if name not in but
    }
    fields = {
        name: field for name, field in fields.items() if isinstance(field.json_schema_extra, dict)
    }

    def decorate(command: Callable[..., None]) -> Any:
        # Typer builds the options from the signature and the annotations of the function, so the
        # wrapper gets both as if they had been written out. `eval_str`, since annotations are
        # strings under `from __future__ import annotations`.
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {name: _read(field, values.pop(name)) for name, field in fields.items()}
            command(**values, **{into: given})

        own = [parameter for parameter in signature.parameters.values() if parameter.name != into]
        made = [_parameter(name, field) for name, field in fields.items()]
        # The help lists options in this order: what the command is about, the fields, the rest.
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
    """Return the type of a field, without None."""
    if get_origin(field.annotation) in (UnionType, Union):
        return next(kind for kind in get_args(field.annotation) if kind is not NoneType)
    return field.annotation


#: Field of a spec -> what completes its option.
_COMPLETED: dict[str, Callable[..., list[str]]] = {
    "of": completion.methods,
    "suite": completion.suites,
    "suites": completion.suites,
    "backbone": completion.backbones,
    "backbones": completion.backbones,
}


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra: Any = field.json_schema_extra
    kind, origin = _kind(field), get_origin(_kind(field))
    # Typer checks the lower bound while it parses, which names the option in the error. All other
    # constraints are the model's.
    least = next((value.ge for value in field.metadata if hasattr(value, "ge")), None)
    option = typer.Option(
        extra["flag"] or f"--{name.replace('_', '-')}",
        help=field.description,
        show_default=extra["shown"],
        min=least,
        autocompletion=_COMPLETED.get(name),
        metavar=extra["metavar"] or ("KEY=VALUE" if origin is dict else None),
    )
    # A Literal is parsed as text, so that a wrong value gets the error of the model, which is the
    # same as for a configuration file. Mappings and tuples become repeatable options.
    single: Any = str if origin is Literal else list[str] if origin in (dict, tuple) else kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[single | None, option],
    )


def _read(field: FieldInfo, value: Any) -> Any:
    """Return the value of an option; None if it was not given."""
    if get_origin(_kind(field)) is dict and value:
        extra: Any = field.json_schema_extra
        return parse_assignments(value, option=extra["flag"] or "--set")
    # Typer passes an empty list for a repeatable option that was not given.
    return value or None if isinstance(value, list) else value


def seeds_of(count: int | None, chosen: list[int] | None) -> tuple[int, ...] | None:
    """Return the seeds that --seeds or --seed names; None if neither is given.

    Args:
        count: Value of --seeds: the seeds are 0 to count - 1.
        chosen: Values of --seed.

    Raises:
        UsageError: Both are given.
    """
    from ..errors import UsageError

    if count is not None and chosen:
        raise UsageError("give either --seeds N or --seed K, not both")
    return tuple(chosen) if chosen else tuple(range(count)) if count else None


def engine(device: str | None, threads: int, workers: int | None = None) -> Engine:
    """Return the engine of a command that computes in this process."""
    from ..engine import Engine, default_device

    return Engine(device=device or default_device(), threads=threads, workers=workers)
