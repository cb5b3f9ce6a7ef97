"""Define and validate the spec of a sweep, from command-line options, a TOML file or Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..configure import broken_methods, method_names
from ..plugins import trust
from ..run_spec import (
    DEFAULT_SUITE,
    REFERENCE,
    Common,
    RunSpec,
    Seeds,
    check_shared,
    parse_value,
    placed,
    read_spec,
    requested,
)
from ..storage.files import toml_of

#: Stands for every installed method.
ALL = "all"
#: Default seeds of the final runs. Several, so that a board can compare methods over seeds, and not
#: only single models.
SEEDS = (0, 1, 2)


class Contender(BaseModel):
    """A method with parameters of its own, written `NAME` or `NAME:KEY=VALUE,KEY=VALUE`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="name, or file that ends in .py")
    set: dict[str, Any] = Field(default_factory=dict)

    @property
    def requested(self) -> str:
        """The contender as one text, by which it is identified in its sweep."""
        # Strings without quotes, as they are typed on the command line.
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
    """The methods, backbones, suites, seeds and search budget of a sweep, and how to run it."""

    methods: tuple[Annotated[Contender, BeforeValidator(_contender)], ...] = Field(
        min_length=1,
        description="`NAME`, `NAME:KEY=VALUE,...`, a table with `name` and `set`, or `all` alone",
    )
    suites: tuple[str, ...] = requested(
        (DEFAULT_SUITE,),
        "name or card; may be repeated",
        flag="--suite",
        shown=DEFAULT_SUITE,
        min_length=1,
    )
    backbones: tuple[str, ...] = requested(
        (), "may be repeated", flag="--backbone", shown="each suite's own"
    )
    seeds: Seeds = Field(default=SEEDS, min_length=1)
    trials: int | None = requested(
        None, "search trials per method, on id-val; 0: recipes as they are", shown="8", ge=0
    )
    hours: float | None = requested(
        None,
        "search budget per method in hours of training; with --trials, whichever is spent first",
        gt=0,
    )
    search: Literal["random", "grid", "tpe"] = requested(
        "random",
        "random, grid, or tpe (learns from earlier trials, so a method's trials run one by one)",
        shown="random",
    )
    asha: bool = requested(
        False,
        "pause trials at a ninth and a third of their epochs and continue the best third: cheaper,"
        " but favours methods that learn fast early and depends on the order of results; such rows"
        " are marked",
        flag="--asha/--no-asha",
        shown="no-asha",
    )
    curve: Literal["none", "baseline", "all"] = requested(
        "baseline", f"interpolation curves: baseline ({REFERENCE}), all or none", shown="baseline"
    )

    runner: Literal["ray", "local", "inline"] = requested(
        "ray", "ray, local (processes here) or inline (this process)", shown="ray"
    )
    gpus_per_trial: float | None = requested(
        None, "may be a fraction", shown="1 if there are any", ge=0
    )
    cpus_per_trial: float = requested(1.0, "also the torch threads", shown="1", gt=0)
    max_concurrent: int | None = requested(
        None, "trials at once", shown="what the machine allows", ge=1
    )
    resources: dict[str, float] = requested(
        {},
        "Ray's custom resource of a trial; may be repeated",
        flag="--resource",
        metavar="NAME=AMOUNT",
    )
    labels: dict[str, Annotated[str, BeforeValidator(str)]] = requested(
        {},
        "run trials only on Ray nodes with this label; may be repeated",
        flag="--label",
        metavar="NAME=VALUE",
    )
    address: str | None = requested(None, "address of an existing Ray cluster")
    max_failures: int = requested(
        3, "restarts of a trial whose process or machine died", shown="3", ge=0
    )
    timeout: float | None = requested(
        None,
        "stop a trial after this many seconds; its state is saved, and it counts as failed",
        gt=0,
    )
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = requested(
        (), "also report to tensorboard, mlflow or wandb; may be repeated"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        names = [contender.requested for contender in self.methods]
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
                "asha stops most trials early, but tpe learns from complete trials: use asha with"
                " random or grid"
            )
        if self.asha and not self.has_search:
            raise ValueError("asha needs search trials: set trials or hours")
        if self.hours is not None and self.trials == 0:
            raise ValueError("hours of search contradict trials = 0: remove one of them")
        # A fraction lets trials share a GPU; several GPUs train one model, a process each.
        if (self.gpus_per_trial or 0) > 1 and self.gpus_per_trial != int(self.gpus_per_trial or 0):
            raise ValueError(
                f"a trial cannot have {self.gpus_per_trial:g} GPUs: use a fraction below 1 or a"
                " whole number"
            )
        if self.address is not None and self.runner != "ray":
            raise ValueError("address is Ray's option: set runner = ray")
        return self

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The methods; for `all`, every installed method that can be loaded."""
        if not self.takes_all:
            return self.methods
        broken = broken_methods()
        return tuple(Contender(name=name) for name in method_names() if name not in broken)

    @property
    def takes_all(self) -> bool:
        """Whether all installed methods are requested; those that cannot run are skipped."""
        return [contender.requested for contender in self.methods] == [ALL]

    @property
    def has_search(self) -> bool:
        """Whether parameters are searched before the final runs."""
        # Without trials or hours there is a search too, of 8 trials.
        return self.trials != 0

    @property
    def most_trials(self) -> int:
        """The largest number of trials per method."""
        if self.trials is not None:
            return self.trials
        # With a budget in hours the bound ends a search whose fits take next to no time.
        return 8 if self.hours is None else 1000

    def with_absolute_paths(self) -> Self:
        """Return the same spec with absolute paths, for a command that runs in another folder."""
        values = self.model_dump(mode="json")
        parts = {key: _absolute(values[key]) for key in ("methods", "suites", "of", "set")}
        return type(self).model_validate(
            {**values, **parts, "data_root": self.data_root and self.data_root.absolute()}
        )

    def run_spec(self, suite: str, backbone: str | None) -> RunSpec:
        """Return the spec of the sweep's runs on one suite and one backbone.

        Args:
            suite: name or card.
            backbone: name; None: the suite's own.
        """
        # `of` and `set` are left out: a sweep's jobs carry all of their parameters.
        same = {key: getattr(self, key) for key in Common.model_fields if key not in ("of", "set")}
        names = tuple(contender.name for contender in self.contenders)
        return RunSpec(**same, methods=names, suite=suite, backbone=backbone, seeds=self.seeds)

    def values(self, contender: Contender) -> dict[str, Any]:
        """Return the parameters of one method; its own take precedence over shared ones.

        Raises:
            UsageError: no method of the sweep has a shared parameter, or `of` is set and none
                wraps another method.
        """
        check_shared([(one.name, one.set) for one in self.contenders], self.shared)
        return placed(contender.name, self.shared, contender.set)


def _absolute(value: Any) -> Any:
    """Replace relative paths of existing method and card files, at any depth, by absolute ones."""
    if isinstance(value, Mapping):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_absolute(item) for item in value]
    # By its suffix too: a name of an installed method may happen to be that of a file here.
    is_file = isinstance(value, str) and value.endswith((".py", ".toml")) and Path(value).is_file()
    return str(Path(value).absolute()) if is_file else value


def sweep_of(run: RunSpec, jobs: int = 1) -> SweepSpec:
    """Return the sweep for the runs of `bench run`.

    Args:
        run: the spec of the runs.
        jobs: number of processes; 1: this process.
    """
    same = {key: getattr(run, key) for key in (*Common.model_fields, "trials")}
    # `bench run` ignores repeated methods and seeds, which a sweep refuses. In this process nothing
    # can be restarted.
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
    """Return the spec of a sweep from options and a TOML file; options override the file.

    Args:
        options: fields by name; None values are ignored.
        config: the TOML file.

    Raises:
        UsageError: a field or its value is wrong; see `read_spec`.
    """
    # Options come from the user's own keyboard or program, so the method files that they name may
    # be executed. A file of code that only the TOML file names is refused.
    trust({key: value for key, value in options.items() if value is not None})
    return read_spec(SweepSpec, options, config, "sweep")


def as_toml(spec: SweepSpec) -> str:
    """Return a spec as the TOML file that `sweep_spec` reads, without fields that are None."""
    requested = [one.requested if _plain(one) else one.model_dump() for one in spec.methods]
    return toml_of(spec.model_dump(mode="json", exclude_none=True) | {"methods": requested})


def _plain(contender: Contender) -> bool:
    """Whether a contender can be written as one text and parsed again without a change."""
    # A text such as "a,b" as a value would be split; then the contender is written as a table.
    try:
        return Contender.model_validate(_contender(contender.requested)) == contender
    except ValueError:
        return False
