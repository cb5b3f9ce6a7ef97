"""Running out of memory: the step is taken again in smaller parts, with the same result, and that
is recorded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.backbones.backbone import Head
from bench.classifier import Classifier
from bench.data.split import Split
from bench.engine import Engine
from bench.errors import BenchError, Interrupted
from bench.evaluation.forward import logits_of
from bench.method import FineTuner
from bench.methods.full_finetune import FullFinetune
from bench.methods.masked_counterfactual import MaskedCounterfactual
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.training.devices import Ranks
from bench.training.step import TrainState

from support.messages import states
from support.runs import StopsAtStepThree
from support.towers import CLASSES, SIZE, VIT, TinyViT, global_batch

ENGINE = Engine(threads=1)


class Hungry(TinyViT):
    """Runs out of memory above `most` images, and at the forward passes `at`. In float64, so that
    equal means equal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most, self.at, self.passes = 10**6, set[int](), 0
        self.error: Callable[[], RuntimeError] = lambda: torch.OutOfMemoryError("simulated")

    def run(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        self.passes += 1
        if len(images) > self.most or self.passes in self.at:
            raise self.error()
        return super().run(images.double(), keep)


def start() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = Hungry()
        return Classifier(tower, Head(torch.randn(CLASSES, tower.dim), normalize=True)).double()


def trained(
    method: FineTuner, *, most: int = 10**6, at: set[int] | None = None
) -> tuple[dict[str, Tensor], TrainState]:
    method = method.bind(VIT).model_copy(update={"lr": 1e-3})
    constants = {"teacher_ms": 0.5}
    train_state = TrainState(
        start(), method, total=3, seed=0, constants=constants, engine=ENGINE, ranks=Ranks()
    )
    tower = cast(Hungry, train_state.student.tower)
    tower.most, tower.at = most, at or set()
    for step in range(3):
        train_state.step(*global_batch(8, seed=step), step)
    return train_state.student.named_weights(), train_state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "at", "micro_batches"),
    [(4, set(), [4]), (3, set(), [4, 2]), (8, {2}, [4]), (4, {7}, [4, 2]), (1, set(), [4, 2, 1])],
    ids=[
        "too large",
        "far too large",
        "in the second forward",
        "with half of a gradient there",
        "one at a time",
    ],
)
@pytest.mark.parametrize(
    "method", [FullFinetune(), MaskedCounterfactual()], ids=lambda method: method.name
)
def test_a_smaller_micro_batch_gives_the_same_weights(
    method: FineTuner, most: int, at: set[int], micro_batches: list[int]
) -> None:
    whole, _ = trained(method)
    parts, train_state = trained(method, most=most, at=at)
    assert [retry["micro_batch"] for retry in train_state.retries] == micro_batches
    assert train_state.micro_batch == micro_batches[-1]
    for name, weight in whole.items():
        assert torch.allclose(parts[name], weight, rtol=0, atol=1e-9), name


@pytest.mark.slow
def test_what_smaller_micro_batches_cannot_fix_is_reported() -> None:
    with pytest.raises(BenchError, match="not even one image"):
        trained(FullFinetune(), most=0)
    with pytest.raises(BenchError, match="batch statistics"):
        trained(FullFinetune(norm="train"), most=4)


HUNGRY = """
import torch
from bench.methods.full_finetune import FullFinetune
class Hungry(FullFinetune):
    name = "hungry"
    most: int = 3
    def loss(self, batch, student, teacher, constants):
        if len(batch.images) > self.most:
            raise torch.OutOfMemoryError("simulated")
        return super().loss(batch, student, teacher, constants)
"""


@pytest.mark.slow
def test_the_fits_record_says_it_and_a_resume_keeps_it(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    reporter = StopsAtStepThree()

    def run(reporter: Any, engine: Engine = replace(ENGINE, micro_batch=8)) -> list[RunRecord]:
        return bench.run(
            str(tmp_path / "hungry.py"),
            suite=str(tiny_suite),
            store=tmp_path,
            engine=engine,
            reporter=reporter,
        )

    (whole,) = run(None, ENGINE)
    assert "8 images at a time do not fit into memory" in whole.error
    assert "loss is from a file" in whole.error
    with pytest.raises(Interrupted):
        run(reporter)  # parts are allowed by whoever asks for them
    first, second = (text for text in reporter.warnings if "out of memory" in text)
    assert states(first, "8 images", "step 1", "4")
    assert states(second, "4 images", "step 1", "2")
    (record,) = run(None)
    fit = Store(tmp_path).fit(record.fit_id)
    assert record.status == "done"
    assert fit is not None
    assert fit.retries == [
        {"step": 0, "micro_batch": 4},
        {"step": 0, "micro_batch": 2},
    ], "not met again after the resume"


class Images:
    """As much of a split as a pass over it needs."""

    def __len__(self) -> int:
        return 10

    def take(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), dtype=np.uint8)[rows]


@pytest.mark.slow
def test_evaluation_halves_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    model, split = start(), cast(Split, Images())
    whole = logits_of({"it": model}, split, ENGINE)["it"]
    cast(Hungry, model.tower).most = 3
    parts = logits_of({"it": model}, split, Engine(threads=1, eval_batch=8))["it"]
    assert np.allclose(parts, whole, rtol=1e-6)
    assert "evaluating 4 images at a time; trying again with 2" in caplog.text
    cast(Hungry, model.tower).most = 0
    with pytest.raises(BenchError, match="not even one image"):
        logits_of({"it": model}, split, ENGINE)


def test_a_module_that_keeps_its_activations_lets_go_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The failed step's tensors are gone before it is taken again, or the second try would have
    less memory than the first.
    """
    alive: list[int] = []
    forward = nn.Linear.forward
    references: list[Any] = []

    def watched(self: nn.Linear, x: Tensor) -> Tensor:
        out = forward(self, x)
        references.append(weakref.ref(out))
        return out

    monkeypatch.setattr(nn.Linear, "forward", watched)
    monkeypatch.setattr(
        "bench.training.step.release_memory",
        lambda: alive.append(sum(r() is not None for r in references)),
    )
    trained(MaskedCounterfactual(), at={2})
    assert alive == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "is_short"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("MPS backend out of memory (MPS allocated: 17.2 GB)", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_libraries_below_torch_run_out_of_memory_with_errors_of_their_own(
    text: str, is_short: bool
) -> None:
    model, split = start(), cast(Split, Images())
    tower = cast(Hungry, model.tower)
    tower.error, tower.most = lambda: RuntimeError(text), 3
    train_state = TrainState(
        model,
        FullFinetune().bind(VIT),
        total=3,
        seed=0,
        constants={},
        engine=ENGINE,
        ranks=Ranks(),
    )
    if is_short:
        train_state.step(*global_batch(8), 0)
        assert train_state.micro_batch == 2
        assert len(logits_of({"it": model}, split, ENGINE)["it"]) == 10
    else:
        with pytest.raises(RuntimeError, match="shapes"):
            train_state.step(*global_batch(8), 0)
        with pytest.raises(RuntimeError, match="shapes"):
            logits_of({"it": model}, split, ENGINE)
