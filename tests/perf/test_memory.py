"""Memory on a CPU: what a step takes against what is expected, and every shipped suite under
limits. A table each (-s).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data.cards.inheritance import suite_names
from bench.data.cards.suite_card import find_card

pytestmark = pytest.mark.perf

MEASURE = """
import json, resource, sys
import psutil, torch
from bench.backbones.backbone import Head
from bench.classifier import Classifier
from bench.method import Traits
from bench.configure import build_method
from bench.backbones.backbone import load_backbone
from bench.training.devices import Ranks
from bench.engine import Engine
from bench.training.memory import default_part, step_memory
from bench.training.step import Learner

name, of, part = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
backbone = load_backbone(name)
tower, side = backbone.image_tower(), backbone.pixels.size
part = part or default_part(tower, side)
traits = Traits(text=True, native=False, layout=tower.layout)
method = build_method(of, {"batch_size": max(2, part)}).bind(traits)
start = Classifier(tower, Head(torch.randn(100, tower.dim), normalize=True))
expected = step_memory(method, start, side).of(part)
before = psutil.Process().memory_info().rss
engine, constants = Engine(threads=1, micro_batch=part), {"teacher_ms": 1.0}
learner = Learner(start, method, total=2, seed=0, constants=constants, engine=engine, ranks=Ranks())
for step in range(2):
    images = torch.randint(0, 256, (method.batch_size, 3, side, side), dtype=torch.uint8)
    learner.step(images, torch.zeros(method.batch_size, dtype=torch.int64), step)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([part, expected, peak - before]))
"""

TOWERS = [
    "mini-clip",
    "timm:tf_efficientnet_lite0@random?size=128",
    "timm:resnet18@random",
    "open_clip:ViT-B-32@random",
]


@pytest.mark.parametrize(
    "method", ["full-finetune", "feature-distillation", "masked-counterfactual"]
)
@pytest.mark.parametrize("backbone", TOWERS)
def test_a_step_takes_about_what_is_expected(backbone: str, method: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, backbone, method, "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    part, expected, measured = json.loads(done.stdout.splitlines()[-1])
    print(
        f"| {backbone} | {method} | {part} | {expected / 2**20:.0f} | {measured / 2**20:.0f} |"
        f" {measured / expected:.2f} |"
    )
    assert 0.3 < measured / expected < 1.1


def standin(name: str, folder: Path) -> Path:
    """A suite with the classes and the recipe of a shipped one, 600 training images or two of each
    class, all of them noise.
    """
    card = find_card(name)[0]
    random = np.random.default_rng(0)
    counts = {
        "train": max(600, 2 * len(card.classes)),
        "val": len(card.classes),
        "test": len(card.classes),
    }
    for part, count in {**counts, "shift": len(card.classes)}.items():
        for number in range(count):
            path = folder / "images" / part / f"c{number % len(card.classes):04d}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize(
                (140, 140)
            ).save(path)
    names = json.dumps([f"c{number:04d}" for number in range(len(card.classes))])
    recipe = "\n".join(
        f"{key} = {json.dumps(value)}"
        for key, value in card.recipe.items()
        if not isinstance(value, dict)
    )
    path = folder / "card.toml"
    path.write_text(
        f'name = "standin"\ntitle = "{name}"\nlicence = "CC0-1.0"\ncitation = "none"\nget ='
        f' "none"\nclasses = {names}\ntemplates = ["a {{}}"]\nmetric = "accuracy"\n[source]\nkind ='
        ' "folder"\nroot = "images"\n[id]\ntrain = "train"\nval = "val"\ntest ='
        f' "test"\n[[shifts]]\nname = "shift"\npath = "shift"\n[recipe]\n{recipe}\n'
    )
    return path


@contextlib.contextmanager
def limit(count: int) -> Iterator[tuple[str, Callable[[], None], Callable[[], int]]]:
    """How memory is limited, what a process calls to come under it, and the kills so far: a control
    group, else RLIMIT_DATA.
    """
    group = Path("/sys/fs/cgroup/memory") / f"bench-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(count))
    except OSError:
        yield (
            "RLIMIT_DATA",
            lambda: resource.setrlimit(resource.RLIMIT_DATA, (count, count)),
            lambda: 0,
        )
        return
    try:

        def kills() -> int:
            return int((group / "memory.oom_control").read_text().rpartition("oom_kill ")[2])

        yield "cgroup", lambda: (group / "tasks").write_text(str(os.getpid())) and None, kills
    finally:
        group.rmdir()


def is_rendered(name: str) -> bool:
    source = find_card(name)[0].source
    return source is not None and source.kind == "rendered"


def kinds() -> dict[str, list[str]]:
    """The shipped suites that differ in nothing that memory depends on, by the first of them."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name in suite_names():
        card = find_card(name)[0]
        size = card.source.options["train_size"] if is_rendered(name) else ""
        what = f"{len(card.classes)} {size} {sorted(card.recipe.items())}"
        found.setdefault(what, (name, []))[1].append(name)
    return dict(found.values())


@pytest.mark.parametrize("gigabytes", [2, 4, 8])
@pytest.mark.parametrize("name", kinds())
@pytest.mark.timeout(1800)
def test_every_suites_smallest_backbone_trains_or_is_refused(
    name: str, gigabytes: int, tmp_path: Path
) -> None:
    rendered = is_rendered(name)
    suite = name if rendered else str(standin(name, tmp_path))
    backbone = "mini-clip" if rendered else "timm:tf_efficientnet_lite0@random?size=128"
    command = [
        sys.executable,
        "-m",
        "bench.cli",
        "run",
        "full-finetune",
        "--suite",
        suite,
        "--backbone",
        backbone,
    ]
    command += [
        "--set",
        "epochs=1",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--store",
        str(tmp_path),
        "--format",
        "json",
    ]
    command += [] if rendered else ["--data-root", str(tmp_path)]
    with limit(gigabytes * 10**9) as (how, enter, kills):
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)
        killed = kills()
    (record,) = json.loads(done.stdout)["runs"]
    peak, why = (
        record["peak_memory_mb"] or 0.0,
        (record["error"].splitlines()[0] if record["error"] else ""),
    )
    lowered = [line for line in done.stderr.splitlines() if "images at a time instead of" in line]
    print(
        f"| {', '.join(kinds()[name])} | {gigabytes} GB, {how} | {record['status']} | {peak:.0f} |"
        f" {''.join(lowered) or why} |"
    )
    assert killed == 0
    assert record["status"] == "done" or "GiB are free" in why
