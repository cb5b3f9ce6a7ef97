"""ImageNet and its shifts as people have them on disk, in miniature: all 1000, 200 and 113 classes,
and every known pitfall.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.data.cards.dataset import find_dataset
from bench.data.cards.inheritance import dataset_paths
from bench.data.cards.labels import ClassList, projection, read_class_list
from bench.data.cards.suite_card import find_card
from bench.data.pixels.decoder import Pixels
from bench.data.suite import Suite, open_suite
from bench.datasets import cards, lists
from bench.errors import BenchError, MissingPrerequisite
from bench.evaluation.metrics import matched, project, relative_scores, score

from support.stand_ins import imagenet
from support.stand_ins import thousand as image

IMAGENET = read_class_list(lists()["imagenet-1k"])
PIXELS = Pixels(size=4, resize=4)
NUMBER = {wnid: label for label, wnid in enumerate(IMAGENET.ids)}
V2 = "imagenetv2-matched-frequency-format-val"


def put(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every dataset under its usual folder names; not to be changed by a test."""
    root = tmp_path_factory.mktemp("imagenet")
    imagenet(root)
    return root


def open_imagenet(
    root: Path, folder: Path, extra: str = "", name: str = "imagenet-shifts"
) -> Suite:
    """The suite with an id-val that three training images per class allow."""
    card = folder / "small.toml"
    card.write_text(
        f'extends = "{name}"\nname = "small"\n{extra}\n[id]\nval_count = 1000\n', encoding="utf-8"
    )
    found, path = find_card(str(card))
    return open_suite(found, card_path=path, data_root=root)


@pytest.fixture(scope="module")
def suite(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return open_imagenet(root, tmp_path_factory.mktemp("card"))


def shown(suite: Suite, split: str) -> np.ndarray:
    """The classes (of the 1000) that the images of a split show."""
    loaded = suite.load(split, PIXELS)
    pixels = loaded.take(np.arange(len(loaded))).astype(int)
    assert (pixels == pixels[:, :1, :1]).all(), "a border has reached the pixels"
    return pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]


def perfect(labels: np.ndarray) -> np.ndarray:
    """Logits over the 1000 classes of a classifier that sees what is shown."""
    return (8 * np.eye(1000, dtype=np.float32))[labels]


def accuracy(suite: Suite, split: str, logits: np.ndarray) -> float:
    """Of logits over the 1000 classes, as a run scores them."""
    if split in suite.projections:
        logits = project(logits, suite.projections[split])
    return score(logits, suite.load(split, PIXELS).labels, None).accuracy


def test_lists_are_those_that_the_field_uses() -> None:
    def short(texts: list[str]) -> str:
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    assert list(IMAGENET.ids) == sorted(IMAGENET.ids)
    assert short(list(IMAGENET.names)) == "6ef5246539bb6543"
    templates = lists()["openai-imagenet-80"].read_text(encoding="utf-8").splitlines()
    assert short([template.replace("{}", "XX") for template in templates]) == "90c1ac6430f76ce4"
    sums = {"imagenet-r": (200, 86_135), "imagenet-a": (200, 102_178), "objectnet": (125, 85_300)}
    for name, expected in sums.items():
        numbers = [
            NUMBER[wnid] for covered in read_class_list(lists()[name]).covers for wnid in covered
        ]
        assert (len(set(numbers)), sum(numbers)) == expected


def test_every_card_of_a_dataset_is_valid() -> None:
    for name in dataset_paths():
        card, _ = find_dataset(name)
        assert card.name == name
        assert card.fetch.archives or card.fetch.steps, f"{name}: nobody learns how to get it"
        assert card.licence


def test_every_suite_names_datasets_and_parts_that_exist() -> None:
    for name in cards():
        card, _ = find_card(name)
        whole = card.id.path or card.id.train
        parts = [
            (card.id.data, part) for part in ([whole] if isinstance(whole, str) else whole or ())
        ]
        for data, part in [*parts, *((shift.data, shift.part) for shift in card.shifts)]:
            if data:
                assert part in find_dataset(data)[0].parts


