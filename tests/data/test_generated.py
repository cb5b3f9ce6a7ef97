"""Corruptions that are generated from a dataset's images, and what they share with the clean
ones.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.data.cards.locations import DataRoot, cache_dir
from bench.data.cards.suite_card import read_card
from bench.data.collection import FolderOriginals, fingerprint
from bench.data.corruptions.corrupted import BEFORE
from bench.data.corruptions.generate import corrupted
from bench.data.pixels.cache import prepared
from bench.data.pixels.decoder import Pixels
from bench.data.pixels.image_bytes import decode
from bench.data.readers.located import NotHere, open_dataset
from bench.data.readers.parts import open_part
from bench.data.suite import Suite, open_suite

from support.pets import CARD, opened, unpacked


def test_generated_corruptions_are_a_dataset_of_the_same_images(
    root: Path, photos: dict[str, bytes], tmp_path: Path
) -> None:
    unpacked(root, photos)
    clean = tmp_path / "pets.toml"
    clean.write_text(CARD.format(identity="content", layout='{ path = "test" }'), encoding="utf-8")
    layout = f'{{ kind = "corrupted", path = "{clean}/test", corruption = "NAME", severity = 3 }}'
    lines = CARD.format(identity="content", layout=layout)
    found = []
    for name in ("contrast", "gaussian_noise"):
        card = tmp_path / f"{name}.toml"
        card.write_text(
            lines.replace('"pets"', f'"{name}"', 1).replace("NAME", name), encoding="utf-8"
        )
        dataset = open_dataset(str(card), [DataRoot(root, "test")])
        found.append(open_part(dataset, "test", [0, 1, 2], cache=tmp_path / "index").collection)
    rows = np.arange(12)
    assert len({fingerprint(collection, rows) for collection in found}) == 2
    assert found[0].labels.tolist() == found[1].labels.tolist()
    image = found[1].originals.open(5)
    assert image.size == (224, 224)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), np.asarray(found[1].originals.open(5)))


def test_frost_is_missing_until_its_photographs_are_here(
    root: Path, photos: dict[str, bytes], tmp_path: Path, new_photo: Any
) -> None:
    unpacked(root, photos)
    clean = tmp_path / "clean.toml"
    clean.write_text(CARD.format(identity="content", layout='{ path = "test" }'), encoding="utf-8")
    layout = (
        '{ kind = "corrupted", path = "./clean.toml/test", corruption = "frost", severity = 3 }'
    )
    with pytest.raises(NotHere, match="bench data fetch imagenet-c-frost"):
        opened(root, layout)
    folder = root / "robustness" / "ImageNet-C" / "create_c"  # as in a clone of the repository
    folder.mkdir(parents=True)
    (folder / "make_imagenet_c.py").write_text("# no image")
    names = ["frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg"]
    for number, name in enumerate(names):
        if number == 5:
            with pytest.raises(NotHere, match=r"5 images in .*, not 6"):
                opened(root, layout)
        new_photo(number, (300 + number, 260)).save(folder / name)
    collection = opened(root, layout).collection
    photographs = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
    originals = collection.originals.clean.originals  # type: ignore[attr-defined]
    image = prepared(originals.open(4), BEFORE)
    expected = corrupted(image, "frost", 3, key=str(collection.content[4]), photographs=photographs)
    assert np.array_equal(np.asarray(collection.originals.open(4)), expected)
    rows = np.arange(12)
    before = fingerprint(collection, rows)
    new_photo(9, (300, 260)).save(folder / "frost1.png")
    assert fingerprint(opened(root, layout).collection, rows) != before


def foggy(
    root: Path,
    identity: str,
    id_data: str = 'train = "train"\nval = "val"\ntest = "test"',
    of: str = "clean",
) -> Suite:
    """A suite with a shift per severity of fog. id_data, of: how the ID images are divided, and the
    dataset that they are of.
    """
    tmp_path = root.parent
    clean = CARD.format(identity=identity, layout='{ path = "test" }')
    for part in ("train", "val"):
        shutil.copytree(root / "pets/test", root / "pets" / part, dirs_exist_ok=True)
        clean += f'[parts.{part}]\nlayouts = [{{ path = "{part}" }}]\n'
    (tmp_path / "clean.toml").write_text(clean, encoding="utf-8")
    parts = """[parts."fog-{severity}"]
