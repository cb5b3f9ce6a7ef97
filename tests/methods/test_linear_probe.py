"""The probe on cached features: exact against scikit-learn, chosen on id-val, in either solver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from bench.errors import UsageError
from bench.methods import linear_probe
from bench.methods.linear_probe import ABSENT, LinearProbe, regularization_path
from bench.task import Task

from support.towers import CONV, VIT, TinyTask, classifier

GRID = np.logspace(-7, 2, 7)


def features(
    size: int, classes: int = 4, dim: int = 6, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Overlapping classes, far from zero mean and unit variance."""
    random = np.random.default_rng(seed)
    y = np.arange(size) % classes
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return (2.5 + 0.3 * (centres[y] + random.normal(size=(size, dim)))).astype(np.float32), y


def task_of(classes: int = 4, **fields: Any) -> TinyTask:
    return TinyTask(train=features(200, classes), id_val=features(100, classes, seed=1), **fields)


@pytest.mark.parametrize("classes", [2, 4])
def test_mapped_back_weights_equal_the_decision_function_of_scikit_learn(classes: int) -> None:
    x, y = features(200, classes)
    scaled = (x.astype(np.float64) - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    model = LogisticRegression(max_iter=200, tol=1e-5, warm_start=True)
    for c, weight, bias in regularization_path(x, y, classes, GRID, 200):
        model.set_params(C=c).fit(scaled, y)
        logits, expected = x @ weight.T + bias, model.decision_function(scaled)
        if classes == 2:
            np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-8)
            np.testing.assert_allclose(weight[0], -weight[1])
        else:
            np.testing.assert_allclose(logits, expected, atol=1e-8)


def test_one_scalar_scales_all_features() -> None:
    x, y = features(200)
    moved = list(regularization_path(7 * x - 3, y, 4, GRID, 200))
    for (_, weight, bias), (_, w, b) in zip(
        regularization_path(x, y, 4, GRID, 200), moved, strict=True
    ):
        np.testing.assert_allclose((7 * x - 3) @ w.T + b, x @ weight.T + bias, atol=2e-3)


def test_a_class_without_images_is_never_predicted() -> None:
    x, y = features(200)
    y = np.array([0, 2, 3, 5])[y]
    *_, (_, weight, bias) = regularization_path(x, y, 7, GRID, 200)
    assert set(np.argmax(x @ weight.T + bias, axis=1)) <= {0, 2, 3, 5}
    assert bias[1] == bias[4] == bias[6] == ABSENT


def test_a_single_class_is_refused() -> None:
    x, y = features(20)
    with pytest.raises(UsageError):
        list(regularization_path(x, 0 * y, 4, GRID, 200))


@pytest.mark.parametrize("traits", [VIT, CONV], ids=["text", "no text"])
def test_c_is_the_smallest_within_one_standard_error_of_the_best_on_id_val(traits: Any) -> None:
    task = task_of(traits=traits)
    model = LinearProbe(grid=7).bind(traits).fit(cast(Any, task))
    chosen, among = task.chosen["C"]
    assert among == 7
    assert model.head.normalize is traits.text
    (x, y), (x_val, y_val) = task.train, task.id_val
    if traits.text:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        x_val = x_val / np.linalg.norm(x_val, axis=1, keepdims=True)
    path = list(regularization_path(x, y, 4, GRID, 1000))
    right = [int(((x_val @ w.T + b).argmax(axis=1) == y_val).sum()) for _, w, b in path]
    best = max(right)
    within = [
        best - n <= 10 * np.sqrt(best / 100 * (1 - best / 100)) for n in right
    ]  # of 100 images
    assert chosen == path[within.index(True)][0] < path[int(np.argmax(right))][0]
    np.testing.assert_allclose(
        model.head.weight.detach().numpy(), path[within.index(True)][1], rtol=1e-6
    )
    assert best > 50


def test_normalisation_follows_the_text_tower_unless_it_is_named() -> None:
    assert LinearProbe().bind(VIT).normalize is True
    assert LinearProbe().bind(CONV).normalize is False
    assert LinearProbe(normalize=False).bind(VIT).normalize is False
    adamw = LinearProbe(solver="adamw")
    assert (adamw.bind(VIT).head_init, adamw.bind(CONV).head_init) == (
        "zero-shot",
        "native",
    )
    assert LinearProbe().bind(VIT).bind(VIT) == LinearProbe().bind(VIT)


