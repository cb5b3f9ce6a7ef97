"""Evaluate a classifier or an interpolation curve on every split and write the results."""

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
from ..fit_setup import Fit, Setup
from ..method import FineTuner, Method, Traits
from ..results.predictions import write_curve, write_predictions
from ..results.record import CurvePoint, RunRecord
from ..stopping import stop_if_requested
from .experiment import Experiment

#: The points of an interpolation curve. Rounded, so that 0.3 and not 0.30000000000000004 names a
#: column of the curve files and a value in the record.
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


def metrics_of(setup: Setup) -> dict[str, Metric]:
    """Return the suite's metric (key `""`) and those of the shifts that have one of their own."""
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
    """Evaluate on every split: metrics go to the record, predictions to the folder.

    Args:
        setup: backbone, suite and engine.
        classifier: what to evaluate.
        splits: split by name, id-val first.
        record: its `metrics`, `temperature`, averages and so on are set.
        folder: of the run.
        keep_logits: save the logits even where images times classes exceed the usual limit.

    Raises:
        BenchError: the accuracy of an untouched pre-trained classifier is not the published one.
    """
    metrics, projections = metrics_of(setup), setup.suite.projections
    start = time.monotonic()
    known = setup.known_accuracies(classifier)
    for name, split in splits.items():
        logits = _logits(setup, {"model": classifier}, split)["model"]
        # Published accuracies are of whole splits, so a limited split cannot be compared. Checked
        # before anything of the split is recorded: wrong numbers never reach a board.
        if known is not None and setup.suite.complete(name):
            check_known(
                known,
                name,
                logits,
                split.labels,
                projections.get(name),
                partial(_variants, setup, classifier, split),
            )
        # A shift with a subset of the classes is an easier task. Its ID accuracy on the same
        # classes, under the same projection, is what its OOD accuracy has to be compared with.
        if name == "id-test":
            for shift in set(record.projections):
                rows, labels = matched(split.labels, projections[shift])
                if len(rows):
                    record.id_matched[shift] = score(
                        project(logits[rows], projections[shift]), labels, None
                    )
        # id-val comes first, since the predictions of all splits are saved with its temperature.
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
    """Yield the misconfigurations among which `check_known` looks for the cause of a mismatch."""
    card, suite = setup.suite.card, setup.suite
    # One template shows whether the text side is the cause; all 80 would take minutes.
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


def _logits(setup: Setup, classifiers: Mapping[str, Classifier], split: Split) -> dict[str, Any]:
    """Return the logits (N, C) of each classifier on a split."""

    def progress(done: int, of: int) -> None:
        setup.reporter.event("evaluate", split=split.name, done=done, of=of)
        stop_if_requested(setup.reporter)

    # The features of the pre-trained tower are the same for every head. They are cached on disk, so
    # a probe, a zero-shot head and the start of every curve share one forward pass per split.
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
    """Return the fine-tuner that the method is, or wraps as its only dependency, or None."""
    while not isinstance(method, FineTuner):
        inner = method.dependencies()
        if len(inner) != 1:
            return None
        method = inner[0].bind(traits)
    return method


def has_line(tuner: FineTuner | None) -> bool:
    """Return whether the weights between the start and the end of a fit can be interpolated."""
    # Batch statistics that were trained belong to one set of weights; their mean belongs to none.
    return tuner is not None and tuner.norm == "frozen"


def with_line(method: Method, traits: Traits) -> FineTuner:
    """Return the fine-tuner whose interpolation curve is that of `method`.

    Raises:
        BenchError: there is none, or its weights cannot be interpolated.
    """
    tuner = fine_tuned(method, traits)
    if tuner is None:
        raise BenchError(
            f"{method.name} has no fine-tuned fit, so it has no curve", fix="leave out --curve"
        )
    if not has_line(tuner):
        raise BenchError(
            "batch statistics that were trained cannot be interpolated",
            where=f"method {method.name}",
            fix="leave out --curve, or pass --set norm=frozen",
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
    """Score the interpolation curve of the fine-tuned fit that `method` is or wraps.

    The predictions of every point are written to the run's folder, because a confidence interval
    of the distance to the curve needs single images.

    Args:
        experiment: where the fits are.
        method: the method of the run.
        fit: its fit.
        splits: split by name.
        record: of the run; declares which shifts are averaged.
        folder: of the run.

    Raises:
        BenchError: see `with_line`.
    """
    tuner = with_line(method, experiment.setup.traits)
    assert tuner.head_init is not None
    end = fit.classifier if tuner is method else experiment.fit(tuner).classifier
    # The curve of a wrapper such as wise-ft ends in the fit that it wraps; its own is in between.
    start = experiment.start(tuner.head_init)
    line = {str(alpha): interpolate(start, end, alpha) for alpha in ALPHAS}
    metrics = metrics_of(experiment.setup)
    scores: dict[float, dict[str, float]] = {alpha: {} for alpha in ALPHAS}
    for name, split in splits.items():
        predicted = {}
        for key, logits in _logits(experiment.setup, line, split).items():
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
