"""What a masked-counterfactual step costs against a full fine-tuning step (ViT-B/32, batch 32,
random weights), interleaved.

Run with `make perf`. It asserts nothing about time; it prints seconds, ratios and where the time
goes.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import numpy as np
import pytest
import torch

from bench.backbones.backbone import Head, load_backbone
from bench.classifier import Classifier
from bench.configure import build_method
from bench.engine import Engine
from bench.method import FineTuner, Traits
from bench.training.devices import Ranks
from bench.training.step import TrainState

pytestmark = pytest.mark.perf

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full-finetune": ("full-finetune", {}),
    "feature-distillation": ("feature-distillation", {}),
    "object, single fill": ("masked-counterfactual", {}),
    "random, single fill": ("masked-counterfactual", {"mask": "random"}),
    "random .75, no fill": ("masked-counterfactual", {"mask": "random", "fill": "none"}),
    "object, no fill": ("masked-counterfactual", {"fill": "none"}),
}


def test_step_cost() -> None:
    threads, batch, rounds = (
        int(os.environ.get("BENCH_PERF_THREADS", "2")),
        32,
        int(os.environ.get("BENCH_PERF_ROUNDS", "5")),
    )
    engine = Engine(threads=threads)
    engine.apply()
    backbone = load_backbone("open_clip:ViT-B-32-quickgelu@random")
    tower = backbone.image_tower()
    generator = torch.Generator().manual_seed(0)
    start = Classifier(
        tower, Head(torch.randn(1000, tower.dim, generator=generator), normalize=True)
    )
    pool = torch.randint(0, 256, (batch, 3, 224, 224), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 1000, (batch,), generator=generator)
    cases: dict[str, FineTuner] = {}
    chosen = os.environ.get("BENCH_PERF_CASES", "")
    for name, (method_name, values) in CASES.items():
        if chosen and name not in chosen.split(";"):
            continue
        method = build_method(method_name, {"lr": 1e-8, **values}).bind(
            Traits(text=True, native=False, layout="vit")
        )
        assert isinstance(method, FineTuner)
        cases[name] = method
    # One learner for all cases, as one training has: its moments are twice the weights.
    first = next(iter(cases.values()))
    train_state = TrainState(
        start, first, total=100, seed=0, constants={"teacher_ms": 1.0}, engine=engine, ranks=Ranks()
    )

    def step(name: str) -> None:
        train_state.method = cases[name]
        train_state.step(pool, labels, 0)

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name in cases:
            begin = time.perf_counter()
            step(name)
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    base = float(np.median(seconds["full-finetune"]))
    print(f"\n{threads} threads, batch {batch}, {rounds} interleaved rounds, medians")
    for name, times in seconds.items():
        middle = np.median(times)
        print(
            f"{name:24s} {middle:6.2f} s  ({min(times):.2f} - {max(times):.2f}) "
            f" {middle / base:.2f} x full-finetune"
        )
    print(
        f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step("object, single fill")
    print(
        profile.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40
        )
    )
    assert all(np.isfinite(times).all() for times in seconds.values())
