"""What was asked for: the fields of `bench run`, from the command line, a TOML file or Python, validated in one place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UsageError
from .storage.files import read_toml

DEFAULT_SUITE = "mini-shifts"
DEFAULT_BACKBONE = "mini-clip"
#: Far from any seed of a final run, so that parameters are not chosen on the very draws that they are reported with.
SEARCH_SEED = 1_000_003


class RunSpec(BaseModel):
    """Methods to run on one backbone and one suite, with their parameters and seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[str, ...] = Field(min_length=1, description="names, or files that end in .py")
    suite: str = DEFAULT_SUITE
    backbone: str | None = Field(None, description="default: the suite's own")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    of: str | None = Field(None, description="the method that a wrapper such as wise-ft wraps")
    set: dict[str, Any] = Field(default_factory=dict, description="parameters of the methods; `of.lr` reaches a nested one")
    data_root: Path | None = None
    limit: int | None = Field(None, ge=1, description="at most this many images per split: a trial of the machinery")
    shots: int | None = Field(None, ge=1, description="train on this many images per class, drawn by the seed")
    skip_unreadable: int = Field(0, ge=0, description="how many undecodable images to leave out, counted in the record")
    curve: bool = False
    keep_logits: bool = Field(False, description="keep the logits of every image, also of ImageNet-sized sets")
    search: bool = Field(False, description="fit and measure id-val only; no image of a shift is decoded")
    trials: int = Field(0, ge=0, description="search trials per method, on id-val; 0 takes the recipe as it stands")

    @model_validator(mode="after")
    def _seeds_are_apart(self) -> RunSpec:
        if SEARCH_SEED in self.seeds:
            raise ValueError(f"the seed {SEARCH_SEED} is that of searches; report another one")
        return self

    def values(self, method: str) -> dict[str, Any]:
        """Parameters for one method; those that it lacks and another method of the run has are left out.

        Raises:
            UsageError: a parameter that no method has; `of` where none wraps another one.
        """
        check_shared([(name, {}) for name in self.methods], self.shared)
        return placed(method, self.shared)

    @property
    def shared(self) -> dict[str, Any]:
        """What is set for every method that has it."""
        return dict(self.set) if self.of is None else {"of": self.of, **self.set}


def placed(method: str, shared: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of a method among those that are set for several, by the name that they have there.

    Args:
        shared: by name; what neither the method nor one nested in it has is left out. own: what is set for it alone.
    """
    found = {key: value for key, value in (own or {}).items() if key == "of"}
    for key, value in shared.items():
        place = place_of(method, key, found)
        if place is not None:
            found.setdefault(place, value)
    return found | dict(own or {})


def place_of(method: str, key: str, chosen: Mapping[str, Any]) -> str | None:
    """Where a method takes a parameter: itself, else in the first method nested in it that has it; None if nowhere.

    Args:
        chosen: nested methods that were named, by the field that holds them.
    """
    from .configure import load_method
    from .method import Method

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


def check_shared(methods: Sequence[tuple[str, Mapping[str, Any]]], shared: Mapping[str, Any]) -> None:
    """Refuse a parameter that no method has.

    Args:
        methods: each with what is set for it alone.

    Raises:
        UsageError: there is one.
    """
    from .configure import load_method
    from .plugins import unknown

    for key in shared:
        if any(place_of(name, key, {**shared, **own}) for name, own in methods):
            continue
        if key == "of":
            whose = f"{methods[0][0]} wraps" if len(methods) == 1 else "these methods wrap"
            raise UsageError(f"{whose} no other method, so --of has no meaning", fix="leave --of out, or run wise-ft")
        whose, which = ("these methods", "METHOD") if len(methods) > 1 else (methods[0][0],) * 2
        known = {field for name, _ in methods for field in load_method(name).model_fields}
        raise unknown(f"parameter of {whose}", key, known, fix=f"`bench methods show {which}`")


def left_out(methods: Iterable[str], shared: Mapping[str, Any]) -> list[str]:
    """Say of every parameter for which methods it has no meaning, a line each."""
    lacking = {key: [name for name in methods if place_of(name, key, shared) is None] for key in shared}
    return [f"`{key}` is no parameter of {', '.join(names)}, and is left out there" for key, names in lacking.items() if names]


def parse_value(text: str) -> Any:
    """A parameter's value as typed: a JSON number, true, false, null, list or table, else the text itself."""
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
            raise UsageError(f"`{text}` is not key=value", where=option, fix=f"such as `{option} lr=1e-4`")
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
        raise UsageError(f"the configuration cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    except ValueError as error:
        raise UsageError(f"the configuration is not TOML: {error}", where=str(path), fix="mend the file there") from error


def run_spec(options: dict[str, Any], config: Path | None = None) -> RunSpec:
    """The spec from options over a TOML file over defaults; None in `options` means not given.

    Raises:
        UsageError: the file cannot be read, or a field is unknown or wrong.
    """
    merged = read_config(config)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        in_file = RunSpec.model_validate({"methods": ("none",), **merged}).set
        given["set"] = {**in_file, **given.get("set", {})}
        return RunSpec.model_validate({**merged, **given})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(
            f"the run is not well specified: {problems}", where=str(config or "options"), fix="`bench run --help`"
        ) from error
