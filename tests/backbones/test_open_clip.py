"""open_clip backbones: equal to open_clip's own models, masked exactly, their activation stated,
their text tower usable.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from bench.backbones.backbone import zero_shot_head
from bench.backbones.open_clip_backbone import OpenClipBackbone, load
from bench.errors import MissingPrerequisite, UsageError

#: The vocabulary is 49,408 words long, so the width of the text tower is nearly all of the size.
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-vit": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 64,
            "layers": 3,
            "width": 32,
            "head_width": 8,
            "patch_size": 16,
        },
    },
    "tiny-rn": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    },
    "tiny-timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160},
    },
    "tiny-avg": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 64,
            "layers": 1,
            "width": 32,
            "head_width": 8,
            "patch_size": 16,
            "pool_type": "avg",
        },
    },
    "tiny-hf": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 32},
        "text_cfg": {"hf_model_name": "x"},
    },
    "tiny-coca": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 32},
        "multimodal_cfg": {},
    },
}
CONFIGS["tiny-vit-quickgelu"] = {**CONFIGS["tiny-vit"], "quick_gelu": True}


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"text_cfg": TEXT, **config}))
    paths, known = (
        list(open_clip.factory._MODEL_CONFIG_PATHS),
        dict(open_clip.factory._MODEL_CONFIGS),
    )
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths
    open_clip.factory._MODEL_CONFIGS = known


@pytest.fixture(scope="module")
def vit(_architectures: None) -> OpenClipBackbone:
    return load("tiny-vit@random")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def own_model(name: str, *, quick_gelu: bool = False, seed: int = 0) -> Any:
    """open_clip's model itself, in eval mode; every branch of a residual network given a weight
    (some start at 0).
    """
    torch.manual_seed(seed)
    config = {"text_cfg": TEXT, **CONFIGS[name], "quick_gelu": quick_gelu}
    model = CLIP(**config).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if key.endswith("bn3.weight"):
                tensor.fill_(0.5)
    return model


def normalised(images: Tensor) -> Tensor:
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "tiny-timm"])
def test_features_are_the_librarys_own(name: str, images: Tensor, tmp_path: Path) -> None:
    model = own_model(name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = load(
        f"{name}@{tmp_path}/w.safetensors" + ("?quickgelu=no" if name == "tiny-vit" else "")
    )
    tower = backbone.image_tower()
    images = torch.nn.functional.interpolate(images, backbone.pixels.size)
    features = tower(images)
    assert features.shape == (4, tower.dim) == (4, 24)
    assert torch.allclose(features, model.encode_image(normalised(images)), atol=1e-5)
    assert torch.equal(tower.train(name != "tiny-rn")(images), features), (
        "no noise in training mode"
    )
    explained, maps = tower.eval().requires_grad_(False).explain(images)
    assert torch.allclose(explained, features, atol=1e-5)
    for weights, gradient in zip(
        maps, torch.autograd.grad(explained.square().sum(), maps), strict=True
    ):
        assert gradient.abs().sum() > 0
        if backbone.layout == "vit":
            assert weights.shape[2:] == (1 + tower.grid[0] * tower.grid[1],) * 2
            assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-5)
    if backbone.layout == "conv":
        assert [m.shape for m in maps] == [(4, 256, 2, 2)]
        assert tower.grid == (2, 2)
        with pytest.raises(NotImplementedError, match="no tokens"):
            tower(images, torch.ones(4, 4, dtype=torch.bool))


def test_leaving_patches_out_equals_a_minus_infinity_key_mask_in_every_layer(
    vit: OpenClipBackbone, images: Tensor
) -> None:
    tower: Any = vit.image_tower()
    keep = torch.zeros(4, 16, dtype=torch.bool)
    for row, saved in enumerate(([0, 3, 7, 8, 9, 10, 15], [5], [], list(range(16)))):
        keep[row, saved] = True
    hidden = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~keep], dim=1)
    # (N * heads, L, L).
    mask = torch.zeros(4, 4, 17, 17).masked_fill(hidden[:, None, None], -torch.inf).flatten(0, 1)
    tokens = tower.visual._embeds(normalised(images))
    for block in tower.visual.transformer.resblocks:
        tokens = block(tokens, attn_mask=mask)
    reference = tower.visual.ln_post(tokens)[:, 0] @ tower.visual.proj
    assert torch.allclose(tower(images, keep), reference, atol=1e-5)
    assert torch.equal(tower(images, torch.ones_like(keep)), tower(images))
    alone = tower(images, torch.zeros_like(keep))
    assert torch.allclose(alone, reference[2].expand_as(alone), atol=1e-5), (
        "without patches every image is the same"
    )


def test_a_masked_forward_can_be_trained_through(vit: OpenClipBackbone, images: Tensor) -> None:
    tower = vit.image_tower()
    tower(images, torch.eye(16, dtype=torch.bool)[:4]).square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in tower.parameters()
    )


def test_the_zero_shot_head_is_the_scaled_mean_direction_of_the_prompts(
    vit: OpenClipBackbone,
) -> None:
    text = vit.text_tower()
    classes, templates = (
        ["tench", "house finch", "tench"],
        [
            "a photo of a {}.",
            "art of the {}.",
            "{}",
        ],
    )
    head = zero_shot_head(text, classes, templates, batch=4)
    rows = []
    for name in classes:
        total = torch.zeros(24)
        for template in templates:
            with torch.no_grad():
                embedding = text(text.tokenize([template.format(name)]))[0]
            total += embedding / embedding.square().sum().sqrt()
        mean = total / len(templates)
        rows.append(mean / mean.square().sum().sqrt() * text.scale)
    assert torch.allclose(head.weight, torch.stack(rows), atol=1e-4)
    model, tokenizer = text.model, open_clip.SimpleTokenizer(context_length=16)
    formats = [lambda name, t=template: t.format(name) for template in templates]
    library = open_clip.build_zero_shot_classifier(model, tokenizer, classes, formats)
    assert torch.allclose(head.weight, library.T * model.logit_scale.exp(), atol=1e-4)
    assert (head.normalize, head.bias.tolist()) == (True, [0, 0, 0])
    assert text.scale == pytest.approx(1 / 0.07)


def test_the_text_tower_is_a_fresh_copy_that_can_travel(vit: OpenClipBackbone) -> None:
    text = vit.text_tower()
    assert vit.has_text
    assert text.tokenize(("a", "b")).shape == (2, 16)
    assert not any("visual" in name for name in text.state_dict())
    with torch.no_grad():
        text.model.logit_scale.add_(1)
    assert vit.text_tower().scale < text.scale
    assert copy.deepcopy(text).scale == pickle.loads(pickle.dumps(text)).scale == text.scale


def test_a_folder_brings_its_own_architecture_activation_and_pixels(
    tmp_path: Path, images: Tensor
) -> None:
    model = own_model("tiny-vit", quick_gelu=True)
    config = {
        "model_cfg": {"text_cfg": TEXT, **CONFIGS["tiny-vit-quickgelu"]},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(MissingPrerequisite, match="no weights"):
        load(str(tmp_path))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    backbone = load(str(tmp_path))
    assert backbone.pixels.name == "pil-bilinear-64-64"
    assert torch.allclose(
        backbone.image_tower()(images), model.encode_image((images - 0.5) / 0.25), atol=1e-5
    )


def test_a_file_whose_activation_is_open_is_refused_until_it_is_stated(
    tmp_path: Path, images: Tensor
) -> None:
    model = own_model("tiny-vit", quick_gelu=True)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}},
        tmp_path / "w.pt",
    )
    with pytest.raises(UsageError, match="two activations") as refusal:
        load(f"tiny-vit@{tmp_path}/w.pt")
    assert "?quickgelu=yes" in refusal.value.fix
    with pytest.raises(UsageError, match="says no"):
        load(f"tiny-vit-quickgelu@{tmp_path}/w.pt?quickgelu=no")
    with pytest.raises(UsageError, match="yes or no"):
        load(f"tiny-vit@{tmp_path}/w.pt?quickgelu=maybe")
    quick, same = (
        load(f"tiny-vit@{tmp_path}/w.pt?quickgelu=yes"),
        load(f"tiny-vit-quickgelu@{tmp_path}/w.pt"),
    )
    other = load(f"tiny-vit@{tmp_path}/w.pt?quickgelu=no")
    expected = model.encode_image(normalised(images))
    assert torch.allclose(quick.image_tower()(images), expected, atol=1e-5)
    assert not torch.allclose(other.image_tower()(images), expected, atol=1e-4)
    assert quick.weights_sha256 == same.weights_sha256 != other.weights_sha256


@pytest.mark.parametrize(
    ("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False), ("laion400m_e32", True)]
)
def test_a_tag_brings_its_own_activation(
    tag: str, quick: bool, tmp_path: Path, monkeypatch: Any, images: Tensor
) -> None:
    """A small model published under a real tag, found in the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    published = dict(open_clip.get_pretrained_cfg("ViT-B-32", tag))
    repository = tmp_path / f"models--{published['hf_hub'].rstrip('/').replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    model = own_model("tiny-vit", quick_gelu=quick)
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "open_clip_model.safetensors")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {tag: published})
    backbone = load(f"tiny-vit/{tag}")
    assert torch.allclose(
        backbone.image_tower()(images), model.encode_image(normalised(images)), atol=1e-5
    )
    assert backbone.seen.endswith(f"(open_clip tag {tag})")
    assert not backbone.seen.startswith("unknown")