each = { severity = [1, 2, 3] }
[[parts."fog-{severity}".layouts]]
kind = "corrupted"
path = "./clean.toml/test"
corruption = "fog"
severity = "{severity}"
[parts.clearing]
layouts = [{ kind = "corrupted", path = "./clean.toml/val", corruption = "fog", severity = 1 }]
[parts.again]
layouts = [{ kind = "corrupted", path = "./clean.toml/train", corruption = "fog", severity = 1 }]"""
    corrupt = CARD.format(identity=identity, layout="").partition("[parts")[0] + parts
    (tmp_path / "corrupt.toml").write_text(corrupt, encoding="utf-8")
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f"""
name = "foggy"
title = "Pets in fog"
licence = "CC0"
classes = ["n01", "n02", "n03"]
[id]
data = "./{of}.toml"
{id_data}
"""
        + """
[[shifts]]
name = "fog-{severity}"
data = "./corrupt.toml"
part = "fog-{severity}"
each = { severity = [1, 2, 3] }
""",
        encoding="utf-8",
    )
    return open_suite(read_card(suite), card_path=suite, data_root=root)


def test_two_corruptions_of_a_dataset_may_paste_two_sets_of_photographs(
    root: Path, photos: dict[str, bytes], tmp_path: Path, new_photo: Any
) -> None:
    unpacked(root, photos)
    (tmp_path / "clean.toml").write_text(
        CARD.format(identity="content", layout='{ path = "test" }'), encoding="utf-8"
    )
    lines = CARD.format(identity="content", layout="").partition("[parts")[0]
    for number, name in enumerate(("white", "grey")):
        (root / name / "all").mkdir(parents=True)
        for photograph in range(6):
            new_photo(10 * number + photograph, (300, 260)).save(
                root / name / "all" / f"{photograph}.png"
            )
        frost = lines.replace('"pets"', f'"{name}"').replace('["n01", "n02", "n03"]', '["all"]')
        (tmp_path / f"{name}.toml").write_text(
            f'{frost}[parts.photographs]\nlayouts = [{{ path = "." }}]', encoding="utf-8"
        )
        lines += f"""[[parts.{name}.layouts]]
kind = "corrupted"
path = "./clean.toml/test"
corruption = "frost"
severity = 3
photographs = "./{name}.toml/photographs"
"""
    (tmp_path / "frost.toml").write_text(lines, encoding="utf-8")
    dataset = open_dataset(str(tmp_path / "frost.toml"), [DataRoot(root, "test")])
    white, grey = (
        open_part(dataset, part, [0, 1, 2], cache=tmp_path / "index").collection
        for part in ("white", "grey")
    )
    assert fingerprint(white, np.arange(12)) != fingerprint(grey, np.arange(12))
    assert not np.array_equal(
        np.asarray(white.originals.open(0)), np.asarray(grey.originals.open(0))
    )


def test_clean_images_are_decoded_once_for_all_corruptions(
    root: Path, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked(root, photos)
    suite = foggy(root, "content")
    read, data = [], FolderOriginals.data
    monkeypatch.setattr(
        FolderOriginals, "data", lambda self, row: (read.append(row), data(self, row))[1]
    )
    pixels = Pixels(size=224, resize=224)
    for severity in (1, 2, 3):
        split = suite.load(f"fog-{severity}", pixels)
        found = split.take(np.array([7, 2]))
        assert sorted(read) == list(range(12))
        originals = split._originals.clean.originals  # type: ignore[attr-defined]
        clean = prepared(decode(data(originals, 7)), BEFORE)
        key = str(split._originals.clean.content[7])  # type: ignore[attr-defined]
        assert np.array_equal(found[0], corrupted(clean, "fog", severity, key=key))


def test_an_image_overwritten_in_place_is_decoded_anew_and_keeps_the_identity_of_its_list(
    root: Path, photos: dict[str, bytes]
) -> None:
    unpacked(root, photos)
    before = foggy(root, "listing").load("fog-1", Pixels(size=224, resize=224))
    os.utime(root / "pets/test/n01/n01_0.png", ns=(0, 0))
    after = foggy(root, "listing").load("fog-1", Pixels(size=224, resize=224))
    assert after.fingerprint == before.fingerprint
    assert after.cached_as != before.cached_as


def test_several_corrupted_parts_as_one_are_decoded_whenever_they_are_read(
    root: Path, photos: dict[str, bytes]
) -> None:
    unpacked(root, photos)
    divided_by = 'path = ["clearing", "again"]\nval_fraction = 0.25\ntest_fraction = 0.25'
    split = foggy(root, "content", divided_by, "corrupt").load(
        "train", Pixels(size=224, resize=224)
    )
    assert not split.cached
    assert not list(cache_dir("pixels").iterdir())
    assert np.array_equal(split.take(np.array([3]))[0], np.asarray(split.original(3)))
