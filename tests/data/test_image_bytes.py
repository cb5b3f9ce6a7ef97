"""What files are by their bytes: kinds of images that people have, read with the right values or
refused by name.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from bench.data.pixels.image_bytes import Undecodable, by_name, decode, inspect
from bench.data.readers.folder import index_folder, remarks_on

GREY = (np.arange(64, dtype=np.uint32).reshape(8, 8) * 1040).astype(np.uint16)  # 0 to 65520
RGB = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour_png_16() -> bytes:
    """A PNG of 16 bits a channel, which PIL cannot write: signature, IHDR, IDAT, IEND."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(
        b"\0" + (row * 256 + 7).astype(">u2").tobytes() for row in RGB.astype(np.uint16)
    )
    header = struct.pack(">IIBBBBB", 9, 8, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_grey_are_scaled(kind: str) -> None:
    data = encoded(Image.fromarray(GREY), kind)
    assert inspect(data, f"a.{kind.lower()}") == (kind, "16 bits")
    np.testing.assert_array_equal(
        np.asarray(decode(data)), np.repeat((GREY // 256)[..., None], 3, axis=2)
    )


def test_a_portable_grey_map_of_16_bits() -> None:
    data = b"P5 8 8 65535\n" + GREY.astype(">u2").tobytes()
    assert inspect(data, "a.pgm") == ("PPM", "16 bits")
    np.testing.assert_array_equal(np.asarray(decode(data))[..., 1], GREY // 256)


def test_16_bits_of_colour() -> None:
    data = colour_png_16()
    assert inspect(data, "a.png") == ("PNG", "16 bits")
    np.testing.assert_array_equal(np.asarray(decode(data)), RGB)


@pytest.mark.parametrize("numbers", [np.int32, np.float32])
def test_numbers_without_a_scale_are_refused(numbers: type) -> None:
    data = encoded(Image.fromarray(GREY.astype(numbers)), "TIFF")
    assert inspect(data, "a.tif")[1] == "image of 32-bit or floating-point numbers"
    with pytest.raises(Undecodable, match="32-bit or floating-point"):
        decode(data)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    first, second = Image.fromarray(RGB[..., 0]), Image.fromarray(255 - RGB[..., 0])
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert inspect(data, f"a.{kind.lower()}") == (kind, "several frames")
    np.testing.assert_array_equal(np.asarray(decode(data))[..., 0], RGB[..., 0])


@pytest.mark.parametrize(("kind", "suffix"), [("AVIF", "avif"), ("WEBP", "webp")])
def test_avif_and_webp(kind: str, suffix: str) -> None:
    if not features.check(suffix):
        pytest.skip(f"this Pillow reads no {kind}")
    data = encoded(Image.fromarray(RGB), kind)
    assert inspect(data, f"a.{suffix}") == (kind, "")
    assert decode(data).size == (9, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turn_by_exif_is_noted_and_not_made(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), kind, exif=exif)
    assert inspect(data, f"a.{kind.lower()}") == (kind, "turned by EXIF")
    assert decode(data).size == (9, 8)
    exif[0x0112] = 1
    assert inspect(encoded(Image.fromarray(RGB), kind, exif=exif), f"a.{kind.lower()}") == (
        kind,
        "",
    )


def test_damaged_exif_data_spoil_no_pixels() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert inspect(data, "a.jpg") == ("JPEG", "")


def test_other_kinds_of_images_are_unreadable_and_not_ignored(tmp_path: Path) -> None:
    if features.check("jpg_2000"):
        (tmp_path / "a.jp2").write_bytes(encoded(Image.fromarray(RGB), "JPEG2000"))
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (tmp_path / "c.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (tmp_path / "d").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50))
    (tmp_path / "e.txt").write_text("nothing")
    index = index_folder(tmp_path, "", cache=tmp_path / ".cache")
    index = index[index["problem"] != "system file"]
    assert set(index["problem"][index["key"] != "e.txt"]) == {"kind of image that is not read"}
    remarks = remarks_on(index, "photos")
    count = 4 if features.check("jpg_2000") else 3
    assert any(
        f"{count} kind of image that is not read: cannot be read" in remark for remark in remarks
    ), remarks
    assert "photos: 1 files that are not images (ignored): e.txt" in remarks
    with pytest.raises(Undecodable, match="kind of image that is not read"):
        decode((tmp_path / "c.jpg").read_bytes())
    assert [by_name(name) for name in ("x.JPEG", "x.heic", "x.txt", "x")] == [
        "",
        "kind of image that is not read",
        "other file",
        "other file",
    ]


def test_images_of_16_bits_are_other_data_than_earlier_versions_made_of_them(
    tmp_path: Path,
) -> None:
    from bench.data.collection import fingerprint, folder_collection

    prints = {}
    for name, image in (("deep", GREY), ("plain", (GREY >> 8).astype(np.uint8))):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "a.png")
        index = index_folder(tmp_path, name, cache=tmp_path / "cache").assign(label=0, group=-1)
        collection = folder_collection(name, tmp_path, index, grouped=False)
        rows = np.arange(1)
        expected = f"{collection.content[0]}{' 16 bits' if name == 'deep' else ''} 0 -1\n"
        assert fingerprint(collection, rows) == hashlib.sha256(expected.encode()).hexdigest()
        assert collection.cached_as(rows)[0].startswith(collection.content[0])
        prints[name] = collection.originals.open(0).tobytes()
    assert prints["deep"] == prints["plain"]
