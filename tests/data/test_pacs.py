"""The two PACS cards against real images: needs BENCH_TEST_DATA, a folder that holds `pacs`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench.data.cards.suite_card import read_card
from bench.data.pixels.decoder import Pixels
from bench.data.suite import open_suite
from bench.datasets import cards
from bench.errors import BenchError

PIXELS = Pixels(size=32, resize=36)


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("BENCH_TEST_DATA")
    if not folder or not (Path(folder) / "pacs").is_dir():
        pytest.skip("BENCH_TEST_DATA names no folder with pacs/")
    return Path(folder)


def test_both_cards_describe_the_same_suite_at_two_sizes() -> None:
    whole, third = read_card(cards()["pacs"]), read_card(cards()["pacs-subset"])
    assert [whole.id.count, *(shift.count for shift in whole.shifts)] == [1670, 2048, 2344, 3929]
    assert [third.id.count, *(shift.count for shift in third.shifts)] == [1017, 486, 615, 986]
    assert whole.classes == third.classes
    assert whole.strict_counts
    assert third.strict_counts
    assert third.title != whole.title


@pytest.mark.slow
def test_the_subset_s_card_agrees_with_the_images_and_the_other_card_does_not(
    real_data: Path,
) -> None:
    suite = open_suite(read_card(cards()["pacs-subset"]), data_root=real_data)
    sizes = {name: len(suite.load(name, PIXELS)) for name in suite.split_names}
    assert sizes == {
        "train": 611,
        "id-val": 203,
        "id-test": 203,
        "art_painting": 486,
        "cartoon": 615,
        "sketch": 986,
    }
    assert suite.warnings == []
    train, val = (
        np.bincount(suite.load(name, PIXELS).labels, minlength=7) for name in ("train", "id-val")
    )
    assert (np.abs(train / 611 - val / 203) < 0.01).all()
    with pytest.raises(BenchError, match=r"these are not the images of PACS: .*1,017"):
        open_suite(read_card(cards()["pacs"]), data_root=real_data)
