"""The grammar of backbone names, one for timm and open_clip.

    timm:NAME                        the weights of timm's default tag (hub or hub cache)
    timm:NAME.TAG                    the weights of that tag, in timm's own spelling
    open_clip:ARCH/TAG               a published tag (hub or hub cache)
    open_clip:DIR                    a folder of open_clip_config.json and weights
    LIBRARY:NAME@FILE                weights from a file: .safetensors, .pth, .pth.tar, .pt, .bin
    LIBRARY:NAME@random              random weights, always the same; @random-7: others
    ...?OPTION=VALUE&OPTION=VALUE    options, below

Options:
    size=128                         side of the crop, pixels
    crop=center                      where the model was made for squashed images
    decoder=torchvision              JPEG files in half the time; its rows are ranked apart
    quickgelu=yes|no                 for open_clip files
    ema=no                           of files with averaged weights: the others

Examples: `timm:tf_efficientnet_lite0?size=128`, `open_clip:ViT-B-32/openai`,
`open_clip:ViT-B-32@./clip.pt?quickgelu=yes`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.pixels.decoder import Decoder
from ..errors import MissingPrerequisite, UsageError
from ..storage.files import absent

#: What a weight file may be called.
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")


@dataclass(frozen=True)
class ModelName:
    """A parsed backbone name.

    Attributes:
        full: the name as given, library included.
        model: architecture, or the folder of a local open_clip model.
        tag: open_clip's pre-training tag, empty if none.
        file: weight file, existing.
        seed: of random weights. At most one of `tag`, `file` and `seed` is set.
        options: what followed the question mark.
    """

    full: str
    model: str
    tag: str
    file: Path | None
    seed: int | None
    options: Mapping[str, str]

    @property
    def size(self) -> int | None:
        """Side of the crop in pixels, if the name states one.

        Raises:
            UsageError: it is not a whole number above 0.
        """
        text = self.options.get("size")
        if text is not None and not re.fullmatch(r"[1-9][0-9]{0,4}", text):
            raise self.error(
                f"size is a whole number of pixels, not {text!r}", "write for example ?size=128"
            )
        return None if text is None else int(text)

    @property
    def folder(self) -> Path | None:
        """The model's folder, if the name is one."""
        return (
            Path(self.model).expanduser()
            if self.model.startswith(("/", "./", "../", "~"))
            else None
        )

    @property
    def decoder(self) -> Decoder:
        """What decodes images."""
        return (
            "torchvision"
            if self.choice("decoder", ("torchvision", "pil")) == "torchvision"
            else "pil"
        )

    def choice(self, option: str, values: tuple[str, ...]) -> str | None:
        """The value of an option that has a fixed list of values, or None.

        Raises:
            UsageError: another value was given.
        """
        value = self.options.get(option)
        if value is not None and value not in values:
            raise self.error(
                f"{option} is {' or '.join(values)}, not {value!r}", f"write ?{option}={values[0]}"
            )
        return value

    def error(self, what: str, fix: str) -> UsageError:
        """A usage error that says which backbone it is about."""
        return UsageError(what, where=f"backbone {self.full}", fix=fix)


def parse(library: str, rest: str, *, options: Iterable[str]) -> ModelName:
    """Parse what follows `LIBRARY:` in a backbone's name.

    Args:
        options: the options that this library knows.

    Raises:
        UsageError: the name does not follow the grammar.
        MissingPrerequisite: the weight file that it names is not there.
    """
    full = f"{library}:{rest}"
    where = f"backbone {full}"
    path, mark, query = rest.rpartition("?")
    if not mark:
        path, query = rest, ""
    chosen: dict[str, str] = {}
    for item in query.split("&") if mark else ():
        key, equals, value = item.partition("=")
        if not equals or not value or key in chosen:
            raise UsageError(
                f"{item!r} is not an option of the form NAME=VALUE, given once",
                where,
                "write for example ?size=128",
            )
        if key not in options:
            raise UsageError(
                f"unknown option {key!r}",
                where,
                f"the options of {library} are {', '.join(sorted(options))}",
            )
        chosen[key] = value

    model, at, weights = path.partition("@")
    file: Path | None = None
    seed: int | None = None
    if at:
        drawn = re.fullmatch(r"random(?:-([0-9]{1,9}))?", weights)
        if drawn:
            seed = int(drawn[1] or 0)
        elif weights.endswith(SUFFIXES):
            file = Path(weights).expanduser()
            if why := absent(file, what="weight file"):
                raise MissingPrerequisite(
                    why,
                    where,
                    "give the path of an existing file after the @",
                )
        else:
            what = f"after the @ comes a file ({', '.join(SUFFIXES)}) or `random`, not {weights!r}"
            raise UsageError(
                what, where, f"write {library}:{model}@random or {library}:{model}@FILE.safetensors"
            )

    name = ModelName(full, model, "", file, seed, chosen)
    if not model:
        raise UsageError(
            "the name of the model is missing",
            where,
            f"write {library}:NAME; `bench backbones` lists some",
        )
    if name.folder is not None:
        if at:
            raise UsageError(
                "a folder carries its own weights", where, "leave out what follows the @"
            )
        return name
    model, slash, tag = model.partition("/")
    if slash and (not tag or "/" in tag or tag.endswith(SUFFIXES)):
        raise UsageError(
            f"{tag!r} is not a tag", where, f"name a weight file with @: {library}:{model}@FILE"
        )
    if tag and at:
        raise UsageError(
            "both a tag and other weights are named",
            where,
            f"write {library}:{model}/{tag} or {library}:{model}@{weights}",
        )
    return ModelName(full, model, tag, file, seed, chosen)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean a, b?` for a name that is not among `known`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {', '.join(found)}?" if found else ""
