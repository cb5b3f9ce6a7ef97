"""A dataset of six small images in NumPy files, and what `bench data verify` says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.cli import main

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


def verify(card: Path, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", "verify", str(card), "--data-root", str(card.parent)])
    shown = capsys.readouterr()
    return ended.value.code, shown.out + shown.err
