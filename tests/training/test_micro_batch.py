"""How much of a batch a CPU takes at a time: by the backbone and its pixels alone, and less where
memory is short.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.backbones import mini_clip
from bench.backbones.backbone import Head, ImageTower, load_backbone
from bench.classifier import Classifier
from bench.engine import Engine
from bench.errors import MissingPrerequisite
from bench.methods.full_finetune import FullFinetune
from bench.results.store import Store
from bench.training import memory
from bench.training.memory import (
    StepMemory,
    default_part,
    fitting_part,
    saved_for_backward,
    step_memory,
)

from support.runs import StopsAtStepThree

ENGINE = Engine(threads=1)
GIB = 2**30


class Wide(ImageTower):
    """Keeps `width` numbers of four bytes for each image: what the ReLU gives, which the second
    layer works on.
    """

    grid, layout = (1, 1), "conv"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = 3
        self.first, self.second = nn.Linear(12, width), nn.Linear(width, 3)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        features: Tensor = self.second(self.first(images.flatten(1)).relu())
        return features

    def explain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError


def test_what_is_saved_for_the_backward_pass_is_counted_once_and_without_weights() -> None:
    tower = Wide(1000)
    images = torch.rand(2, 3, 2, 2)
    # The flattened images share the images' storage: 2 x 12 numbers; the ReLU's result is kept by
    # both layers: 2 x 1000.
    assert saved_for_backward(lambda: tower(images), tower) == 4 * (2 * 12 + 2 * 1000)


@pytest.mark.parametrize(("width", "part"), [(2**20, 128), (2**22, 32), (2**28, 1), (2**30, 1)])
def test_the_part_is_the_largest_power_of_two_whose_activations_take_a_gibibyte(
    width: int, part: int
) -> None:
    with torch.device("meta"):
        tower = Wide(width)
    real = torch.full

    def on_meta(*arguments: Any, **options: Any) -> Tensor:
        return real(*arguments, **options, device="meta")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "full", on_meta)
        # Of nothing there is no address.
        patch.setattr(torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata)
        assert default_part(tower, 2) == part


def test_the_embedded_default_and_pacs_take_their_batches_whole() -> None:
    """64 and 32 images: their published fits keep their bits."""
    assert default_part(load_backbone("mini-clip").image_tower(), mini_clip.IMAGE_SIZE) == 512
    assert (
        default_part(load_backbone("timm:tf_efficientnet_lite0@random?size=128").image_tower(), 128)
        == 32
    )


def test_a_step_takes_its_copies_of_the_weights_and_what_its_loss_keeps() -> None:
    start = Classifier(Wide(1000), Head(torch.zeros(4, 3), normalize=False))
    found = step_memory(FullFinetune(batch_size=100), start, 2)
    weights = 4 * (12 * 1000 + 1000 + 1000 * 3 + 3 + 4 * 3 + 4)
    assert found.fixed == 6 * weights + 104 * 12 + 128 * 2**20
    # An image and its features, what the ReLU keeps, and of the loss: log-probabilities, the label,
    # and a weight for both.
    assert found.image * 2 == pytest.approx(1.35 * (2 * 4 * (12 + 1000 + 3 + 4) + 2 * 8 + 4), abs=2)


def test_memory_only_lowers_the_part() -> None:
    takes = StepMemory(fixed=GIB, image=2**24)
    method = FullFinetune()
    assert fitting_part(method, takes, 32, 100 * GIB) == 32
    assert fitting_part(method, takes, 32, GIB + 32 * 2**24) == 32
    assert fitting_part(method, takes, 32, GIB + 31 * 2**24) == 16
    assert fitting_part(method, takes, 32, GIB + 2**24) == 1
    with pytest.raises(MissingPrerequisite, match=r"needs about 1.1 GB .* 1.1 GB are free"):
        fitting_part(method, takes, 32, GIB)


def test_what_must_stay_whole_does_or_is_refused_with_the_number() -> None:
    takes = StepMemory(fixed=GIB, image=2**24)
    method = FullFinetune(norm="train")
    assert memory.wanted_part(method, 512, 32, None) == 512
    assert fitting_part(method, takes, 512, 9 * GIB) == 512
    with pytest.raises(
        MissingPrerequisite,
        match=r"9.7 GB .* for 512 images at a time .* 9.6 GB are free",
    ):
        fitting_part(method, takes, 512, int(8.9 * GIB))

    class FromAFile(FullFinetune):
        source_sha256 = "f" * 64

    assert memory.wanted_part(FromAFile(), 512, 32, None) == 512
    assert memory.wanted_part(FromAFile(), 512, 32, 4) == 4, "asked for"
    assert memory.wanted_part(FullFinetune(), 512, 32, None) == 32
    assert memory.wanted_part(FullFinetune(), 24, 32, None) == 24


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine whose free memory is what stands in the list."""
    free = [100 * GIB]
    monkeypatch.setattr("bench.task.available", lambda: free[0])
    monkeypatch.setattr("bench.task.step_memory", lambda *given: StepMemory(fixed=GIB, image=GIB))
    return free


