"""Estimate the memory of a sweep's trials, so that no more start at once than fit."""

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
    """Estimate the peak memory of a job on a CPU in bytes; None if unknown or on a GPU.

    Args:
        planned: the job.
        known: cache of the estimates by kind of job; this function adds to it.
    """
    batch = getattr(planned.method, "batch_size", None)
    # An estimate runs a training step, so jobs that differ in seed or learning rate share one.
    kind = (planned.job.suite, planned.job.backbone, planned.method.name, batch, planned.job.curve)
    if kind not in known:
        try:
            known[kind] = expected_peak(planned.experiment, planned.method, curve=planned.job.curve)
        except BenchError:
            # A job that cannot run reports its error itself when it is started.
            known[kind] = None
    return known[kind]


def peak_of_a_trial(queue: Queue) -> int:
    """Estimate the highest peak memory in bytes of the jobs that are left; 0 if there are none."""
    # One figure for all: a slot may get any of the jobs.
    known: dict[tuple[Any, ...], int | None] = {}
    return max(
        (peak_of(entry.planned, known) or 0 for entry in queue if entry.state != "done"), default=0
    )


def fitting(peak: int, wanted: int) -> int:
    """Return how many trials may run at once: as many as wanted if memory allows, at least one.

    Args:
        peak: peak memory of a trial in bytes; 0 if unknown.
        wanted: number of trials without a limit of memory.
    """
    # One trial runs even if the estimate says that it does not fit: it takes its batch in smaller
    # parts where memory is short.
    return max(1, min(wanted, available() // peak)) if peak else wanted


def expected_peak(experiment: Experiment, method: Method, *, curve: bool = False) -> int | None:
    """Estimate the peak memory of a process that fits a method and evaluates it.

    Args:
        experiment: suite, backbone and settings.
        method: the method, bound to the backbone.
        curve: whether its interpolation curve is evaluated too.

    Returns:
        Bytes, or None on a GPU.
    """
    # A GPU reports that its memory is exhausted, and steps are then halved until they fit. A CPU's
    # process is killed without a report, so its memory has to be estimated beforehand.
    if experiment.setup.engine.device_type != "cpu":
        return None
    # Fits and evaluation follow one another in the process, so the largest one counts. What this
    # process holds now stands for the libraries that each trial imports.
    return resident() + max(
        _measuring(experiment, curve),
        *(_fitting(experiment, one) for one in _all(experiment, method)),
    )


def _all(experiment: Experiment, method: Method) -> list[Method]:
    """Return a method and all methods that it depends on."""
    inner = [one.bind(experiment.setup.traits) for one in method.dependencies()]
    if getattr(method, "head_init", None) == "probe":
        inner.append(experiment.setup.probe)
    return [method, *(deeper for one in inner for deeper in _all(experiment, one))]


def _fitting(experiment: Experiment, method: Method) -> int:
    if not isinstance(method, FineTuner):
        # 16 bytes per value: the features in float32, a copy, and float64 for the solver.
        return 16 * experiment.setup.count("train") * _dim(experiment) if method.trains else 0
    engine = experiment.setup.engine
    share = -(-min(method.batch_size, experiment.setup.count("train")) // engine.devices)
    wanted = wanted_part(method, share, experiment.setup.default_part, engine.micro_batch)
    memory = step_memory(method, experiment.start("random"), experiment.setup.backbone.pixels.size)
    return engine.devices * memory.of(wanted)


def _measuring(experiment: Experiment, curve: bool) -> int:
    # A curve evaluates a model per alpha and both ends in one pass over the images. Each model
    # holds its weights, and the logits of the largest split in float32 and a copy.
    suite, models = experiment.setup.suite, len(ALPHAS) + 2 if curve else 1
    names = ["id-val", "id-test", *(shift.name for shift in suite.card.shifts)]
    images = max(
        (experiment.setup.count(name) for name in names if name not in suite.missing), default=0
    )
    weights: int = sum(
        tensor.nbytes for tensor in experiment.setup.backbone.image_tower().state_dict().values()
    )
    return models * (weights + 2 * 4 * images * len(suite.card.classes))


def _dim(experiment: Experiment) -> int:
    return experiment.setup.backbone.image_tower().dim
