"""The suites beyond ImageNet, each read from its usual layout in miniature; images show the number
of their class.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from bench.data.cards.data_set import find_data_set
from bench.data.cards.labels import ClassList, read_class_list
from bench.data.cards.suite_card import find_card
from bench.data.pixels.decoder import Pixels
from bench.data.suite import Suite, open_suite
from bench.datasets import lists
from bench.errors import BenchError
from bench.evaluation.metrics import project, score

PIXELS = Pixels(size=4, resize=4)
CIFAR = ClassList.plain(find_data_set("cifar-10")[0].classes)


def pixels(label: int, salt: int, side: int = 4) -> np.ndarray:
    """A grey image whose shade is its class, with a corner that makes it unique. (JPEG is not used:
    it would change them.)
    """
    image = np.full((side, side, 3), label, dtype=np.uint8)
    image[-1, -1] = (salt >> 8, salt & 255, 7)
    return image


def put(path: Path, label: int, salt: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 4 4 255\n" + pixels(label, salt).tobytes())


def small(name: str, root: Path, folder: Path, val_count: int | None = None) -> Suite:
    card = folder / "small.toml"
    held_out = f"\n[id]\nval_count = {val_count}\n" if val_count else ""
    card.write_text(f'extends = "{name}"\nname = "small"\n{held_out}', encoding="utf-8")
    found, path = find_card(str(card))
    return open_suite(found, card_path=path, data_root=root)


def accuracies(suite: Suite, shown_as: dict[str, list[int]] | None = None) -> dict[str, float]:
    """Of a classifier that reads the shade; `shown_as` translates shades of a split into the
    suite's labels.
    """
    found = {}
    for name in suite.split_names:
        if name in suite.holes:
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
    assert sorted(suite.holes) == sorted(holes)
    return dict.fromkeys((name for name in suite.split_names if name not in holes), 1.0)


def cifar_arrays(per_class: int, salt: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    labels = np.tile(np.arange(10), per_class)
    return np.stack([pixels(label, salt + i, side) for i, label in enumerate(labels)]), labels


def cifar_10(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    for name, salt in [(f"data_batch_{k}", 100 * k) for k in range(1, 6)] + [("test_batch", 900)]:
        images, labels = cifar_arrays(2, salt)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if kind == "python":
            content = {b"data": planes, b"labels": labels.tolist()}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tofile(
                folder / f"{name}.bin"
            )


def test_cifar_10_and_its_new_test_sets(tmp_path: Path) -> None:
    cifar_10(tmp_path / "cifar-10-batches-py", "python")
    for name, salt in (("cifar-10.1", 1000), ("cifar-10.2", 2000)):
        (tmp_path / name).mkdir()
        images, labels = cifar_arrays(3, salt)
        if name == "cifar-10.1":
            np.save(tmp_path / name / "cifar10.1_v6_data.npy", images)
            np.save(tmp_path / name / "cifar10.1_v6_labels.npy", labels)
        else:
            np.savez(tmp_path / name / "cifar102_test.npz", images=images, labels=labels)
    stl = read_class_list(lists()["stl-10"])
    (tmp_path / "stl10_binary").mkdir()
    images = np.stack([pixels(k, 3000 + k, side=96) for k in range(10)])
    images.transpose(0, 3, 2, 1).tofile(tmp_path / "stl10_binary/test_X.bin")
    np.arange(1, 11, dtype=np.uint8).tofile(tmp_path / "stl10_binary/test_y.bin")
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
    cifar_10(tmp_path / "one/cifar-10-batches-py", "python")
    cifar_10(tmp_path / "two/cifar-10-batches-bin", "binary")
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

    cifar_10(tmp_path / "cifar-10", "python")
    (tmp_path / "cifar-10/test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(BenchError, match="has no place in a file of images"):
        small("cifar-10-c", tmp_path, tmp_path, val_count=20)


def test_cifar_10_c_severities_are_ranges_of_one_array(tmp_path: Path) -> None:
    cifar_10(tmp_path / "cifar-10", "python")
    (tmp_path / "CIFAR-10-C").mkdir()
    labels = np.tile(np.arange(10), 5000)
    np.save(tmp_path / "CIFAR-10-C/labels.npy", labels)
    images = np.repeat(np.repeat(labels.astype(np.uint8)[:, None, None, None], 2, 1), 2, 2).repeat(
        3, 3
    )
    images[:, 1, 1, 0], images[:, 1, 1, 1], images[:, 1, 1, 2] = (
        np.arange(50_000) >> s & 255 for s in (0, 8, 16)
    )
    np.save(tmp_path / "CIFAR-10-C/fog.npy", images)
    suite = small("cifar-10-c", tmp_path, tmp_path, val_count=20)
    present = [name for name in suite.split_names if name.startswith("fog")]
    assert len(present) == 5
    assert len(suite.holes) == 90
    numbers = {
        name: {int(key.rpartition("/")[2]) // 10_000 for key in suite.load(name, PIXELS).keys}
        for name in present
    }
    assert numbers == {f"fog-{severity}": {severity - 1} for severity in range(1, 6)}


def test_domainnet_by_its_official_lists_whole_and_the_40_classes(tmp_path: Path) -> None:
    classes = read_class_list(lists()["domainnet"])
    root = tmp_path / "domainnet"
    for domain in ("real", "sketch", "painting", "clipart"):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(classes.ids):
            for number, part in enumerate(["train", "train", "train", "test"]):
                path = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.png"
                put(root / path, label % 251, 1000 * number + label)
                lines[part].append(f"{path} {label}")
        for part, entries in lines.items():
            (root / f"{domain}_{part}.txt").write_text("\n".join(entries) + "\n")
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
    assert sorted(whole.holes) == ["infograph", "quickdraw"]
    assert len(whole.load("sketch", PIXELS)) == 345
    (root / "sketch_test.txt").write_text("sketch/airplane/x.png 345\n")
    with pytest.raises(BenchError, match="no class"):
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
    for number, domain in enumerate(domains):
        for label, identity in enumerate(card.identities):
            for image in range(5):
                put(
                    tmp_path / folder / domain / identity / f"{image}.png",
                    label,
                    1000 * number + 5 * label + image,
                )
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
    lines, number = ["img_id,img_filename,y,split,place,place_filename"], 0
    for split in range(3):
        for y in range(2):
            for place in range(2):
                for _ in range(1 + y + place):
                    put(tmp_path / f"waterbirds_v1.0/{y}.bird/{number}.png", y, number)
                    lines.append(f"{number},{y}.bird/{number}.png,{y},{split},{place},/f/x.jpg")
                    number += 1
    (tmp_path / "waterbirds_v1.0/metadata.csv").write_text("\n".join(lines))
    suite = small("waterbirds", tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    split = suite.load("worst-group", PIXELS)
    assert split.groups is not None
    assert np.bincount(split.groups).tolist() == [1, 2, 2, 3]
    assert suite.card.shifts[0].metric == "worst_group"


def test_iwildcam_by_its_metadata(tmp_path: Path) -> None:
    lines, number = ["split,image_id,y,filename"], 0
    for split in ("train", "id_val", "id_test", "val", "test"):
        for y in range(182):
            put(tmp_path / f"iwildcam_v2.0/train/{number}.png", y, number)
            lines.append(f"{split},x,{y},{number}.png")
            number += 1
    lines.append("test,x,3,gone.png")
    (tmp_path / "iwildcam_v2.0/metadata.csv").write_text("\n".join(lines))
    suite = small("iwildcam", tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    assert any("1 of 183 listed images are not there" in warning for warning in suite.warnings)
    assert suite.card.metric == "macro_f1"


def test_fmow_goes_by_year_and_region_and_counts_sequestered_lines(tmp_path: Path) -> None:
    classes = read_class_list(lists()["fmow"])
    root = tmp_path / "fmow_v1.1"
    root.mkdir()
    (root / "country_code_mapping.csv").write_text(
        "name,alpha-3,region\nFrance,FRA,Europe\nKenya,KEN,Africa\n"
    )
    lines = ["split,category,country_code,timestamp"]
    for split in ("seq", "train", "val", "test"):
        for year in (2010, 2014, 2016):
            for label, name in enumerate(classes.ids):
                country = ("FRA", "KEN", "XXX")[label % 3]
                put(root / f"images/rgb_img_{len(lines) - 1}.png", label, len(lines))
                lines.append(f"{split},{name},{country},{year}-01-01T00:00:00Z")
    (root / "rgb_metadata.csv").write_text("\n".join(lines))
    suite = small("fmow", tmp_path, tmp_path)
    assert accuracies(suite) == all_right(suite)
    assert {name: len(suite.load(name, PIXELS)) for name in suite.split_names} == dict.fromkeys(
        suite.split_names, 62
    )
    groups = suite.load("worst-region", PIXELS).groups
    assert groups is not None
    assert np.unique(groups).tolist() == [-1, 0, 1], "regions outside the table are in no group"
