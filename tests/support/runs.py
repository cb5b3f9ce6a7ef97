"""Runs on the tiny suite in this process, and a reporter that remembers."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import bench
from bench.engine import Engine
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.stopping import Reporter


class Listener(Reporter):
    """Keeps the events; asks to stop at a given step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_at = stop_at

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))
        if kind == "step" and fields["step"] == self._stop_at:
            self.stop = signal.SIGTERM

    def trained(self) -> list[str]:
        return [fields["method"] for kind, fields in self.events if kind == "fit"]


def run(
    *methods: str,
    suite: Path,
    store: Path,
    stop_at: int | None = None,
    engine: Engine | None = None,
    **fields: Any,
) -> tuple[list[RunRecord], Listener]:
    listener = Listener(stop_at)
    return (
        bench.run(
            *methods,
            suite=str(suite),
            store=store,
            reporter=listener,
            engine=engine or Engine(threads=1),
            **fields,
        ),
        listener,
    )


def weights(store: Path, record: RunRecord) -> str:
    fit = Store(store).fit(record.fit_id)
    assert fit is not None
    return fit.weights_sha256


def only_test_images(tiny_suite: Path, folder: Path) -> Path:
    """The card of a suite whose training images (and one of whose shifts) are not here; with
    `train/`, they are.
    """
    images = folder / "images"
    images.mkdir()
    (images / "test").symlink_to(tiny_suite.parent / "images/photo")
    (images / "inverted").symlink_to(tiny_suite.parent / "images/inverted")
    card = folder / "mine.toml"
    text = tiny_suite.read_text().replace(
        'path = "photo"', 'train = "train"\nval_count = 9\ntest = "test"'
    )
    card.write_text(text.replace("val_fraction = 0.25\ntest_fraction = 0.25\n", ""))
    return card


#: A method whose last step spoils its weights.
NAN = """
import torch
from bench import FineTuner
class Nan(FineTuner):
    name = "nan-at-the-end"
    def loss(self, batch, student, teacher, constants):
        loss = student(batch.images).square().mean()
        if batch.step == 7:  # the last step: no later loss looks at the weights
            student.head.bias.register_hook(lambda gradient: gradient * float("nan"))
        return loss
"""


class StopsAtStepThree(Reporter):
    """A reporter that asks to stop, once, and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "warning":
            self.warnings.append(fields["text"])
        if kind == "step" and fields["step"] == 3:
            self.stop = 2