def test_random_weights_and_sizes(vit: OpenClipBackbone) -> None:
    again, other = load("tiny-vit@random"), load("tiny-vit@random-3")
    assert again.weights_sha256 == vit.weights_sha256 != other.weights_sha256
    larger = load("tiny-vit@random?size=96")
    assert larger.pixels.name == "pil-bicubic-96-96"
    assert larger.image_tower().grid == (6, 6)
    assert larger.image_tower()(torch.rand(1, 3, 96, 96)).shape == (1, 24)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("ViT-B-33/openai", "did you mean ViT-B-32"),
        ("ViT-B-32/opeanai", "did you mean openai"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "no tag"),
        ("ViT-B-32", "which weights"),
        ("tiny-vit@random?quickgelu=yes", "weights files only"),
        ("tiny-vit@random?size=100", "multiple of the patch size"),
        ("tiny-rn@random?size=128", "own transformers only"),
        ("tiny-avg@random", "tiny-avg cannot be used: it does not pool by the class token"),
        ("tiny-hf@random", "transformers library"),
        ("tiny-coca@random", "CoCa"),
    ],
)
def test_what_cannot_be_used_is_named_and_refused(rest: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        load(rest)
    assert rest in refusal.value.where
    assert refusal.value.fix


def test_programs_and_pickles_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "openai.pt")
    with pytest.raises(UsageError, match="TorchScript"):
        load(f"tiny-rn@{tmp_path}/openai.pt")
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "objects.pt")
    with pytest.raises(UsageError, match="could run code"):
        load(f"tiny-rn@{tmp_path}/objects.pt")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="does not fit"):
        load(f"tiny-rn@{tmp_path}/other.safetensors")


def test_without_a_network_a_tag_is_one_quick_clear_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for requested in ("hf_hub_download", "reachable"):
        monkeypatch.setattr(
            f"bench.backbones.hub.{requested}",
            lambda *_, **__: pytest.fail("the network was asked"),
        )
    with pytest.raises(MissingPrerequisite, match="HF_HUB_OFFLINE") as missing:
        load("ViT-B-32/openai")
    assert "hf download timm/vit_base_patch32_clip_224.openai" in missing.value.fix