def test_a_perfect_classifier_is_perfect_everywhere(suite: Suite) -> None:
    sizes = {name: len(suite.load(name, PIXELS)) for name in suite.split_names}
    assert sizes == {
        "train": 2000,
        "id-val": 1000,
        "id-test": 1000,
        "imagenet-v2": 1000,
        "imagenet-r": 200,
        "imagenet-sketch": 1000,
        "objectnet": 125,
        "imagenet-a": 200,
    }
    assert {
        name: accuracy(suite, name, perfect(shown(suite, name))) for name in sizes
    } == dict.fromkeys(sizes, 1.0)
    assert not suite.missing


def test_the_protocols_have_names(suite: Suite, root: Path, tmp_path: Path) -> None:
    names = {shift: one.name for shift, one in suite.projections.items()}
    assert names == {
        "imagenet-r": "masked200",
        "imagenet-a": "masked200",
        "objectnet": "max125to113",
    }
    assert (
        suite.projections["imagenet-r"].fingerprint != suite.projections["imagenet-a"].fingerprint
    )
    full = open_imagenet(root, tmp_path, name="imagenet-shifts-full1000")
    assert {one.name for one in full.projections.values()} == {"full1000"}
    assert full.load("objectnet", PIXELS).fingerprint == suite.load("objectnet", PIXELS).fingerprint
    without = open_imagenet(root, tmp_path, name="imagenet-shifts-without-objectnet")
    assert without.split_names == tuple(name for name in suite.split_names if name != "objectnet")


def test_v2_folders_are_numbers_and_are_not_sorted_as_text(suite: Suite, root: Path) -> None:
    shown_classes = shown(suite, "imagenet-v2")
    rank = {
        folder: rank
        for rank, folder in enumerate(sorted(path.name for path in (root / V2).iterdir()))
    }
    by_rank = np.array([rank[key.split("/")[0]] for key in suite.load("imagenet-v2", PIXELS).keys])
    assert (by_rank == shown_classes).mean() == pytest.approx(12 / 1000), (
        "what a generic folder reader would do"
    )
    assert accuracy(suite, "imagenet-v2", perfect(shown_classes)) == 1


