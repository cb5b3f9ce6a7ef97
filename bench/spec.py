"""What was asked for: the fields of `bench run`, from the command line, a TOML file or Python,
validated in one place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .configure import load_method
from .errors import UsageError
from .method import Method
from .plugins import unknown
from .storage.files import read_toml

DEFAULT_SUITE = "mini-shifts"
DEFAULT_BACKBONE = "mini-clip"
#: The two methods that the engine knows by name: the one behind `head_init = probe`, and the one
#: whose curve others are held against.
PROBE, REFERENCE = "linear-probe", "full-finetune"
#: Far from any seed of a final run, so that parameters are not chosen on the very draws that they
#: are reported with.
SEARCH_SEED = 1_000_003


def asked(
    default: Any,
    description: str,
    *,
    flag: str = "",
    shown: str | bool = False,
    metavar: str = "",
    **field: Any,
) -> Any:
    """A field that a command has an option for, with the description as its help.

    Args:
        flag: the option's name, if it is another one than the field's.
        shown: the default in words, where None stands for it.
        metavar: what stands for the value in the help.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"flag": flag, "shown": shown, "metavar": metavar},
        **field,
    )


class Common(BaseModel):
    """What runs and sweeps share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str | None = asked(None, "the method that a wrapper wraps (wise-ft --of lp-ft)")
    set: dict[str, Any] = asked(
        {},
        "a parameter, such as lr=1e-4 or of.epochs=3, of every method that has it or wraps one that"
        " has it",
    )
    limit: int | None = asked(
        None, "at most this many images per split: tries the machinery, never enters a board", ge=1
    )
    shots: int | None = asked(
        None, "train on this many images per class, drawn by the seed", shown="all", ge=1
    )
    keep_logits: bool = asked(
        False,
        "keep all logits, also of ImageNet-sized sets (100 MB for 50,000 x 1,000); a run that is"
        " done is evaluated again",
        flag="--keep-logits/--no-keep-logits",
    )
    skip_unreadable: int = asked(
        0, "leave out up to this many undecodable images, and record how many", ge=0
    )
    data_root: Path | None = asked(None, "folder that holds the data sets; also BENCH_DATA")

    @property
    def shared(self) -> dict[str, Any]:
        """What is set for every method that has it."""
        return dict(self.set) if self.of is None else {"of": self.of, **self.set}


def apart(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse the seed of searches among those of final runs."""
    if SEARCH_SEED in seeds:
        raise ValueError(f"the seed {SEARCH_SEED} is that of searches; report another one")
    return seeds


Seeds = Annotated[tuple[int, ...], AfterValidator(apart)]


class RunSpec(Common):
    """Methods to run on one backbone and one suite, with their parameters and seeds."""

    methods: tuple[str, ...] = Field(min_length=1, description="names, or files that end in .py")
    suite: str = asked(
        DEFAULT_SUITE, "name of a suite, or a card of your own (.toml)", shown=DEFAULT_SUITE
    )
    backbone: str | None = asked(
        None, "such as timm:tf_efficientnet_lite0 (`bench backbones`)", shown="the suite's own"
    )
    seeds: Seeds = Field(default=(0,), min_length=1)
    curve: bool = asked(
        False,
        "also the interpolation curve start -> fine-tuned, 11 points",
        flag="--curve/--no-curve",
    )
    search: bool = asked(
        False,
        "fit and score id-val only, for choosing parameters; no shift is looked at",
        flag="--search",
    )
    trials: int = asked(
        0,
        "choose parameters first: this many trials per method on id-val, with a seed of their own",
        ge=0,
    )

    def values(self, method: str) -> dict[str, Any]:
        """Parameters for one method; those that it lacks and another method of the run has are left
        out.

        Raises:
            UsageError: a parameter that no method has; `of` where none wraps another one.
        """
        check_shared([(name, {}) for name in self.methods], self.shared)
        return placed(method, self.shared)


class Settings(BaseModel):
    """How a trial's process computes. None of it changes what a result means; all of it is
    recorded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str | None = asked(None, "cpu, cuda, cuda:1 or mps", shown="the best there is")
    devices: int | None = asked(
        None,
        "devices that train one model together, a process each; same result, less time",
        shown="1",
        ge=1,
    )
    threads: int | None = asked(
        None,
        "torch threads; part of what makes results bit-identical",
        shown="2; in a sweep --cpus-per-trial",
        ge=1,
    )
    workers: int | None = asked(
        None,
        "threads that decode and augment training images ahead",
        shown="as many as decoding needs",
        ge=0,
    )
    micro_batch: int | None = asked(
        None, "images per forward pass in training; same result, less memory", ge=1
    )
    deterministic: bool = asked(
        True,
        "refuse operations that do not repeat to the bit (GPUs have some)",
        flag="--deterministic/--no-deterministic",
        shown="deterministic",
    )
    checkpoint_seconds: float = asked(
        60.0, "seconds between checkpoints", flag="--checkpoint-every", shown="60", ge=0
    )


def placed(
    method: str, shared: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The parameters of a method among those that are set for several, by the name that they have
    there.

    Args:
        shared: by name; what neither the method nor one nested in it has is left out.
        own: what is set for it alone.
    """
    found = {key: value for key, value in (own or {}).items() if key == "of"}
    for key, value in shared.items():
        place = place_of(method, key, found)
        if place is not None:
            found.setdefault(place, value)
    return found | dict(own or {})


