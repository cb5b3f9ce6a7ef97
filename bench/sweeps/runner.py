"""What a runner is: it takes ready jobs from the queue, has them done, and settles them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..stopping import Reporter
    from .queue import Queue
    from .work import Work

#: Of a store: what Ray has to say.
LOG = "ray.log"


@dataclass(frozen=True)
class Resources:
    """What a trial gets, and how many run at once.

    Args:
        gpus: GPUs per trial; a fraction lets trials share one, 0 computes on the CPU. None: one if there are any, else 0.
        cpus: CPU cores per trial. memory: bytes per trial; 0: not counted.
        most: trials at once; None: as many as the GPUs, or else the cores, allow.
        timeout: seconds of one attempt at a trial, after which it is stopped (its state is saved) and counts as failed.
        max_failures: how often a trial whose process or machine died is started again.
        custom: Ray's own resources by name. labels: of the nodes on which trials may run. address: of an existing Ray cluster.
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
        amounts = {"CPU": self.cpus, "GPU": self.gpus or 0.0, "memory": float(self.memory), **dict(self.custom)}
        return {name: amount for name, amount in amounts.items() if amount}


def short_of_cores(resources: Resources, cores: float, gpus: float) -> str:
    """What to tell where trials have GPUs and leave most cores idle, which decoding images for them could use; else nothing.

    Args:
        resources: with `gpus` decided. cores, gpus: of the machine that trials run on.
    """
    fair = int(cores * (resources.gpus or 0.0) / gpus) if gpus else 0
    if resources.cpus * 2 > fair:
        return ""
    return (
        f"a trial gets {resources.cpus:g} of the {fair} cores that there are for its share of the GPUs; where images are decoded "
        f"while it trains, they wait for that: --cpus-per-trial {fair}"
    )


class Runner(Protocol):
    """Has jobs done somewhere."""

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """Take and settle until the queue is over, or until a stop was asked for and every running trial has ended.

        A failing trial is settled as failed and the others go on. Returns after a stop, too: the caller asks `reporter.stop`.

        Raises:
            BenchError: the runner itself cannot go on (a cluster out of reach).
        """


def progress_of(kind: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a trial's event that travels to the driver, as plain values; None for what stays where it is."""
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
