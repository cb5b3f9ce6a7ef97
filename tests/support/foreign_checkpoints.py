"""Checkpoints of other repositories, in miniature: classes that are called as theirs, and files as
their code writes them.
"""

from __future__ import annotations

import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.run_spec import run_spec
from bench.runs.experiment import experiments
from bench.runs.external import External, load_external
from bench.stopping import Reporter

WIDTH, DIM, PATCH, SIZE, LAYERS, CONTEXT = 32, 24, 8, 32, 2, 16
CONFIG = {
    "embed_dim": DIM,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": SIZE,
        "layers": LAYERS,
        "width": WIDTH,
        "head_width": 16,
        "patch_size": PATCH,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
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
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mask: Tensor | None,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, mask, activation()) for _ in range(layers))
        )

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
        x = (
            torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
            + self.positional_embedding
        )
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
        x = self.ln_final(
            self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        )
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
        return super().forward(
            inputs / inputs.norm(dim=-1, keepdim=True) if self.normalize else inputs
        )


class ImageClassifier(nn.Module):
    def __init__(
        self, image_encoder: ImageEncoder, classification_head: ClassificationHead
    ) -> None:
        super().__init__()
        self.image_encoder, self.classification_head = image_encoder, classification_head
        self.process_images = True
        self.train_preprocess, self.val_preprocess = (
            image_encoder.train_preprocess,
            image_encoder.val_preprocess,
        )

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
    """Write as wise-ft and FLYP do, with classes of the modules that theirs are in, which nobody
    can import afterwards.
    """
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


def folder_of(state: dict[str, Tensor], folder: Path, config: dict[str, Any]) -> str:
    """A folder that open_clip takes for a model."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    return f"open_clip:{folder}"


class Heard(Reporter):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "warning":
            self.warnings.append(fields["text"])


def loaded(
    path: Path, suite: Path, backbone: str, tmp_path: Path, normalize: bool | None = None
) -> tuple[External, list[str]]:
    heard = Heard()
    spec = run_spec({"methods": ("external",), "suite": str(suite), "backbone": backbone})
    experiment = experiments(spec, store=tmp_path / "store", reporter=heard)[0]
    return load_external(path, experiment.setup, normalize), heard.warnings


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

    tokens = open_clip.SimpleTokenizer(context_length=CONTEXT)(
        [f"a photo of a {name}." for name in CLASSES]
    )
    weights = nn.functional.normalize(model.encode_text(tokens), dim=1) * model.logit_scale.exp()
    return lambda images: nn.functional.normalize(model.encode_image(images), dim=1) @ weights.T
