"""What a user meets when a backbone whose accuracy is published has something wrong with it: the
run fails and says what.

Labels are what the right model predicts, so that its accuracy is 100 %; the wrong ones are the same
weights with one mistake.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench.backbones.backbone import load_backbone, zero_shot_head
from bench.engine import Engine
from bench.results.record import RunRecord

from support.messages import states

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = ("cat", "dog", "bird", "fish")
CARD = """
name = "{name}"
title = "What the right model sees"
licence = "CC0"
classes = ["cat", "dog", "bird", "fish"]
{folders}
[id]
path = "mirrored"
val_fraction = 0.1
test_fraction = 0.1
[[shifts]]
name = "again"
path = "images"
count = {count}
[[known]]
backbones = ["{backbone}"]
source = "the right model"
accuracy = {{ again = 1.0 }}
"""


def saved(
    state: dict[str, torch.Tensor],
    folder: Path,
    config: dict[str, Any],
    preprocessing: dict[str, Any],
) -> str:
    """A folder that open_clip takes for a model."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    )
    return f"open_clip:{folder}"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights to which the activation matters, and whose features do not all point the same
    way.
    """
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16, vision_cfg=CONFIG["vision_cfg"], text_cfg=CONFIG["text_cfg"], quick_gelu=True
    ).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("c_fc.bias"):
            tensor -= 1
        if name.startswith("visual") and name.endswith("c_proj.weight"):
            tensor *= 30
    with torch.no_grad():
        common = model.encode_image(torch.randn(500, 3, 32, 32)).mean(dim=0)
        state["visual.proj"] -= (
            state["visual.proj"] @ torch.outer(common, common) / common.dot(common)
        )
    return state


@pytest.fixture(scope="module")
def folder(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, each below the class that the right model sees in it, and what they are in a mirror,
    to train on.
    """
    folder = tmp_path_factory.mktemp("guard")
    right = load_backbone(saved(weights, folder / "right", CONFIG, {}))
    text = right.text_tower()
    assert text is not None
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (400, 4, 4, 3), dtype=np.uint8)
    images = np.stack(
        [
            np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC))
            for one in coarse
        ]
    )
    with torch.inference_mode():
        features = right.image_tower()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        seen = zero_shot_head(text, CLASSES, ["a photo of a {}."])(features).argmax(dim=1)
    for number, label in enumerate(seen.tolist()):
        for name, image in (("images", images[number]), ("mirrored", images[number, :, ::-1])):
            place = folder / name / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.png")
    return folder


def run(folder: Path, backbone: str, name: str, store: Path, folders: str = "") -> RunRecord:
    source = f'[source]\nkind = "folder"\nroot = "."\n{folders}'
    card = folder / f"{name}.toml"
    card.write_text(CARD.format(name=name, folders=source, count=400, backbone=backbone))
    (record,) = bench.run(
        "zero-shot", suite=str(card), backbone=backbone, store=store, engine=Engine(threads=1)
    )
    return record


@pytest.mark.slow
def test_the_right_model_passes(folder: Path, tmp_path: Path) -> None:
    record = run(folder, f"open_clip:{folder}/right", "right", tmp_path)
    assert (record.status, record.metrics["again"].accuracy) == ("done", 1.0)


@pytest.mark.slow
def test_gelu_where_the_weights_want_quickgelu(
    folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    gelu = saved(weights, tmp_path / "gelu", CONFIG | {"quick_gelu": False}, {})
    record = run(folder, gelu, "gelu", tmp_path / "store")
    assert record.status == "failed"
    assert states(record.error, "QuickGELU", "100.0 %", "400 images")


@pytest.mark.slow
def test_another_mean_and_standard_deviation(
    folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    half = saved(weights, tmp_path / "half", CONFIG, {"mean": [0.5] * 3, "std": [0.2] * 3})
    record = run(folder, half, "half", tmp_path / "store")
    assert record.status == "failed"
    assert states(record.error, "preprocessing", "OpenAI CLIP", "100.0 %", "400 images")


def test_class_folders_under_other_names(folder: Path, tmp_path: Path) -> None:
    record = run(
        folder,
        f"open_clip:{folder}/right",
        "order",
        tmp_path,
        'folders = ["dog", "bird", "cat", "fish"]',
    )
    assert record.status == "failed"
    assert "the class order is wrong: 100.0 % are correct" in record.error
    assert (
        "images labelled 0 are recognised as 1, 1 are recognised as 2, 2 are recognised as 0"
        in record.error
    )
