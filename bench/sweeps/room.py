"""How much memory a sweep's trials take, so that no more start at once than fit."""

from __future__ import annotations

from typing import Any

from ..errors import BenchError
from ..method import FineTuner, Method
from ..runs.experiment import Experiment
from ..runs.measure import ALPHAS
from ..training.memory import available, resident, step_memory, wanted_part
from .plan import Planned
from .queue import Queue


def peak_of(planned: Planned, known: dict[tuple[Any, ...], int | None]) -> int | None:
    """Estimate the most bytes that a job takes on a CPU; None if that cannot be told.

    Args:
        known: of jobs that take as much, which is remembered here.
    """
    batch = getattr(planned.method, "batch_size", None)
    kind = (planned.job.suite, planned.job.backbone, planned.method.name, batch, planned.job.curve)
    if kind not in known:
        try:
            known[kind] = expected_peak(planned.experiment, planned.method, curve=planned.job.curve)
        except BenchError:  # a job that cannot be done says why itself
            known[kind] = None
    return known[kind]


def peak_of_a_trial(queue: Queue) -> int:
    """Estimate the most bytes that one of the jobs still to do takes on a CPU; 0 if nothing is
    left.
    """
    known: dict[tuple[Any, ...], int | None] = {}
    return max(
        (peak_of(entry.planned, known) or 0 for entry in queue if entry.state != "done"), default=0
    )


def fitting(peak: int, wanted: int) -> int:
    """Choose how many trials run at once on this machine: as many as wanted, fewer where memory is
    short, at least one.
    """
    return max(1, min(wanted, available() // peak)) if peak else wanted


def expected_peak(experiment: Experiment, method: Method, *, curve: bool = False) -> int | None:
    """Estimate the most bytes that a process holds which fits `method` and measures it.

    Args:
        method: resolved.
        curve: whether its interpolation curve is measured, too.

    Returns:
        None on a GPU, where steps are halved until they fit.
    """
    if experiment.setup.engine.device_type != "cpu":
        return None
    return resident() + max(
        _measuring(experiment, curve),
        *(_fitting(experiment, one) for one in _all(experiment, method)),
    )


def _all(experiment: Experiment, method: Method) -> list[Method]:
    """A method and all that it is built on."""
    inner = [one.resolved(experiment.setup.traits) for one in method.stages()]
    if getattr(method, "head_init", None) == "probe":
        inner.append(experiment.setup.probe)
    return [method, *(deeper for one in inner for deeper in _all(experiment, one))]


def _fitting(experiment: Experiment, method: Method) -> int:
    if not isinstance(method, FineTuner):
        # Features in single precision, a copy of them, and in double precision for the solver.
        return 16 * experiment.setup.count("train") * _dim(experiment) if method.trains else 0
    engine = experiment.setup.engine
    share = -(-min(method.batch_size, experiment.setup.count("train")) // engine.devices)
    wanted = wanted_part(method, share, experiment.setup.default_part, engine.micro_batch)
    memory = step_memory(method, experiment.start("random"), experiment.setup.backbone.pixels.size)
    return engine.devices * memory.of(wanted)


def _measuring(experiment: Experiment, curve: bool) -> int:
    suite, models = experiment.setup.suite, len(ALPHAS) + 2 if curve else 1
    names = ["id-val", "id-test", *(shift.name for shift in suite.card.shifts)]
    images = max(
        (experiment.setup.count(name) for name in names if name not in suite.holes), default=0
    )
    weights: int = sum(
        tensor.nbytes for tensor in experiment.setup.backbone.image_tower().state_dict().values()
    )
    return models * (weights + 2 * 4 * images * len(suite.card.classes))


def _dim(experiment: Experiment) -> int:
    return experiment.setup.backbone.image_tower().dim
