"""The fields of `bench run`, validated alike from the command line, a TOML file or Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .configure import load_method
from .errors import UsageError
from .method import Method
from .plugins import unknown
from .storage.files import read_toml
from .validation import problems

DEFAULT_SUITE = "mini-shifts"
DEFAULT_BACKBONE = "mini-clip"
#: The two methods that the engine knows by name: the one behind `head_init = probe`, and the one
#: whose interpolation curve others are compared with.
PROBE, REFERENCE = "linear-probe", "full-finetune"
#: Far from any seed of a final run. Parameters that were chosen with the same random numbers that
#: they are reported with would look better than they are.
SEARCH_SEED = 1_000_003


def requested(
    default: Any,
    description: str,
    *,
    flag: str = "",
    shown: str | bool = False,
    metavar: str = "",
    **field: Any,
) -> Any:
    """Return a pydantic field that is also an option of the command line.

    Args:
        default: default value.
        description: help text of the option.
        flag: name of the option, if it differs from the field's.
        shown: the default in the help text, where None does not say it.
        metavar: placeholder for the value in the help text.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"flag": flag, "shown": shown, "metavar": metavar},
        **field,
    )


class Common(BaseModel):
    """The fields that runs and sweeps share."""

    # An unknown field is an error: a misspelled one in a TOML file would otherwise be ignored, and
    # the run would silently be another one.
    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str | None = requested(None, "the method that a wrapper wraps (wise-ft --of lp-ft)")
    set: dict[str, Any] = requested(
        {},
        "a parameter such as lr=1e-4 or of.epochs=3, for every method that has it or wraps a method"
        " that has it",
    )
    limit: int | None = requested(
        None, "at most this many images per split; for trying out, never part of a board", ge=1
    )
    shots: int | None = requested(
        None, "train on this many images per class, sampled with the seed", shown="all", ge=1
    )
    keep_logits: bool = requested(
        False,
        "save all logits, also of ImageNet-sized sets (100 MB for 50,000 x 1,000); a finished run"
        " is evaluated again",
        flag="--keep-logits/--no-keep-logits",
    )
    skip_unreadable: int = requested(
        0, "skip up to this many undecodable images, and record how many", ge=0
    )
    data_root: Path | None = requested(None, "folder of the datasets; also BENCH_DATA")

    @property
    def shared(self) -> dict[str, Any]:
        """The parameters that are set for every method that has them."""
        # `--of` is a parameter like any other; it has an option of its own since it is used often.
        return dict(self.set) if self.of is None else {"of": self.of, **self.set}


