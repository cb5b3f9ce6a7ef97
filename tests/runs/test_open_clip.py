"""A small open_clip ViT of random weights through every method, and every mask with every fill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import bench
from bench.engine import Engine
from bench.results.store import Store

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that open_clip takes for a model, with random weights in it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip") / "model"
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=24, vision_cfg=CONFIG["vision_cfg"], text_cfg=CONFIG["text_cfg"]
    )  # type: ignore[arg-type]
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}})
    )
    return f"open_clip:{folder}"


METHODS = (
    "zero-shot",
    "linear-probe",
    "full-finetune",
    "lp-ft",
    "wise-ft",
    "feature-distillation",
    "masked-counterfactual",
)


@pytest.mark.slow
def test_every_method(backbone: str, tiny_suite: Path, tmp_path: Path) -> None:
    records = bench.run(
        *METHODS,
        suite=str(tiny_suite),
        backbone=backbone,
        store=tmp_path,
        engine=Engine(threads=1),
        set={},
    )
    assert {record.method["name"]: record.status for record in records} == dict.fromkeys(
        METHODS, "done"
    )
    for record in records:
        assert all(math.isfinite(metrics.nll) for metrics in record.metrics.values())
    # With a text tower, fine-tuning starts from the zero-shot head, and wise-ft reuses that very
    # fit.
    finetune, wise = records[2], records[4]
    assert finetune.method["parameters"]["head_init"] == "zero-shot"
    fit = Store(tmp_path).fit(wise.fit_id)
    assert fit is not None
    assert finetune.fit_id in fit.nested


@pytest.mark.parametrize("fill", ["none", "single", "multi"])
@pytest.mark.parametrize("mask", ["object", "context", "random"])
def test_every_mask_and_fill(
    mask: str, fill: str, backbone: str, tiny_suite: Path, tmp_path: Path
) -> None:
    (record,) = bench.run(
        "masked-counterfactual",
        suite=str(tiny_suite),
        backbone=backbone,
        store=tmp_path,
        engine=Engine(threads=1),
        set={"mask": mask, "fill": fill},
    )
    assert record.status == "done", record.error
    fit = Store(tmp_path).fit(record.fit_id)
    assert fit is not None
    assert all(math.isfinite(epoch["loss"]) for epoch in fit.history)
    assert fit.facts["teacher_ms"] > 0


@pytest.mark.slow
def test_wise_ft_of_an_end_is_that_end(backbone: str, tiny_suite: Path, tmp_path: Path) -> None:
    def metrics(method: str, **values: object) -> object:
        return bench.run(
            method,
            suite=str(tiny_suite),
            backbone=backbone,
            store=tmp_path,
            engine=Engine(threads=1),
            set=values,
        )[0].metrics

    assert metrics("wise-ft", alpha=0) == metrics("zero-shot")
    assert metrics("wise-ft", alpha=1) == metrics("full-finetune")


def test_map_equals_the_full_matrix_rollout(backbone: str) -> None:
    """Recipe of Chefer et al. (2021) with whole L x L products in double precision, on the
    open_clip tower itself.
    """
    import torch

    from bench.backbones.backbone import Head, load_backbone
    from bench.classifier import Classifier
    from bench.methods.cam import attention_rollout

    generator = torch.Generator().manual_seed(0)
    tower = load_backbone(backbone).image_tower()
    classifier = Classifier(
        tower, Head(100 * torch.randn(3, tower.dim, generator=generator), normalize=True)
    )
    logits, _, maps = classifier.explain(torch.rand(4, 3, 32, 32, generator=generator))
    score = logits[torch.arange(4), torch.tensor([0, 1, 2, 0])].sum()
    gradients = torch.autograd.grad(score, maps, retain_graph=True)
    rollout = torch.eye(maps[0].shape[-1], dtype=torch.float64).expand(4, -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        rollout = (
            rollout
            + (attention.double() * gradient.double()).clamp(min=0).mean(dim=1).detach() @ rollout
        )
    expected = rollout[:, 0, 1:]
    assert expected.max() > 0
    torch.testing.assert_close(
        attention_rollout(score, maps).double(), expected, rtol=1e-5, atol=1e-5
    )
