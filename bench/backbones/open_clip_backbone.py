"""Backbones from open_clip: `open_clip:ARCH/TAG`, `open_clip:ARCH@FILE`, `open_clip:DIR`,
`open_clip:ARCH@random`.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import download_pretrained_from_url
from torch import Tensor, nn

from ..data.pixels.decoder import Pixels
from ..errors import MissingPrerequisite, UsageError
from ..storage.files import read_json
from . import hub
from .backbone import Backbone, ImageTower, Layout
from .naming import ModelName, nearest, parse
from .open_clip_towers import OpenClipText, image_tower_of
from .weights import (
    check_kinds,
    content_sha256,
    drawn,
    quiet_root_logger,
    safely,
    state_in,
    without_noise,
)

#: What the beginning of an open_clip tag says about the training data.
DATA = {
    "openai": "WebImageText (OpenAI's 400 million pairs)",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "laion5b": "LAION-5B",
    "frozen_laion5b": "LAION-5B",
    "datacomp": "DataComp",
    "commonpool": "CommonPool",
    "metaclip2": "MetaCLIP 2",
    "metaclip": "MetaCLIP",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "dfndr2b": "DFNDR-2B",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "merged2b": "Merged-2B",
    "webli": "WebLI",
}
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class OpenClipBackbone(Backbone):
    """An open_clip model, taken apart into its image tower and its text tower.

    Args:
        model: with weights.
        config: the description of its architecture, QuickGELU included.
    """

    def __init__(
        self, name: ModelName, model: Any, config: dict[str, Any], tokenizer: Any, *, seen: str
    ) -> None:
        self.name, self.seen = name.full, seen
        preprocessing = model.visual.preprocess_cfg
        self.pixels = _pixels(name, preprocessing)
        mean, std = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
        facts = {"library": "open_clip", "architecture": config, "mean": mean, "std": std}
        self.weights_sha256 = content_sha256(model.state_dict(), facts)
        without_noise(model)
        visual, model.visual = model.visual, nn.Identity()
        try:
            self._tower = image_tower_of(visual, mean, std, self.pixels.size).eval()
        except UsageError as error:
            raise name.error(
                f"{name.model} cannot be used: {error.what}",
                "`bench backbones` lists models that can",
            ) from error
        self._text = OpenClipText(model, tokenizer).eval()

    def image_tower(self) -> ImageTower:
        return copy.deepcopy(self._tower)

    @property
    def layout(self) -> Layout:
        return self._tower.layout

    def text_tower(self) -> OpenClipText:
        return copy.deepcopy(self._text)

    @property
    def has_text(self) -> bool:
        return True


#: What the configuration in a folder may say of the tokenizer: its own vocabulary would be a file
#: of the configuration's choice.
_TOKENIZER = frozenset({"additional_special_tokens", "clean", "reduction_mask"})


def load(rest: str) -> OpenClipBackbone:
    """Load the backbone `open_clip:` + `rest`; the grammar is in `naming`.

    Raises:
        UsageError: the name, an option or the file is wrong, the activation is not stated, or the
            architecture cannot be used.
        MissingPrerequisite: the weights are not here and cannot be downloaded.
    """
    name = parse("open_clip", rest, options=("size", "crop", "decoder", "quickgelu", "ema"))
    config = _config(name)
    _check_parts(name, config)
    if name.options.get("quickgelu") and name.file is None:
        raise name.error(
            "quickgelu is stated for weight files only",
            "leave it out: tags and folders say which activation is theirs",
        )
    if name.options.get("ema") and name.file is None:
        raise name.error("ema is stated for weight files only", "leave it out")
    arguments: dict[str, Any] = {}
    if name.size is not None:
        _check_size(name, config, name.size)
        arguments["force_image_size"] = name.size
    if name.folder is not None:
        return _from_folder(name, name.folder, config, arguments)
    if name.seed is not None:
        with quiet_root_logger(), drawn("open_clip", name.model, name.seed):
            model = open_clip.create_model(name.model, **arguments)
        return _backbone(name, model, config, seen="nothing (random weights)")
    if name.file is not None:
        config["quick_gelu"] = _activation_of_file(name, config)
        return _from_file(name, name.file, config, arguments | {"quick_gelu": config["quick_gelu"]})
    if name.tag:
        published = open_clip.get_pretrained_cfg(name.model, name.tag)
        if not published:
            tags = open_clip.list_pretrained_tags_by_model(name.model)
            raise name.error(
                f"{name.model} has no tag {name.tag!r}",
                nearest(name.tag, tags) or f"its tags: {', '.join(tags)}",
            )
        # The trap: tags say which activation they were trained with, but open_clip only warns where
        # the architecture has another.
        config["quick_gelu"] = bool(published.get("quick_gelu", False))
        arguments["force_preprocess_cfg"] = {
            key: published[key] for key in _PREPROCESSING if key in published
        }
        path, seen = _download(name, published), _seen(name.tag)
    else:
        raise name.error(
            "which weights?",
            f"write open_clip:{name.model}/TAG, open_clip:{name.model}@FILE or @random",
        )
    arguments["quick_gelu"] = config["quick_gelu"]
    with quiet_root_logger(), safely(path, backbone=name.full):
        model = open_clip.create_model(
            name.model,
            pretrained=str(path),
            require_pretrained=True,
            weights_only=True,
            **arguments,
        )
    return _backbone(name, model, config, seen=seen)


def _from_file(
    name: ModelName, path: Path, config: dict[str, Any], arguments: dict[str, Any]
) -> OpenClipBackbone:
    with quiet_root_logger(), safely(path, backbone=name.full):
        found = state_in(path, averaged=name.choice("ema", ("yes", "no")) != "no")
        with found.as_file() as file:
            model = open_clip.create_model(
                name.model,
                pretrained=str(file),
                require_pretrained=True,
                weights_only=True,
                **arguments,
            )
        check_kinds(found.state, model)
    return _backbone(name, model, config, seen=found.seen)


def _from_folder(
    name: ModelName, folder: Path, config: dict[str, Any], arguments: dict[str, Any]
) -> OpenClipBackbone:
    weights = [
        path
        for pattern in ("*.safetensors", "*.bin", "*.pth")
        for path in sorted(folder.glob(pattern))
    ]
    if not weights:
        where = f"backbone {name.full}"
        raise MissingPrerequisite(
            "the folder has no weights",
            where,
            f"put {HF_SAFE_WEIGHTS_NAME} beside open_clip_config.json",
        )
    with quiet_root_logger(), safely(weights[0], backbone=name.full):
        model = open_clip.create_model(
            f"local-dir:{folder}", require_pretrained=True, weights_only=True, **arguments
        )
    return _backbone(name, model, config, seen="unknown (weights from a folder)")


def _backbone(
    name: ModelName, model: Any, config: dict[str, Any], *, seen: str
) -> OpenClipBackbone:
    if type(model) not in (CLIP, CustomTextCLIP):
        raise name.error(
            f"{type(model).__name__} models cannot be used",
            "choose a contrastive model with two towers",
        )
    text = config["text_cfg"]
    tokenizer = open_clip.SimpleTokenizer(
        context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
    )
    return OpenClipBackbone(name, model, config, tokenizer, seen=seen)


def _config(name: ModelName) -> dict[str, Any]:
    """The description of the architecture, with `quick_gelu` always stated."""
    if name.folder is not None:
        path = name.folder / "open_clip_config.json"
        try:
            config = read_json(path)["model_cfg"]
        except OSError as error:
            raise MissingPrerequisite(
                f"there is no {path}", f"backbone {name.full}", "name a folder made by open_clip"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise name.error(
                f"{path} is not an open_clip configuration: {error!r}",
                "it needs an entry model_cfg",
            ) from error
    else:
        with quiet_root_logger():
            known = open_clip.list_models()
            config = open_clip.get_model_config(name.model) if name.model in known else None
        if config is None:
            raise name.error(
                f"open_clip has no architecture {name.model!r}",
                nearest(name.model, known) or "see open_clip.list_models()",
            )
    config["quick_gelu"] = bool(config.get("quick_gelu", False))
    result: dict[str, Any] = config
    return result


def _check_parts(name: ModelName, config: dict[str, Any]) -> None:
    """Refuse, before anything is downloaded or built, what could not be used in the end."""
    text = config["text_cfg"]
    if "multimodal_cfg" in config:
        raise name.error("CoCa models cannot be used", "choose a contrastive model with two towers")
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise name.error(
            f"the text side of {name.model} comes from the transformers library, which is not"
            " supported",
            "choose a model with open_clip's own tokenizer, such as ViT-B-32, RN50 or"
            " convnext_base_w",
        )
    if name.folder is not None:
        asked = {
            f"tokenizer_kwargs.{key}" for key in set(text.get("tokenizer_kwargs", {})) - _TOKENIZER
        }
        asked |= (
            {"timm_model_name"}
            if ":" in str(config["vision_cfg"].get("timm_model_name", ""))
            else set()
        )
        if asked:
            what = f"its configuration names other files or addresses: {', '.join(sorted(asked))}"
            raise name.error(what, "leave them out of open_clip_config.json")


def _check_size(name: ModelName, config: dict[str, Any], size: int) -> None:
    vision = config["vision_cfg"]
    if "timm_model_name" in vision or isinstance(vision.get("layers"), list):
        raise name.error(
            "the input size can be chosen for open_clip's own transformers only",
            "leave out the size",
        )
    if size % vision.get("patch_size", 16):
        raise name.error(
            f"size {size} is not a multiple of the patch size {vision.get('patch_size', 16)}",
            "choose a multiple",
        )


def _activation_of_file(name: ModelName, config: dict[str, Any]) -> bool:
    """Whether the weights in a file were trained with QuickGELU; the file does not say, and a wrong
    guess shows nowhere.

    Raises:
        UsageError: both activations exist for this architecture, and the name does not state which.
    """
    stated = name.choice("quickgelu", ("yes", "no"))
    if name.model.endswith("-quickgelu"):
        if stated == "no":
            raise name.error(
                "the architecture says QuickGELU and the option says no",
                f"write {name.model.removesuffix('-quickgelu')}",
            )
        return True
    if stated is None and f"{name.model}-quickgelu" in open_clip.list_models():
        file = f"{name.model}@{name.file}"
        raise name.error(
            f"weights of {name.model} exist with two activations ({_activations(name.model)}), the"
            " file does not say which is its own, and the wrong one silently gives other features",
            f"state it: open_clip:{file}?quickgelu=yes or open_clip:{file}?quickgelu=no",
        )
    return bool(config["quick_gelu"]) if stated is None else stated == "yes"


def _activations(architecture: str) -> str:
    """Which published weights of an architecture have which activation, by the beginnings of their
    tags.
    """
    kinds: dict[str, dict[str, None]] = {"QuickGELU": {}, "GELU": {}}
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        quick = (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu")
        kinds["QuickGELU" if quick else "GELU"][tag.partition("_")[0]] = None
    return "; ".join(f"{kind}: {', '.join(tags)}" for kind, tags in kinds.items() if tags)


def _download(name: ModelName, published: dict[str, Any]) -> Path:
    """The weight file of a tag, from the hub or its cache; from an address if it is on no hub."""
    if published.get("hf_hub"):
        repository, filename = os.path.split(published["hf_hub"])
        filename = filename or HF_WEIGHTS_NAME
        safe = (
            HF_SAFE_WEIGHTS_NAME
            if filename == HF_WEIGHTS_NAME
            else re.sub(r"\.(bin|pth|pt)$", ".safetensors", filename)
        )
        return hub.fetch(repository, list(dict.fromkeys((safe, filename))), backbone=name.full)
    url = published["url"]
    cached = Path("~/.cache/clip").expanduser() / os.path.basename(url)
    if cached.is_file() or (not hub.offline() and hub.reachable(url)):
        try:
            return Path(download_pretrained_from_url(url))
        except (OSError, RuntimeError) as error:
            fix = f"download {url} by hand to {cached}"
            raise MissingPrerequisite(
                f"the weights cannot be downloaded: {error}", f"backbone {name.full}", fix
            ) from error
    fix = f"with a network: curl -L --create-dirs -o {cached} {url}"
    raise MissingPrerequisite(
        "the weights are not in the cache, and there is no network", f"backbone {name.full}", fix
    )


def _pixels(name: ModelName, preprocessing: dict[str, Any]) -> Pixels:
    """Resize and crop from open_clip's preprocessing configuration of the model."""
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise name.error(
            f"it takes images of {height} x {width}, not square ones",
            "choose a model for square images",
        )
    mode = preprocessing.get("resize_mode", "shortest")
    if mode != "shortest" and not name.choice("crop", ("center",)):
        raise name.error(
            f"it was made for images brought to a square by {mode!r}, which keeps or adds their"
            " margins",
            "write ?crop=center to accept a resize of the short side and a centre crop",
        )
    interpolation = preprocessing.get("interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear"):
        raise name.error(
            f"its images are resized by {interpolation!r}",
            "only bicubic and bilinear are supported",
        )
    return Pixels(size=height, resize=height, interpolation=interpolation, decoder=name.decoder)


