"""The data path against a plain PIL + torchvision loader and open_clip's own preprocessing, on the
same photographs, in one run.

Run with `make perf`, and with BENCH_TEST_DATA naming a folder that holds `imagenet-samples`. It
asserts agreement, not time; it prints images per second and core, memory per worker, and pixel
differences.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bench.data.cards.suite_card import find_card
from bench.data.collection import folder_collection
from bench.data.corruptions.generate import _CORRUPTIONS as CORRUPTIONS
from bench.data.corruptions.generate import corrupted
from bench.data.pixels.cache import cached_pixels, prepared
from bench.data.pixels.decoder import Pixels
from bench.data.pixels.image_bytes import decode
from bench.data.readers.folder import class_images, index_folder
from bench.data.suite import open_suite

pytestmark = pytest.mark.perf

PIXELS = Pixels(size=224, resize=224)
COUNT = int(os.environ.get("BENCH_PERF_IMAGES", "600"))


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    given = os.environ.get("BENCH_TEST_DATA")
    if not given or not (Path(given) / "imagenet-samples").is_dir():
        pytest.skip("BENCH_TEST_DATA names no folder with imagenet-samples")
    return sorted((Path(given) / "imagenet-samples").glob("*/*"))[:COUNT]


def cpu_rate(work: Callable[[], int]) -> tuple[float, float]:
    """Images per CPU second and per second."""
    cpu, wall = time.process_time(), time.perf_counter()
    count = work()
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def torchvision_transform() -> Callable[[Image.Image], torch.Tensor]:
    from torchvision import transforms

    steps = [
        transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def test_images_per_second(photos: list[Path], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    transform = torchvision_transform()

    def plain() -> int:
        for photo in photos:
            with Image.open(photo) as image:
                transform(image.convert("RGB"))
        return len(photos)

    folders = sorted({photo.parent.name for photo in photos})
    root = photos[0].parent.parent
    index = index_folder(root, ".", cache=tmp_path / "index")
    images, _ = class_images(index[index["folder"].isin(folders)], ".", folders)
    collection = folder_collection("photos", root, images, grouped=False)
    cached = []

    def first() -> int:
        found = cached_pixels(
            collection.content.tolist(),
            collection.originals.open,
            PIXELS,
            cache=tmp_path / "pixels",
            what="photos",
        )
        cached.append(found.path)
        return len(collection)

    def fast() -> int:
        fast_pixels = PIXELS.model_copy(update={"decoder": "torchvision"})
        for row in range(len(collection)):
            prepared(collection.originals.open_fast(row), fast_pixels)
        return len(collection)

    def second() -> int:
        array, rows = (
            np.load(cached[0], mmap_mode="r"),
            np.random.default_rng(0).permutation(len(collection)),
        )
        for start in range(0, len(rows), 64):
            torch.from_numpy(np.take(array, rows[start : start + 64], axis=0))
        return len(rows)

    print()
    for round_ in range(2):
        for name, work in (
            ("PIL + torchvision", plain),
            ("first pass (hashed, cached)", first),
            ("?decoder=torchvision", fast),
            ("from the cache, uint8", second),
        ):
            if name.startswith("first"):
                for file in (tmp_path / "pixels").rglob("*.npy"):
                    file.unlink()
            per_cpu, per_wall = cpu_rate(work)
            print(
                f"round {round_}  {name:28s} {per_cpu:10.0f} images per CPU second {per_wall:10.0f}"
                " per second"
            )


def test_start_up_with_a_million_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without blocks as ImageNet's folders (BENCH_PERF_FILES of them): the first start lists
    them, the second does not.
    """
    count = int(os.environ.get("BENCH_PERF_FILES", "1331000"))
    card, _ = find_card("imagenet-shifts")
    for part, share in (("train", 1281), ("val", 50)):
        for wnid in card.identities:
            folder = tmp_path / "imagenet" / part / wnid
            folder.mkdir(parents=True)
            for number in range(share * count // 1_331_000):
                with (folder / f"{wnid}_{number}.JPEG").open("wb") as file:
                    file.truncate(2)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bench.data.readers.listing.UNSETTLED_NS", 0)
    found = []
    print()
    for start in ("first", "second"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            seconds, megabytes, ids = pool.submit(_start, tmp_path).result()
        found.append(ids)
        print(
            f"{start} start: {seconds:.2f} s of CPU, {megabytes:.0f} MB more at its peak than"
            " before"
        )
    assert found[0] == found[1]


def _start(root: Path) -> tuple[float, float, list[str]]:
    """Seconds of CPU and growth of peak memory (MB) in opening ImageNet and identifying its splits;
    fingerprints of these.
    """
    import resource

    import pyarrow.parquet  # noqa: F401
    import sklearn.model_selection  # noqa: F401

    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    card, path = find_card("imagenet-shifts")
    suite = open_suite(card, card_path=path, data_root=root)
    ids = [suite.fingerprint(split, PIXELS) for split in ("train", "id-val", "id-test")]
    return (
        time.process_time() - begun,
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        ids,
    )


def _memory_after(photos: list[Path]) -> float:
    before = psutil.Process().memory_info().rss
    for photo in photos:
        prepared(decode(photo.read_bytes()), PIXELS)
    return float(psutil.Process().memory_info().rss - before) / 1e6


def test_memory_per_worker(photos: list[Path]) -> None:
    with ProcessPoolExecutor(1) as pool:
        print(
            f"\n{pool.submit(_memory_after, photos[:200]).result():.0f} MB for a process that"
            " decodes 200 photographs one by one"
        )


def test_the_preprocessing_is_open_clips(photos: list[Path]) -> None:
    from open_clip.transform import image_transform

    transform = image_transform(224, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    worst = 0
    for photo in photos[:200]:
        with Image.open(photo) as image:
            theirs = (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        ours = prepared(decode(photo.read_bytes()), PIXELS)
        worst = max(worst, int(np.abs(ours.astype(int) - theirs.astype(int)).max()))
    print(
        f"\nlargest difference to open_clip on {len(photos[:200])} photographs: {worst} grey levels"
    )
    assert worst == 0


def test_milliseconds_of_every_corruption(photos: list[Path]) -> None:
    images = [
        prepared(decode(photo.read_bytes()), Pixels(size=224, resize=256, interpolation="bilinear"))
        for photo in photos[:8]
    ]
    print()
    total = 0.0
    for name in CORRUPTIONS:
        start = time.process_time()
        for number, image in enumerate(images):
            for severity in (1, 2, 3, 4, 5):
                corrupted(image, name, severity, key=str(number))
        spent = (time.process_time() - start) / (5 * len(images))
        total += spent
        print(f"{name:18s} {1000 * spent:6.1f} ms")
    print(f"mean {1000 * total / len(CORRUPTIONS):.1f} ms")
