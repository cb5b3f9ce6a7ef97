"""Load open_clip models as backbones: published tags, weights files, folders, random weights."""

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
from .backbone import Architecture, Backbone, ImageTower
from .naming import ModelName, nearest, parse
from .open_clip_towers import OpenClipText, image_tower_of
from .weights import (
    check_kinds,
    content_sha256,
    quiet_root_logger,
    random_weights,
    safely,
    state_in,
    without_noise,
)

#: Start of an open_clip tag -> training data. The first match counts, so a longer start precedes
#: one that it begins with (`metaclip2`, `metaclip`).
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
#: Preprocessing that a tag may override; the input size is the architecture's.
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class OpenClipBackbone(Backbone):
    """An open_clip model, split into its image tower and its text tower.

    Args:
        name: the parsed name.
        model: open_clip's model with weights.
        config: open_clip's description of the architecture, with `quick_gelu`.
        tokenizer: open_clip's tokenizer.
        seen: see `Backbone`.
    """

    def __init__(
        self, name: ModelName, model: Any, config: dict[str, Any], tokenizer: Any, *, seen: str
    ) -> None:
        self.name, self.seen = name.full, seen
        preprocessing = model.visual.preprocess_cfg
        self.pixels = _pixels(name, preprocessing)
        mean, std = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
        facts = {"library": "open_clip", "architecture": config, "mean": mean, "std": std}
        # Hashed before the model is taken apart, so that the hash is of open_clip's own names.
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
        """Return a fresh copy of the image tower, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._tower)

    @property
    def layout(self) -> Architecture:
        """Layout of the image tower, `vit` or `conv`."""
        return self._tower.layout

    def text_tower(self) -> OpenClipText:
        """Return a fresh copy of the text tower, in eval mode, float32, on the CPU."""
        return copy.deepcopy(self._text)

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower: always."""
        return True


#: Tokenizer settings that the configuration in a folder may have. Others, such as a vocabulary,
#: would make open_clip read any file that the configuration names.
_TOKENIZER = frozenset({"additional_special_tokens", "clean", "reduction_mask"})


