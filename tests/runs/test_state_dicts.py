"""State dicts as training code saves them: wrapped, averaged, under other names; the logits are
those of the bare model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import bench
from bench.errors import BenchError
from bench.run_spec import run_spec

from support.foreign_checkpoints import (
    CLASSES,
    CLIP,
    ModelWrapper,
    agrees,
    head_weights,
    loaded,
    zero_shot,
)

TIMM = "timm:test_resnet@random"


def wrapped(state: dict[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    """With the wrapper's name before everything, and once more before every projection."""
    return {
        f"{wrapper}.{name}".replace(".c_fc.", f".{wrapper}.c_fc."): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"]
)
def test_names_of_wrappers_anywhere(
    wrapper: str, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    theirs = ModelWrapper(tuned, head_weights()).eval()
    state = {
        f"module.{name}": tensor for name, tensor in wrapped(theirs.state_dict(), wrapper).items()
    }
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    external, _ = loaded(tmp_path / "a.pt", tiny_suite, backbone, tmp_path)
    assert (external.format, external.key) == ("model-soups", "")
    agrees(external, theirs)


@pytest.mark.parametrize("whole", [True, False])
def test_an_averaged_model_of_torch(
    whole: bool, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    averaged = AveragedModel(ModelWrapper(tuned, head_weights()).eval())
    torch.save(averaged if whole else averaged.state_dict(), tmp_path / "swa.pt")
    agrees(loaded(tmp_path / "swa.pt", tiny_suite, backbone, tmp_path)[0], averaged.module)


def test_numbers_that_openai_s_models_carry_along(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    facts = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(16),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(tuned.state_dict() | facts, tmp_path / "clip.pt")
    agrees(loaded(tmp_path / "clip.pt", tiny_suite, backbone, tmp_path)[0], zero_shot(tuned))


def test_two_tensors_of_one_name(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    state = tuned.state_dict()
    torch.save(state | {"module.visual.proj": state["visual.proj"]}, tmp_path / "clip.pt")
    with pytest.raises(BenchError, match=r"two of its tensors are called visual\.proj"):
        loaded(tmp_path / "clip.pt", tiny_suite, backbone, tmp_path)


def as_hugging_face(model: CLIP) -> dict[str, Tensor]:
    """The state dict of transformers' CLIPModel with these weights."""
    made: dict[str, Tensor] = {
        "logit_scale": model.logit_scale,
        "visual_projection.weight": model.visual.proj.T,
        "text_projection.weight": model.text_projection.T,
        "vision_model.embeddings.class_embedding": model.visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": model.visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": model.visual.positional_embedding,
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
    }
    modules: dict[str, Any] = {
        "vision_model.pre_layrnorm": model.visual.ln_pre,
        "vision_model.post_layernorm": model.visual.ln_post,
        "text_model.final_layer_norm": model.ln_final,
    }
    for kind, transformer in (("vision", model.visual.transformer), ("text", model.transformer)):
        for number, block in enumerate(transformer.resblocks):
            place = f"{kind}_model.encoder.layers.{number}"
            for part, weight, bias in zip(
                "qkv",
                block.attn.in_proj_weight.chunk(3),
                block.attn.in_proj_bias.chunk(3),
                strict=True,
            ):
                made |= {
                    f"{place}.self_attn.{part}_proj.weight": weight,
                    f"{place}.self_attn.{part}_proj.bias": bias,
                }
            modules |= {f"{place}.self_attn.out_proj": block.attn.out_proj}
            modules |= {f"{place}.layer_norm1": block.ln_1, f"{place}.layer_norm2": block.ln_2}
            modules |= {f"{place}.mlp.fc1": block.mlp.c_fc, f"{place}.mlp.fc2": block.mlp.c_proj}
    for name, module in modules.items():
        made |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in made.items()
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_hugging_face_s_clip(
    suffix: str, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    state = as_hugging_face(tuned)
    (
        save_file(state, tmp_path / "model.safetensors")
        if suffix == ".safetensors"
        else torch.save(state, tmp_path / "model.bin")
    )
    external, _ = loaded(tmp_path / f"model{suffix}", tiny_suite, backbone, tmp_path)
    assert external.format == "Hugging Face"
    agrees(external, zero_shot(tuned))


@pytest.fixture
def best() -> tuple[Any, Any]:
    """A timm model on the suite's own classes, and its average."""
    torch.manual_seed(5)
    return tuple(
        timm.create_model("test_resnet", num_classes=len(CLASSES)).eval() for _ in range(2)
    )


def save(best: tuple[Any, Any], path: Path) -> Path:
    """As timm's training script does."""
    last, average = (model.state_dict() for model in best)
    about = {
        "epoch": 3,
        "arch": "test_resnet",
        "optimizer": {"state": {}},
        "version": 2,
        "args": argparse.Namespace(lr=0.1),
        "metric": 7.0,
    }
    torch.save({**about, "state_dict": last, "state_dict_ema": average}, path)
    return path


@pytest.mark.parametrize("averaged", [True, False])
def test_timm_s_best_model(
    averaged: bool, best: tuple[Any, Any], tiny_suite: Path, tmp_path: Path
) -> None:
    path = save(best, tmp_path / "model_best.pth.tar")
    spec = run_spec({"methods": ("external",), "suite": str(tiny_suite), "backbone": TIMM})
    record = bench.evaluate(path, spec, name="best", averaged=averaged, store=tmp_path / "store")
    assert (record.status, record.source_format) == ("done", "timm")
    assert record.method["parameters"]["state"] == ("state_dict_ema" if averaged else "state_dict")


@torch.no_grad()
def test_the_logits_of_timm_s_best_model(
    best: tuple[Any, Any], tiny_suite: Path, tmp_path: Path
) -> None:
    external, warnings = loaded(
        save(best, tmp_path / "model_best.pth.tar"), tiny_suite, TIMM, tmp_path
    )
    images = torch.rand(4, 3, 160, 160)
    config = best[1].pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(
        external.classifier(images), best[1]((images - mean) / std), rtol=1e-5, atol=1e-5
    )
    assert any("`state_dict_ema`, the averaged weights; --no-ema" in text for text in warnings)


def test_a_timm_model_without_its_classifier(
    best: tuple[Any, Any], tiny_suite: Path, tmp_path: Path
) -> None:
    best[0].reset_classifier(0)
    torch.save(best[0].state_dict(), tmp_path / "trunk.pt")
    with pytest.raises(BenchError, match="has no classifier"):
        loaded(tmp_path / "trunk.pt", tiny_suite, TIMM, tmp_path)


def test_a_timm_model_of_other_classes(tiny_suite: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(BenchError, match="its head has 7 classes, and tiny has 3"):
        loaded(tmp_path / "seven.pt", tiny_suite, TIMM, tmp_path)