@pytest.mark.slow
def test_a_fit_says_what_it_took_and_why(
    tiny_suite: Path, tmp_path: Path, short: list[int]
) -> None:
    def fit(free: int, store: str) -> tuple[Any, dict[str, float]]:
        short[0] = free
        (run,) = bench.run(
            "full-finetune", suite=str(tiny_suite), store=tmp_path / store, engine=ENGINE
        )
        assert run.status == "done", run.error
        record = Store(tmp_path / store).fit(run.fit_id)
        assert record is not None
        return record, {name: metrics.score for name, metrics in run.metrics.items()}

    whole, scores = fit(100 * GIB, "roomy")
    parts, same = fit(4 * GIB, "short")
    assert (whole.micro_batch, whole.retries) == (None, [])
    assert (parts.micro_batch, parts.retries) == (2, [{"step": 0, "micro_batch": 2}])
    assert whole.fit_id == parts.fit_id
    assert scores == same


def test_a_fit_for_which_memory_does_not_suffice_is_a_failed_row(
    tiny_suite: Path, tmp_path: Path, short: list[int]
) -> None:
    short[0] = GIB
    (run,) = bench.run("full-finetune", suite=str(tiny_suite), store=tmp_path, engine=ENGINE)
    assert run.status == "failed"
    assert "full-finetune needs about 2.1 GB" in run.error
    assert "1.1 GB are free" in run.error


def test_a_fit_goes_on_with_the_parts_that_it_began_with(
    tiny_suite: Path, tmp_path: Path, short: list[int]
) -> None:
    def run(reporter: Any) -> Any:
        return bench.run(
            "full-finetune", suite=str(tiny_suite), store=tmp_path, engine=ENGINE, reporter=reporter
        )

    short[0] = 5 * GIB
    with pytest.raises(bench.errors.Interrupted):
        run(StopsAtStepThree())
    short[0] = 100 * GIB
    (record,) = run(None)
    fit = Store(tmp_path).fit(record.fit_id)
    assert fit is not None
    assert fit.retries == [{"step": 0, "micro_batch": 4}]


def group(folder: Path, limit: str, usage: str, stat: str = "", version: int = 2) -> None:
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, usage, stat), strict=True):
        (folder / name).write_text(text + "\n")


def test_limits_of_control_groups_count_wherever_they_stand(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("0::/user.slice/job\n")
    group(root / "user.slice/job", "max", "100")
    group(root / "user.slice", "1000", "300", "anon 5\ninactive_file 50")
    assert memory._cgroups(membership, root) == [750]
    membership.write_text("3:memory:/docker/abc\n2:cpu,cpuacct:/x\n")
    group(root / "memory", "9223372036854771712", "1", version=1)
    assert memory._cgroups(membership, root) == []
    # As a container sees its own group.
    group(root / "memory", "800", "300", "total_inactive_file 10", version=1)
    assert memory._cgroups(membership, root) == [510]
    assert memory._cgroups(tmp_path / "none", root) == []


@pytest.mark.slow
def test_a_limit_of_the_shell_counts() -> None:
    program = (
        "import resource; from bench.training.memory import available; import psutil, json;used ="
        " psutil.Process().memory_info().data; resource.setrlimit(resource.RLIMIT_DATA, (used +"
        " 2**28,) * 2);print(json.dumps(available()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 0.9 * 2**28 < json.loads(done.stdout) <= 2**28
