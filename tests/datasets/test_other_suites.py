"""The suites beyond ImageNet, each read from its usual layout in miniature; images show the number
of their class.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from bench.data.cards.dataset import find_dataset
from bench.data.cards.labels import ClassList, read_class_list
from bench.data.cards.suite_card import find_card
from bench.data.pixels.decoder import Pixels
from bench.data.suite import Suite, open_suite
from bench.datasets import lists
from bench.errors import BenchError
from bench.evaluation.metrics import project, score

from support import stand_ins

PIXELS = Pixels(size=4, resize=4)
CIFAR = ClassList.plain(find_dataset("cifar-10")[0].classes)


def small(name: str, root: Path, folder: Path, val_count: int | None = None) -> Suite:
    card = stand_ins.write_card(name, folder, val_count)
    found, path = find_card(str(card))
    return open_suite(found, card_path=path, data_root=root)


def accuracies(suite: Suite, shown_as: dict[str, list[int]] | None = None) -> dict[str, float]:
    """Of a classifier that reads the shade; `shown_as` translates shades of a split into the
    suite's labels.
    """
    found = {}
    for name in suite.split_names:
        if name in suite.missing:
            continue
        split = suite.load(name, PIXELS)
        shades = split.take(np.arange(len(split)))[:, 0, 0, 0].astype(int)
        labels = np.array((shown_as or {}).get(name, range(256)))[shades]
        logits = np.eye(len(suite.card.classes), dtype=np.float32)[labels]
        if name in suite.projections:
            logits = project(logits, suite.projections[name])
        found[name] = score(logits, split.labels, split.groups).accuracy
    return found


def all_right(suite: Suite, holes: tuple[str, ...] = ()) -> dict[str, float]:
    assert sorted(suite.missing) == sorted(holes)
    return dict.fromkeys((name for name in suite.split_names if name not in holes), 1.0)


def test_cifar_10_and_its_new_test_sets(tmp_path: Path) -> None:
    stand_ins.cifar_10_shifts(tmp_path)
    stl = read_class_list(lists()["stl-10"])
    suite = small("cifar-10-shifts", tmp_path, tmp_path, val_count=20)
    as_cifar = [
        CIFAR.ids.index(covered[0]) if covered[0] in CIFAR.ids else 6 for covered in stl.covers
    ]
    assert accuracies(suite, {"stl-10": as_cifar}) == all_right(suite)
    assert {name: len(suite.load(name, PIXELS)) for name in suite.split_names} == {
        "train": 80,
        "id-val": 20,
        "id-test": 20,
        "cifar-10.1": 30,
        "cifar-10.2": 30,
        "stl-10": 9,
    }
    assert suite.projections["stl-10"].name == "masked9"
    original = suite.load("stl-10", PIXELS).original(0)
    assert original.getpixel((95, 95))[2] == 7, "rows and columns are not exchanged"
    assert original.getpixel((95, 0))[2] != 7


def test_cifar_s_binary_files_are_the_same_images(tmp_path: Path) -> None:
    stand_ins.cifar_10(tmp_path / "one/cifar-10-batches-py", "python")
    stand_ins.cifar_10(tmp_path / "two/cifar-10-batches-bin", "binary")
    suites = [
        small("cifar-10-c", tmp_path / root, tmp_path, val_count=20) for root in ("one", "two")
    ]
    prints = [
        [suite.fingerprint(name, PIXELS) for name in ("train", "id-val", "id-test")]
        for suite in suites
    ]
    assert prints[0] == prints[1]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("run",))

    stand_ins.cifar_10(tmp_path / "cifar-10")
    (tmp_path / "cifar-10/test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(BenchError, match="not allowed in a file of images"):
        small("cifar-10-c", tmp_path, tmp_path, val_count=20)


def test_cifar_10_c_severities_are_ranges_of_one_array(tmp_path: Path) -> None:
    stand_ins.cifar_10_c(tmp_path)
    suite = small("cifar-10-c", tmp_path, tmp_path, val_count=20)
    present = [name for name in suite.split_names if name.startswith("fog")]
    assert len(present) == 5
    assert len(suite.missing) == 90
    numbers = {
        name: {int(key.rpartition("/")[2]) // 10_000 for key in suite.load(name, PIXELS).keys}
        for name in present
    }
    assert numbers == {f"fog-{severity}": {severity - 1} for severity in range(1, 6)}


@pytest.mark.slow
def test_domainnet_by_its_official_lists_whole_and_the_40_classes(tmp_path: Path) -> None:
    stand_ins.domainnet(tmp_path)
    root = tmp_path / "domainnet"
    forty = small("domainnet-40", tmp_path, tmp_path, val_count=40)
    assert {
        name: len(forty.load(name, PIXELS)) for name in ("train", "id-val", "id-test", "sketch")
    } == {
        "train": 80,
        "id-val": 40,
        "id-test": 40,
        "sketch": 40,
    }
    for name in ("train", "sketch"):
        split = forty.load(name, PIXELS)
        assert [forty.card.identities[label] for label in split.labels] == [
            key.split("/")[1] for key in split.keys
        ]
    whole = small("domainnet", tmp_path, tmp_path, val_count=345)
    assert sorted(whole.missing) == ["infograph", "quickdraw"]
    assert len(whole.load("sketch", PIXELS)) == 345
    (root / "sketch_test.txt").write_text("sketch/airplane/x.png 345\n")
    with pytest.raises(BenchError, match="not a class: 345"):
        small("domainnet", tmp_path, tmp_path, val_count=345)


@pytest.mark.parametrize(
    ("name", "folder", "domains"),
    [
        ("pacs-without-sketch", "PACS", ["photo", "art_painting", "cartoon", "sketch"]),
        (
            "office-home-without-real-world",
            "OfficeHome",
            ["Art", "Clipart", "Product", "Real_World"],
        ),
        ("vlcs-without-voc2007", "VLCS", ["Caltech101", "LabelMe", "SUN09", "VOC2007"]),
    ],
)
def test_one_domain_left_out(name: str, folder: str, domains: list[str], tmp_path: Path) -> None:
    card, _ = find_card(name)
    stand_ins.domains(tmp_path, name)
    suite = small(name, tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    in_id = {
        key for part in ("train", "id-val", "id-test") for key in suite.load(part, PIXELS).keys
    }
    assert {key.split("/")[0] for key in in_id} == set(domains[:3])
    assert {key.split("/")[0] for key in suite.load(suite.split_names[3], PIXELS).keys} == {
        domains[3]
    }
    assert len(in_id) == 15 * len(card.classes)


def test_waterbirds_has_four_groups(tmp_path: Path) -> None:
    stand_ins.waterbirds(tmp_path)
    suite = small("waterbirds", tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    split = suite.load("worst-group", PIXELS)
    assert split.groups is not None
    assert np.bincount(split.groups).tolist() == [1, 2, 2, 3]
    assert suite.card.shifts[0].metric == "worst_group"


def test_iwildcam_by_its_metadata(tmp_path: Path) -> None:
    stand_ins.iwildcam(tmp_path)
    suite = small("iwildcam", tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    assert any("1 of 183 listed images" in warning for warning in suite.warnings)
    assert suite.card.metric == "macro_f1"


def test_fmow_goes_by_year_and_region_and_counts_sequestered_lines(tmp_path: Path) -> None:
    stand_ins.fmow(tmp_path)
    suite = small("fmow", tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    assert {name: len(suite.load(name, PIXELS)) for name in suite.split_names} == dict.fromkeys(
        suite.split_names, 62
    )
    groups = suite.load("worst-region", PIXELS).groups
    assert groups is not None
    assert np.unique(groups).tolist() == [-1, 0, 1], "regions outside the table are in no group"
