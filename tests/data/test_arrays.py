"""Arrays of images and labels, in the shapes that people have them in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.cli import main
from bench.data.cards.data_set import Arrays, Part
from bench.data.readers.arrays import read_arrays

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])
CARD = """
name = "ds"
title = "Arrays"
licence = "CC0"
folders = ["d"]
classes = ["a", "b", "c"]
[parts.test]
images = 6
layouts = [{ kind = "arrays", path = "x.npy", labels = "y.npy" }]
"""


def saved(folder: Path, pixels: NDArray[np.generic], labels: NDArray[np.generic]) -> Path:
    (folder / "d").mkdir(exist_ok=True)
    np.save(folder / "d" / "x.npy", pixels)
    np.save(folder / "d" / "y.npy", labels)
    (folder / "ds.toml").write_text(CARD)
    return folder / "ds.toml"


def opened(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels in the order of their rows in the file."""
    card = SimpleNamespace(name="ds", title="Arrays")
    data_set: Any = SimpleNamespace(card=card, folder=folder / "d", classes=("a", "b", "c"))
    layout = Arrays(kind="arrays", path="x.npy", labels="y.npy")
    collection = read_arrays(
        data_set, Part(layouts=(layout,)), layout, [0, 1, 2], cache=folder, progress=None
    ).collection
    order = np.argsort(collection.keys)
    return (
        np.stack([np.asarray(collection.originals.open(int(row))) for row in order]),
        collection.labels[order],
    )


def verify(card: Path, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", "verify", str(card), "--data-root", str(card.parent)])
    shown = capsys.readouterr()
    return ended.value.code, shown.out + shown.err


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
    ("pixels", "labels", "told"),
    [
        (PIXELS / 255, LABELS, "float64 pixels"),
        (PIXELS, LABELS[:4], "(4,) int64 labels are no set of images"),
        (PIXELS, LABELS / 2, "labels of float64 are no class numbers"),
        (PIXELS, LABELS + 1, "labels from 1 to 3 are not those of the classes"),
        (PIXELS, np.array(3), "() int64 labels are no set of images"),
        (PIXELS[:, :0], LABELS, "are no set of images"),
    ],
)
def test_what_is_no_set_of_images_is_told(
    pixels: NDArray[Any],
    labels: NDArray[Any],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, shown = verify(saved(tmp_path, pixels, labels), capsys)
    assert code == 1
    assert told in shown
