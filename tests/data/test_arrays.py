"""Arrays of images and labels, in the shapes that people have them in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.data.cards.dataset import Arrays, Part
from bench.data.readers.arrays import read_arrays

from support.arrays import LABELS, PIXELS, saved, verify


def opened(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels in the order of their rows in the file."""
    card = SimpleNamespace(name="ds", title="Arrays")
    dataset: Any = SimpleNamespace(card=card, folder=folder / "d", classes=("a", "b", "c"))
    layout = Arrays(kind="arrays", path="x.npy", labels="y.npy")
    collection = read_arrays(
        dataset, Part(layouts=(layout,)), layout, [0, 1, 2], cache=folder, progress=None
    ).collection
    order = np.argsort(collection.keys)
    return (
        np.stack([np.asarray(collection.originals.open(int(row))) for row in order]),
        collection.labels[order],
    )


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS[:, None],
        np.eye(3)[LABELS],
        np.eye(3, dtype=bool)[LABELS],
        LABELS.astype(np.uint8),
    ],
    ids=["(N,)", "(N, 1)", "one-hot", "one-hot, logical", "bytes"],
)
def test_labels_are_read_in_every_shape(
    labels: NDArray[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = verify(saved(tmp_path, PIXELS, labels), capsys)
    assert code == 0, shown
    images, found = opened(tmp_path)
    np.testing.assert_array_equal(found, LABELS)
    np.testing.assert_array_equal(images, PIXELS)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (PIXELS.transpose(0, 3, 1, 2), PIXELS),
        (PIXELS[..., 0], np.stack([PIXELS[..., 0]] * 3, axis=-1)),
        (PIXELS[..., :1], np.stack([PIXELS[..., 0]] * 3, axis=-1)),
        (PIXELS[:, None, :, :, 0], np.stack([PIXELS[..., 0]] * 3, axis=-1)),
    ],
    ids=["channels first", "grey", "one channel", "one channel, first"],
)
def test_pixels_are_read_in_every_shape(
    pixels: NDArray[Any], expected: NDArray[Any], tmp_path: Path
) -> None:
    saved(tmp_path, pixels, LABELS)
    images, labels = opened(tmp_path)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (PIXELS / 255, LABELS, "float64 pixels"),
        (PIXELS, LABELS[:4], "(4,) int64 labels"),
        (PIXELS, LABELS / 2, "labels are float64"),
        (PIXELS, LABELS + 1, "labels are 1 to 3, expected 0 to 2"),
        (PIXELS, np.array(3), "() int64 labels"),
        (PIXELS[:, :0], LABELS, "not a set of images"),
    ],
)
def test_what_is_no_set_of_images_is_reported(
    pixels: NDArray[Any],
    labels: NDArray[Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, shown = verify(saved(tmp_path, pixels, labels), capsys)
    assert code == 1
    assert message in shown