def place_of(method: str, key: str, chosen: Mapping[str, Any]) -> str | None:
    """Where a method takes a parameter: itself, else in the first method nested in it that has it;
    None if nowhere.

    Args:
        chosen: nested methods that were named, by the field that holds them.
    """
    fields = load_method(method).model_fields
    if key.partition(".")[0] in fields:
        return key
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Method):
            inner = place_of(str(chosen.get(name, default.name)), key, {})
            if inner is not None:
                return f"{name}.{inner}"
    return None


def check_shared(
    methods: Sequence[tuple[str, Mapping[str, Any]]], shared: Mapping[str, Any]
) -> None:
    """Refuse a parameter that no method has.

    Args:
        methods: each with what is set for it alone.

    Raises:
        UsageError: there is one.
    """
    for key in shared:
        if any(place_of(name, key, {**shared, **own}) for name, own in methods):
            continue
        if key == "of":
            whose = f"{methods[0][0]} wraps" if len(methods) == 1 else "these methods wrap"
            raise UsageError(
                f"{whose} no other method, so --of has no meaning",
                fix="leave --of out, or run wise-ft",
            )
        whose, which = ("these methods", "METHOD") if len(methods) > 1 else (methods[0][0],) * 2
        known = {field for name, _ in methods for field in load_method(name).model_fields}
        raise unknown(f"parameter of {whose}", key, known, fix=f"`bench methods show {which}`")


def left_out(methods: Iterable[str], shared: Mapping[str, Any]) -> list[str]:
    """Say of every parameter for which methods it has no meaning, a line each."""
    lacking = {
        key: [name for name in methods if place_of(name, key, shared) is None] for key in shared
    }
    return [
        f"`{key}` is no parameter of {', '.join(names)}, and is left out there"
        for key, names in lacking.items()
        if names
    ]


def parse_value(text: str) -> Any:
    """A parameter's value as typed: a JSON number, true, false, null, list or table, else the text
    itself.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_assignments(texts: list[str], option: str = "--set") -> dict[str, Any]:
    """`key=value` pairs.

    Raises:
        UsageError: one has no `=`.
    """
    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"`{text}` is not key=value",
                where=option,
                fix=f"such as `{option} {'lr=1e-4' if option == '--set' else 'name=1'}`",
            )
        pairs[key.strip()] = parse_value(value.strip())
    return pairs


def read_config(path: Path | None) -> dict[str, Any]:
    """The fields of a TOML file; none without a file.

    Raises:
        UsageError: the file cannot be read.
    """
    if path is None:
        return {}
    try:
        return read_toml(path)
    except OSError as error:
        fix = "name a TOML file; `bench sweep METHOD... --dump-config` writes one"
        raise UsageError(
            f"the configuration cannot be read: {error.strerror}", where=str(path), fix=fix
        ) from error
    except ValueError as error:
        raise UsageError(
            f"the configuration is not TOML: {error}", where=str(path), fix="mend the file there"
        ) from error


Spec = TypeVar("Spec", bound=Common)


def read_spec(kind: type[Spec], options: Mapping[str, Any], config: Path | None, what: str) -> Spec:
    """The spec from options over a TOML file over defaults; None in `options` means not given.

    Args:
        what: the command, for messages.

    Raises:
        UsageError: the file cannot be read, or a field is unknown or wrong.
    """
    merged = read_config(config)
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(merged.get("set"), dict):
        given["set"] = {**merged["set"], **given.get("set", {})}
    try:
        return kind.model_validate({**merged, **given})
    except ValidationError as error:
        told = [
            (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))
            for e in error.errors()
        ]
        problems = "; ".join(f"{where}: {why}".removeprefix(": ") for where, why in told)
        raise UsageError(
            f"the {what} is not well specified: {problems}",
            where=str(config or "options"),
            fix=f"`bench {what} --help`",
        ) from error


def run_spec(options: Mapping[str, Any], config: Path | None = None) -> RunSpec:
    """The spec of runs; see `read_spec`."""
    return read_spec(RunSpec, options, config, "run")
