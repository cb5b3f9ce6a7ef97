"""What a sweep is asked for: the fields of `bench sweep`, from options, a TOML file or Python,
validated in one place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..configure import broken_methods, method_names
from ..plugins import trust
from ..spec import (
    DEFAULT_SUITE,
    REFERENCE,
    Common,
    RunSpec,
    Seeds,
    asked,
    check_shared,
    parse_value,
    placed,
    read_spec,
)
from ..storage.files import toml_of

#: Instead of names: every installed method.
ALL = "all"
#: Runs of a sweep unless the command says otherwise.
SEEDS = (0, 1, 2)


class Contender(BaseModel):
    """A method with the parameters that are its own in this sweep; written `NAME` or
    `NAME:KEY=VALUE,KEY=VALUE`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="name, or file that ends in .py")
    set: dict[str, Any] = Field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The contender as one text, which names it in its sweep."""
        shown = ",".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in self.set.items()
        )
        return f"{self.name}:{shown}" if shown else self.name


def _contender(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name, _, rest = value.partition(":")
    pairs = [part.partition("=") for part in rest.split(",") if part]
    if any(not equals or not key for key, equals, _ in pairs):
        raise ValueError(f"`{value}` is not METHOD:KEY=VALUE,KEY=VALUE")
    return {"name": name, "set": {key.strip(): parse_value(text.strip()) for key, _, text in pairs}}


class SweepSpec(Common):
    """Methods on backbones and suites, with seeds, a search budget, and how trials are
    dispatched.
    """

    methods: tuple[Annotated[Contender, BeforeValidator(_contender)], ...] = Field(
        min_length=1,
        description="`NAME`, `NAME:KEY=VALUE,...`, a table with `name` and `set`, or `all` alone",
    )
    suites: tuple[str, ...] = asked(
        (DEFAULT_SUITE,),
        "name or card; may be repeated",
        flag="--suite",
        shown=DEFAULT_SUITE,
        min_length=1,
    )
    backbones: tuple[str, ...] = asked(
        (), "may be repeated", flag="--backbone", shown="each suite's own"
    )
    seeds: Seeds = Field(default=SEEDS, min_length=1)
    trials: int | None = asked(
        None, "search trials per method, on id-val; 0: recipes as they are", shown="8", ge=0
    )
    hours: float | None = asked(
        None,
        "search budget per method in hours of training; with --trials, whichever is spent first",
        gt=0,
    )
    search: Literal["random", "grid", "tpe"] = asked(
        "random",
        "random, grid, or tpe (looks back, so a method's trials run in turn)",
        shown="random",
    )
    asha: bool = asked(
        False,
        "pause trials at a ninth and a third of their epochs and let the best third go on: cheaper,"
        " but it favours quick starters and depends on the order in which results arrive; rows"
        " chosen so are marked",
        flag="--asha/--no-asha",
        shown="no-asha",
    )
    curve: Literal["none", "baseline", "all"] = asked(
        "baseline", f"interpolation curves: baseline ({REFERENCE}), all or none", shown="baseline"
    )

    runner: Literal["ray", "local", "inline"] = asked(
        "ray", "ray, local (processes here) or inline (this process)", shown="ray"
    )
    gpus_per_trial: float | None = asked(
        None, "may be a fraction", shown="1 if there are any", ge=0
    )
    cpus_per_trial: float = asked(1.0, "also the torch threads", shown="1", gt=0)
    max_concurrent: int | None = asked(
        None, "trials at once", shown="what the machine allows", ge=1
    )
    resources: dict[str, float] = asked(
        {},
        "Ray's custom resource of a trial; may be repeated",
        flag="--resource",
        metavar="NAME=AMOUNT",
    )
    labels: dict[str, Annotated[str, BeforeValidator(str)]] = asked(
        {},
        "run trials on nodes of Ray's with this label only; may be repeated",
        flag="--label",
        metavar="NAME=VALUE",
    )
    address: str | None = asked(None, "of an existing Ray cluster")
    max_failures: int = asked(
        3, "restarts of a trial whose process or machine died", shown="3", ge=0
    )
    timeout: float | None = asked(
        None, "seconds per trial; its state is saved, and it counts as failed", gt=0
    )
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = asked(
        (), "also tell tensorboard, mlflow or wandb; may be repeated"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        names = [contender.asked for contender in self.methods]
        for what, values in (
            ("methods", names),
            ("suites", self.suites),
            ("backbones", self.backbones),
            ("seeds", self.seeds),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}: one is given twice")
        if self.asha and self.search == "tpe":
            raise ValueError(
                "asha cuts most trials short, and tpe learns from whole ones: use asha with random"
                " or grid"
            )
        if self.asha and not self.searches:
            raise ValueError(
                "asha cuts search trials short, and there are none: give trials or hours"
            )
        if self.hours is not None and self.trials == 0:
            raise ValueError("hours of search and no trial contradict each other")
        if (self.gpus_per_trial or 0) > 1 and self.gpus_per_trial != int(self.gpus_per_trial or 0):
            raise ValueError(
                f"a trial cannot have {self.gpus_per_trial:g} GPUs: below 1 a fraction, above 1 a"
                " whole number"
            )
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
        """Whether every installed method is asked for, but for those that the backbone has no use
        for.
        """
        return [contender.asked for contender in self.methods] == [ALL]

    @property
    def searches(self) -> bool:
        """Whether parameters are chosen before the final runs."""
        return self.trials != 0

    @property
    def most_trials(self) -> int:
        """Trials per method at most; with a budget in hours a bound that is there to end a search
        of cheap fits.
        """
        if self.trials is not None:
            return self.trials
        return 8 if self.hours is None else 1000

    def anywhere(self) -> Self:
        """The same sweep for a command that is started in another folder: files of methods and
        cards, and the data's folder, are named by absolute paths.
        """
        values = self.model_dump(mode="json")
        parts = {key: _absolute(values[key]) for key in ("methods", "suites", "of", "set")}
        return type(self).model_validate(
            {**values, **parts, "data_root": self.data_root and self.data_root.absolute()}
        )

    def run_spec(self, suite: str, backbone: str | None) -> RunSpec:
        """Where and on what part of the data, as a run is told."""
        same = {key: getattr(self, key) for key in Common.model_fields if key not in ("of", "set")}
        names = tuple(contender.name for contender in self.contenders)
        return RunSpec(**same, methods=names, suite=suite, backbone=backbone, seeds=self.seeds)

    def values(self, contender: Contender) -> dict[str, Any]:
        """Parameters of one method: what is set for all, then what is set for it alone.

        Raises:
            UsageError: a parameter that no method of the sweep has; `of` for a sweep without a
                wrapper.
        """
        check_shared([(one.name, one.set) for one in self.contenders], self.shared)
        return placed(contender.name, self.shared, contender.set)


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_absolute(item) for item in value]
    is_file = isinstance(value, str) and value.endswith((".py", ".toml")) and Path(value).is_file()
    return str(Path(value).absolute()) if is_file else value


def sweep_of(run: RunSpec, jobs: int = 1) -> SweepSpec:
    """The sweep that makes the runs of `bench run`: in this process, or in several."""
    same = {key: getattr(run, key) for key in (*Common.model_fields, "trials")}
    return SweepSpec(
        **same,
        methods=tuple(Contender(name=name) for name in dict.fromkeys(run.methods)),
        suites=(run.suite,),
        backbones=() if run.backbone is None else (run.backbone,),
        seeds=tuple(dict.fromkeys(run.seeds)),
        curve="all" if run.curve else "none",
        runner="inline" if jobs == 1 else "local",
        max_concurrent=jobs,
        max_failures=0 if jobs == 1 else SweepSpec.model_fields["max_failures"].default,
    )


def sweep_spec(options: Mapping[str, Any], config: Path | None = None) -> SweepSpec:
    """The spec of a sweep; see `read_spec`."""
    trust(
        {key: value for key, value in options.items() if value is not None}
    )  # options are typed or passed by a program
    return read_spec(SweepSpec, options, config, "sweep")


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
