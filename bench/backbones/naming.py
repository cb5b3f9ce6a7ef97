"""Parse the names of timm and open_clip backbones, which follow one grammar.

    timm:NAME                        weights of timm's default tag (hub or hub cache)
    timm:NAME.TAG                    weights of that tag, in timm's own spelling
    open_clip:ARCH/TAG               weights of a published tag (hub or hub cache)
    open_clip:DIR                    a folder with open_clip_config.json and weights
    LIBRARY:NAME@FILE                weights from a file: .safetensors, .pth, .pth.tar, .pt, .bin
    LIBRARY:NAME@random              random weights, always the same; @random-7: others
    ...?OPTION=VALUE&OPTION=VALUE    options, see below

Options:
    size=128                         side of the crop in pixels
    crop=center                      use a centre crop for a model made for squashed images
    decoder=torchvision              decode JPEG files in half the time; ranked separately
    quickgelu=yes|no                 activation of weights from an open_clip file
    ema=no                           of a file with averaged weights (EMA), use the others

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

#: Suffixes of weights files. They distinguish `@FILE` from `@random` and from a mistyped tag.
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")


@dataclass(frozen=True)
class ModelName:
    """A parsed backbone name.

    Attributes:
        full: the name as given, with the library.
        model: architecture, or the folder of a local open_clip model.
        tag: open_clip's pre-training tag; empty if none.
        file: existing weights file. At most one of `tag`, `file` and `seed` is set.
        seed: seed of random weights.
        options: the options after the question mark.
    """

    full: str
    model: str
    tag: str
    file: Path | None
    seed: int | None
    options: Mapping[str, str]

    @property
    def size(self) -> int | None:
        """Side of the crop in pixels, or None if the name does not state one.

        Raises:
            UsageError: it is not a positive integer.
        """
        text = self.options.get("size")
        if text is not None and not re.fullmatch(r"[1-9][0-9]{0,4}", text):
            raise self.error(
                f"size must be a whole number of pixels, not {text!r}",
                "write for example ?size=128",
            )
        return None if text is None else int(text)

    @property
    def folder(self) -> Path | None:
        """The model's folder, or None if the name is not a path."""
        # Only what looks like a path is one: a folder `RN50` in the working directory must not
        # change what `open_clip:RN50@FILE` means.
        return (
            Path(self.model).expanduser()
            if self.model.startswith(("/", "./", "../", "~"))
            else None
        )

    @property
    def decoder(self) -> Decoder:
        """The image decoder."""
        return (
            "torchvision"
            if self.choice("decoder", ("torchvision", "pil")) == "torchvision"
            else "pil"
        )

    def choice(self, option: str, values: tuple[str, ...]) -> str | None:
        """Return the value of an option that has a fixed list of values, or None.

        Raises:
            UsageError: the value is not one of them.
        """
        value = self.options.get(option)
        if value is not None and value not in values:
            raise self.error(
                f"{option} must be {' or '.join(values)}, not {value!r}",
                f"write ?{option}={values[0]}",
            )
        return value

    def error(self, what: str, fix: str) -> UsageError:
        """Return a usage error that names this backbone."""
        return UsageError(what, where=f"backbone {self.full}", fix=fix)


def parse(library: str, rest: str, *, options: Iterable[str]) -> ModelName:
    """Parse the part of a backbone's name after `LIBRARY:`.

    Args:
        library: `timm` or `open_clip`.
        rest: what follows the colon.
        options: names of the options that this library has.

    Raises:
        UsageError: the name does not follow the grammar.
        MissingPrerequisite: its weights file does not exist.
    """
    full = f"{library}:{rest}"
    where = f"backbone {full}"
    # The last question mark, since file names may contain others.
    path, mark, query = rest.rpartition("?")
    if not mark:
        path, query = rest, ""
    # Unknown and repeated options are errors: a mistyped one would silently give another backbone.
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
        random = re.fullmatch(r"random(?:-([0-9]{1,9}))?", weights)
        # `@random` and `@random-0` are the same weights.
        if random:
            seed = int(random[1] or 0)
        elif weights.endswith(SUFFIXES):
            file = Path(weights).expanduser()
            if why := absent(file, what="weights file"):
                raise MissingPrerequisite(why, where, "write the path of an existing file after @")
        else:
            raise UsageError(
                f"after @ comes a file ({', '.join(SUFFIXES)}) or `random`, not {weights!r}",
                where,
                f"write {library}:{model}@random or {library}:{model}@FILE.safetensors",
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
            raise UsageError("a folder has its own weights", where, "leave out @ and what follows")
        return name
    # In `ARCH/path/to/weights.pt` an @ is missing; it must not be looked up as a tag.
    model, slash, tag = model.partition("/")
    if slash and (not tag or "/" in tag or tag.endswith(SUFFIXES)):
        raise UsageError(
            f"{tag!r} is not a tag", where, f"write a weights file with @: {library}:{model}@FILE"
        )
    if tag and at:
        raise UsageError(
            "the name has both a tag and other weights",
            where,
            f"write {library}:{model}/{tag} or {library}:{model}@{weights}",
        )
    return ModelName(full, model, tag, file, seed, chosen)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean a, b?` for a name that is not in `known`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {', '.join(found)}?" if found else ""
