from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from bench.data.batches import Augment, TrainBatches, crop_box, fitting_workers
from bench.data.cards.suite_card import SuiteCard
from bench.data.pixels.cache import available_cores
from bench.data.pixels.decoder import Pixels
from bench.data.split import DecodedPixels, Split
from bench.data.suite import open_suite
from bench.errors import UsageError
from bench.identity import numpy_stream

AUGMENTS: tuple[Augment, ...] = ("none", "flip", "shift-flip", "resized-crop")
SIZE = 16


@pytest.fixture
def split(card_of: Callable[..., SuiteCard], data: Path) -> Split:
    return open_suite(card_of(), data_root=data).load("train", Pixels(size=SIZE, resize=SIZE))


def batches(
    split: Split, augment: Augment, *, batch_size: int = 8, seed: int = 7, workers: int = 0
) -> TrainBatches:
    return TrainBatches(
        split, batch_size=batch_size, seed=seed, augment=augment, size=SIZE, workers=workers
    )


def same(
    one: list[tuple[torch.Tensor, torch.Tensor]], two: list[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("augment", AUGMENTS)
def test_shapes_and_steps(split: Split, augment: Augment) -> None:
    made = batches(split, augment)
    images, labels = made.batch(0, 0)
    assert (images.shape, images.dtype) == ((8, 3, SIZE, SIZE), torch.uint8)
    assert (labels.shape, labels.dtype) == ((8,), torch.int64)
    assert images.is_contiguous()
    assert made.steps_per_epoch == len(list(made.epoch(0))) == 4
    assert batches(split, augment, batch_size=1000).steps_per_epoch == 1


@pytest.mark.parametrize("augment", AUGMENTS)
def test_neither_workers_nor_a_resume_in_mid_epoch_change_a_bit(
    split: Split, augment: Augment
) -> None:
    whole = list(batches(split, augment).epoch(3))
    for workers in (1, 2, 5):
        assert same(list(batches(split, augment, workers=workers).epoch(3)), whole)
        assert same(
            list(batches(split, augment, workers=workers).epoch(3, first_step=2)), whole[2:]
        )


@pytest.mark.parametrize("augment", AUGMENTS)
def test_an_image_is_augmented_alike_whatever_batch_it_is_in(
    split: Split, augment: Augment
) -> None:
    def by_row(size: int) -> dict[int, bytes]:
        made = batches(split, augment, batch_size=size)
        return {
            int(row): image.numpy().tobytes()
            for step in range(made.steps_per_epoch)
            for row, image in zip(made.rows(1, step), made.batch(1, step)[0], strict=True)
        }

    assert by_row(4) == by_row(12)


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch(split: Split) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        made = batches(split, "none", batch_size=6, seed=seed)
        return np.concatenate([made.rows(epoch, step) for step in range(6)]).tolist()

    assert sorted(order(7, 0)) == list(range(36))
    assert order(7, 0) == numpy_stream(7, "order", 0).permutation(36).tolist()
    assert len({tuple(order(seed, epoch)) for seed in (7, 8) for epoch in (0, 1)}) == 4


def test_without_augmentation_the_pixels_are_the_split_s(split: Split) -> None:
    made = batches(split, "none")
    images, labels = made.batch(2, 1)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), split.take(made.rows(2, 1)))
    np.testing.assert_array_equal(labels.numpy(), split.labels[made.rows(2, 1)])


def test_flip_mirrors_about_half_and_changes_nothing_else(split: Split) -> None:
    made, mirrored = batches(split, "flip"), 0
    for epoch in range(5):
        for step in range(4):
            images = made.batch(epoch, step)[0].permute(0, 2, 3, 1).numpy()
            for image, plain in zip(images, split.take(made.rows(epoch, step)), strict=True):
                flipped = np.array_equal(image, plain[:, ::-1])
                assert flipped or np.array_equal(image, plain)
                mirrored += flipped
    assert 55 <= mirrored <= 105


def test_shift_flip_is_a_crop_of_the_reflected_border(split: Split) -> None:
    made, most = batches(split, "shift-flip"), SIZE // 12
    images, rows = made.batch(0, 0)[0].permute(0, 2, 3, 1).numpy(), made.rows(0, 0)
    for image, plain in zip(images, split.take(rows), strict=True):
        padded = np.pad(plain, ((most, most), (most, most), (0, 0)), mode="reflect")
        crops = [
            padded[y : y + SIZE, x : x + SIZE]
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
        ]
        assert any(
            np.array_equal(image, crop) or np.array_equal(image, crop[:, ::-1]) for crop in crops
        )


