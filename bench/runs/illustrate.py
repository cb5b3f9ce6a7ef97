"""A picture of what a method does to training images: one row per image, one column per step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..configure import build_method
from ..errors import MissingPrerequisite, UsageError
from ..identity import torch_stream
from ..method import Batch, FineTuner
from ..results.record import RunRecord
from ..spec import RunSpec
from ..storage.atomic import write_with
from .experiment import experiments

_TITLE = 14


def illustrate(
    record: RunRecord,
    output: Path,
    *,
    suite: str,
    store: Path | None = None,
    data_root: Path | None = None,
    count: int = 8,
) -> None:
    """Write a PNG of `FineTuner.illustrate` on the first training images of different classes, seen
    by the fitted classifier.

    Raises:
        UsageError: the method draws nothing, or comes from a file that must be named.
        MissingPrerequisite: no data or weights.
    """
    spec = RunSpec(
        methods=("illustrated",),
        suite=suite,
        backbone=record.backbone,
        seeds=(record.seed,),
        shots=record.method.get("shots"),
        data_root=data_root,
    )
    (experiment,) = experiments(spec, store=store)
    if record.method["source"]:
        raise UsageError(
            "the method came from a file of yours, which the record does not hold",
            fix="name a run of an installed method",
        )
    method = build_method(record.method["name"], record.method["parameters"])
    if not isinstance(method, FineTuner):
        raise UsageError(
            f"{method.name} does nothing to images that could be drawn",
            fix="name a run of masked-counterfactual",
        )
    fit = experiment.store.fit(record.fit_id)
    if fit is None:
        raise MissingPrerequisite(
            "the run's weights are gone", where=record.fit_id, fix="run its command again"
        )
    classifier = experiment.load(fit)
    split = experiment.setup.split("train")
    _, rows = np.unique(split.labels, return_index=True)
    rows = np.resize(rows, count) if len(rows) < count else rows[:count]
    pool = torch.from_numpy(split.take(rows)).permute(0, 3, 1, 2).contiguous()
    draws = method.draw(count, classifier.tower.grid, torch_stream(record.seed, "draw", 0))
    labels = torch.from_numpy(split.labels[rows])
    batch = Batch(pool.float() / 255, labels, torch.arange(count), pool, draws, 0)
    pictures = {
        name: images.detach() for name, images in method.illustrate(batch, classifier).items()
    }
    if not pictures:
        raise UsageError(
            f"{method.name} does nothing to images that could be drawn",
            fix="name a run of masked-counterfactual",
        )
    write_with(output, lambda path: _sheet(pictures).save(path, format="PNG"))


def _sheet(pictures: dict[str, torch.Tensor]) -> Image.Image:
    """Columns are the steps, rows the images; small images are enlarged by a whole factor."""
    first = next(iter(pictures.values()))
    scale = max(1, 128 // first.shape[-1])
    columns = []
    for images in pictures.values():
        column = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        columns.append(
            np.concatenate(list(column.repeat(scale, axis=1).repeat(scale, axis=2)), axis=0)
        )
    body = np.concatenate(columns, axis=1)
    sheet = Image.new("RGB", (body.shape[1], body.shape[0] + _TITLE), "white")
    sheet.paste(Image.fromarray(body), (0, _TITLE))
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(pictures):
        draw.text((number * body.shape[1] // len(pictures) + 4, 1), name, fill="black")
    return sheet
