"""The runner that has Ray Tune dispatch a sweep's jobs, on this machine or on an existing
cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal as size

from ...errors import BenchError
from ...stopping import Reporter
from ..job import Resources, short_of_cores
from ..queue import Queue
from ..work import Work
from .session import session


@dataclass(frozen=True)
class RayRunner:
    """One Tune run per sweep. Ray is imported when it runs, not before.

    Args:
        resources: of a trial.
        log: where Ray's own output goes.
    """

    resources: Resources
    log: Path

    def run(self, queue: Queue, work: Work, reporter: Reporter) -> None:
        """See `Runner.run`.

        Raises:
            MissingPrerequisite: no cluster, or a node lacks something (`preflight`).
            BenchError: no node is large enough.
        """
        with session(self.resources.address, self.log) as folder:
            import ray

            from ..room import peak_of_a_trial
            from .dispatch import dispatch
            from .preflight import preflight

            if reporter.stop:
                return
            alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            nodes = _labelled(self.resources, alive)
            resources = replace(self.resources, gpus=_gpus(self.resources, nodes))
            if not resources.gpus:
                resources = replace(resources, memory=peak_of_a_trial(queue))
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
            reporter.event("warning", text=f"Ray: {slots} at once on {on}; its log: {self.log}")
            roomy = [node["Resources"] for node in nodes if fitting[node["NodeID"]]]
            for text in dict.fromkeys(
                short_of_cores(resources, node.get("CPU", 0.0), node.get("GPU", 0.0))
                for node in roomy
            ):
                if text:
                    reporter.event("warning", text=text)
            dispatch(queue, work, reporter, resources, slots, folder)


def _labelled(resources: Resources, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes that have the labels.

    Raises:
        BenchError: none has.
    """
    found = [node for node in nodes if dict(resources.labels).items() <= node["Labels"].items()]
    if not found:
        raise BenchError(
            "no node has the label "
            + ", ".join(f"{key}={value}" for key, value in resources.labels),
            where="nodes have: "
            + "; ".join(", ".join(f"{k}={v}" for k, v in node["Labels"].items()) for node in nodes),
            fix="`ray start --labels KEY=VALUE` gives a node one",
        )
    return found


def _gpus(resources: Resources, nodes: list[dict[str, Any]]) -> float:
    """GPUs per trial: as asked, else one where there are any."""
    any_there = any(node["Resources"].get("GPU", 0) for node in nodes)
    return float(any_there) if resources.gpus is None else resources.gpus


def _slots(resources: Resources, nodes: list[dict[str, Any]]) -> dict[str, int]:
    """How many trials fit on each node.

    Raises:
        BenchError: none does anywhere.
    """
    wanted = resources.bundle
    fitting = {
        node["NodeID"]: min(
            _times(name, node["Resources"].get(name, 0.0), amount)
            for name, amount in wanted.items()
        )
        for node in nodes
    }
    if not any(fitting.values()):
        asked = ", ".join(_amount(name, amount) for name, amount in wanted.items())
        offered = "; ".join(
            ", ".join(_amount(name, n["Resources"].get(name, 0)) for name in wanted) for n in nodes
        )
        raise BenchError(
            f"no node is large enough for a trial of {asked}",
            where=f"nodes offer: {offered}",
            fix=(
                "lower --gpus-per-trial or --cpus-per-trial, take a smaller backbone or batch, or"
                " leave out what no node has"
            ),
        )
    return fitting


def _amount(name: str, amount: float) -> str:
    return f"{size(int(amount))} {name}" if name == "memory" else f"{amount:g} {name}"


def _times(name: str, offered: float, amount: float) -> int:
    # Ray places a fraction on one GPU: 0.4 of 1 fits twice on each, not five times on two.
    if name == "GPU" and amount < 1:
        return int(offered) * int(1 / amount + 1e-9)
    return int(offered / amount + 1e-9)
