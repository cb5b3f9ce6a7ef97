"""Checkpoints of other repositories, in miniature: pickled objects of their classes and state dicts under their names."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.api import experiments
from bench.errors import BenchError, MissingPrerequisite
from bench.runs.external import External, load_external
from bench.spec import run_spec

WIDTH, DIM, PATCH, SIZE, LAYERS, CONTEXT = 32, 24, 8, 32, 2, 16
CONFIG = {
    "embed_dim": DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": PATCH},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = ("square", "disc", "cross")
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


# A CLIP model as OpenAI's package names its parts: sequence first, class token, pre-norm blocks.


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, mask: Tensor | None, activation: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.attn_mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mask: Tensor | None, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads, mask, activation()) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        return out


class VisualTransformer(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, LAYERS, WIDTH // 16, None, activation)
        self.proj = nn.Parameter(torch.randn(WIDTH, DIM) / WIDTH**0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        features: Tensor = self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj
        return features


class CLIP(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu_(1)
        self.visual = VisualTransformer(activation)
        self.transformer = Transformer(16, 1, 2, mask, activation)
        self.token_embedding = nn.Embedding(49408, 16)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, 16))
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(torch.randn(16, DIM))
        self.logit_scale = nn.Parameter(torch.tensor(4.0))

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding))
        embeddings: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection
        return embeddings


class ImageEncoder(nn.Module):
    def __init__(self, model: CLIP, keep_lang: bool = False) -> None:
        super().__init__()
        self.model = model
        self.train_preprocess = self.val_preprocess = _convert_to_rgb
        self.cache_dir = None
        if not keep_lang:
            del self.model.transformer

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


class CLIPEncoder(ImageEncoder):
    def __init__(self, model: CLIP) -> None:
        super().__init__(model, keep_lang=True)
        self.process_images = True


class ClassificationHead(nn.Linear):
    def __init__(self, normalize: bool, weights: Tensor) -> None:
        super().__init__(weights.shape[1], weights.shape[0])
        self.normalize = normalize
        self.weight = nn.Parameter(weights.clone())
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, len(weights)))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs / inputs.norm(dim=-1, keepdim=True) if self.normalize else inputs)


class ImageClassifier(nn.Module):
    def __init__(self, image_encoder: ImageEncoder, classification_head: ClassificationHead) -> None:
        super().__init__()
        self.image_encoder, self.classification_head = image_encoder, classification_head
        self.process_images = True
        self.train_preprocess, self.val_preprocess = image_encoder.train_preprocess, image_encoder.val_preprocess

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classification_head(self.image_encoder(images))
        return logits


class ModelWrapper(nn.Module):
    """model-soups'."""

    def __init__(self, model: CLIP, weights: Tensor) -> None:
        super().__init__()
        self.model = model
        self.classification_head = nn.Linear(DIM, len(weights))
        self.classification_head.weight = nn.Parameter(weights.clone())
        self.normalize = True
        del self.model.transformer

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.encode_image(images)
        logits: Tensor = self.classification_head(features / features.norm(dim=-1, keepdim=True))
        return logits


