"""What a masked-counterfactual step costs against a full fine-tuning step (ViT-B/32, batch 32, random weights), interleaved.

Run with `make perf`. It asserts nothing about time; it prints seconds, ratios and where the time goes.
"""

from __future__ import annotations

import copy
import os
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from bench.backbones.backbone import Head
from bench.classifier import Classifier
from bench.method import FineTuner, Traits
from bench.plugins import build_method, load_backbone
from bench.training.engine import Engine
from bench.training.loop import take_step

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
    threads, batch, rounds = int(os.environ.get("BENCH_PERF_THREADS", "2")), 32, int(os.environ.get("BENCH_PERF_ROUNDS", "5"))
    engine = Engine(threads=threads)
    engine.apply()
    backbone = load_backbone("open_clip:ViT-B-32-quickgelu@random")
    tower = backbone.image_tower()
    generator = torch.Generator().manual_seed(0)
    start = Classifier(tower, Head(torch.randn(1000, tower.dim, generator=generator), normalize=True))
    pool = torch.randint(0, 256, (batch, 3, 224, 224), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 1000, (batch,), generator=generator)
    steps: dict[str, Callable[[], object]] = {}
    teacher = copy.deepcopy(start).requires_grad_(False)
    student = copy.deepcopy(start).train()
    # One optimiser for all cases, as one training has: its moments are twice the weights.
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-8)
    chosen = os.environ.get("BENCH_PERF_CASES", "")
    for name, (method_name, values) in CASES.items():
        if chosen and name not in chosen.split(";"):
            continue
        method = build_method(method_name, values).resolved(Traits(text=True, native=False, layout="vit"))
        assert isinstance(method, FineTuner)
        constants: Mapping[str, float] = {"teacher_ms": 1.0}
        steps[name] = lambda m=method, c=constants: take_step(student, teacher, optimizer, m, pool, labels, 0, 0, c, engine)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    base = float(np.median(seconds["full-finetune"]))
    print(f"\n{threads} threads, batch {batch}, {rounds} interleaved rounds, medians")
    for name, times in seconds.items():
        middle = np.median(times)
        print(f"{name:24s} {middle:6.2f} s  ({min(times):.2f} - {max(times):.2f})  {middle / base:.2f} x full-finetune")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        steps["object, single fill"]()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    assert all(np.isfinite(times).all() for times in seconds.values())
