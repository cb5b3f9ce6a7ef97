"""Stand-ins for the suites that ship: each card's own layout, with a few tiny images.

Images show the number of their class, so that a reader of shades is a perfect classifier.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.data.cards.labels import read_class_list
from bench.data.cards.suite_card import find_card
from bench.datasets import lists

DOMAINS = {
    "pacs": ("PACS", ["photo", "art_painting", "cartoon", "sketch"]),
    "office-home": ("OfficeHome", ["Art", "Clipart", "Product", "Real_World"]),
    "vlcs": ("VLCS", ["Caltech101", "LabelMe", "SUN09", "VOC2007"]),
}


def shade(label: int, salt: int, side: int = 4) -> np.ndarray:
    """An image whose shade is its class, with a corner that makes it unique."""
    image = np.full((side, side, 3), label, dtype=np.uint8)
    corner = side // 4
    image[-corner:, -corner:] = (salt >> 8, salt & 255, 7)
    return image


def put(path: Path, label: int, salt: int) -> None:
    """Write such an image. (As PPM: JPEG would change its shade.)"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 4 4 255\n" + shade(label, salt).tobytes())


def cifar_arrays(per_class: int, salt: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    labels = np.tile(np.arange(10), per_class)
    return np.stack([shade(label, salt + i, side) for i, label in enumerate(labels)]), labels


def cifar_10(folder: Path, kind: str = "python") -> None:
    """CIFAR-10's files, as pickles for Python or as plain bytes."""
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


def cifar_10_shifts(root: Path) -> None:
    """CIFAR-10, 10.1, 10.2 and STL-10, each in the format of its authors."""
    cifar_10(root / "cifar-10-batches-py")
    for name, salt in (("cifar-10.1", 1000), ("cifar-10.2", 2000)):
        (root / name).mkdir()
        images, labels = cifar_arrays(3, salt)
        if name == "cifar-10.1":
            np.save(root / name / "cifar10.1_v6_data.npy", images)
            np.save(root / name / "cifar10.1_v6_labels.npy", labels)
        else:
            np.savez(root / name / "cifar102_test.npz", images=images, labels=labels)
    (root / "stl10_binary").mkdir()
    images = np.stack([shade(k, 3000 + k, side=96) for k in range(10)])
    images.transpose(0, 3, 2, 1).tofile(root / "stl10_binary/test_X.bin")
    np.arange(1, 11, dtype=np.uint8).tofile(root / "stl10_binary/test_y.bin")


def cifar_10_c(root: Path) -> None:
    """CIFAR-10 and one of the corruptions, whose array holds five severities."""
    cifar_10(root / "cifar-10")
    (root / "CIFAR-10-C").mkdir()
    labels = np.tile(np.arange(10), 5000)
    np.save(root / "CIFAR-10-C/labels.npy", labels)
    shades = labels.astype(np.uint8)[:, None, None, None]
    images = np.repeat(np.repeat(shades, 2, 1), 2, 2).repeat(3, 3)
    for channel, shift in enumerate((0, 8, 16)):
        images[:, 1, 1, channel] = np.arange(50_000) >> shift & 255
    np.save(root / "CIFAR-10-C/fog.npy", images)


def domainnet(root: Path) -> None:
    """Four of DomainNet's domains, by its official lists."""
    classes, folder = read_class_list(lists()["domainnet"]), root / "domainnet"
    for at, domain in enumerate(("real", "sketch", "painting", "clipart")):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(classes.ids):
            for number, part in enumerate(["train", "train", "train", "test"]):
                path = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.png"
                put(folder / path, label % 251, 4000 * at + 1000 * number + label)
                lines[part].append(f"{path} {label}")
        for part, entries in lines.items():
            (folder / f"{domain}_{part}.txt").write_text("\n".join(entries) + "\n")


def domains(root: Path, name: str) -> None:
    """Five images of every class in each of a dataset's four domains."""
    card, _ = find_card(name)
    folder, names = DOMAINS[next(known for known in DOMAINS if name.startswith(known))]
    for number, domain in enumerate(names):
        for label, identity in enumerate(card.identities):
            for image in range(5):
                place = root / folder / domain / identity / f"{image}.png"
                put(place, label, 1000 * number + 5 * label + image)


def waterbirds(root: Path) -> None:
    """Two classes on two places, in groups of different sizes."""
    lines, number = ["img_id,img_filename,y,split,place,place_filename"], 0
    for split in range(3):
        for y in range(2):
            for place in range(2):
                for _ in range(1 + y + place):
                    put(root / f"waterbirds_v1.0/{y}.bird/{number}.png", y, number)
                    lines.append(f"{number},{y}.bird/{number}.png,{y},{split},{place},/f/x.jpg")
                    number += 1
    (root / "waterbirds_v1.0/metadata.csv").write_text("\n".join(lines))


def iwildcam(root: Path) -> None:
    """An image of every class in every split, and a line of the metadata without an image."""
    lines, number = ["split,image_id,y,filename"], 0
    for split in ("train", "id_val", "id_test", "val", "test"):
        for y in range(182):
            put(root / f"iwildcam_v2.0/train/{number}.png", y, number)
            lines.append(f"{split},x,{y},{number}.png")
            number += 1
    lines.append("test,x,3,gone.png")
    (root / "iwildcam_v2.0/metadata.csv").write_text("\n".join(lines))


def fmow(root: Path) -> None:
    """An image of every class in every split and period, two regions, and one without a region."""
    classes, folder = read_class_list(lists()["fmow"]), root / "fmow_v1.1"
    folder.mkdir()
    (folder / "country_code_mapping.csv").write_text(
        "name,alpha-3,region\nFrance,FRA,Europe\nKenya,KEN,Africa\n"
    )
    lines = ["split,category,country_code,timestamp"]
    for split in ("seq", "train", "val", "test"):
        for year in (2010, 2014, 2016):
            for label, name in enumerate(classes.ids):
                country = ("FRA", "KEN", "XXX")[label % 3]
                put(folder / f"images/rgb_img_{len(lines) - 1}.png", label, len(lines))
                lines.append(f"{split},{name},{country},{year}-01-01T00:00:00Z")
    (folder / "rgb_metadata.csv").write_text("\n".join(lines))


def thousand(label: int, salt: int = 0, side: int = 4, border: int = 0) -> bytes:
    """An image that shows one of 1000 classes; a border of another colour shows nothing."""
    pixels = np.full((side + 2 * border, side + 2 * border, 3), 255, dtype=np.uint8)
    pixels[border : border + side, border : border + side] = (label >> 8, label & 255, salt)
    return b"P6 %d %d 255\n" % pixels.shape[1::-1] + pixels.tobytes()


def imagenet(root: Path) -> None:
    """ImageNet and its five natural shifts under their usual folder names."""

    def write(folder: Path, name: str, data: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    wnids = read_class_list(lists()["imagenet-1k"]).ids
    number = {wnid: label for label, wnid in enumerate(wnids)}
    v2 = root / "imagenetv2-matched-frequency-format-val"
    for label, wnid in enumerate(wnids):
        for copy in range(3):
            write(root / "imagenet/train" / wnid, f"{wnid}_{copy}.JPEG", thousand(label, copy))
        write(root / "imagenet/val" / wnid, f"ILSVRC2012_val_{label:08d}.JPEG", thousand(label, 10))
        write(v2 / str(label), f"{label}.jpeg", thousand(label, 20))
        write(root / "sketch" / wnid, f"sketch_{label}.JPEG", thousand(label, 30))
    for salt, name in ((40, "imagenet-r"), (45, "imagenet-a")):
        for wnid in read_class_list(lists()[name]).ids:
            write(root / name / wnid, f"{wnid}.jpg", thousand(number[wnid], salt))
    objectnet = read_class_list(lists()["objectnet"])
    images = root / "objectnet-1.0/images"
    for folder, covered in zip(objectnet.ids, objectnet.covers, strict=True):
        for wnid in covered:
            write(images / folder, f"{wnid}.png", thousand(number[wnid], 50, border=2))
    # Three of the 200 folders that ImageNet has no class for.
    for extra in ("abacus", "zipper_pouch", "bed_sheet"):
        write(images / extra, "one.png", thousand(0, 60, border=2))


def imagenet_c(root: Path) -> None:
    """ImageNet, and one corruption of one of its validation images as people have it."""
    imagenet(root)
    file = root / "imagenet-c/gaussian_noise/1/n01440764/ILSVRC2012_val_00000293.JPEG"
    file.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    file.write_bytes(b"P6 224 224 255\n" + noise.tobytes())


def write_card(
    name: str, folder: Path, val_count: int | None = None, *, overrides: str = ""
) -> Path:
    """Write the card `small`: a shipped suite with an id-val as large as its stand-in allows."""
    card = folder / "small.toml"
    held_out = f"[id]\nval_count = {val_count}\n" if val_count else ""
    card.write_text(f'extends = "{name}"\nname = "small"\n{overrides}{held_out}', encoding="utf-8")
    return card


#: What a stand-in's card says otherwise than its suite's: PACS checks its number of images.
OVERRIDES = {
    "pacs": "strict_counts = false\n",
    "pacs-subset": "strict_counts = false\n",
    "mini": "[source.options]\ntrain_size = 80\nval_size = 40\ntest_size = 40\n",
}
#: Beginning of a suite's name -> what writes its images, and the size of id-val (None: the card's).
BUILDERS: dict[str, tuple[Callable[[Path], None], int | None]] = {
    "cifar-10-shifts": (cifar_10_shifts, 20),
    "cifar-10-c": (cifar_10_c, 20),
    "domainnet-40": (domainnet, 40),
    "domainnet": (domainnet, 345),
    "fmow": (fmow, None),
    "imagenet-c": (imagenet_c, 1000),
    "imagenet": (imagenet, 1000),
    "iwildcam": (iwildcam, None),
    "waterbirds": (waterbirds, None),
}


def stand_in(name: str, folder: Path) -> tuple[Path, Path]:
    """Build a stand-in of a shipped suite; returns its card and the folder of its datasets.

    Raises:
        LookupError: no stand-in is known for this suite.
    """
    if name.startswith("mini-"):
        return write_card(name, folder, overrides=OVERRIDES["mini"]), folder
    if name.startswith(tuple(DOMAINS)):
        domains(folder, name)
        return write_card(name, folder, overrides=OVERRIDES.get(name, "")), folder
    if name == "imagenet-c-generated":
        # All of the 75 generated corruptions would take minutes.
        others = [s.name for s in find_card(name)[0].shifts if s.name != "fog-1"]
        imagenet(folder)
        return write_card(name, folder, 1000, overrides=f"without = {others}\n"), folder
    known = [begin for begin in BUILDERS if name.startswith(begin)]
    if not known:
        raise LookupError(f"write a stand-in for the suite {name}")
    build, val_count = BUILDERS[known[0]]
    build(folder)
    return write_card(name, folder, val_count, overrides=OVERRIDES.get(name, "")), folder
