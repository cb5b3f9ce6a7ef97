"""Training batches in a reproducible order and with reproducible augmentation."""

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

# The crop that OpenCLIP trains with: only the scale differs from torchvision's RandomResizedCrop,
# whose default ratio and ten attempts `crop_box` repeats.
_CROP_SCALE = (0.9, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10
#: Uniform random numbers per image and epoch. A crop has two for each attempt and two for the
#: position, whichever attempt fits: a fixed width lets one table hold the epoch.
_RANDOM_NUMBERS = {"none": 0, "flip": 1, "shift-flip": 3, "resized-crop": 2 * _CROP_TRIES + 2}


class TrainBatches:
    """Batches of a training split, without the last partial batch of an epoch.

    An epoch has one permutation of the images and one table of random numbers, indexed by image.
    Pixels therefore depend neither on the number of workers, nor on where training resumes, nor on
    the other images of a batch.

    Args:
        split: the training images.
        batch_size: images per batch; reduced to the size of the split if that is smaller.
        seed: seed of the order and of the augmentation.
        augment: `flip` mirrors half of the images. `shift-flip` also shifts them by up to a twelfth
            of their side and reflects the border. `resized-crop` crops 90-100 % of the area of the
            original at an aspect ratio of 3/4 to 4/3 (as torchvision's RandomResizedCrop, bicubic)
            and does not mirror.
        size: side of the images in pixels.
        workers: threads that prepare batches ahead; 0 prepares each batch when it is requested.
        pin: return batches in page-locked memory, from which a GPU copies while it computes.

    Attributes:
        part: index of this part of every batch and the number of parts; see `of_part`.

    Raises:
        UsageError: `size` differs from the split's, the batch size or the number of workers is out
            of range, or the augmentation is unknown.
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
        if augment not in _RANDOM_NUMBERS:
            raise UsageError(
                f"unknown augmentation {augment!r}",
                where="augment",
                fix=f"use one of {', '.join(_RANDOM_NUMBERS)}",
            )
        if size != split.size:
            raise UsageError(
                f"batches of {size} pixels cannot be made from images of {split.size} pixels",
                where="size",
            )
        if batch_size < 1 or workers < 0:
            raise UsageError(
                "batch_size must be at least 1 and workers at least 0",
                where="batch_size, workers",
            )
        self.split, self.seed, self.augment, self.size = split, seed, augment, size
        self.workers, self.pin = workers, pin
        self.batch_size = min(batch_size, len(split))
        self.part = (0, 1)
        # Worker threads request the plan at the same time; the lock makes one of them compute it.
        self._plan_lock = threading.Lock()
        self._plan: tuple[int, NDArray[np.int64], NDArray[np.float32]] | None = None

    def of_part(self, number: int, of: int) -> TrainBatches:
        """Return the same batches, of which only the images of one part are prepared.

        Args:
            number: index of the part, such as the rank of a device.
            of: number of parts; see `share`.
        """
        mine = copy.copy(self)
        mine.part = (number, of)
        return mine

    # A lock cannot be pickled. The plan could be, but it is large (a permutation and a table of the
    # whole epoch) and recomputed from the seed in no time.
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan_lock": None, "_plan": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"_plan_lock": threading.Lock()}

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return len(self.split) // self.batch_size

    def rows(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return the rows of the split that make up batch `index` of an epoch, (N,).

        Raises:
            IndexError: the epoch has no such batch.
        """
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch}")
        return self._planned(epoch)[0][index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return the images of this part of a batch, and the labels of the whole batch.

        Returns:
            Images (n, 3, S, S) uint8 RGB and labels (N,) int64.
        """
        # Images cost decoding: each process prepares its part, and the devices exchange them (see
        # `training.step`). Labels cost nothing, so every process makes all of them.
        labels = torch.from_numpy(self.split.labels[self.rows(epoch, index)])
        rows = self.rows(epoch, index)[share(self.batch_size, *self.part)]
        random = self._planned(epoch)[1][rows]
        if self.augment == "resized-crop":
            images = np.stack(
                [self._resized_crop(int(row), own) for row, own in zip(rows, random, strict=True)]
            )
        else:
            images = self.split.take(rows)
            if self.augment == "shift-flip":
                images = _shifted(images, random[:, 1], random[:, 2])
            if self.augment != "none":
                flip = random[:, 0] < 0.5
                images[flip] = images[flip, :, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return (pixels.pin_memory(), labels.pin_memory()) if self.pin else (pixels, labels)

    def steps(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches from step `first` on, counted over all epochs, without end."""
        for epoch in itertools.count(first // self.steps_per_epoch):
            yield from self.epoch(epoch, max(first - epoch * self.steps_per_epoch, 0))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from `first_step` on; workers prepare them ahead."""
        steps = range(first_step, self.steps_per_epoch)
        if self.workers == 0:
            yield from (self.batch(epoch, step) for step in steps)
            return
        # Threads, not processes: reading the memory map, NumPy and PIL all release the GIL, and
        # nothing has to be pickled.
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            ahead: deque[Future[tuple[Tensor, Tensor]]] = deque()
            try:
                for step in steps:
                    # At most `workers` + 1 batches are in memory: one per worker, and the one that
                    # is handed out.
                    ahead.append(pool.submit(self.batch, epoch, step))
                    if len(ahead) > self.workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                # The caller may stop in the middle of an epoch, and must not wait for batches that
                # nobody will use.
                pool.shutdown(wait=False, cancel_futures=True)

    def _planned(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Order (N,) and random numbers of the augmentation (N, k) of an epoch."""
        with self._plan_lock:
            if self._plan is None or self._plan[0] != epoch:
                count = len(self.split)
                order = numpy_stream(self.seed, "order", epoch).permutation(count)
                random = numpy_stream(self.seed, "augment", epoch).random(
                    (count, _RANDOM_NUMBERS[self.augment]), dtype=np.float32
                )
                self._plan = (epoch, order, random)
            return self._plan[1], self._plan[2]

    def _resized_crop(self, row: int, random: NDArray[np.float32]) -> NDArray[np.uint8]:
        image = self.split.original(row)
        box = crop_box(*sides(image), random)
        return resized(cut(image, *box), self.size, self.size, "bicubic")


def fitting_workers(split: Split, augment: Augment, cores: int, *, ahead: bool = False) -> int:
    """Return how many threads should prepare batches.

    Args:
        split: the training images.
        augment: the augmentation; `resized-crop` decodes every image.
        cores: number of cores that this training may use.
        ahead: whether a GPU computes in the meantime and would wait even for mapped pixels.
    """
    # `_resized_crop` decodes one image after the other, so each thread keeps one core busy.
    if augment == "resized-crop":
        return max(cores, 1)
    # Decoding a batch already uses all cores (`DecodedPixels.take`): a second thread assembles the
    # batch that is decoded while the first decodes the next one.
    return 0 if split.cached and not ahead else 2


def share(size: int, number: int, of: int) -> slice:
    """Return the slice of a batch of `size` images that is part `number` of `of`.

    Parts are consecutive, and their sizes differ by one at most.
    """
    return slice(size * number // of, size * (number + 1) // of)


def crop_box(width: int, height: int, random: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Return a random crop, distributed as that of torchvision's RandomResizedCrop.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        random: (22,) uniform in [0, 1): area and aspect ratio of every attempt, then the position
            of the first crop that fits.

    Returns:
        Left, top, width and height of the crop in pixels.
    """
    # Double precision: in float32, a number just below 1 times a large side can be rounded up to
    # the side itself, one pixel too far.
    uniform = random.astype(np.float64)
    # Uniform in the logarithm of the ratio, so that wide and tall crops are equally likely.
    low, high = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    for at_area, at_ratio in uniform[: 2 * _CROP_TRIES].reshape(_CROP_TRIES, 2):
        area = width * height * (_CROP_SCALE[0] + (_CROP_SCALE[1] - _CROP_SCALE[0]) * at_area)
        ratio = math.exp(low + (high - low) * at_ratio)
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return (
                int(uniform[-2] * (width - across + 1)),
                int(uniform[-1] * (height - down + 1)),
                across,
                down,
            )
    # No attempt fits in a very long or very tall image: take the largest crop of an allowed ratio
    # from the centre, as torchvision does.
    across, down = width, height
    if width / height < _CROP_RATIO[0]:
        down = round(width / _CROP_RATIO[0])
    elif width / height > _CROP_RATIO[1]:
        across = round(height * _CROP_RATIO[1])
    return (width - across) // 2, (height - down) // 2, across, down


def _shifted(
    images: NDArray[np.uint8], across: NDArray[np.float32], down: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Shift every image by up to a twelfth of its side and reflect the border.

    The same as a random crop of the padded image, without the copy that padding makes.
    """
    count, side = images.shape[:2]
    most = side // 12

    def source(uniform: NDArray[np.float32]) -> NDArray[np.int64]:
        # Double precision for the reason given in `crop_box`.
        offset = (uniform.astype(np.float64) * (2 * most + 1)).astype(np.int64) - most
        place: NDArray[np.int64] = np.abs(np.arange(side) + offset[:, None])
        return np.where(place >= side, 2 * (side - 1) - place, place)

    return images[
        np.arange(count)[:, None, None], source(down)[:, :, None], source(across)[:, None, :]
    ]
