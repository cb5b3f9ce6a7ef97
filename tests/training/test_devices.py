"""Several devices (here processes on the CPU) in one training: the same result, and every way in
which one of them can end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bench
from bench.engine import Engine
from bench.errors import Interrupted, UsageError
from bench.method import FineTuner
from bench.methods.feature_distillation import FeatureDistillation
from bench.methods.full_finetune import FullFinetune
from bench.methods.lp_ft import LPFT
from bench.methods.masked_counterfactual import MaskedCounterfactual
from bench.results.record import RunRecord
from bench.results.store import FitRecord, Store
from bench.stopping import Reporter
from bench.training import devices
from bench.training.devices import DeviceLost, Ranks, spawn_workers
from bench.training.step import TrainState

from support.towers import CONV, VIT, TinyConv, TinyViT, classifier, global_batch

ALONE, TWO = Engine(threads=1), Engine(threads=1, devices=2)
TUNERS: list[FineTuner] = [
    FullFinetune(),
    LPFT(),
    FeatureDistillation(weight_unit="teacher_ms"),
    *(
        MaskedCounterfactual(mask=mask, fill=fill)
        for mask in ("object", "random")
        for fill in ("none", "single", "multi")
    ),
    MaskedCounterfactual(mask="context", mask_share=0.4, clip=0.1),
]
SHORT_OF_MEMORY = MaskedCounterfactual()
CASES = [
    *((method, VIT) for method in TUNERS),
    *((method, CONV) for method in TUNERS if getattr(method, "fill", "single") != "none"),
    (SHORT_OF_MEMORY, VIT),
]
STEPS, SIZE = 4, 7  # seven images do not divide by two


class PreciseViT(TinyViT):
    """In float64, where the order of a sum hardly matters: AdamW turns rounding in a gradient near
    zero into a whole step.

    It runs out of memory above `most` images.
    """

    most = SIZE

    def run(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("simulated")
        return super().run(images.double(), keep)


class PreciseConv(TinyConv):
    """As `PreciseViT`."""

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().explain(images.double())


def trained(ranks: Ranks, engine: Engine) -> list[tuple[list[float], dict[str, Tensor]]]:
    """For every case the losses of a few steps, and how far they moved the weights."""
    results = []
    for method, traits in CASES:
        start = classifier(traits.layout).double()
        start.tower.__class__ = PreciseViT if traits.layout == "vit" else PreciseConv
        tuner = method.bind(traits).model_copy(update={"lr": 1e-3})
        constants = {"teacher_ms": 0.5}
        train_state = TrainState(
            start, tuner, total=STEPS, seed=0, constants=constants, engine=engine, ranks=ranks
        )
        if method is SHORT_OF_MEMORY and ranks.rank == 1:
            train_state.student.tower.most = (
                2  # on the second device alone, but both repeat the step
            )
        losses = []
        for step in range(STEPS):
            images, labels = global_batch(SIZE, seed=step)
            losses.append(float(train_state.step(images[ranks.share(SIZE)], labels, step)))
        assert (train_state.retries == [{"step": 0, "micro_batch": 2}]) == (
            method is SHORT_OF_MEMORY and ranks.count > 1
        )
        before = start.named_weights()
        results.append(
            (
                losses,
                {
                    name: value - before[name]
                    for name, value in train_state.student.named_weights().items()
                },
            )
        )
    return results


def follow(engine: Engine, ranks: Ranks, advanced: object) -> None:
    trained(ranks, engine)


@pytest.mark.waits
def test_two_devices_equal_one_for_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process imports this module.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    torch.set_num_threads(1)
    alone = trained(Ranks(), ALONE)
    with spawn_workers(partial(follow, ALONE), TWO, Reporter()) as ranks:
        both = trained(ranks, ALONE)
    for (method, traits), one, two in zip(CASES, alone, both, strict=True):
        assert two[0] == pytest.approx(one[0], rel=1e-6), f"{method!r} on {traits.layout}"
        for name, moved in one[1].items():
            # Each step moves a weight by about lr = 1e-3. Fills planned for each device alone, or a
            # mean of means, would change that by tens of per cent.
            assert torch.allclose(two[1][name], moved, rtol=0, atol=1e-9), (
                f"{name} of {method!r} on {traits.layout}"
            )


def run(
    method: Path | str,
    suite: Path,
    store: Path,
    engine: Engine,
    reporter: Any = None,
    **values: Any,
) -> tuple[RunRecord, FitRecord | None]:
    (record,) = bench.run(
        str(method), suite=str(suite), store=store, engine=engine, reporter=reporter, set=values
    )
    return record, Store(store).fit(record.fit_id)


class StopsAt(Reporter):
    """A reporter that asks to stop when a step is done, or kills the other process there."""

    def __init__(self, step: int, *, kills: bool = False) -> None:
        self._step, self._kills = step, kills
        self.resumed_at: list[int] = []

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "resumed":
            self.resumed_at.append(fields["step"])
        if kind == "step" and fields["step"] == self._step:
            if self._kills:
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGKILL)
            else:
                self.stop = signal.SIGTERM


@pytest.mark.waits
def test_a_run_on_two_devices_is_the_same_fit(tiny_suite: Path, tmp_path: Path) -> None:
    one, _ = run("masked-counterfactual", tiny_suite, tmp_path / "one", ALONE)
    with pytest.raises(Interrupted):
        run("masked-counterfactual", tiny_suite, tmp_path / "two", TWO, StopsAt(3))
    assert multiprocessing.active_children() == []
    reporter = StopsAt(6, kills=True)
    killed, _ = run("masked-counterfactual", tiny_suite, tmp_path / "two", TWO, reporter)
    assert killed.status == "failed"
    assert "killed" in killed.error
    assert "exit code -9" in killed.error
    last = StopsAt(-1)
    two, fit = run(
        "masked-counterfactual", tiny_suite, tmp_path / "two", replace(TWO, workers=1), last
    )
    assert (reporter.resumed_at, last.resumed_at) == (
        [3],
        [6],
    ), "what was done before the stop and before the kill is kept"
    assert fit is not None
    assert (two.fit_id, fit.provenance["devices"]) == (one.fit_id, 2)
    for split, metrics in one.metrics.items():
        assert two.metrics[split].nll == pytest.approx(metrics.nll, rel=1e-3)


FAILS_ON_THE_SECOND = """
import torch
from torch.nn import functional as F
from bench import FineTuner
class Fails(FineTuner):
    name = "fails"
    how: str = "nan"
    def loss(self, batch, student, teacher, constants):
        loss = F.cross_entropy(student(batch.images), batch.labels)
        if batch.step == 2 and 0 not in batch.rows:
            if self.how == "nan":
                return loss * float("nan")
            raise ValueError("a bug that only these images meet")
        return loss