def _seen(tag: str) -> str:
    """What a tag says about the training data, such as `laion2b_s34b_b79k`."""
    found = next(
        (data for start, data in DATA.items() if tag.lower().replace("-", "_").startswith(start)),
        "unknown",
    )
    return f"{found} (open_clip tag {tag})"


def architectures_like(visual: Mapping[str, Tensor]) -> list[str]:
    """The usable open_clip transformers whose image tower has the sizes of these tensors, shortest
    name first.

    Args:
        visual: tensors of an image tower, named as below `visual.`.
    """
    patches, proj, positions = (
        visual.get(name) for name in ("conv1.weight", "proj", "positional_embedding")
    )
    if patches is None or proj is None or positions is None or patches.ndim != 4 or proj.ndim != 2:
        return []
    layers = len(
        {name.split(".")[2] for name in visual if name.startswith("transformer.resblocks.")}
    )
    found = {
        "width": patches.shape[0],
        "patch_size": patches.shape[-1],
        "layers": layers,
        "image_size": patches.shape[-1] * round((positions.shape[0] - 1) ** 0.5),
    }
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    fitting = [
        name
        for name, config in configs.items()
        if config["embed_dim"] == proj.shape[1]
        and found.items() <= config["vision_cfg"].items()
        and not {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys()
        and "multimodal_cfg" not in config
    ]
    return sorted(fitting, key=lambda name: (len(name), name))
