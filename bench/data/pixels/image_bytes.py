"""Recognise the bytes of a file as an image, and decode them."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

#: Part of the keys of cached indexes; increase it when the same bytes are judged differently.
VERSION = 2

# The problems of a file, as they are stored in indexes and shown to the user.
EMPTY: Final = "empty"
NOT_IMAGE: Final = "not an image"
BROKEN: Final = "broken image"
DANGLING: Final = "link to nothing"
SPECIAL: Final = "pipe or device"
FOREIGN: Final = "kind of image that is not read"
WIDE: Final = "image of 32-bit or floating-point numbers"
MISNAMED: Final = "misnamed"
DEEP: Final = "16 bits"
FRAMES: Final = "several frames"
TURNED: Final = "turned by EXIF"
SYSTEM: Final = "system file"
OTHER: Final = "other file"

#: Files that should be an image and cannot be read.
UNREADABLE = (EMPTY, NOT_IMAGE, BROKEN, DANGLING, SPECIAL, FOREIGN, WIDE)
#: Unusual images that are read -> the remark about them, with how they are read.
READ_ALL_THE_SAME: Final = {
    MISNAMED: "images in another format than their names say (read anyway)",
    DEEP: "images with 16 bits per channel (the higher 8 are read)",
    FRAMES: "images with several frames (the first is read)",
    TURNED: (
        "images with an EXIF rotation (read as stored, which is what the reference preprocessing"
        " does)"
    ),
}

#: Formats that Pillow may open. Some of its other decoders run external programs (EPS starts
#: Ghostscript), which must not happen while data are read.
_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "PPM",
    "TIFF",
    *(["AVIF"] if features.check("avif") else []),
)
_SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".avif": "AVIF",
}
#: Image formats that are not read, by suffix and by their first bytes. They are reported instead of
#: ignored: a dataset must not shrink without a warning.
_FOREIGN_SUFFIXES = (
    ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr", ".heic", ".heif", ".hif", ".psd",
    ".xcf", ".tga", ".dds", ".exr",
    ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw",
)  # fmt: skip
# JPEG 2000 (as a file and as a bare codestream), JPEG XL, Photoshop.
_FOREIGN_MAGIC = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"8BPS")
# HEIF and AVIF are ISO media files: their brand follows after a length of four bytes.
_FOREIGN_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypavif")
# JPEG comes first: `decode_fast` recognises it by this entry.
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")


class Undecodable(Exception):
    """The bytes are not an image, or a damaged one; the message is the reason."""


def by_name(name: str) -> str:
    """Return the problem of a file by its name: "" for an image, else `FOREIGN` or `OTHER`."""
    suffix = _suffix(name)
    return "" if suffix in _SUFFIXES else FOREIGN if suffix in _FOREIGN_SUFFIXES else OTHER


def has_image_suffix(name: str) -> bool:
    """Return whether a file name has the suffix of an image, whether the format is read or not."""
    return by_name(name) != OTHER


def inspect(data: bytes, name: str) -> tuple[str, str]:
    """Return the format and the problem of a file, without decoding its pixels.

    Damage behind the header is only found by `decode`.

    Args:
        data: bytes of the file.
        name: its name, whose suffix is compared with the content.

    Returns:
        Pillow's name of the format, and one of the problems above; "" where there is none.
    """
    claimed = _SUFFIXES.get(_suffix(name), "")
    if not data:
        return "", EMPTY if has_image_suffix(name) else OTHER
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # MPO is a JPEG followed by further views, as 3D cameras write it.
            found = "JPEG" if image.format == "MPO" else str(image.format)
            odd = _odd(image)
    # Pillow raises a dozen types of error on damaged headers.
    except Exception:
        if data.startswith(_FOREIGN_MAGIC) or data[4:12] in _FOREIGN_BRANDS:
            return "", FOREIGN
        if not claimed:
            return "", by_name(name)
        return "", BROKEN if data.startswith(_MAGIC) else NOT_IMAGE
    return found, MISNAMED if found != claimed and odd != WIDE else odd


def _odd(image: Image.Image) -> str:
    """Return the most serious problem of an image that was opened but not decoded, "" if none."""
    if _wide(image):
        return WIDE
    # Pillow opens 16-bit RGB as 8-bit RGB; only the tile's raw mode ("RGB;16B") shows the depth.
    if any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ())) or image.mode == "I":
        return DEEP
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            return FRAMES
        # PNG: `getexif` decodes the whole image if its header has no EXIF data. TIFF: Pillow itself
        # applies the rotation, and so does everyone who reads with it.
        known = image.format != "TIFF" and "exif" in image.info
        return TURNED if known and image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else ""
    # Damaged metadata, for which Pillow has a dozen errors, do not affect the pixels.
    except Exception:
        return ""


def _wide(image: Image.Image) -> bool:
    """Return whether there is no scale by which the image's numbers become 8 bits."""
    # Mode I is 32-bit integers, except that Pillow also uses it for 16-bit portable grey maps.
    return image.mode == "F" or (image.mode == "I" and image.format != "PPM")


def decode(data: bytes) -> Image.Image:
    """Decode an image to RGB before anything else is done to it, as torchvision's ImageFolder does.

    EXIF orientation is not applied, as in the reference preprocessing. Images with several frames
    give the first one, images with 16 bits per channel the higher 8.

    Raises:
        Undecodable: the bytes are not an image, truncated or damaged. JPEG has no checksum: damage
            that is itself valid code (one changed byte, a block of zeros) decodes to wrong pixels
            without an error, here as in every other reader.
    """
    # To RGB first, resizing later: resizing a palette image would blend the indices of colours, and
    # a transparent one its alpha.
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            if _wide(opened):
                raise Undecodable(WIDE)
            # 16-bit grey, which `convert` would clip at 255.
            if opened.mode.startswith("I"):
                return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
            return opened.convert("RGB")
    # Too little memory says nothing about the image, and must not be taken for damage.
    except (MemoryError, Undecodable):
        raise
    except UnidentifiedImageError as error:
        raise Undecodable(inspect(data, "unknown.png")[1] or BROKEN) from error
    # Decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage.
    except Exception as error:
        raise Undecodable(f"{BROKEN}: {error}") from error


def decode_fast(data: bytes) -> NDArray[np.uint8]:
    """Decode an image to (H, W, 3) uint8, with torchvision if it is a JPEG, else as `decode`.

    Raises:
        Undecodable: as `decode`.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    if data.startswith(_MAGIC[0]):
        try:
            made = decode_jpeg(
                torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED
            ).permute(1, 2, 0)
        # Damaged, or a kind of JPEG that torchvision does not know: Pillow decides which.
        except RuntimeError:
            return np.asarray(decode(data))
        # Four channels are CMYK, whose conversion to RGB is left to Pillow below.
        if made.shape[2] in (1, 3):
            return np.asarray(made.expand(-1, -1, 3).numpy())
    return np.asarray(decode(data))


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower() if "." in name else ""
