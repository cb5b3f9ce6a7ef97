"""Define a sweep's jobs, results and resources as plain data, and the protocol of a runner."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from ..run_spec import SEARCH_SEED
from ..stopping import Reporter

if TYPE_CHECKING:
    from .queue import Queue
    from .worker import Work

#: A fit that other jobs depend on, a fit up to an epoch, a run on id-val alone, a run on all
#: splits.
Phase = Literal["stage", "rung", "search", "final"]
#: See `JobResult.status`. Only a job that was `lost` is tried again in the same start of the sweep:
#: after a failure the same code would fail in the same way.
Status = Literal["done", "failed", "cancelled", "lost"]


@dataclass(frozen=True)
class Job:
    """A unit of work of a sweep: a fit, a part of a fit, or a run (a fit and its evaluation).

    It contains plain values only, so that it can be sent to a process on another machine.

    Attributes:
        id: the same in every process and at every start of the same sweep: `fit-<fit_id>` of a
            stage, `rung-<fit_id>-<epoch>` of a rung, `run-<eval_id>` of a run.
        phase: `stage`: a fit. `rung`: a fit up to an epoch. `search`: a run on id-val alone.
            `final`: a run on all splits.
        method: `{"name": ..., "parameters": {...}}` with all parameters; the name of an installed
            method, or the absolute path of a file.
        label: the row of the run in tables.
        suite: name, or absolute path of a card.
        backbone: name.
        seed: seed of the fit.
        fit_id: expected id of the fit; a process that computes another one has other data, weights
            or sources than the driver.
        needs: fit_ids that have to be in the store before the job starts.
        trial: number of the search trial; None for other jobs.
        epoch: last epoch of a rung; None for other jobs.
        curve: whether to evaluate the interpolation curve too.
        chosen: how a search chose the parameters, for the record of a final run; empty without a
            search.
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
    # Whether a job belongs to a search is not seen by `phase`: a sweep may look at id-val only, and
    # its final runs then have the phase `search` too.
    trial: int | None = None
    epoch: int | None = None
    curve: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether the job is evaluated and writes a record."""
        return self.phase in ("search", "final")

    @property
    def name(self) -> str:
        """The job in words, without its seed, such as "trial 3 lp-ft"."""
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
        """The job in words, with its seed."""
        # The seed of searches is an internal constant, which would mean nothing to a reader.
        if self.seed != SEARCH_SEED:
            return f"{self.name}, seed {self.seed}"
        return f"{self.name} of the search" if self.phase == "stage" else self.name

    def as_json(self) -> dict[str, Any]:
        """Return the job as JSON values; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the job that `as_json` wrote."""
        # JSON turns tuples into lists, and the copy has to equal the original.
        return cls(**{**values, "needs": tuple(values["needs"])})


@dataclass(frozen=True)
class JobResult:
    """The result of one attempt at a job.

    Attributes:
        status: `done`: the result is in the store. `failed`: it raised, or ran out of time.
            `cancelled`: a stop was requested, and the state is saved. `lost`: its process died
            without a report (killed, out of memory, its machine gone), so the queue offers the job
            again, as often as its limit allows.
        error: one sentence, for `failed` and `lost`.
        seconds: wall time of the attempt, without waiting for a slot.
    """

    status: Status
    error: str = ""
    seconds: float = 0.0


#: The file in a store to which Ray's processes log.
LOG = "ray.log"


@dataclass(frozen=True)
class Resources:
    """The resources of one trial, and how many trials run at once.

    Args:
        gpus: GPUs per trial; a fraction lets trials share one, 0 computes on the CPU. None: one if
            there are any, else 0.
        cpus: CPU cores per trial.
        memory: bytes per trial; 0: unlimited.
        most: trials at once; None: as many as the GPUs, or else the cores, allow.
        timeout: seconds after which an attempt at a trial is stopped; its state is saved, and it
            counts as failed.
        max_failures: how often a trial whose process or machine died is started again.
        custom: names and amounts of Ray's custom resources.
        labels: names and values of the labels of Ray nodes on which trials may run.
        address: address of an existing Ray cluster.
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
        """The resources of a trial by Ray's names; `gpus` None counts as 0."""
        amounts = {
            "CPU": self.cpus,
            "GPU": self.gpus or 0.0,
            "memory": float(self.memory),
            **dict(self.custom),
        }
        return {name: amount for name, amount in amounts.items() if amount}


def short_of_cores(resources: Resources, cores: float, gpus: float) -> str:
    """Return a warning if trials on GPUs leave most cores idle; otherwise "".

    Args:
        resources: resources of a trial; `gpus` is not None.
        cores: number of cores of the machine.
        gpus: number of its GPUs.
    """
    fair = int(cores * (resources.gpus or 0.0) / gpus) if gpus else 0
    # Only if twice as many are free: a small difference is not worth a warning at every start.
    if resources.cpus * 2 > fair:
        return ""
    return (
        f"a trial gets {resources.cpus:g} of the {fair} cores that match its share of the GPUs. If"
        f" images are decoded during training, the GPU waits for them: --cpus-per-trial {fair}"
    )


class Runner(Protocol):
    """A way to execute jobs: in this process, in other processes, or on a cluster."""

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """Execute jobs until the queue is over or a requested stop is complete.

        A trial that fails is settled as failed, and the others continue. After a stop was requested
        the method returns once every running trial has ended; the caller checks `reporter.stop`.

        Args:
            queue: the jobs to take and settle.
            work: settings that all trials share.
            reporter: receives the events of all trials.

        Raises:
            BenchError: the runner cannot continue, for example since a cluster is out of reach.
        """


def progress_of(kind: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """Return the fields of a trial's event that are sent to the driver; None for none.

    Args:
        kind: kind of the event; see `Reporter.event`.
        fields: all fields of the event.
    """
    # Only plain values that the driver shows: everything else in an event may be large, or may not
    # be picklable.
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
