"""How long a fit will take, measured on its first steps; nothing of it is kept."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import islice

from ..data.batches import TrainBatches
from ..engine import Engine
from ..method import FineTuner
from ..training.devices import Ranks
from ..training.step import Learner
from .plan import Planned

#: Steps that are taken; the first, which warms up, is not counted.
STEPS = 4


def seconds_by_probe(planned: Planned, engine: Engine) -> float | None:
    """Seconds of all steps of a fit on one device, alone on the machine, without scoring; None for what is not trained in steps.

    Raises:
        BenchError: a step does not fit into memory.
    """
    method, experiment = planned.method, planned.experiment
    if not isinstance(method, FineTuner):
        return None
    engine.apply()
    batches = TrainBatches(
        experiment.split("train"),
        batch_size=method.batch_size,
        seed=planned.job.seed,
        augment=method.augment,
        size=experiment.backbone.pixels.size,
        workers=0,
    )
    # A step takes as long from one head as from another, and with one value of a constant as with another.
    learner = Learner(
        experiment.start("random"),
        method,
        total=STEPS,
        seed=planned.job.seed,
        constants=defaultdict(lambda: 1.0),
        engine=engine,
        ranks=Ranks(),
    )
    begun = []
    for number, (images, labels) in enumerate(islice(batches.steps(0), STEPS)):
        begun.append(time.monotonic())
        float(learner.step(images, labels, number))  # a GPU is waited for
    counted = begun[1:]
    per_step = (time.monotonic() - counted[0]) / len(counted)
    return per_step * batches.steps_per_epoch * method.epochs
