"""Backbones from files of weights as people save them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import bench
from bench.backbones.backbone import load_backbone
from bench.errors import UsageError


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet").eval()


def same(backbone: Any, theirs: Any) -> bool:
    """Whether the backbone's weights are those of a model."""
    tower, state = backbone.image_tower().state_dict(), theirs.state_dict()
    return all(
        torch.equal(tensor, state[name.removeprefix("model.")]) for name, tensor in tower.items()
    )


def test_of_averaged_weights_and_others_it_is_reported_which(tmp_path: Path) -> None:
    last, average = model(0), model(1)
    held = {
        "state_dict": last.state_dict(),
        "state_dict_ema": average.state_dict(),
        "args": argparse.Namespace(lr=1),
    }
    torch.save(held, tmp_path / "best.pth")
    usual = load_backbone(f"timm:test_resnet@{tmp_path}/best.pth")
    assert same(usual, average)
    assert usual.seen.startswith("unknown (weights from a file: `state_dict_ema`, ")
    other = load_backbone(f"timm:test_resnet@{tmp_path}/best.pth?ema=no")
    assert same(other, last)
    assert other.seen.startswith("unknown (weights from a file: `state_dict`, ")
    with pytest.raises(UsageError, match="ema is for weights files only"):
        load_backbone("timm:test_resnet@random?ema=no")


def test_weights_of_a_compiled_and_averaged_model(tmp_path: Path) -> None:
    theirs = model(0)
    state: dict[str, Tensor] = {
        f"module._orig_mod.{name}": tensor for name, tensor in theirs.state_dict().items()
    }
    torch.save(state | {"n_averaged": torch.tensor(3)}, tmp_path / "swa.pth")
    assert same(load_backbone(f"timm:test_resnet@{tmp_path}/swa.pth"), theirs)


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64, torch.float8_e5m2])
def test_what_is_no_floating_point_number_is_not_cast(kind: torch.dtype, tmp_path: Path) -> None:
    state = model(0).state_dict()
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    torch.save(state | {name: state[name].to(kind)}, tmp_path / "odd.pth")
    with pytest.raises(
        UsageError,
        match=f"{name} is torch.{str(kind).partition('.')[2]}, .*floating-point",
    ):
        load_backbone(f"timm:test_resnet@{tmp_path}/odd.pth")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Hugging Face", "training"])
def test_clip_s_weights_are_an_open_clip_backbone(kind: str, tmp_path: Path) -> None:
    import open_clip

    state = {
        name: tensor
        for name, tensor in open_clip.create_model("ViT-S-32-alt").state_dict().items()
        if name != "attn_mask"
    }
    if kind == "Hugging Face":
        torch.save(to_hugging_face(state), tmp_path / "model.bin")
    else:  # as open_clip's training saves it, with more than tensors beside the state
        torch.save(
            {"state_dict": state, "args": argparse.Namespace(lr=1), "optimizer": {}},
            tmp_path / "model.bin",
        )
    backbone = load_backbone(f"open_clip:ViT-S-32-alt@{tmp_path}/model.bin?quickgelu=no")
    tower, text = backbone.image_tower().state_dict(), backbone.text_tower().state_dict()
    ours = tower | {name.removeprefix("model."): tensor for name, tensor in text.items()}
    assert len(ours) >= len(state)
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor), name


def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names of open_clip, piece by piece."""
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        kind = "vision" if name.startswith("visual.") else "text"
        bare = name.removeprefix("visual.")
        if ".attn.in_proj_" in bare:
            place = bare.partition(".attn.")[0].replace(
                "transformer.resblocks", f"{kind}_model.encoder.layers"
            )
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                made[f"{place}.self_attn.{part}_proj.{bare.rpartition('_')[2]}"] = third.clone()
        elif bare.startswith("transformer.resblocks"):
            place = bare.replace("transformer.resblocks", f"{kind}_model.encoder.layers").replace(
                "attn.out_proj", "self_attn.out_proj"
            )
            for ours, theirs in (
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("c_fc", "fc1"),
                ("c_proj", "fc2"),
            ):
                place = place.replace(ours, theirs)
            made[place] = tensor
        elif bare in ("proj", "text_projection"):
            made["visual_projection.weight" if kind == "vision" else "text_projection.weight"] = (
                tensor.T.contiguous()
            )
        elif bare == "positional_embedding":
            made[f"{kind}_model.embeddings.position_embedding.weight"] = tensor
        elif bare == "class_embedding":
            made["vision_model.embeddings.class_embedding"] = tensor
        elif bare == "conv1.weight":
            made["vision_model.embeddings.patch_embedding.weight"] = tensor
        elif bare == "token_embedding.weight":
            made["text_model.embeddings.token_embedding.weight"] = tensor
        elif bare == "logit_scale":
            made[bare] = tensor
        else:
            stem, _, leaf = bare.partition(".")
            norms = {
                "ln_pre": "pre_layrnorm",
                "ln_post": "post_layernorm",
                "ln_final": "final_layer_norm",
            }
            made[f"{kind}_model.{norms[stem]}.{leaf}"] = tensor
    return made


def test_weights_that_are_not_finite_are_reported_in_our_words(
    tiny_suite: Path, tmp_path: Path
) -> None:
    state = model(0).state_dict()
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    torch.save(state | {name: torch.full_like(state[name], float("nan"))}, tmp_path / "nan.pth")
    backbone = f"timm:test_resnet@{tmp_path}/nan.pth"
    (record,) = bench.run(
        "linear-probe", suite=str(tiny_suite), backbone=backbone, store=tmp_path / "store"
    )
    assert record.status == "failed"
    assert "are not finite: the weights of timm:test_resnet@" in record.error
    assert "imput" not in record.error