@pytest.mark.parametrize("schedule", ["one-cycle", "warmup-cosine"])
def test_the_gradient_recipe_learns_from_the_starting_head_and_repeats_exactly(
    schedule: Any,
) -> None:
    method = LinearProbe(solver="adamw", lr=0.3, epochs=6, batch_size=32, schedule=schedule).bind(
        VIT
    )
    tasks = [task_of(), task_of()]
    heads = [method.fit(cast(Any, task)).head for task in tasks]
    assert tasks[0].started == ["zero-shot"]
    assert tasks[0].chosen["epoch"][1] == 6
    assert torch.equal(heads[0].weight, heads[1].weight)
    x, y = (torch.from_numpy(part) for part in tasks[0].id_val)
    before, after = (
        float((head(x).argmax(dim=1) == y).float().mean()) for head in (classifier().head, heads[0])
    )
    assert after > before + 0.1


def test_a_batch_larger_than_the_training_set_is_one_step_per_epoch() -> None:
    task = task_of()
    LinearProbe(solver="adamw", epochs=2).bind(VIT).fit(cast(Any, task))
    assert task.chosen["epoch"][1] == 2


def test_on_a_device_the_same_minimum_is_found_on_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = features(200)
    y = np.array([0, 2, 3, 5])[y]  # classes without an image, too
    usual = list(regularization_path(x, y, 7, GRID, 200))
    monkeypatch.setattr(linear_probe, "LARGE", 0)
    monkeypatch.setattr(linear_probe, "_on_one_core", None)
    solver = linear_probe._on_device
    monkeypatch.setattr(
        linear_probe, "_on_device", lambda *given: solver(*given[:-1], "cpu", chunk=64)
    )
    found = list(regularization_path(x, y, 7, GRID, 200, device="cuda"))
    for (c, weight, bias), (also, w, b) in zip(usual, found, strict=True):
        assert c == also
        np.testing.assert_allclose(w, weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(b, bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        # Of 1000 images, the standard error of 0.833 is 0.0118: 0.8212 is enough.
        ([0.78, 0.821, 0.822, 0.83, 0.833, 0.82], 2),
        ([0.78, 0.8213, 0.822, 0.83, 0.833, 0.82], 1),
        ([0.833, 0.833, 0.83], 0),
        ([0.5, 1.0, 1.0], 1),  # nothing is within an error of 0 but the best
    ],
)
def test_one_standard_error_below_the_best_is_enough(scores: list[float], chosen: int) -> None:
    task = object.__new__(Task)
    task.selection = {}
    task._images = lambda split: range(1000)  # type: ignore
    assert (
        task.choose("C", [(at, score, 0.0) for at, score in enumerate(scores)], one_se=True)
        == chosen
    )
    assert task.selection["C"]["best_id_val"] == max(scores)
    assert task.choose("C", [(at, score, 0.0) for at, score in enumerate(scores)]) == scores.index(
        max(scores)
    )


_PATH = """
import json
import numpy as np
from bench.methods.linear_probe import regularization_path

random = np.random.default_rng(5)
centres = random.normal(size=(5, 24))


def images(size):
    y = np.arange(size) % 5
    return (centres[y] + 2.5 * random.normal(size=(size, 24))).astype(np.float32), y


(x, y), (x_val, _) = images(400), images(300)
path = regularization_path(x, y, 5, np.logspace(-4, 2, 15), 1000)
print(json.dumps([(x_val @ weight.T + bias).argmax(axis=1).tolist() for _, weight, bias in path]))
"""


@pytest.mark.slow
def test_two_kinds_of_processor_predict_the_same_for_every_c() -> None:
    """With the arithmetic that OpenBLAS takes on an old and on a newer processor, a process
    each.
    """
    found = []
    for kind in ("Nehalem", "Haswell"):
        process = subprocess.run(
            [sys.executable, "-c", _PATH],
            env=os.environ | {"OPENBLAS_CORETYPE": kind, "ATEN_CPU_CAPABILITY": "default"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(np.array(json.loads(process.stdout)))
    assert found[0].shape == (15, 300)
    assert len(np.unique(found[0], axis=0)) > 5  # the heads of the path differ
    assert (found[0] != found[1]).mean(axis=1).max() <= 1 / 300