def test_resized_crop_cuts_the_original_as_torchvision_does(split: Split) -> None:
    made = batches(split, "resized-crop")
    rows = made.rows(2, 0)
    table = numpy_stream(7, "augment", 2).random((36, 22), dtype=np.float32)
    for image, row in zip(made.batch(2, 0)[0], rows, strict=True):
        original = split.original(int(row))
        left, top, width, height = crop_box(*original.size, table[row])
        expected = reference.resized_crop(
            original, top, left, height, width, [SIZE, SIZE], InterpolationMode.BICUBIC
        )
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("size", [(100, 100), (160, 90), (30, 300), (300, 30)])
def test_crops_are_distributed_as_torchvision_s(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    width, height = size
    canvas = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(canvas, [0.9, 1.0], [3 / 4, 4 / 3]) for _ in range(1000)],
        dtype=float,
    )
    samples = np.random.default_rng(0).random((1000, 22), dtype=np.float32)
    ours = np.array([crop_box(width, height, sample) for sample in samples], dtype=float)[
        :, [1, 0, 3, 2]
    ]
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    spread = np.sqrt((ours.var(0) + theirs.var(0)) / 1000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 4.5 * spread + 1e-9).all()


@pytest.mark.parametrize("augment", AUGMENTS)
def test_parts_are_the_batch_cut_up(split: Split, augment: Augment) -> None:
    made = batches(split, augment)
    whole, labels = made.batch(1, 2)
    sent = pickle.loads(pickle.dumps(made))
    parts = [sent.of_part(number, 3).batch(1, 2) for number in range(3)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert sorted(len(images) for images, _ in parts) == [2, 3, 3]
    assert all(torch.equal(each, labels) for _, each in parts), (
        "the labels are always those of the whole batch"
    )


def test_steps_go_on_over_the_epochs(split: Split) -> None:
    made = batches(split, "flip")
    stream = made.steps(made.steps_per_epoch - 1)
    for epoch, index in [(0, made.steps_per_epoch - 1), (1, 0), (1, 1)]:
        assert torch.equal(next(stream)[0], made.batch(epoch, index)[0])


def test_as_many_workers_as_cores_where_images_are_decoded_and_none_where_they_are_mapped(
    split: Split,
) -> None:
    decoded = replace(
        split,
        _pixels=DecodedPixels(
            split._originals, split._original_rows, Pixels(size=SIZE, resize=SIZE)
        ),
    )
    assert [fitting_workers(split, augment, 16) for augment in AUGMENTS] == [0, 0, 0, 16]
    assert [fitting_workers(decoded, augment, 16) for augment in AUGMENTS] == [2, 2, 2, 16]
    assert [fitting_workers(split, augment, 16, ahead=True) for augment in AUGMENTS] == [
        2,
        2,
        2,
        16,
    ], "a GPU waits for nothing"
    rows = np.arange(len(split))
    assert np.array_equal(decoded.take(rows), split.take(rows))


def test_leaving_an_epoch_early_stops_the_workers(split: Split) -> None:
    stream = batches(split, "flip", workers=2).epoch(0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def test_a_failure_in_a_worker_reaches_the_caller(split: Split, data: Path) -> None:
    for file in (data / "pets/photo").rglob("*.png"):
        file.unlink()
    with pytest.raises(Exception, match="cannot be read"):
        list(batches(split, "resized-crop", workers=2).epoch(0))


def test_wrong_arguments_are_refused(split: Split) -> None:
    with pytest.raises(UsageError, match="resized-crop"):
        batches(split, "blur")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        TrainBatches(split, batch_size=8, seed=0, augment="flip", size=SIZE + 1)
    with pytest.raises(IndexError):
        batches(split, "flip").batch(0, 4)


def test_processes_that_train_together_share_the_machines_cores_before_each_is_held_to_sixteen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(192), raising=False)
    assert [available_cores(processes) for processes in (1, 8, 16, 200)] == [16, 16, 12, 1]