class ClassificationModel(nn.Module):
    """robust-finetuning's."""

    def __init__(self, backbone: VisualTransformer, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


def _convert_to_rgb(image: Any) -> Any:
    return image.convert("RGB")


THEIRS = {
    "clip.model": (QuickGELU, ResidualAttentionBlock, Transformer, VisualTransformer, CLIP),
    "clip.clip": (_convert_to_rgb,),
    "src.models.modeling": (ImageEncoder, CLIPEncoder, ClassificationHead, ImageClassifier),
}


def pickled(thing: object, path: Path) -> Path:
    """Write as wise-ft and FLYP do, with classes of the modules that theirs are in, which nobody can import afterwards."""
    ours, added = __name__, {name: types.ModuleType(name) for name in ("clip", "src", "src.models")}
    for name, members in THEIRS.items():
        for member in members:
            member.__module__ = name
        added[name] = types.ModuleType(name)
        vars(added[name]).update({member.__name__: member for member in members})
    sys.modules.update(added)
    try:
        with path.open("wb") as file:
            pickle.dump(thing, file)
    finally:
        for name in added:
            del sys.modules[name]
        for members in THEIRS.values():
            for member in members:
                member.__module__ = ours
    return path


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    """The pre-trained CLIP model."""
    torch.manual_seed(0)
    return CLIP(QuickGELU).state_dict()


@pytest.fixture
def tuned(original: dict[str, Tensor]) -> CLIP:
    """The same model after some training."""
    model = CLIP(QuickGELU)
    torch.manual_seed(1)
    model.load_state_dict({name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in original.items()})
    return model.eval()


@pytest.fixture(scope="module")
def backbone(original: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(original, tmp_path_factory.mktemp("clip"), CONFIG)


def folder_of(state: dict[str, Tensor], folder: Path, config: dict[str, Any]) -> str:
    """A folder that open_clip takes for a model."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"open_clip:{folder}"


class Heard:
    """A reporter that remembers warnings."""

    stop = 0

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "warning":
            self.warnings.append(fields["text"])


def loaded(path: Path, suite: Path, backbone: str, tmp_path: Path, normalize: bool | None = None) -> tuple[External, list[str]]:
    heard = Heard()
    spec = run_spec({"methods": ("external",), "suite": str(suite), "backbone": backbone})
    experiment = experiments(spec, store=tmp_path / "store", reporter=heard)[0]
    return load_external(path, experiment, normalize), heard.warnings


@torch.no_grad()
def agrees(external: External, theirs: Callable[[Tensor], Tensor]) -> None:
    """Logits of images in [0, 1] are those of their model on normalised pixels."""
    torch.manual_seed(2)
    images = torch.rand(5, 3, SIZE, SIZE)
    expected = theirs((images - MEAN) / STD)
    assert expected.shape == (5, len(CLASSES))
    torch.testing.assert_close(external.classifier(images), expected, rtol=1e-5, atol=1e-5)


def head_weights() -> Tensor:
    torch.manual_seed(3)
    rows = torch.randn(len(CLASSES), DIM)
    return 100 * rows / rows.norm(dim=1, keepdim=True)


@torch.no_grad()
def zero_shot(model: CLIP) -> Callable[[Tensor], Tensor]:
    """Class prompts of the tiny suite through the model's own text tower."""
    import open_clip

    tokens = open_clip.SimpleTokenizer(context_length=CONTEXT)([f"a photo of a {name}." for name in CLASSES])
    weights = nn.functional.normalize(model.encode_text(tokens), dim=1) * model.logit_scale.exp()
    return lambda images: nn.functional.normalize(model.encode_image(images), dim=1) @ weights.T


@pytest.mark.parametrize("normalize", [True, False])
def test_wise_ft(normalize: bool, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    theirs = ImageClassifier(ImageEncoder(tuned), ClassificationHead(normalize, head_weights())).eval()
    path = pickled(theirs, tmp_path / "checkpoint_10.pt")
    external, warnings = loaded(path, tiny_suite, backbone, tmp_path)
    assert (external.format, external.classifier.head.normalize, warnings) == ("wise-ft", normalize, [])
    assert external.similarity > 0.9
    agrees(external, theirs)


def test_an_object_saved_by_torch(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    theirs = ImageClassifier(ImageEncoder(tuned), ClassificationHead(True, head_weights())).eval()
    torch.save(nn.DataParallel(theirs), tmp_path / "whole.pt")
    agrees(loaded(tmp_path / "whole.pt", tiny_suite, backbone, tmp_path)[0], theirs)


def test_flyp_gets_the_head_of_its_own_text_tower(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    path = pickled(CLIPEncoder(tuned), tmp_path / "checkpoint_9.pt")
    external, _ = loaded(path, tiny_suite, backbone, tmp_path)
    assert external.format == "FLYP"
    agrees(external, zero_shot(tuned))


def test_model_soups(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    theirs = ModelWrapper(tuned, head_weights()).eval()
    torch.save(theirs.state_dict(), tmp_path / "model_0.pt")
    external, warnings = loaded(tmp_path / "model_0.pt", tiny_suite, backbone, tmp_path)
    assert (external.format, external.classifier.head.normalize, warnings) == ("model-soups", True, [])
    agrees(external, theirs)


def test_open_clip(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in tuned.state_dict().items()}
    torch.save({"epoch": 5, "name": "mine", "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "epoch_5.pt")
    external, _ = loaded(tmp_path / "epoch_5.pt", tiny_suite, backbone, tmp_path)
    assert external.format == "open_clip"
    agrees(external, zero_shot(tuned))


@pytest.mark.parametrize("head", ["zero-shot", "drawn"])
def test_robust_finetuning(head: str, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    """Its optimiser's state names a static method, which protocol 2 pickles as a call of getattr; its plain head does not
    normalise, and the state dict does not say so."""
    classifier = ClassificationHead(True, head_weights()) if head == "zero-shot" else nn.Linear(DIM, len(CLASSES))
    theirs = ClassificationModel(tuned.visual, classifier).eval()
    scheduler = {"anneal_func": torch.optim.lr_scheduler.OneCycleLR._annealing_cos}
    held = {"epoch": 9, "best_value": 0.8, "model": theirs.state_dict(), "optimizer": {"scheduler": scheduler}}
    torch.save(held, tmp_path / "ckpt-best.pt")
    with pytest.raises(pickle.UnpicklingError):  # torch alone cannot read it without running it
        torch.load(tmp_path / "ckpt-best.pt", weights_only=True)
    external, _ = loaded(tmp_path / "ckpt-best.pt", tiny_suite, backbone, tmp_path)
    assert (external.format, external.classifier.head.normalize) == ("robust-finetuning", head == "zero-shot")
    agrees(external, theirs)


def test_half_precision_is_read_as_float(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    theirs = ModelWrapper(tuned, head_weights()).eval()
    torch.save(theirs.half().state_dict(), tmp_path / "model_0.pt")
    agrees(loaded(tmp_path / "model_0.pt", tiny_suite, backbone, tmp_path)[0], theirs.float())


def test_the_row_names_the_format(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    torch.save(ModelWrapper(tuned, head_weights()).state_dict(), tmp_path / "model_0.pt")
    spec = run_spec({"methods": ("external",), "suite": str(tiny_suite), "backbone": backbone})
    record = bench.evaluate(tmp_path / "model_0.pt", spec, name="soup", store=tmp_path / "store")
    assert (record.status, record.phase, record.source_format) == ("done", "external", "model-soups")
    assert record.label == "soup (model-soups checkpoint)"


# What is refused, and how it is told.


def test_the_other_activation(original: dict[str, Tensor], tuned: CLIP, tiny_suite: Path, tmp_path: Path) -> None:
    """A pickled object says what it computes; a state dict does not, but is suspicious if its weights are not the backbone's."""
    (tmp_path / "gelu").mkdir()
    gelu = folder_of(original, tmp_path / "gelu", CONFIG | {"quick_gelu": False})
    theirs = ImageClassifier(ImageEncoder(tuned), ClassificationHead(True, head_weights()))
    path = pickled(theirs, tmp_path / "checkpoint_10.pt")
    with pytest.raises(BenchError, match=r"computes QuickGELU, and open_clip:.* computes GELU"):
        loaded(path, tiny_suite, gelu, tmp_path)
    torch.manual_seed(5)
    (tmp_path / "other").mkdir()
    other = folder_of(CLIP(nn.GELU).state_dict(), tmp_path / "other", CONFIG | {"quick_gelu": False})
    soup = {name.removeprefix("image_encoder."): tensor for name, tensor in theirs.state_dict().items()}
    torch.save(soup, tmp_path / "m.pt")
    _, (warning,) = loaded(tmp_path / "m.pt", tiny_suite, other, tmp_path)
    assert "no fine-tuned open_clip:" in warning
    assert "its code loads OpenAI's models, which need QuickGELU" in warning


def test_a_backbone_of_another_library(tuned: CLIP, tiny_suite: Path, tmp_path: Path) -> None:
    torch.save(ModelWrapper(tuned, head_weights()).state_dict(), tmp_path / "m.pt")
    with pytest.raises(BenchError, match="has an image tower of CLIP's, and mini-clip is none") as caught:
        loaded(tmp_path / "m.pt", tiny_suite, "mini-clip", tmp_path)
    assert "--backbone open_clip:ARCH/TAG" in caught.value.fix


def test_without_training_images_the_rest_is_measured(tuned: CLIP, backbone: str, tiny_suite: Path, tmp_path: Path) -> None:
    """Evaluating needs no training images, which are often the largest part of a data set and not at hand."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "test").symlink_to(tiny_suite.parent / "images/photo")
    (images / "inverted").symlink_to(tiny_suite.parent / "images/inverted")
    card = tmp_path / "mine.toml"
    text = tiny_suite.read_text().replace('path = "photo"', 'train = "train"\nval_count = 9\ntest = "test"')
    card.write_text(text.replace("val_fraction = 0.25\ntest_fraction = 0.25\n", ""))
    torch.save(ModelWrapper(tuned, head_weights()).state_dict(), tmp_path / "m.pt")
    spec = run_spec({"methods": ("external",), "suite": str(card), "backbone": backbone})
    record = bench.evaluate(tmp_path / "m.pt", spec, name="soup", store=tmp_path / "store")
    assert record.metrics.keys() == {"id-test", "inverted"}
    assert record.holes.keys() == {"id-val", "noisy"}
    with pytest.raises(MissingPrerequisite, match="the ID images of Tiny generated shapes are missing"):
        experiments(spec, store=tmp_path / "store")


def test_another_number_of_classes(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    torch.save(ModelWrapper(tuned, torch.randn(7, DIM)).state_dict(), tmp_path / "m.pt")
    with pytest.raises(BenchError, match="its head has 7 classes, and tiny has 3"):
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)


def test_missing_unknown_and_misshapen_tensors_are_named(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    state = ModelWrapper(tuned, head_weights()).state_dict()
    del state["model.visual.proj"]
    state["model.visual.conv1.weight"] = torch.zeros(WIDTH, 3, 4, 4)
    state["model.visual.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BenchError) as caught:
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)
    assert "tower.visual.proj is missing" in caught.value.what
    assert "tower.visual.extra is unknown" in caught.value.what
    assert "tower.visual.conv1.weight has shape (32, 3, 4, 4) instead of (32, 3, 8, 8)" in caught.value.what
    assert len(str(caught.value).splitlines()) == 3


def test_tensors_beside_the_classifier(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    torch.save(ModelWrapper(tuned, head_weights()).state_dict() | {"adapter.up": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(BenchError, match=r"beside the classifier: adapter\.up"):
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)


def test_neither_head_nor_text_tower(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    path = pickled(ImageEncoder(tuned), tmp_path / "encoder.pt")
    with pytest.raises(BenchError, match=r"no head, and no text tower .* model\.transformer.* is missing"):
        loaded(path, tiny_suite, backbone, tmp_path)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (nn.Linear(3, 3), "those of no known classifier: bias, weight"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "a mapping of 'optimizer', 'epoch'"),
        ([1, 2], "a list"),
    ],
)
def test_what_is_no_classifier(thing: object, message: str, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    torch.save(thing, tmp_path / "m.pt")
    with pytest.raises(BenchError, match=message):
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)


def test_the_architecture_is_told_where_it_is_another() -> None:
    from bench.backbones.open_clip_backbone import architectures_like

    visual = {
        "conv1.weight": torch.empty(768, 3, 16, 16, device="meta"),
        "proj": torch.empty(768, 512, device="meta"),
        "positional_embedding": torch.empty(197, 768, device="meta"),
        **{f"transformer.resblocks.{i}.ln_1.bias": torch.empty(768, device="meta") for i in range(12)},
    }
    assert architectures_like(visual)[:2] == ["ViT-B-16", "ViT-B-16-quickgelu"]


# Files that were made to run something.


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def _plain(thing: object, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(thing, file)


def _by_torch(thing: object, path: Path) -> None:
    torch.save(thing, path)


def _before_zip(thing: object, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("nested", ["bare", "in a state dict", "as an argument"])
@pytest.mark.parametrize("write", [_plain, _by_torch, _before_zip])
@pytest.mark.parametrize("kind", ["os.system", "eval", "exec", "import"])
def test_a_hostile_file_runs_nothing(
    kind: str, write: Callable[[object, Path], None], nested: str, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    mark = tmp_path / "pwned"
    code = f"open({str(mark)!r}, 'w').close()"
    call = {
        "os.system": Runs(os.system, f"touch {mark}"),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "import": Runs(__import__, "antigravity"),
    }[kind]
    thing: object = {
        "bare": call,
        "in a state dict": {"state_dict": {"visual.proj": torch.zeros(2)}, "epoch": [{"hooks": call}]},
        "as an argument": Runs(dict, [("a", Runs(list, (call,)))]),
    }[nested]
    write(thing, tmp_path / "evil.pt")
    with pytest.raises(BenchError) as caught:
        loaded(tmp_path / "evil.pt", tiny_suite, backbone, tmp_path)
    assert not mark.exists()
    assert "antigravity" not in sys.modules
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert str(tmp_path / "evil.pt") in lines[1]
    if write is not _before_zip:
        assert "no weights have a use for that; nothing of it was run" in lines[0]


def test_names_that_are_not_known_to_be_hostile_are_not_called_either(tmp_path: Path) -> None:
    from bench.backbones.inert import Inert, read_inert

    _plain({"a": Runs(os.path.join, "x", "y"), "b": Runs(getattr, "text", "upper")}, tmp_path / "odd.pkl")
    held = read_inert(tmp_path / "odd.pkl")
    assert isinstance(held["a"], Inert)
    assert (held["a"].origin, held["a"].arguments) == ("posixpath.join", ("x", "y"))
    assert (held["b"].origin, held["b"].arguments) == ("builtins.getattr", ("text", "upper"))


def test_a_file_cannot_change_what_it_is_given(tmp_path: Path) -> None:
    """BUILD sets attributes: on a class, on a function that may be called, and on an ordered dict."""
    from collections import OrderedDict

    from bench.backbones.inert import read_inert

    def build(name: bytes) -> bytes:  # GLOBAL module name, a state of (None, {"__doc__": 1}), BUILD, STOP
        return b"\x80\x02c" + name + b"\nN}X\x07\x00\x00\x00__doc__K\x01s\x86b."

    before = OrderedDict.__doc__, torch._utils._rebuild_tensor_v2.__doc__, nn.Linear.__doc__
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict", b"torch.nn.modules.linear\nLinear"):
        (tmp_path / "odd.pkl").write_bytes(build(name))
        with pytest.raises(BenchError, match="cannot be read safely"):
            read_inert(tmp_path / "odd.pkl")
    assert before == (OrderedDict.__doc__, torch._utils._rebuild_tensor_v2.__doc__, nn.Linear.__doc__)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    from bench.backbones.inert import read_inert

    tensor = torch.zeros(4)
    rebuilt = Runs(torch._utils._rebuild_tensor_v2, tensor._typed_storage(), 2, (1000,), (1,), False, {})
    _plain(rebuilt, tmp_path / "odd.pkl")
    with pytest.raises(BenchError, match="out of bounds"):
        read_inert(tmp_path / "odd.pkl")


def test_a_module_within_itself(tmp_path: Path, tiny_suite: Path, backbone: str) -> None:
    module = nn.Sequential()
    module._modules["again"] = module
    _plain(module, tmp_path / "odd.pkl")
    with pytest.raises(BenchError, match="is not a torch module"):
        loaded(tmp_path / "odd.pkl", tiny_suite, backbone, tmp_path)


def test_what_is_no_weights_file_at_all(tmp_path: Path, tiny_suite: Path, backbone: str) -> None:
    for content in (b"", b"<html>", b"\x80\x04", b"PK\x03\x04 broken"):
        (tmp_path / "odd.pt").write_bytes(content)
        with pytest.raises(BenchError, match="cannot be read safely"):
            loaded(tmp_path / "odd.pt", tiny_suite, backbone, tmp_path)
