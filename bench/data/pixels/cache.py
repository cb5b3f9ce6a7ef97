"""Decode images once, into a memory-mapped uint8 array that all runs on a machine share."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features
from rich.filesize import decimal as size

from ...errors import BenchError
from ...identity import digest
from ...storage.atomic import Progress, cached_folder, in_cache
from .decoder import Decoder, Interpolation, Pixels
from .image_bytes import Undecodable

#: Part of the cache key; increase it when this module turns the same image into other pixels.
VERSION = 1

#: Images per task of a thread: enough that the tasks' overhead does not count, few enough that
#: progress moves and Ctrl-C is noticed.
_CHUNK = 32
#: Bytes to leave free on the disk, for the other small files of the cache.
_SPARE_BYTES = 64 << 20
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

#: An RGB image of PIL, which PIL resizes, or an array (H, W, 3) uint8, which torch resizes.
Original = Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class CachedPixels:
    """Decoded images in the cache.

    Attributes:
        path: .npy file, (N, S, S, 3) uint8.
        unreadable: row -> reason; these rows are black.
    """

    path: Path
    unreadable: dict[int, str]


def prepared(image: Original, pixels: Pixels) -> NDArray[np.uint8]:
    """Resize and crop an RGB image as torchvision's `Resize` and `CenterCrop` do.

    Args:
        image: the image at its full size.
        pixels: size of the short side and of the crop.

    Returns:
        (S, S, 3) uint8, with black borders where the image is smaller than the crop.
    """
    # The long side is rounded down, the padding and the crop are centred as torchvision does it, to
    # the pixel: accuracies of published weights depend on it.
    width, height = sides(image)
    if width <= height:
        width, height = pixels.resize, int(pixels.resize * height / width)
    else:
        width, height = int(pixels.resize * width / height), pixels.resize
    made, side = resized(image, width, height, pixels.interpolation), pixels.size
    if width < side or height < side:
        right, below = max(side - width, 0), max(side - height, 0)
        made = np.pad(
            made, ((below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0))
        )
        height, width = made.shape[:2]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return made[top : top + side, left : left + side]


def sides(image: Original) -> tuple[int, int]:
    """Return width and height in pixels."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def cut(image: Original, left: int, top: int, width: int, height: int) -> Original:
    """Crop a rectangle from an image; all values are in pixels."""
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    return image[top : top + height, left : left + width]


def resized(
    image: Original, width: int, height: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Resize an RGB image with antialiasing: PIL images with PIL, arrays with torch (faster).

    Returns:
        (height, width, 3) uint8.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image.resize((width, height), _FILTERS[interpolation]))
    if image.shape[:2] == (height, width):
        return image
    import torch
    from torch.nn.functional import interpolate

    # A view with the channels first, as torch expects them, over memory with the channels last:
    # for uint8 in this layout, torch computes in integers.
    channels_first = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
    made = interpolate(
        channels_first, (height, width), mode=interpolation, antialias=True, align_corners=False
    )
    return np.asarray(made[0].permute(1, 2, 0).numpy())


def cached_pixels(
    content: Sequence[str],
    open_image: Callable[[int], Original],
    pixels: Pixels,
    *,
    cache: Path,
    what: str,
    progress: Progress | None = None,
) -> CachedPixels:
    """Return the pixels of images from the cache, or decode them on all cores.

    Args:
        content: identity of every image, such as its SHA-256; the cache is keyed by these, not by
            paths.
        open_image: returns the RGB image of a row, or raises `Undecodable`; called from several
            threads at the same time.
        pixels: preprocessing.
        cache: folder of the pixel cache.
        what: name of the images, for progress and messages.
        progress: called with what is done, the images so far, and their number.

    Raises:
        BenchError: the disk is too small. Other errors of `open_image` are passed on. Nothing is
            cached then.
    """
    key = digest(
        {
            "content": list(content),
            "pixels": pixels.model_dump(exclude={"decoder"}),
            "version": VERSION,
            # In place of its name in `pixels`, which does not change with the library's version.
            "decoder": _decoder(pixels.decoder),
        }
    )
    shape = (len(content), pixels.size, pixels.size, 3)
    folder = cache / key[:32]

    def build(part: Path) -> None:
        # Checked first, so that a disk that is obviously too small is reported at once.
        _check_space(int(np.prod(shape)), part, what)
        array = _allocate(part / "pixels.npy", shape)
        unreadable = _fill(array, open_image, pixels, f"decoding {what}", progress)
        array.flush()
        _write_json(
            part / "meta.json",
            {"what": what, "shape": shape, "pixels": pixels.name, "unreadable": unreadable},
        )

    cached_folder(folder, build, lambda at: _is_intact(at, shape), progress)
    with in_cache(folder):
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return CachedPixels(
        folder / "pixels.npy", {int(row): reason for row, reason in meta["unreadable"].items()}
    )


