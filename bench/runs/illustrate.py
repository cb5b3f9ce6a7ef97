"""Render what a method does to training images: one row per image, one column per step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..configure import build_method
from ..errors import MissingPrerequisite, UsageError
from ..identity import torch_stream
from ..method import Batch, FineTuner, Method
from ..results.record import RunRecord
from ..run_spec import RunSpec
from ..storage.atomic import write_with
from .experiment import experiments

#: Height in pixels of the title above each column, enough for Pillow's default font.
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
    """Write a PNG of what `FineTuner.illustrate` returns for training images of different classes.

    Args:
        record: the run whose fitted classifier is used.
        output: file to write.
        suite: name or card of the run's suite.
        store: folder of the store; default: as `store_root`.
        data_root: folder of the datasets.
        count: number of images.

    Raises:
        UsageError: the method has nothing to illustrate, or is not installed.
        MissingPrerequisite: data or weights are missing.
    """
    # A spec needs a method, but only its backbone and suite are opened here.
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
            "the run's method comes from a Python file, which the record does not contain",
            fix="pass a run of an installed method",
        )
    method = build_method(record.method["name"], record.method["parameters"])
    if not isinstance(method, FineTuner):
        raise _nothing_to_show(method)
    fit = experiment.store.fit(record.fit_id)
    if fit is None:
        raise MissingPrerequisite(
            "the run's weights are not in the store",
            where=record.fit_id,
            fix="run its command again",
        )
    classifier = experiment.load(fit)
    split = experiment.setup.split("train")
    # One image per class; with fewer classes than `count`, they repeat.
    _, rows = np.unique(split.labels, return_index=True)
    rows = np.resize(rows, count) if len(rows) < count else rows[:count]
    pool = torch.from_numpy(split.take(rows)).permute(0, 3, 1, 2).contiguous()
    # The random stream of the first training step, so that the figure shows what training does.
    random = method.random(count, classifier.tower.grid, torch_stream(record.seed, "draw", 0))
    labels = torch.from_numpy(split.labels[rows])
    batch = Batch(pool.float() / 255, labels, torch.arange(count), pool, random, 0)
    steps = {name: images.detach() for name, images in method.illustrate(batch, classifier).items()}
    if not steps:
        raise _nothing_to_show(method)
    write_with(output, lambda path: _sheet(steps).save(path, format="PNG"))


def _nothing_to_show(method: Method) -> UsageError:
    return UsageError(
        f"{method.name} does not change images, so there is nothing to show",
        fix="pass a run of masked-counterfactual",
    )


def _sheet(steps: dict[str, torch.Tensor]) -> Image.Image:
    """Arrange images (N, 3, H, W) by step: steps are columns, images are rows."""
    first = next(iter(steps.values()))
    # A whole factor keeps the pixels of small images square and sharp.
    scale = max(1, 128 // first.shape[-1])
    columns = []
    for images in steps.values():
        column = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        columns.append(
            np.concatenate(list(column.repeat(scale, axis=1).repeat(scale, axis=2)), axis=0)
        )
    body = np.concatenate(columns, axis=1)
    sheet = Image.new("RGB", (body.shape[1], body.shape[0] + _TITLE), "white")
    sheet.paste(Image.fromarray(body), (0, _TITLE))
    canvas = ImageDraw.Draw(sheet)
    for number, name in enumerate(steps):
        canvas.text((number * body.shape[1] // len(steps) + 4, 1), name, fill="black")
    return sheet
