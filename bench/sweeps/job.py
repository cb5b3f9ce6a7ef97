"""One piece of work of a sweep, as plain data that any process on any machine can be given, and how
it ended.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from ..spec import SEARCH_SEED
from ..stopping import Reporter

if TYPE_CHECKING:
    from .queue import Queue
    from .work import Work

Phase = Literal["stage", "rung", "search", "final"]
Status = Literal["done", "failed", "cancelled", "lost"]


@dataclass(frozen=True)
class Job:
    """A fit to make (`stage`) or to make as far as an epoch (`rung`), or a run: a fit and its
    evaluation on id-val alone (`search`) or on everything (`final`).

    Attributes:
        id: names the job in every process and in every start of the same sweep; made of what it
            leaves in the store: `fit-` and the fit_id of a stage, `rung-`, the fit_id and the epoch
            of a rung, `run-` and the eval_id of a run.
        method: `{"name": ..., "parameters": {...}}`, complete; the name of an installed method, or
            the absolute path of a file.
        suite: name, or absolute path of a card.
        backbone: name.
        label: of the row, for people.
        fit_id: what the fit must turn out to be; a process that arrives at another one has other
            data, weights or sources.
        needs: fit_ids that have to be in the store before it starts.
        trial: number of the search trial.
        epoch: as far as which a rung trains.
        curve: also the interpolation curve.
        chosen: how the parameters of a final run were, for its record; empty if by nobody.
    """

    id: str
    phase: Phase
    method: dict[str, Any]
    label: str
    suite: str
    backbone: str
    seed: int
    fit_id: str
    needs: tuple[str, ...] = ()
    trial: int | None = None
    epoch: int | None = None
    curve: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether it is evaluated and leaves a record."""
        return self.phase in ("search", "final")

    @property
    def name(self) -> str:
        """The job in words, without its seed."""
        kind = (
            "stage"
            if self.phase == "stage"
            else "run"
            if self.trial is None
            else f"trial {self.trial}"
        )
        return f"{kind} {self.label}" + (
            f" to epoch {self.epoch}" if self.epoch is not None else ""
        )

    @property
    def title(self) -> str:
        """The job in words."""
        if self.seed != SEARCH_SEED:
            return f"{self.name}, seed {self.seed}"
        return f"{self.name} of the search" if self.phase == "stage" else self.name

    def as_json(self) -> dict[str, Any]:
        """The job as JSON values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The job that `as_json` wrote."""
        return cls(**{**values, "needs": tuple(values["needs"])})


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a job ended.

    Attributes:
        status: `cancelled`: a stop was asked for, and the state is saved. `lost`: its process died
            without a word (killed, out of memory, its machine gone); the queue offers the job
            again, as often as its limit allows.
        error: one sentence, for `failed` and `lost`.
        seconds: wall time of the attempt, waiting excluded.
    """

    status: Status
    error: str = ""
    seconds: float = 0.0


#: Of a store: what Ray has to say.
LOG = "ray.log"


@dataclass(frozen=True)
class Resources:
    """What a trial gets, and how many run at once.

    Args:
        gpus: GPUs per trial; a fraction lets trials share one, 0 computes on the CPU. None: one if
            there are any, else 0.
        cpus: CPU cores per trial.
        memory: bytes per trial; 0: not counted.
        most: trials at once; None: as many as the GPUs, or else the cores, allow.
        timeout: seconds of one attempt at a trial, after which it is stopped (its state is saved)
            and counts as failed.
        max_failures: how often a trial whose process or machine died is started again.
        custom: Ray's own resources by name.
        labels: of the nodes on which trials may run.
        address: of an existing Ray cluster.
    """

    gpus: float | None = None
    cpus: float = 1.0
    memory: int = 0
    most: int | None = None
    timeout: float | None = None
    max_failures: int = 3
    custom: tuple[tuple[str, float], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    address: str | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """What a trial takes, in Ray's words; with `gpus` decided."""
        amounts = {
            "CPU": self.cpus,
            "GPU": self.gpus or 0.0,
            "memory": float(self.memory),
            **dict(self.custom),
        }
        return {name: amount for name, amount in amounts.items() if amount}


def short_of_cores(resources: Resources, cores: float, gpus: float) -> str:
    """What to tell where trials have GPUs and leave most cores idle, which decoding images for them
    could use; else nothing.

    Args:
        resources: with `gpus` decided.
        cores, gpus: of the machine that trials run on.
    """
    fair = int(cores * (resources.gpus or 0.0) / gpus) if gpus else 0
    if resources.cpus * 2 > fair:
        return ""
    return (
        f"a trial gets {resources.cpus:g} of the {fair} cores that there are for its share of the"
        " GPUs; where images are decoded while it trains, they wait for that: --cpus-per-trial"
        f" {fair}"
    )


class Runner(Protocol):
    """Has jobs done somewhere."""

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """Take and settle until the queue is over, or until a stop was asked for and every running
        trial has ended.

        A failing trial is settled as failed and the others go on. Returns after a stop, too: the
        caller asks `reporter.stop`.

        Raises:
            BenchError: the runner itself cannot go on (a cluster out of reach).
        """


def progress_of(kind: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a trial's event that travels to the driver, as plain values; None for what stays
    where it is.
    """
    wanted = {
        "data": ("what", "done", "of"),
        "warning": ("text",),
        "waiting": ("pid", "host"),
        "fit": ("method", "fit_id", "seed"),
        "resumed": ("step", "total"),
        "step": ("step", "total", "loss"),
        "epoch": ("epoch", "epochs", "loss", "id_val"),
        "evaluate": ("split", "done", "of"),
    }.get(kind)
    return None if wanted is None else {key: fields.get(key) for key in wanted}
