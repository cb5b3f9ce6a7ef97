from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from torchvision import transforms

from bench.data.pixels import cache as pixel_cache
from bench.data.pixels.cache import CachedPixels, cached_pixels, prepared
from bench.data.pixels.decoder import Pixels
from bench.data.pixels.image_bytes import Undecodable, decode, decode_fast
from bench.errors import BenchError, Interrupted

NewPhoto = Callable[..., Image.Image]
SMALL = Pixels(size=8, resize=10)


def build(photos: list[Image.Image], cache: Path, content: list[str] | None = None) -> CachedPixels:
    names = content or [f"picture {number}" for number in range(len(photos))]
    return cached_pixels(names, photos.__getitem__, SMALL, cache=cache, what="pictures")


@pytest.mark.parametrize(
    "size", [(227, 227), (300, 201), (201, 333), (40, 500), (33, 17), (7, 9), (1, 50), (226, 225)]
)
@pytest.mark.parametrize(
    "pixels",
    [
        Pixels(size=32, resize=37),
        Pixels(size=33, resize=33, interpolation="bilinear"),
        Pixels(size=41, resize=30),
    ],
)
def test_pixels_are_those_of_torchvision(
    size: tuple[int, int], pixels: Pixels, new_photo: NewPhoto
) -> None:
    image = new_photo(3, size)
    mode = transforms.InterpolationMode(pixels.interpolation)
    reference = transforms.Compose(
        [transforms.Resize(pixels.resize, interpolation=mode), transforms.CenterCrop(pixels.size)]
    )
    np.testing.assert_array_equal(prepared(image, pixels), np.asarray(reference(image)))


