"""Run a sweep's jobs with Ray Tune, on this machine or on an existing cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal as size

from ...errors import BenchError
from ...stopping import Reporter
from ..job import Resources, short_of_cores
from ..queue import Queue
from ..worker import Work
from .session import session


@dataclass(frozen=True)
class RayRunner:
    """A runner that executes jobs with Ray Tune.

    Args:
        resources: resources of a trial.
        log: file for Ray's own output.
    """

    # Ray is imported inside `run`: it takes seconds, and reads its settings, which `session` makes,
    # when it is imported.
    resources: Resources
    log: Path

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """Execute jobs until the queue is over or a requested stop is complete.

        Raises:
            MissingPrerequisite: there is no cluster, or a node lacks something; see `preflight`.
            BenchError: no node has the labels, or none is large enough.
        """
        with session(self.resources.address, self.log) as folder:
            import ray

            from ..memory_budget import peak_of_a_trial
            from .dispatch import dispatch
            from .preflight import preflight

            if reporter.stop:
                return
            alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            nodes = _labelled(self.resources, alive)
            resources = replace(self.resources, gpus=_gpus(self.resources, nodes))
            # On a CPU a trial that runs out of memory is killed without a report, so Ray has to
            # count memory as a resource. On a GPU steps are halved until they fit.
            if not resources.gpus:
                resources = replace(resources, memory=peak_of_a_trial(queue))
            # Only nodes with room for a trial are checked and counted: a head node without a GPU
            # needs no data.
            fitting = _slots(resources, nodes)
            preflight(
                queue,
                work,
                reporter,
                resources,
                [node for node in nodes if fitting[node["NodeID"]]],
            )
            slots = min(sum(fitting.values()), resources.most or sum(fitting.values()))
            usable = sum(map(bool, fitting.values()))
            on = "1 node" if usable == 1 else f"{usable} nodes"
            text = f"Ray: running {slots} trial(s) at once on {on}; its log: {self.log}"
            reporter.event("warning", text=text)
            offers = [node["Resources"] for node in nodes if fitting[node["NodeID"]]]
            # Once for all nodes of the same kind.
            for text in dict.fromkeys(
                short_of_cores(resources, node.get("CPU", 0.0), node.get("GPU", 0.0))
                for node in offers
            ):
                if text:
                    reporter.event("warning", text=text)
            dispatch(queue, work, reporter, resources, slots, folder)


def _labelled(resources: Resources, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the nodes that have all labels.

    Raises:
        BenchError: there is none.
    """
    # Checked here, since Tune would wait for such a node forever.
    found = [node for node in nodes if dict(resources.labels).items() <= node["Labels"].items()]
    if not found:
        raise BenchError(
            "no node has the label "
            + ", ".join(f"{key}={value}" for key, value in resources.labels),
            where="nodes have: "
            + "; ".join(", ".join(f"{k}={v}" for k, v in node["Labels"].items()) for node in nodes),
            fix="start a node with `ray start --labels KEY=VALUE`",
        )
    return found


def _gpus(resources: Resources, nodes: list[dict[str, Any]]) -> float:
    """Return the GPUs per trial: as requested, else one if any node has GPUs."""
    any_there = any(node["Resources"].get("GPU", 0) for node in nodes)
    return float(any_there) if resources.gpus is None else resources.gpus


def _slots(resources: Resources, nodes: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of trials that fit on each node, by node id.

    Raises:
        BenchError: no node has room for a trial.
    """
    wanted = resources.bundle
    fitting = {
        node["NodeID"]: min(
            _times(name, node["Resources"].get(name, 0.0), amount)
            for name, amount in wanted.items()
        )
        for node in nodes
    }
    # Refused here, since Tune would wait for a larger node forever.
    if not any(fitting.values()):
        requested = ", ".join(_amount(name, amount) for name, amount in wanted.items())
        offered = "; ".join(
            ", ".join(_amount(name, n["Resources"].get(name, 0)) for name in wanted) for n in nodes
        )
        raise BenchError(
            f"no node is large enough for a trial of {requested}",
            where=f"nodes offer: {offered}",
            fix=(
                "lower --gpus-per-trial or --cpus-per-trial, use a smaller backbone or batch size,"
                " or remove resources that no node has"
            ),
        )
    return fitting


def _amount(name: str, amount: float) -> str:
    return f"{size(int(amount))} {name}" if name == "memory" else f"{amount:g} {name}"


def _times(name: str, offered: float, amount: float) -> int:
    # Ray places a fraction on one GPU: 0.4 of 1 fits twice on each, not five times on two. The
    # small summand guards against quotients such as 2.9999999996.
    if name == "GPU" and amount < 1:
        return int(offered) * int(1 / amount + 1e-9)
    return int(offered / amount + 1e-9)