def apart(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return `seeds`; raise ValueError if the seed of searches is among them."""
    if SEARCH_SEED in seeds:
        raise ValueError(f"the seed {SEARCH_SEED} is reserved for searches; use another one")
    return seeds


def counted(seeds: Any) -> Any:
    """Return the seeds 0 to N - 1 for a number N, as `--seeds N` means; else `seeds`."""
    is_number = isinstance(seeds, int) and not isinstance(seeds, bool)
    return tuple(range(seeds)) if is_number else seeds


Seeds = Annotated[tuple[int, ...], BeforeValidator(counted), AfterValidator(apart)]


class RunSpec(Common):
    """Methods to run on one backbone and one suite, with their parameters and seeds."""

    methods: tuple[str, ...] = Field(min_length=1, description="names, or files that end in .py")
    suite: str = requested(
        DEFAULT_SUITE, "name of a suite, or a card of your own (.toml)", shown=DEFAULT_SUITE
    )
    backbone: str | None = requested(
        None, "such as timm:tf_efficientnet_lite0 (`bench backbones`)", shown="the suite's own"
    )
    seeds: Seeds = Field(default=(0,), min_length=1)
    curve: bool = requested(
        False,
        "also evaluate the interpolation curve from start to fine-tuned, 11 points",
        flag="--curve/--no-curve",
    )
    search: bool = requested(
        False,
        "fit and score id-val only, for choosing parameters; no shift is evaluated",
        flag="--id-val-only",
    )
    trials: int = requested(
        0,
        "choose parameters first: this many trials per method on id-val, with a seed of their own",
        ge=0,
    )

    def values(self, method: str) -> dict[str, Any]:
        """Return the parameters of one method, without those that only other methods have.

        Raises:
            UsageError: no method has a parameter, or `of` is set and no method wraps another one.
        """
        check_shared([(name, {}) for name in self.methods], self.shared)
        return placed(method, self.shared)


class Settings(BaseModel):
    """The compute settings of a trial's process.

    None of them is part of a fit's identity; all are recorded with it.
    """

    # Apart from `RunSpec`, which says what is computed: these may differ between two machines, or
    # between an interrupted run and its continuation.
    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str | None = requested(None, "cpu, cuda, cuda:1 or mps", shown="the best available")
    devices: int | None = requested(
        None,
        "number of devices that train one model, a process each; same result, less time",
        shown="1",
        ge=1,
    )
    threads: int | None = requested(
        None,
        "torch threads; part of what makes results bit-identical",
        shown="2; in a sweep --cpus-per-trial",
        ge=1,
    )
    workers: int | None = requested(
        None,
        "threads that decode and augment training images ahead",
        shown="as many as decoding needs",
        ge=0,
    )
    micro_batch: int | None = requested(
        None, "images per forward pass in training; same result, less memory", ge=1
    )
    deterministic: bool = requested(
        True,
        "refuse operations that are not bit-reproducible (GPUs have some)",
        flag="--deterministic/--no-deterministic",
        shown="deterministic",
    )
    checkpoint_seconds: float = requested(
        60.0, "seconds between checkpoints", flag="--checkpoint-every", shown="60", ge=0
    )


def placed(
    method: str, shared: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parameters of one method, from those that are set for several methods.

    Args:
        method: name or file.
        shared: set for all methods; what neither this one nor a nested one has is left out.
        own: set for this method only; overrides `shared`.

    Returns:
        By the names in this method: for wise-ft, `lr` becomes `of.lr`.
    """
    # `of` first: which method is nested decides where the other parameters go.
    found = {key: value for key, value in (own or {}).items() if key == "of"}
    for key, value in shared.items():
        place = place_of(method, key, found)
        if place is not None:
            found.setdefault(place, value)
    return found | dict(own or {})


def place_of(method: str, key: str, chosen: Mapping[str, Any]) -> str | None:
    """Return the name under which a method or the first nested one has a parameter, or None.

    Args:
        method: name or file.
        key: the parameter, such as `lr`.
        chosen: names of nested methods, by the field that holds them; default: the field's default.
    """
    # The outer method first: `lr` of a method that has its own is not that of a nested one.
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
    """Raise UsageError for a parameter that no method has.

    Args:
        methods: names or files, each with the parameters that are set for it only.
        shared: parameters that are set for all methods.

    Raises:
        UsageError: no method has one of the parameters.
    """
    # A parameter that some methods lack is fine (`left_out` notes it); one that all lack is a typo.
    for key in shared:
        # `of` may name another wrapped method for one of them, which decides what it has.
        if any(place_of(name, key, {**shared, **own}) for name, own in methods):
            continue
        if key == "of":
            whose = f"{methods[0][0]} wraps" if len(methods) == 1 else "these methods wrap"
            raise UsageError(
                f"{whose} no other method, so --of does not apply",
                fix="omit --of, or run wise-ft",
            )
        whose, which = ("these methods", "METHOD") if len(methods) > 1 else (methods[0][0],) * 2
        known = {field for name, _ in methods for field in load_method(name).model_fields}
        raise unknown(f"parameter of {whose}", key, known, fix=f"`bench methods show {which}`")


def left_out(methods: Iterable[str], shared: Mapping[str, Any]) -> list[str]:
    """Return a message for every parameter that some methods do not have."""
    lacking = {
        key: [name for name in methods if place_of(name, key, shared) is None] for key in shared
    }
    return [
        f"`{key}` is not a parameter of {', '.join(names)}, and is ignored there"
        for key, names in lacking.items()
        if names
    ]


def parse_value(text: str) -> Any:
    """Parse a typed value as JSON (number, true, false, null, list, table), else as text."""
    # So that a text needs no quotes inside of the shell's: `--set augment=flip`.
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_assignments(texts: list[str], option: str = "--set") -> dict[str, Any]:
    """Parse `key=value` texts.

    Args:
        texts: such as `lr=1e-4`.
        option: name of the option, for messages.

    Raises:
        UsageError: a text is not `key=value`.
    """
    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"`{text}` is not key=value",
                where=option,
                fix=f"for example `{option} {'lr=1e-4' if option == '--set' else 'name=1'}`",
            )
        pairs[key.strip()] = parse_value(value.strip())
    return pairs


def read_config(path: Path | None) -> dict[str, Any]:
    """Read the fields of a TOML file; an empty dictionary if `path` is None.

    Raises:
        UsageError: the file cannot be read.
    """
    if path is None:
        return {}
    try:
        return read_toml(path)
    except OSError as error:
        fix = "give a TOML file; `bench run` and `bench sweep` write one with --dump-config"
        raise UsageError(
            f"the configuration cannot be read: {error.strerror}", where=str(path), fix=fix
        ) from error
    except ValueError as error:
        raise UsageError(
            f"the configuration is not valid TOML: {error}", where=str(path), fix="fix the file"
        ) from error


Spec = TypeVar("Spec", bound=Common)


def read_spec(kind: type[Spec], options: Mapping[str, Any], config: Path | None, what: str) -> Spec:
    """Build a spec: options override a TOML file, which overrides the defaults.

    Args:
        kind: class of the spec.
        options: by field; None means not given.
        config: the TOML file, or None.
        what: name of the command, for messages.

    Raises:
        UsageError: the file cannot be read, or a field is unknown or invalid.
    """
    merged = read_config(config)
    given = {key: value for key, value in options.items() if value is not None}
    # `--set lr=1` overrides the file's `lr` and keeps its other parameters.
    if isinstance(merged.get("set"), dict):
        given["set"] = {**merged["set"], **given.get("set", {})}
    try:
        return kind.model_validate({**merged, **given})
    except ValidationError as error:
        raise UsageError(
            f"invalid options of `bench {what}`: {problems(error, kind)}",
            where=str(config or "options"),
            fix=f"`bench {what} --help`",
        ) from error


def run_spec(options: Mapping[str, Any], config: Path | None = None) -> RunSpec:
    """Build the spec of runs; see `read_spec`."""
    return read_spec(RunSpec, options, config, "run")
