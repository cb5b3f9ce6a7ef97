"""Training batches: every epoch an order and augmentations that depend on the seed, the epoch and
the image only.
"""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UsageError
from ..identity import numpy_stream
from .pixels.cache import cut, resized, sides
from .split import Split

Augment = Literal["none", "flip", "shift-flip", "resized-crop"]

_CROP_SCALE = (0.9, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10
#: Uniform draws per image and epoch.
_DRAWS = {"none": 0, "flip": 1, "shift-flip": 3, "resized-crop": 2 * _CROP_TRIES + 2}


class TrainBatches:
    """Batches of a training split. The last, partial batch of an epoch is dropped.

    The order of an epoch is one permutation and the augmentation draws are one table, indexed by
    image; so neither the number of workers, nor where training resumes, nor what else is in a batch
    changes a pixel.

    Args:
        split: the training images.
        batch_size: images per batch; at most the whole split is taken.
        seed: of order and augmentation.
        augment: `flip` mirrors half of the images; `shift-flip` also moves them by up to a twelfth
            of their side, reflecting the border; `resized-crop` cuts 90-100 % of the area of the
            original at an aspect ratio of 3/4-4/3 (as torchvision's RandomResizedCrop, bicubic) and
            does not mirror.
        size: side of the images in pixels.
        workers: threads that prepare batches ahead; 0 prepares them when asked.
        pin: whether batches lie in page-locked memory, from which a GPU copies while it computes.

    Attributes:
        part: number of this part of every batch, and how many parts there are; see `of_part`.

    Raises:
        UsageError: `size` differs from the split's, an empty batch, or an unknown augmentation.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        augment: Augment,
        size: int,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        if augment not in _DRAWS:
            raise UsageError(
                f"no augmentation {augment!r}", where="augment", fix=f"one of {', '.join(_DRAWS)}"
            )
        if size != split.size:
            raise UsageError(f"batches of {size} pixels from images of {split.size}", where="size")
        if batch_size < 1 or workers < 0:
            raise UsageError(
                "a batch has at least one image, and workers are not negative",
                where="batch_size, workers",
            )
        self.split, self.seed, self.augment, self.size, self.workers, self.pin = (
            split,
            seed,
            augment,
            size,
            workers,
            pin,
        )
        self.batch_size = min(batch_size, len(split))
        self.part = (0, 1)
        self._plan_lock = threading.Lock()
        self._plan: tuple[int, NDArray[np.int64], NDArray[np.float32]] | None = None

    def of_part(self, number: int, of: int) -> TrainBatches:
        """The same batches, of whose images only those of one part are prepared (see `share`)."""
        mine = copy.copy(self)
        mine.part = (number, of)
        return mine

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan_lock": None, "_plan": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"_plan_lock": threading.Lock()}

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return len(self.split) // self.batch_size

    def rows(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The rows of the split that batch `index` of an epoch consists of, (N,).

        Raises:
            IndexError: the epoch has no such batch.
        """
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch}")
        return self._planned(epoch)[0][index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Images (n, 3, S, S) uint8 RGB of this part of one batch, and labels (N,) int64 of all of
        it.
        """
        labels = torch.from_numpy(self.split.labels[self.rows(epoch, index)])
        rows = self.rows(epoch, index)[share(self.batch_size, *self.part)]
        draws = self._planned(epoch)[1][rows]
        if self.augment == "resized-crop":
            images = np.stack(
                [self._resized_crop(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
            )
        else:
            images = self.split.take(rows)
            if self.augment == "shift-flip":
                images = _shifted(images, draws[:, 1], draws[:, 2])
            if self.augment != "none":
                flip = draws[:, 0] < 0.5
                images[flip] = images[flip, :, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return (pixels.pin_memory(), labels.pin_memory()) if self.pin else (pixels, labels)

    def steps(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from step `first` on, counted over all epochs, without end."""
        for epoch in itertools.count(first // self.steps_per_epoch):
            yield from self.epoch(epoch, max(first - epoch * self.steps_per_epoch, 0))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from `first_step` on, prepared ahead if there are workers."""
        steps = range(first_step, self.steps_per_epoch)
        if self.workers == 0:
            yield from (self.batch(epoch, step) for step in steps)
            return
        # Threads, not processes: reading the map, NumPy and PIL all release the GIL, and nothing
        # has to be pickled.
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            ahead: deque[Future[tuple[Tensor, Tensor]]] = deque()
            try:
                for step in steps:
                    ahead.append(pool.submit(self.batch, epoch, step))
                    if len(ahead) > self.workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _planned(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Order (N,) and augmentation draws (N, k) of an epoch."""
        with self._plan_lock:
            if self._plan is None or self._plan[0] != epoch:
                count = len(self.split)
                order = numpy_stream(self.seed, "order", epoch).permutation(count)
                draws = numpy_stream(self.seed, "augment", epoch).random(
                    (count, _DRAWS[self.augment]), dtype=np.float32
                )
                self._plan = (epoch, order, draws)
            return self._plan[1], self._plan[2]

    def _resized_crop(self, row: int, draws: NDArray[np.float32]) -> NDArray[np.uint8]:
        image = self.split.original(row)
        return resized(cut(image, *crop_box(*sides(image), draws)), self.size, self.size, "bicubic")


def fitting_workers(split: Split, augment: Augment, cores: int, *, ahead: bool = False) -> int:
    """How many threads should prepare batches: as many as there are cores where they decode images,
    none where nothing waits.

    Args:
        cores: that this training may use.
        ahead: whether a GPU computes meanwhile, which even mapped pixels keep waiting.
    """
    if augment == "resized-crop":
        return max(cores, 1)
    # Where images are decoded, one thread decodes a batch on all cores, while another puts together
    # what it has decoded.
    return 0 if split.kept and not ahead else 2


def share(size: int, number: int, of: int) -> slice:
    """The rows of a batch of `size` images that are part `number` of `of`: consecutive, and as many
    in each part up to one.
    """
    return slice(size * number // of, size * (number + 1) // of)


def crop_box(width: int, height: int, draws: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop, distributed as torchvision's RandomResizedCrop.

    Args:
        width, height: of the image, pixels.
        draws: uniform in [0, 1): area and aspect ratio of every try, then the place of the first
            that fits.
    """
    uniform = draws.astype(np.float64)
    low, high = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    for area_draw, ratio_draw in uniform[: 2 * _CROP_TRIES].reshape(_CROP_TRIES, 2):
        area = width * height * (_CROP_SCALE[0] + (_CROP_SCALE[1] - _CROP_SCALE[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return (
                int(uniform[-2] * (width - across + 1)),
                int(uniform[-1] * (height - down + 1)),
                across,
                down,
            )
    across, down = width, height
    if width / height < _CROP_RATIO[0]:
        down = round(width / _CROP_RATIO[0])
    elif width / height > _CROP_RATIO[1]:
        across = round(height * _CROP_RATIO[1])
    return (width - across) // 2, (height - down) // 2, across, down


def _shifted(
    images: NDArray[np.uint8], across: NDArray[np.float32], down: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Move every image by up to a twelfth of its side, the border reflected: a random crop of the
    padded image.
    """
    count, side = images.shape[:2]
    most = side // 12

    def source(uniform: NDArray[np.float32]) -> NDArray[np.int64]:
        offset = (uniform.astype(np.float64) * (2 * most + 1)).astype(np.int64) - most
        place: NDArray[np.int64] = np.abs(np.arange(side) + offset[:, None])
        return np.where(place >= side, 2 * (side - 1) - place, place)

    return images[
        np.arange(count)[:, None, None], source(down)[:, :, None], source(across)[:, None, :]
    ]
