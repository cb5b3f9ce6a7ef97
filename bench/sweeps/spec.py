"""What a sweep is asked for: the fields of `bench sweep`, from options, a TOML file or Python, validated in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..configure import broken_methods, method_names
from ..errors import UsageError
from ..plugins import trust
from ..spec import DEFAULT_SUITE, SEARCH_SEED, RunSpec, check_shared, parse_value, placed, read_config
from ..storage.files import toml_of

#: The method whose interpolation curve others are measured against; its final runs get one unless `curve` says otherwise.
BASELINE = "full-finetune"
#: Instead of names: every installed method.
ALL = "all"
#: Runs of a sweep unless the command says otherwise.
SEEDS = (0, 1, 2)


class Contender(BaseModel):
    """A method with the parameters that are its own in this sweep; written `NAME` or `NAME:KEY=VALUE,KEY=VALUE`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="name, or file that ends in .py")
    set: dict[str, Any] = Field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The contender as one text, which names it in its sweep."""
        shown = ",".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.set.items())
        return f"{self.name}:{shown}" if shown else self.name


def _contender(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name, _, rest = value.partition(":")
    pairs = [part.partition("=") for part in rest.split(",") if part]
    if any(not equals or not key for key, equals, _ in pairs):
        raise ValueError(f"`{value}` is not METHOD:KEY=VALUE,KEY=VALUE")
    return {"name": name, "set": {key.strip(): parse_value(text.strip()) for key, _, text in pairs}}


class SweepSpec(BaseModel):
    """Methods on backbones and suites, with seeds, a search budget, and how trials are dispatched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[Annotated[Contender, BeforeValidator(_contender)], ...] = Field(
        min_length=1, description="`NAME`, `NAME:KEY=VALUE,...`, a table with `name` and `set`, or `all` alone"
    )
    suites: tuple[str, ...] = Field((DEFAULT_SUITE,), min_length=1)
    backbones: tuple[str, ...] = Field((), description="default: each suite's own")
    seeds: tuple[int, ...] = Field(SEEDS, min_length=1)
    of: str | None = Field(None, description="the method that every wrapper wraps")
    set: dict[str, Any] = Field(
        default_factory=dict, description="parameters for every method that has them, itself or in the method that it wraps"
    )
    trials: int | None = Field(None, ge=0, description="search trials per method; 0 takes the recipes as they stand; default 8")
    hours: float | None = Field(
        None, gt=0, description="search budget per method in hours of training; with trials, whichever is spent first"
    )
    search: Literal["random", "grid", "tpe"] = Field("random", description="how trials are drawn; tpe looks back at earlier ones")
    asha: bool = Field(
        False, description="pause trials at a ninth and a third of their epochs, and let the best third of them go on"
    )
    curve: Literal["none", "baseline", "all"] = Field(
        "baseline", description=f"interpolation curves of the final runs: of {BASELINE}, or of every fine-tuned method"
    )
    data_root: Path | None = None
    limit: int | None = Field(None, ge=1)
    skip_unreadable: int = Field(0, ge=0)
    shots: int | None = Field(None, ge=1, description="train on this many images per class, drawn by the seed")
    keep_logits: bool = Field(False, description="keep the logits of the final runs, also of ImageNet-sized sets")

    runner: Literal["ray", "local", "inline"] = Field(
        "ray", description="Ray Tune; processes on this machine; or this very process, for a debugger"
    )
    gpus_per_trial: float | None = Field(None, ge=0)
    cpus_per_trial: float = Field(1.0, gt=0)
    max_concurrent: int | None = Field(None, ge=1)
    resources: dict[str, float] = Field(default_factory=dict, description="Ray's custom resources of a trial")
    labels: dict[str, str] = Field(default_factory=dict, description="what a node of Ray's must be labelled with to run a trial")
    address: str | None = Field(None, description="of an existing Ray cluster")
    max_failures: int = Field(3, ge=0, description="how often a trial whose process or machine died is started again")
    timeout: float | None = Field(None, gt=0, description="seconds per trial")
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if SEARCH_SEED in self.seeds:
            raise ValueError(f"the seed {SEARCH_SEED} is that of searches; report another one")
        names = [contender.asked for contender in self.methods]
        for what, values in (("methods", names), ("suites", self.suites), ("backbones", self.backbones), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}: one is given twice")
        if self.asha and self.search == "tpe":
            raise ValueError("asha cuts most trials short, and tpe learns from whole ones: use asha with random or grid")
        if self.asha and not self.searches:
            raise ValueError("asha cuts search trials short, and there are none: give trials or hours")
        if self.hours is not None and self.trials == 0:
            raise ValueError("hours of search and no trial contradict each other")
        if (self.gpus_per_trial or 0) > 1 and self.gpus_per_trial != int(self.gpus_per_trial or 0):
            raise ValueError(f"a trial cannot have {self.gpus_per_trial:g} GPUs: below 1 a fraction, above 1 a whole number")
        if self.address is not None and self.runner != "ray":
            raise ValueError("an address is Ray's: it needs runner = ray")
        return self

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The methods, with `all` spelled out as every installed one that can be loaded."""
        if not self.takes_all:
            return self.methods
        broken = broken_methods()
        return tuple(Contender(name=name) for name in method_names() if name not in broken)

    @property
    def takes_all(self) -> bool:
        """Whether every installed method is asked for, but for those that the backbone has no use for."""
        return [contender.asked for contender in self.methods] == [ALL]

    @property
    def searches(self) -> bool:
        """Whether parameters are chosen before the final runs."""
        return self.trials != 0

    @property
    def most_trials(self) -> int:
        """Trials per method at most; with a budget in hours a bound that is there to end a search of cheap fits."""
        if self.trials is not None:
            return self.trials
        return 8 if self.hours is None else 1000

    def anywhere(self) -> Self:
        """The same sweep for a command that is started in another folder: files of methods and cards, and the data's folder, are
        named by absolute paths."""
        values = self.model_dump(mode="json")
        parts = {key: _absolute(values[key]) for key in ("methods", "suites", "of", "set")}
        return type(self).model_validate({**values, **parts, "data_root": self.data_root and self.data_root.absolute()})

    def run_spec(self, suite: str, backbone: str | None) -> RunSpec:
        """Where and on what part of the data, as a run is told."""
        return RunSpec(
            methods=tuple(contender.name for contender in self.contenders),
            suite=suite,
            backbone=backbone,
            seeds=self.seeds,
            data_root=self.data_root,
            limit=self.limit,
            skip_unreadable=self.skip_unreadable,
            shots=self.shots,
            keep_logits=self.keep_logits,
        )

    def values(self, contender: Contender) -> dict[str, Any]:
        """Parameters of one method: what is set for all, then what is set for it alone.

        Raises:
            UsageError: a parameter that no method of the sweep has; `of` for a sweep without a wrapper.
        """
        check_shared([(one.name, one.set) for one in self.contenders], self.shared)
        return placed(contender.name, self.shared, contender.set)

    @property
    def shared(self) -> dict[str, Any]:
        """What is set for every method that has it."""
        return dict(self.set) if self.of is None else {"of": self.of, **self.set}


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_absolute(item) for item in value]
    is_file = isinstance(value, str) and value.endswith((".py", ".toml")) and Path(value).is_file()
    return str(Path(value).absolute()) if is_file else value


def sweep_of(run: RunSpec, jobs: int = 1) -> SweepSpec:
    """The sweep that makes the runs of `bench run`: in this process, or in several."""
    return SweepSpec(
        methods=tuple(Contender(name=name) for name in dict.fromkeys(run.methods)),
        suites=(run.suite,),
        backbones=() if run.backbone is None else (run.backbone,),
        seeds=tuple(dict.fromkeys(run.seeds)),
        of=run.of,
        set=run.set,
        trials=run.trials,
        curve="all" if run.curve else "none",
        data_root=run.data_root,
        limit=run.limit,
        skip_unreadable=run.skip_unreadable,
        shots=run.shots,
        keep_logits=run.keep_logits,
        runner="inline" if jobs == 1 else "local",
        max_concurrent=jobs,
        max_failures=0 if jobs == 1 else SweepSpec.model_fields["max_failures"].default,
    )


def sweep_spec(options: Mapping[str, Any], config: Path | None = None) -> SweepSpec:
    """The spec from options over a TOML file over defaults; None in `options` means not given.

    Raises:
        UsageError: the file cannot be read, or a field is unknown or wrong.
    """
    merged = read_config(config)
    given = {key: value for key, value in options.items() if value is not None}
    trust(given)  # options are typed or passed by a program
    if isinstance(merged.get("set"), dict):
        given["set"] = {**merged["set"], **given.get("set", {})}
    try:
        return SweepSpec.model_validate({**merged, **given})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}".removeprefix(": ") for e in error.errors()
        )
        raise UsageError(
            f"the sweep is not well specified: {problems}", where=str(config or "options"), fix="`bench sweep --help`"
        ) from error


def as_toml(spec: SweepSpec) -> str:
    """The spec as the TOML file that `sweep_spec` reads; what is not given is left out."""
    asked = [one.asked if _plain(one) else one.model_dump() for one in spec.methods]
    return toml_of(spec.model_dump(mode="json", exclude_none=True) | {"methods": asked})


def _plain(contender: Contender) -> bool:
    """Whether the contender survives being written as one text."""
    try:
        return Contender.model_validate(_contender(contender.asked)) == contender
    except ValueError:
        return False