@pytest.mark.parametrize("size", [(300, 201), (201, 333), (227, 227), (40, 500), (33, 17)])
def test_pixels_are_those_of_open_clip_and_of_timm(
    size: tuple[int, int], new_photo: NewPhoto
) -> None:
    """Their own transforms for evaluation, which also turn pixels into numbers from 0 to 1."""
    from open_clip.transform import image_transform
    from timm.data.transforms_factory import create_transform

    image = new_photo(4, size)
    theirs = {
        Pixels(size=32, resize=32): image_transform(
            32, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3
        ),
        Pixels(size=28, resize=32): create_transform(
            (3, 28, 28), interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=0.875
        ),
    }
    for pixels, transform in theirs.items():
        expected = (transform(image).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(prepared(image, pixels), expected)


def test_the_cache_holds_the_same_bits(tmp_path: Path, new_photo: NewPhoto) -> None:
    photos = [new_photo(seed, (20 + seed % 7, 30)) for seed in range(100)]
    stored = np.load(build(photos, tmp_path).path, mmap_mode="r")
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.stack([prepared(photo, SMALL) for photo in photos]))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_other_colour_modes_become_rgb_before_anything_else(mode: str, new_photo: NewPhoto) -> None:
    data = io.BytesIO()
    image = new_photo(5).convert("L").convert(mode) if mode == "LA" else new_photo(5).convert(mode)
    image.save(data, format="TIFF")
    np.testing.assert_array_equal(
        np.asarray(decode(data.getvalue())), np.asarray(Image.open(data).convert("RGB"))
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "RGB in PNG"])
def test_the_faster_decoder_gives_nearly_the_same_pixels_under_another_name(
    mode: str, new_photo: NewPhoto
) -> None:
    data = io.BytesIO()
    image_format = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
    new_photo(5, (300, 200)).convert(mode.partition(" ")[0]).save(data, format=image_format)
    found = prepared(decode_fast(data.getvalue()), SMALL)
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - prepared(decode(data.getvalue()), SMALL)).max() <= 2
    assert (
        Pixels(size=8, resize=10, decoder="torchvision").name
        == "torchvision-bicubic-10-8"
        != SMALL.name
    )
    if image_format == "JPEG":
        with pytest.raises(Undecodable, match="broken image"):
            decode_fast(data.getvalue()[: len(data.getvalue()) // 2])


def test_the_orientation_tag_is_not_applied(new_photo: NewPhoto) -> None:
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    new_photo(5, (30, 20)).save(data, format="JPEG", exif=exif)
    assert decode(data.getvalue()).size == (30, 20)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_cut_in_the_middle_is_undecodable(image_format: str, new_photo: NewPhoto) -> None:
    data = io.BytesIO()
    new_photo(5, (90, 90)).save(data, format=image_format)
    with pytest.raises(Undecodable, match="broken image"):
        decode(data.getvalue()[: len(data.getvalue()) // 2])


def test_garbage_in_the_middle_is_undecodable(new_photo: NewPhoto) -> None:
    for image_format in ("PNG", "JPEG"):
        data = io.BytesIO()
        new_photo(5, (90, 90)).save(data, format=image_format)
        middle = len(data.getvalue()) // 2
        garbage = b"\xff\x13" * 300
        with pytest.raises(Undecodable, match="broken image"):
            decode(data.getvalue()[:middle] + garbage + data.getvalue()[middle + len(garbage) :])


def test_a_second_use_decodes_nothing(tmp_path: Path, new_photo: NewPhoto) -> None:
    photos = [new_photo(seed) for seed in range(3)]
    first = build(photos, tmp_path)
    assert build([], tmp_path, [f"picture {number}" for number in range(3)]) == first


def test_other_content_pixels_or_decoder_are_another_cache(
    tmp_path: Path, new_photo: NewPhoto, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [new_photo(1), new_photo(2)]
    paths = {
        build(photos, tmp_path).path,
        build(photos, tmp_path, ["picture 0", "changed"]).path,
    }
    for pixels in (Pixels(size=8, resize=9), Pixels(size=8, resize=10, interpolation="bilinear")):
        paths.add(
            cached_pixels(
                ["picture 0", "picture 1"],
                photos.__getitem__,
                pixels,
                cache=tmp_path,
                what="pictures",
            ).path
        )
    monkeypatch.setattr("PIL.__version__", "0.0")
    paths.add(build(photos, tmp_path).path)
    assert len(paths) == 5


@pytest.mark.parametrize("name", ["pixels.npy", "meta.json"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, new_photo: NewPhoto, name: str) -> None:
    photos = [new_photo(1), new_photo(2)]
    first = build(photos, tmp_path)
    expected = np.load(first.path)
    damaged = first.path.parent / name
    damaged.write_bytes(damaged.read_bytes()[:-30])
    np.testing.assert_array_equal(np.load(build(photos, tmp_path).path), expected)


def test_undecodable_images_are_remembered_with_their_reason(
    tmp_path: Path, new_photo: NewPhoto
) -> None:
    def open_image(row: int) -> Image.Image:
        if row == 1:
            raise Undecodable("broken image: truncated")
        return new_photo(row)

    for _ in range(2):
        cached = cached_pixels(["a", "b", "c"], open_image, SMALL, cache=tmp_path, what="pictures")
        assert cached.unreadable == {1: "broken image: truncated"}


def test_an_error_while_decoding_leaves_nothing_behind(tmp_path: Path) -> None:
    def open_image(row: int) -> Image.Image:
        raise BenchError("the disk is on fire")

    with pytest.raises(BenchError, match="on fire"):
        cached_pixels(["a"], open_image, SMALL, cache=tmp_path, what="pictures")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_what_a_killed_builder_left_is_removed(tmp_path: Path, new_photo: NewPhoto) -> None:
    folder = build([new_photo(1)], tmp_path).path.parent
    folder.rename(folder.with_name(f"{folder.name}.part-killed"))
    build([new_photo(1)], tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.waits
def test_a_stop_is_heard_while_another_process_decodes(tmp_path: Path) -> None:
    def stop(what: str, done: int, of: int) -> None:
        raise Interrupted(what)

    folder = build([], tmp_path, []).path.parent
    folder.rename(tmp_path / "elsewhere")
    with (
        FileLock(f"{folder}.lock", is_singleton=False),
        pytest.raises(Interrupted, match="waiting for another process"),
    ):
        cached_pixels([], [].__getitem__, SMALL, cache=tmp_path, what="pictures", progress=stop)


def test_a_full_disk_is_an_error_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "_SPARE_BYTES", 1 << 62)
    with pytest.raises(BenchError, match=r"GB are free[\s\S]*BENCH_CACHE"):
        build([], tmp_path, ["a"])


def test_a_quota_is_reported_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_photo: NewPhoto
) -> None:
    def refuse(file: int, first: int, size: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(BenchError, match=r"cannot be written: .*uota[\s\S]*BENCH_CACHE"):
        build([new_photo(1)], tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_progress_counts_up_to_the_number_of_images(tmp_path: Path, new_photo: NewPhoto) -> None:
    seen: list[tuple[str, int, int]] = []
    photos = [new_photo(seed) for seed in range(70)]
    names = [str(seed) for seed in range(70)]
    cached_pixels(
        names,
        photos.__getitem__,
        SMALL,
        cache=tmp_path,
        what="pets",
        progress=lambda *step: seen.append(step),
    )
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("decoding pets", 70, 70)


_BUILDER = """
import os, sys, time
from pathlib import Path
from PIL import Image
from bench.data.pixels.cache import cached_pixels
from bench.data.pixels.decoder import Pixels

def open_image(row):
    with open(sys.argv[2], "a") as log:
        log.write(f"{row}\\n")
    while len(list(started.iterdir())) < 3:
        time.sleep(0.01)
    return Image.new("RGB", (9, 9), (row, 0, 0))

names = [str(row) for row in range(64)]
started = Path(sys.argv[3])
(started / str(os.getpid())).touch()
pixels, cache = Pixels(size=8, resize=8), Path(sys.argv[1])
print(cached_pixels(names, open_image, pixels, cache=cache, what="pictures").path)
"""


@pytest.mark.waits
def test_of_several_processes_one_builds_and_the_others_use_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        _BUILDER,
        str(tmp_path / "cache"),
        str(tmp_path / "log"),
        str(tmp_path / "started"),
    ]
    (tmp_path / "started").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    builders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    paths = {builder.communicate()[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert len(paths) == 1
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(64))
    assert np.load(paths.pop())[:, 0, 0, 0].tolist() == list(range(64))
    assert (
        json.loads(next((tmp_path / "cache").glob("*/meta.json")).read_text())["unreadable"] == {}
    )