def _decoder(decoder: Decoder) -> list[str | None]:
    """Return the versions of the libraries that turn bytes into pixels.

    Releases of a JPEG decoder differ in single grey levels; pixels of two of them are not mixed.
    """
    libraries = [
        PIL.__version__,
        features.version("jpg"),
        features.version("libjpeg_turbo"),
        features.version("webp"),
    ]
    return (
        libraries
        if decoder == "pil"
        else [*libraries, decoder, version("torch"), version("torchvision")]
    )


def available_cores(processes: int = 1) -> int:
    """Return how many cores each of `processes` processes may use, at most 16.

    Decoding in one process gains nothing beyond 16 threads.
    """
    # The affinity, where the system has it: `cpu_count` ignores what a scheduler or `taskset`
    # allows this process.
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(max(cores // processes, 1), 16)


def _fill(
    array: NDArray[np.uint8],
    open_image: Callable[[int], Original],
    pixels: Pixels,
    what: str,
    progress: Progress | None,
) -> dict[int, str]:
    """Decode all images into the rows of an array; return the reason for each unreadable one."""
    total, done = len(array), 0
    unreadable: dict[int, str] = {}
    stop = threading.Event()

    def fill_chunk(first: int) -> tuple[int, dict[int, str]]:
        bad: dict[int, str] = {}
        last = min(first + _CHUNK, total)
        for row in range(first, last):
            if stop.is_set():
                break
            try:
                array[row] = prepared(open_image(row), pixels)
            except Undecodable as error:
                bad[row] = str(error)
        return last - first, bad

    with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
        try:
            for chunk in as_completed(
                [pool.submit(fill_chunk, first) for first in range(0, total, _CHUNK)]
            ):
                count, bad = chunk.result()
                unreadable.update(bad)
                done += count
                if progress is not None:
                    progress(what, done, total)
        # After an error or Ctrl-C, leaving the pool would wait for all images. Tasks that have not
        # started are cancelled, and the running ones stop at the next image.
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return dict(sorted(unreadable.items()))


def _allocate(file: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Create a .npy file with its blocks reserved on the disk.

    Otherwise a write to the memory map on a full disk would kill the process (SIGBUS) without a
    message.
    """
    try:
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):
            _reserve(file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(int(np.prod(shape)), 0, file.parent, "these images") from error
        raise BenchError(
            f"the decoded pixels cannot be written: {error.strerror}",
            where=str(file.parent.parent),
            fix="fix the permissions or the quota, or: export BENCH_CACHE=/another/folder",
        ) from error
    return array


def _reserve(file: Path) -> None:
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            # Some file systems cannot reserve blocks. That is no reason not to use them.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _check_space(needed: int, folder: Path, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise _no_space(needed, free, folder, what)


def _no_space(needed: int, free: int, folder: Path, what: str) -> BenchError:
    return BenchError(
        f"the decoded pixels of {what} need {size(needed)}, {size(free)} are free",
        where=str(folder.parent),
        fix="free some space, or: export BENCH_CACHE=/folder/on/a/larger/disk",
    )


def _is_intact(folder: Path, shape: tuple[int, ...]) -> bool:
    try:
        json.loads((folder / "meta.json").read_text(encoding="utf-8"))["unreadable"]
        array = np.load(folder / "pixels.npy", mmap_mode="r")
    except (OSError, ValueError, KeyError):
        return False
    return bool(array.shape == shape and array.dtype == np.uint8)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")