"""


@pytest.mark.waits
@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("nan", "Diverged: the loss of fails is nan at step 3"),
        ("bug", "that only these images meet (on device 2 of 2)"),
    ],
)
def test_what_fails_on_one_device_fails_the_run(
    how: str, shown: str, tiny_suite: Path, tmp_path: Path
) -> None:
    method = tmp_path / "fails.py"
    method.write_text(FAILS_ON_THE_SECOND)
    record, fit = run(method, tiny_suite, tmp_path / "store", TWO, how=how)
    assert (record.status, fit) == ("failed", None)
    assert shown in record.error
    assert ("fails.py" in record.traceback) == (how == "bug"), (
        "the other process's traceback is kept"
    )
    assert multiprocessing.active_children() == []


def test_trained_batch_statistics_refuse_several_devices(tiny_suite: Path, tmp_path: Path) -> None:
    record, _ = run("full-finetune", tiny_suite, tmp_path, TWO, norm="train")
    assert "number of devices" in record.error


def test_more_devices_than_there_are() -> None:
    with pytest.raises(UsageError):
        Engine(device="cuda", devices=10**6).apply()


class OnCuda:
    """Stands in for torch.cuda and torch.distributed, and keeps what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requested: list[Any] = []
        monkeypatch.setattr(
            torch.cuda, "set_device", lambda device: self.requested.append(("device", device))
        )
        monkeypatch.setattr(devices.dist, "init_process_group", self._init)
        monkeypatch.setattr(
            devices.dist, "destroy_process_group", lambda: self.requested.append("destroy")
        )
        monkeypatch.setattr(
            devices.dist.distributed_c10d,
            "_abort_process_group",
            lambda: self.requested.append("abort"),
        )

    def _init(
        self, backend: str, *, init_method: str, rank: int, world_size: int, timeout: timedelta
    ) -> None:
        self.requested.append((backend, init_method, rank, world_size))


def test_on_gpus_each_process_takes_its_own_and_flags_go_through_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    four = Engine(device="cuda", devices=4)
    assert [four.on(rank).device for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert replace(four, device="cuda:2", devices=2).on(1).device == "cuda:3"
    cuda = OnCuda(monkeypatch)
    with devices._joined(2, four, tmp_path / "meeting"):
        pass
    # Gloo for what the processes' CPUs say, NCCL for tensors on GPUs, and a file in which they find
    # each other.
    joined = ("cpu:gloo,cuda:nccl", f"file://{tmp_path}/meeting", 2, 4)
    assert cuda.requested == [("device", "cuda:2"), joined, "destroy"]
    cuda.requested.clear()
    with pytest.raises(DeviceLost), devices._joined(0, four, tmp_path / "meeting"):
        raise DeviceLost("a process was killed")
    # Destroying would wait for what the lost process never answers.
    assert cuda.requested[-1] == "abort"
