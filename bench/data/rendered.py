"""Render the images of a world once per split, and cache them by the code that makes them."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BenchError, MissingPrerequisite, UsageError
from ..identity import digest
from ..plugins import entries, loaded
from ..storage.atomic import Progress, cached_folder, in_cache
from .cards.suite_card import RenderedSource

#: Packages whose arithmetic a renderer is likely to use. Their versions are part of the cache key,
#: since another release may round differently.
_ARITHMETIC = ("numpy", "scipy", "pillow", "torch")


@dataclass(frozen=True)
class RenderedSplit:
    """A rendered split of a world, in the cache.

    Attributes:
        pixels: path of a .npy file, (N, H, W, 3) uint8.
        labels: (N,) int64.
        groups: (N,) int64 or None.
        content: (N,) SHA-256 of every image's shape and pixels, hexadecimal.
    """

    pixels: Path
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    content: NDArray[np.str_]


def rendered_split(
    source: RenderedSource, split: str, *, cache: Path, progress: Progress | None = None
) -> RenderedSplit:
    """Return the images of a split from the cache, or render them.

    Args:
        source: name and options of the world, from a suite's card.
        split: split of the world.
        cache: folder of rendered splits.
        progress: called when rendering starts and ends.

    Raises:
        MissingPrerequisite: no installed package has registered the world.
        BenchError: `render` returned something other than (N, H, W, 3) uint8 pixels with N labels
            (and N groups).
    """
    world, module = _world(source.world)
    key = digest(
        {
            "world": source.world,
            "options": source.options,
            "source": _package_sha256(module),
            "split": split,
            "arithmetic": {name: _version(name) for name in _ARITHMETIC},
        }
    )
    # 32 of the digest's 64 digits: 128 bits cannot collide by chance, and the path stays short.
    folder = cache / key[:32]

    def build(part: Path) -> None:
        if progress is not None:
            progress(f"rendering {split}", 0, 1)
        made = world(**source.options).render(split)
        pixels, labels = np.asarray(made.pixels), np.asarray(made.labels)
        groups = None if made.groups is None else np.asarray(made.groups)
        _check(source.world, split, pixels, labels, groups)
        # Separate .npy files, not one .npz: only these can be mapped into memory.
        np.save(part / "pixels.npy", pixels)
        np.save(part / "labels.npy", labels.astype(np.int64))
        if groups is not None:
            np.save(part / "groups.npy", groups.astype(np.int64))
        np.save(part / "content.npy", _content(pixels))
        # `_is_intact` compares the arrays with this shape.
        meta = {"world": source.world, "split": split, "shape": pixels.shape}
        (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if progress is not None:
            progress(f"rendering {split}", 1, 1)

    cached_folder(folder, build, _is_intact, progress)
    # Labels are read now; the pixels are only named here, and mapped when they are needed.
    groups_file = folder / "groups.npy"
    with in_cache(folder):
        return RenderedSplit(
            pixels=folder / "pixels.npy",
            labels=np.load(folder / "labels.npy"),
            groups=np.load(groups_file) if groups_file.exists() else None,
            content=np.load(folder / "content.npy"),
        )


def _world(name: str) -> tuple[Any, ModuleType]:
    """Return the class that is registered under a name, and the module that registers it."""
    # Entry points alone: a card may come from anywhere, and must not be able to name a module to
    # import or a file to run.
    known = entries("bench.worlds")
    if name not in known:
        raise MissingPrerequisite(
            f"there is no world `{name}`",
            where=f"source.world; known worlds: {', '.join(known) or 'none'}",
            fix="install the package that registers it as an entry point of the group bench.worlds",
        )
    return loaded(known[name]), importlib.import_module(known[name].module)


def _package_sha256(module: ModuleType) -> str:
    """Return the hash of all files of the module's package, or of the module's file alone."""
    if module.__file__ is None:
        raise UsageError(f"{module.__name__} has no source file", where="source.world")
    file = Path(module.__file__)
    # The whole package, data files included, since a change in any of them may change the images.
    # Rendering again for a changed comment costs little; stale images would cost a result.
    files = [file]
    if hasattr(module, "__path__") or (module.__package__ or "") in sys.modules:
        files = sorted(
            path
            for path in file.parent.rglob("*")
            if path.is_file() and _is_source(path.relative_to(file.parent))
        )
    sha = hashlib.sha256()
    for path in files:
        name, content = path.relative_to(file.parent), hashlib.sha256(path.read_bytes())
        sha.update(f"{name.as_posix()}\n{content.hexdigest()}\n".encode())
    return sha.hexdigest()


def _is_source(path: Path) -> bool:
    """Whether a file can affect a rendering: neither byte code nor a hidden file."""
    return path.suffix != ".pyc" and not any(
        part.startswith(".") or part == "__pycache__" for part in path.parts
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _check(
    world: str, split: str, pixels: NDArray[Any], labels: NDArray[Any], groups: NDArray[Any] | None
) -> None:
    problem = ""
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        problem = f"pixels are {pixels.dtype} {pixels.shape}, not uint8 (N, H, W, 3)"
    elif labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        problem = f"labels are {labels.dtype} {labels.shape}, not integers ({len(pixels)},)"
    elif groups is not None and (groups.shape != (len(pixels),) or groups.dtype.kind not in "iu"):
        problem = f"groups are {groups.dtype} {groups.shape}, not integers ({len(pixels)},)"
    if problem:
        raise BenchError(
            f"the world returns wrong arrays: {problem}",
            where=f"{world}, split {split}",
            fix="fix the world's `render` method",
        )


def _content(pixels: NDArray[np.uint8]) -> NDArray[np.str_]:
    # With the shape, since the bytes of a 2 x 8 image may be those of a 4 x 4 image.
    shape = f"{pixels.shape[1]}x{pixels.shape[2]}\n".encode()
    hashes = [hashlib.sha256(shape + image.tobytes()).hexdigest() for image in pixels]
    return np.array(hashes, dtype="U64")


def _is_intact(folder: Path) -> bool:
    try:
        shape = tuple(json.loads((folder / "meta.json").read_text(encoding="utf-8"))["shape"])
        pixels, content = (
            np.load(folder / "pixels.npy", mmap_mode="r"),
            np.load(folder / "content.npy"),
        )
        return bool(pixels.shape == shape and len(content) == shape[0])
    except (OSError, ValueError, KeyError):
        return False