def load(rest: str) -> OpenClipBackbone:
    """Load the backbone `open_clip:` + `rest`.

    Args:
        rest: the name after the colon; `naming` has the grammar.

    Raises:
        UsageError: the name, an option or the file is wrong, the activation is not stated, or the
            architecture cannot be used.
        MissingPrerequisite: the weights are missing and cannot be downloaded.
    """
    name = parse("open_clip", rest, options=("size", "crop", "decoder", "quickgelu", "ema"))
    config = _config(name)
    _check_parts(name, config)
    if name.options.get("quickgelu") and name.file is None:
        raise name.error(
            "the option quickgelu is for weights files only",
            "leave it out: tags and folders state their own activation",
        )
    if name.options.get("ema") and name.file is None:
        raise name.error("the option ema is for weights files only", "leave it out")
    arguments: dict[str, Any] = {}
    if name.size is not None:
        _check_size(name, config, name.size)
        arguments["force_image_size"] = name.size
    if name.folder is not None:
        return _from_folder(name, name.folder, config, arguments)
    if name.seed is not None:
        with quiet_root_logger(), random_weights("open_clip", name.model, name.seed):
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
        # A tag states the activation that it was trained with. If the architecture has another one,
        # open_clip only warns and builds the wrong model, so it is set here.
        config["quick_gelu"] = bool(published.get("quick_gelu", False))
        arguments["force_preprocess_cfg"] = {
            key: published[key] for key in _PREPROCESSING if key in published
        }
        path, seen = _download(name, published), _seen(name.tag)
    else:
        raise name.error(
            "the name does not say which weights",
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
        # open_clip reads only files, and resamples position embeddings while it does.
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
            f"put {HF_SAFE_WEIGHTS_NAME} next to open_clip_config.json",
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
    """Return open_clip's description of the architecture, with `quick_gelu` always set."""
    if name.folder is not None:
        path = name.folder / "open_clip_config.json"
        try:
            config = read_json(path)["model_cfg"]
        except OSError as error:
            raise MissingPrerequisite(
                f"there is no {path}", f"backbone {name.full}", "pass a folder made by open_clip"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise name.error(
                f"{path} is not an open_clip configuration: {error!r}",
                "add the entry model_cfg",
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
    # Set even where it is the default, since the description is part of the weights' identity.
    config["quick_gelu"] = bool(config.get("quick_gelu", False))
    result: dict[str, Any] = config
    return result


def _check_parts(name: ModelName, config: dict[str, Any]) -> None:
    """Refuse unusable architectures before anything is downloaded or built."""
    text = config["text_cfg"]
    if "multimodal_cfg" in config:
        raise name.error("CoCa models cannot be used", "choose a contrastive model with two towers")
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise name.error(
            f"the text tower of {name.model} needs the transformers library, which is not"
            " supported",
            "choose a model with open_clip's own tokenizer, such as ViT-B-32, RN50 or"
            " convnext_base_w",
        )
    # A folder may come from a stranger. Its configuration must not make open_clip read other files
    # or download a model (`timm_model_name = "hf-hub:..."`).
    if name.folder is not None:
        requested = {
            f"tokenizer_kwargs.{key}" for key in set(text.get("tokenizer_kwargs", {})) - _TOKENIZER
        }
        requested |= (
            {"timm_model_name"}
            if ":" in str(config["vision_cfg"].get("timm_model_name", ""))
            else set()
        )
        if requested:
            what = (
                f"its configuration names other files or addresses: {', '.join(sorted(requested))}"
            )
            raise name.error(what, "remove these entries from open_clip_config.json")


def _check_size(name: ModelName, config: dict[str, Any], size: int) -> None:
    vision = config["vision_cfg"]
    # open_clip resamples the position embeddings of its own transformers only.
    if "timm_model_name" in vision or isinstance(vision.get("layers"), list):
        raise name.error(
            "the size can be set for open_clip's own transformers only",
            "leave out the size",
        )
    if size % vision.get("patch_size", 16):
        raise name.error(
            f"size {size} is not a multiple of the patch size {vision.get('patch_size', 16)}",
            "choose a multiple",
        )


def _activation_of_file(name: ModelName, config: dict[str, Any]) -> bool:
    """Return whether the weights in a file were trained with QuickGELU.

    Raises:
        UsageError: both activations exist for this architecture, and the name does not state which.
    """
    # A file does not say it, and a wrong guess raises no error: features are just worse. So the
    # user has to state it wherever there is a choice.
    stated = name.choice("quickgelu", ("yes", "no"))
    if name.model.endswith("-quickgelu"):
        if stated == "no":
            raise name.error(
                "the architecture has QuickGELU, and the option says no",
                f"write {name.model.removesuffix('-quickgelu')}",
            )
        return True
    if stated is None and f"{name.model}-quickgelu" in open_clip.list_models():
        file = f"{name.model}@{name.file}"
        raise name.error(
            f"weights of {name.model} exist with two activations ({_activations(name.model)}). The"
            " file does not say which one it needs, and the wrong one silently gives other"
            " features",
            f"write open_clip:{file}?quickgelu=yes or open_clip:{file}?quickgelu=no",
        )
    return bool(config["quick_gelu"]) if stated is None else stated == "yes"


def _activations(architecture: str) -> str:
    """List the published weights of an architecture by activation, as the starts of their tags."""
    kinds: dict[str, dict[str, None]] = {"QuickGELU": {}, "GELU": {}}
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        quick = (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu")
        kinds["QuickGELU" if quick else "GELU"][tag.partition("_")[0]] = None
    return "; ".join(f"{kind}: {', '.join(tags)}" for kind, tags in kinds.items() if tags)


def _download(name: ModelName, published: dict[str, Any]) -> Path:
    """Return the weights file of a tag, from the hub, a URL, or the cache of either."""
    if published.get("hf_hub"):
        repository, filename = os.path.split(published["hf_hub"])
        filename = filename or HF_WEIGHTS_NAME
        # Most repositories have a safetensors copy under the corresponding name; it is preferred.
        safe = (
            HF_SAFE_WEIGHTS_NAME
            if filename == HF_WEIGHTS_NAME
            else re.sub(r"\.(bin|pth|pt)$", ".safetensors", filename)
        )
        return hub.fetch(repository, list(dict.fromkeys((safe, filename))), backbone=name.full)
    # The cache folder of open_clip, so that files which it has downloaded are found.
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
    """Return resize, crop and interpolation from the model's preprocessing configuration."""
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise name.error(
            f"it takes images of {height} x {width}, not square ones",
            "choose a model for square images",
        )
    # `Pixels` resizes the short side and crops. For a model made for other images that loses part
    # of the image, so the user has to accept it.
    mode = preprocessing.get("resize_mode", "shortest")
    if mode != "shortest" and not name.choice("crop", ("center",)):
        raise name.error(
            f"it was trained on images made square by {mode!r}, not by a centre crop",
            "write ?crop=center to resize the short side and crop the centre all the same",
        )
    interpolation = preprocessing.get("interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear"):
        raise name.error(
            f"its images are resized by {interpolation!r}",
            "choose a model with bicubic or bilinear interpolation",
        )
    return Pixels(size=height, resize=height, interpolation=interpolation, decoder=name.decoder)


def _seen(tag: str) -> str:
    """Return the training data according to a tag such as `laion2b_s34b_b79k`."""
    found = next(
        (data for start, data in DATA.items() if tag.lower().replace("-", "_").startswith(start)),
        "unknown",
    )
    return f"{found} (open_clip tag {tag})"


def architectures_like(visual: Mapping[str, Tensor]) -> list[str]:
    """Return the usable open_clip transformers with the sizes of an image tower, shortest first.

    Args:
        visual: tensors of the image tower, named as below `visual.`.

    Returns:
        Names of architectures; empty if the tensors are not those of a vision transformer.
    """
    patches, proj, positions = (
        visual.get(name) for name in ("conv1.weight", "proj", "positional_embedding")
    )
    if patches is None or proj is None or positions is None or patches.ndim != 4 or proj.ndim != 2:
        return []
    # There is one position for each patch of a square image, and one for the class token.
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