def test_v2_under_wordnet_names_is_the_same_dataset(
    suite: Suite, root: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "data"
    copied.mkdir()
    (copied / "imagenet").symlink_to(root / "imagenet")
    for label, wnid in enumerate(IMAGENET.ids):
        put(copied / "ImageNetV2-matched-frequency" / wnid, f"{label}.jpeg", image(label, 20))
    renamed = open_imagenet(copied, tmp_path)
    assert accuracy(renamed, "imagenet-v2", perfect(shown(renamed, "imagenet-v2"))) == 1
    assert (
        renamed.load("imagenet-v2", PIXELS).fingerprint
        == suite.load("imagenet-v2", PIXELS).fingerprint
    )
    assert sorted(renamed.missing) == ["imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet"]
    with pytest.raises(MissingPrerequisite, match="imagenet-r"):
        renamed.load("imagenet-r", PIXELS)


def test_r_is_scored_among_its_200_classes(suite: Suite) -> None:
    labels = shown(suite, "imagenet-r")
    absent = min(set(range(1000)) - set(suite.projections["imagenet-r"].class_of))
    tempted = perfect(labels)
    tempted[:, absent] = 9  # a class that ImageNet-R does not have
    assert (tempted.argmax(axis=1) == labels).mean() == 0, (
        "what an argmax over 1000 classes would say"
    )
    assert accuracy(suite, "imagenet-r", tempted) == 1


def test_all_1000_classes_compete_if_the_card_says_so(root: Path, tmp_path: Path) -> None:
    full = open_imagenet(root, tmp_path, 'projection = "full"\nknown = []')
    for name in ("imagenet-r", "objectnet"):
        labels = shown(full, name)
        tempted = perfect(labels)
        absent = min(set(range(1000)) - set(full.projections[name].class_of))
        assert accuracy(full, name, tempted) == 1
        tempted[:, absent] = 9
        assert accuracy(full, name, tempted) == 0


def test_objectnet_goes_by_name_not_by_the_order_of_folders(suite: Suite, root: Path) -> None:
    split = suite.load("objectnet", PIXELS)
    folders = [key.split("/")[-2] for key in split.keys]
    rank = {
        folder: rank
        for rank, folder in enumerate(
            sorted(path.name for path in (root / "objectnet-1.0/images").iterdir())
        )
    }
    assert (
        np.mean(
            [rank[folder] == label for folder, label in zip(folders, split.labels, strict=True)]
        )
        < 0.1
    )
    objectnet = read_class_list(lists()["objectnet"])
    assert [objectnet.ids[label] for label in split.labels] == folders
    assert any("3 folders" in text and "113 classes" in text for text in suite.warnings)


def test_classes_without_a_folder_are_reported_and_the_rest_is_scored(
    suite: Suite, root: Path, tmp_path: Path
) -> None:
    some = tmp_path / "data"
    for name in ("imagenet", "imagenet-r"):
        some.mkdir(exist_ok=True)
        (some / name).symlink_to(root / name)
    shutil.copytree(root / "objectnet-1.0", some / "objectnet-1.0")
    for gone in ("chair", "abacus"):
        shutil.rmtree(some / "objectnet-1.0/images" / gone)
    fewer = open_imagenet(some, tmp_path)
    assert any(
        "1 of 113 classes have no folder with images: chair" in warning
        for warning in fewer.warnings
    )
    assert accuracy(fewer, "objectnet", perfect(shown(fewer, "objectnet"))) == 1
    assert fewer.projections["objectnet"].fingerprint == suite.projections["objectnet"].fingerprint
    assert (
        fewer.load("objectnet", PIXELS).fingerprint != suite.load("objectnet", PIXELS).fingerprint
    )


def test_several_ids_of_a_class_are_collapsed_by_the_maximum(suite: Suite) -> None:
    chair = tuple(NUMBER[wnid] for wnid in dict(zip(*_objectnet(), strict=True))["chair"])
    banana = (NUMBER["n07753592"],)
    one = suite.projections["objectnet"]
    k_chair, k_banana = one.members.index(tuple(sorted(chair))), one.members.index(banana)
    spread = np.full((1, 1000), -9, dtype=np.float32)
    spread[0, list(chair)], spread[0, banana[0]] = 2.0, 2.5
    peaked = np.full((1, 1000), -9, dtype=np.float32)
    peaked[0, chair[0]], peaked[0, banana[0]] = 3.0, 2.5
    total = np.exp(spread)[0, list(chair)].sum()
    assert total > np.exp(2.5), "a sum of probabilities would say chair"
    assert peaked[0, list(chair)].mean() < 2.5, "a mean of logits would say banana"
    assert project(spread, one).argmax() == k_banana
    assert project(peaked, one).argmax() == k_chair


def _objectnet() -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    objectnet = read_class_list(lists()["objectnet"])
    return objectnet.ids, objectnet.covers


def test_probabilities_are_renormalised_over_the_remaining_classes() -> None:
    one, labels = projection(
        ["a", "b", "c", "d"], ClassList(("x", "y"), ("x", "y"), (("c",), ("a", "d")))
    )
    assert (one.name, one.members, labels) == ("max3to2", ((2,), (0, 3)), [0, 1])
    logits = np.log(np.array([[0.1, 0.5, 0.3, 0.1], [0.2, 0.5, 0.1, 0.2]], dtype=np.float32))
    metrics = score(project(logits, one), np.array([0, 1]), None)
    assert metrics.nll == pytest.approx(-(np.log(0.3 / 0.4) + np.log(0.2 / 0.3)) / 2, rel=1e-6)
    assert metrics.accuracy == 1


def test_id_accuracy_on_the_classes_of_a_shift(suite: Suite) -> None:
    labels = suite.load("id-test", PIXELS).labels
    rows, projected = matched(labels, suite.projections["objectnet"])
    assert len(rows) == 125
    assert (
        project(perfect(labels[rows]), suite.projections["objectnet"]).argmax(axis=1) == projected
    ).all()


@pytest.mark.slow
def test_a_listing_identifies_images_wherever_they_lie_and_notices_another_size(
    suite: Suite, root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "data"
    shutil.copytree(root / "imagenet", other / "ILSVRC2012")
    (other / "ILSVRC2012/val").rename(other / "ILSVRC2012/val_in_folder")
    moved = open_imagenet(other, tmp_path)
    assert [moved.fingerprint(name, PIXELS) for name in ("train", "id-val", "id-test")] == [
        suite.fingerprint(name, PIXELS) for name in ("train", "id-val", "id-test")
    ]
    put(
        other / "ILSVRC2012/val_in_folder/n01440764",
        "ILSVRC2012_val_00000000.JPEG",
        image(0, 10, side=5),
    )
    assert open_imagenet(other, tmp_path).fingerprint("id-test", PIXELS) != suite.fingerprint(
        "id-test", PIXELS
    )


@pytest.mark.parametrize("form", ["unpacked", "Kaggle", "inside of Kaggle's"])
def test_flat_validation_images_are_the_same_dataset(
    form: str, suite: Suite, root: Path, tmp_path: Path
) -> None:
    """The archive of the validation images unpacked and nothing moved, and Kaggle's release, which
    lies so too.
    """
    top = tmp_path / "data" / "imagenet"
    place, listed = {
        "unpacked": (top / "val", top),
        "Kaggle": (top / "ILSVRC/Data/CLS-LOC/val", top),
        "inside of Kaggle's": (tmp_path / "kaggle/ILSVRC/Data/CLS-LOC/val", tmp_path / "kaggle"),
    }[form]
    place.mkdir(parents=True)
    rows = []
    for label, wnid in enumerate(IMAGENET.ids):
        name = f"ILSVRC2012_val_{label:08d}"
        (place / f"{name}.JPEG").symlink_to(root / "imagenet/val" / wnid / f"{name}.JPEG")
        rows.append(f"{name},{wnid} 85 1 499 272")
    listed.mkdir(exist_ok=True)
    (listed / "LOC_val_solution.csv").write_text(
        "\n".join(["ImageId,PredictionString", *reversed(rows)])
    )
    if not top.exists():
        top.parent.mkdir()
        top.symlink_to(tmp_path / "kaggle/ILSVRC")
    card, path = find_card("imagenet-shifts")
    flat = open_suite(card, card_path=path, data_root=tmp_path / "data", training=False)
    assert flat.fingerprint("id-test", PIXELS) == suite.fingerprint("id-test", PIXELS)
    assert accuracy(flat, "id-test", perfect(shown(flat, "id-test"))) == 1


def test_too_few_training_images_are_missing_where_nobody_trains(root: Path) -> None:
    card, path = find_card("imagenet-shifts")
    suite = open_suite(card, card_path=path, data_root=root, training=False)
    assert "3000 distinct images are too few" in suite.missing["id-val"]
    assert len(suite.load("id-test", PIXELS)) == 1000
    assert suite.miscounted("id-test") == "1,000 images, the card says 50,000"


def test_fingerprints_come_from_the_index_and_decode_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*args: object, **fields: object) -> None:
        raise AssertionError("an image was decoded")

    with monkeypatch.context() as patched:
        patched.setattr("bench.data.suite.cached_pixels", no)
        fresh = open_imagenet(root, tmp_path)
        before = {name: fresh.fingerprint(name, PIXELS) for name in fresh.split_names}
    assert before == {name: fresh.load(name, PIXELS).fingerprint for name in fresh.split_names}


def test_a_broken_file_is_named(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "imagenet-a").mkdir(parents=True)
    (data / "imagenet").symlink_to(root / "imagenet")
    put(data / "imagenet-a/n01498041", "cut.jpg", image(6)[:20])
    with pytest.raises(BenchError, match=r"imagenet-a/n01498041/cut.jpg[\s\S]*--skip-unreadable 1"):
        open_imagenet(data, tmp_path).load("imagenet-a", PIXELS)


def test_without_imagenet_nothing_runs_and_the_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match=r"ILSVRC2012[\s\S]*image-net.org"):
        open_imagenet(tmp_path, tmp_path)


