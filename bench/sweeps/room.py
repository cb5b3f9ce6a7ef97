"""How much memory a sweep's trials take, so that no more start at once than fit."""

from __future__ import annotations

from ..errors import BenchError
from ..runs.memory import expected_peak
from ..training.memory import available
from .queue import Queue


def peak_of_a_trial(queue: Queue) -> int:
    """Estimate the most bytes that one of the jobs still to do takes on a CPU; 0 if nothing is left."""
    kinds = {}
    for planned in (entry.planned for entry in queue if entry.state != "done"):
        batch = getattr(planned.method, "batch_size", None)
        kinds[planned.job.suite, planned.job.backbone, planned.method.name, batch, planned.job.curve] = planned
    peaks = [0]
    for planned in kinds.values():
        try:
            peaks.append(expected_peak(planned.experiment, planned.method, curve=planned.job.curve) or 0)
        except BenchError:
            continue  # a job that cannot be done says why itself
    return max(peaks)


def fitting(peak: int, wanted: int) -> int:
    """Choose how many trials run at once on this machine: as many as wanted, fewer where memory is short, at least one."""
    return max(1, min(wanted, available() // peak)) if peak else wanted
