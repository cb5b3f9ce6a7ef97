"""Measure a classifier, or a whole interpolation curve, on every split of an experiment: into a
record and its folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backbones.backbone import zero_shot_head
from ..classifier import Classifier, interpolate
from ..data.cards.suite_card import Metric
from ..data.split import Split
from ..errors import BenchError
from ..evaluation.forward import logits_of
from ..evaluation.guard import check_known
from ..evaluation.metrics import fitted_temperature, matched, project, relative_scores, score
from ..evaluation.variants import Variant, variants
from ..method import FineTuner, Method, Traits
from ..results.predictions import write_curve, write_predictions
from ..results.record import CurvePoint, RunRecord
from ..stopping import stop_if_asked
from ..task import Fit, Setup
from .experiment import Experiment

#: The points of an interpolation curve.
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


def metrics_of(setup: Setup) -> dict[str, Metric]:
    """The metric of every split whose card entry names one of its own, and of the suite."""
    card = setup.suite.card
    return {"": card.metric, **{shift.name: shift.metric for shift in card.shifts if shift.metric}}


def evaluate(
    setup: Setup,
    classifier: Classifier,
    splits: Mapping[str, Split],
    record: RunRecord,
    folder: Path,
    *,
    keep_logits: bool = False,
) -> None:
    """Metrics and predictions on every split, into the record and the folder.

    Args:
        splits: id-val before the others, since its temperature goes with their predictions.
        keep_logits: however many they are.
    """
    metrics, projections = metrics_of(setup), setup.suite.projections
    start = time.monotonic()
    known = setup.known_accuracies(classifier)
    for name, split in splits.items():
        logits = _measured(setup, {"it": classifier}, split)["it"]
        if known is not None and setup.suite.complete(name):
            check_known(
                known,
                name,
                logits,
                split.labels,
                projections.get(name),
                partial(_variants, setup, classifier, split),
            )
        if name == "id-test":
            for shift in set(record.projections):
                rows, labels = matched(split.labels, projections[shift])
                if len(rows):
                    record.id_matched[shift] = score(
                        project(logits[rows], projections[shift]), labels, None
                    )
        if name == "id-val":
            record.temperature = fitted_temperature(logits, split.labels)
        if name in projections:
            logits = project(logits, projections[name])
        record.metrics[name] = score(
            logits, split.labels, split.groups, metrics.get(name, metrics[""]), split.skipped
        )
        path = folder / "predictions" / f"{name}.parquet"
        write_predictions(path, split, logits, record.temperature, keep_logits=keep_logits)
    record.eval_seconds = time.monotonic() - start
    record.ood = record.average(record.scores())
    record.relative = relative_scores(setup.suite.card, record)


def _variants(setup: Setup, classifier: Classifier, split: Split) -> Iterator[Variant]:
    """What the guard may find a cause in; the prompts of one template are enough for that."""
    card, suite = setup.suite.card, setup.suite
    return variants(
        classifier,
        split,
        suite.pixels_of(split.name, setup.backbone.pixels),
        suite.projections.get(split.name),
        setup.engine,
        setup.backbone.text_tower(),
        lambda text: zero_shot_head(
            text, card.classes, card.templates[:1], device=setup.engine.device
        ),
    )


def _measured(setup: Setup, classifiers: Mapping[str, Classifier], split: Split) -> dict[str, Any]:
    def progress(done: int, of: int) -> None:
        setup.reporter.event("evaluate", split=split.name, done=done, of=of)
        stop_if_asked(setup.reporter)

    # A frozen tower's features are the same for every head: they come from the cache, one forward
    # pass per split, ever.
    frozen = {name: model for name, model in classifiers.items() if setup.is_frozen(model.tower)}
    logits = logits_of(
        {n: m for n, m in classifiers.items() if n not in frozen}, split, setup.engine, progress
    )
    if frozen:
        features = torch.from_numpy(np.array(setup.features(split)))
        heads = {name: model.head.cpu() for name, model in frozen.items()}
        with torch.inference_mode():
            logits |= {name: head(features).numpy() for name, head in heads.items()}
    return logits


def fine_tuned(method: Method, traits: Traits) -> FineTuner | None:
    """The fine-tuner that a method is, or that it wraps and nothing beside it; None if there is
    none.
    """
    while not isinstance(method, FineTuner):
        inner = method.stages()
        if len(inner) != 1:
            return None
        method = inner[0].resolved(traits)
    return method


def has_line(tuner: FineTuner | None) -> bool:
    """Whether a straight line from start to end means anything: averaged, trained batch statistics
    are those of no network.
    """
    return tuner is not None and tuner.norm == "frozen"


def with_line(method: Method, traits: Traits) -> FineTuner:
    """The fine-tuner whose interpolation curve is that of `method`.

    Raises:
        BenchError: there is none, or between its ends lies nothing to measure.
    """
    tuner = fine_tuned(method, traits)
    if tuner is None:
        raise BenchError(
            f"{method.name} has no fine-tuned fit to draw a curve of", fix="leave --curve out"
        )
    if not has_line(tuner):
        fix = "leave --curve out, or --set norm=frozen"
        raise BenchError(
            "batch statistics that were trained cannot be interpolated",
            where=f"method {method.name}",
            fix=fix,
        )
    return tuner


def measure_curve(
    experiment: Experiment,
    method: Method,
    fit: Fit,
    splits: Mapping[str, Split],
    record: RunRecord,
    folder: Path,
) -> list[CurvePoint]:
    """Scores along the straight line from the start to the end of the fine-tuned fit that `method`
    is or wraps.

    What every point predicts goes into the folder: an interval of the distance to the curve needs
    single images.
    """
    tuner = with_line(method, experiment.setup.traits)
    assert tuner.head_init is not None
    end = fit.classifier if tuner is method else experiment.fit(tuner).classifier
    start = experiment.start(tuner.head_init)
    line = {str(alpha): interpolate(start, end, alpha) for alpha in ALPHAS}
    metrics = metrics_of(experiment.setup)
    scores: dict[float, dict[str, float]] = {alpha: {} for alpha in ALPHAS}
    for name, split in splits.items():
        predicted = {}
        for key, logits in _measured(experiment.setup, line, split).items():
            if name in experiment.setup.suite.projections:
                logits = project(logits, experiment.setup.suite.projections[name])
            scores[float(key)][name] = score(
                logits, split.labels, split.groups, metrics.get(name, metrics[""])
            ).score
            predicted[float(key)] = logits.argmax(axis=1)
        write_curve(folder / "curve" / f"{name}.parquet", split, dict(sorted(predicted.items())))
    return [
        CurvePoint(alpha=alpha, scores=scores[alpha], ood=record.average(scores[alpha]))
        for alpha in ALPHAS
    ]