@pytest.mark.slow
def test_splits_too_large_for_the_cache_are_decoded_when_they_are_read(
    suite: Suite, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.data.suite._MOST_CACHED_BYTES", 0)
    monkeypatch.setattr("bench.data.suite.cached_pixels", None)
    streamed, cached = (
        open_imagenet(root, tmp_path).load("train", PIXELS),
        suite.load("train", PIXELS),
    )
    assert streamed.fingerprint == cached.fingerprint
    rows = np.array([5, 1999, 0, 5])
    np.testing.assert_array_equal(streamed.take(rows), cached.take(rows))


def test_a_file_changed_in_place_reaches_pixels_and_cached_results(
    root: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "imagenet-a").mkdir(parents=True)
    (data / "imagenet").symlink_to(root / "imagenet")
    put(data / "imagenet-a/n01498041", "ray.jpg", image(6))
    before = open_imagenet(data, tmp_path).load("imagenet-a", PIXELS)
    first = before.take(np.array([0]))
    put(data / "imagenet-a/n01498041", "ray.jpg", image(6, salt=99))
    after = open_imagenet(data, tmp_path).load("imagenet-a", PIXELS)
    assert after.fingerprint == before.fingerprint, "a listing is blind to it"
    assert after.cached_as != before.cached_as
    assert (after.take(np.array([0])) != first).any()


def test_official_corrupted_files_are_the_crop_already(root: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet").symlink_to(root / "imagenet")
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    # As most people have it, and as the archives unpack.
    for place in (
        "gaussian_noise/1",
        "weather/fog/5",
    ):
        put(
            tmp_path / "imagenet-c" / place / "n01440764",
            "ILSVRC2012_val_00000293.JPEG",
            b"P6 224 224 255\n" + noise.tobytes(),
        )
    suite = open_imagenet(tmp_path, tmp_path, name="imagenet-c")
    present = [name for name in suite.split_names[3:] if name not in suite.missing]
    assert present == ["gaussian_noise-1", "fog-5"]
    for pixels in (Pixels(size=224, resize=256), Pixels(size=224, resize=224)):
        np.testing.assert_array_equal(suite.load("fog-5", pixels).take(np.array([0]))[0], noise)
    assert suite.pixels_of("fog-5", Pixels(size=128, resize=146)) == Pixels(size=128, resize=128)
    assert suite.pixels_of("id-test", Pixels(size=128, resize=146)) == Pixels(size=128, resize=146)


def test_mce_is_relative_to_alexnet_and_needs_every_corruption() -> None:
    card, _ = find_card("imagenet-c")
    assert card.relative is not None
    assert len(card.relative.reference) == 15
    assert [shift.in_average for shift in card.shifts].count(True) == 75
    errors = {
        shift.name: card.relative.reference.get(shift.family, 0.5) / 2 for shift in card.shifts
    }
    metrics = {name: SimpleNamespace(accuracy=1 - error) for name, error in errors.items()}
    record: Any = SimpleNamespace(metrics=metrics)
    assert relative_scores(card, record) == {"mCE": pytest.approx(50)}
    del metrics["fog-3"]
    assert relative_scores(card, record) == {}
