"""What the bytes of a file are: an image and of which format, or what is wrong with them; and their
pixels.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

#: Raised when the same bytes are judged differently, so that older indexes are not believed.
VERSION = 2

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

#: Files that should be an image and are not.
UNREADABLE = (EMPTY, NOT_IMAGE, BROKEN, DANGLING, SPECIAL, FOREIGN, WIDE)
#: What is read all the same, and what is done with it.
READ_ALL_THE_SAME: Final = {
    MISNAMED: "another format than their names say (read all the same)",
    DEEP: "images of 16 bits a channel (the higher 8 are read)",
    FRAMES: "images of several frames (the first is read)",
    TURNED: (
        "images that their EXIF data turn (read as they are stored, as the reference preprocessing"
        " does)"
    ),
}

#: Others are refused: decoders that run external programs have no place in reading data.
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
#: What other images are called, and how the commonest begin: to leave them out without a word would
#: shrink a data set.
_FOREIGN_SUFFIXES = (
    ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr", ".heic", ".heif", ".hif", ".psd",
    ".xcf", ".tga", ".dds", ".exr",
    ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw",
)  # fmt: skip
_FOREIGN_MAGIC = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"8BPS")
_FOREIGN_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypavif")
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")


class Undecodable(Exception):
    """Bytes that are no image, or a damaged one; the message is the reason."""


def by_name(name: str) -> str:
    """The problem of a file that nobody looks into: "" if it is called like an image, `FOREIGN` or
    `OTHER`.
    """
    suffix = _suffix(name)
    return "" if suffix in _SUFFIXES else FOREIGN if suffix in _FOREIGN_SUFFIXES else OTHER


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name claims to be an image, of a kind that is read or of another."""
    return by_name(name) != OTHER


def inspect(data: bytes, name: str) -> tuple[str, str]:
    """Format by content and problem of a file, each "" if there is none; the pixels are not
    decoded.

    Damage behind the header is found when the pixels are decoded (`decode`).
    """
    claimed = _SUFFIXES.get(_suffix(name), "")
    if not data:
        return "", EMPTY if has_image_suffix(name) else OTHER
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            found = (
                "JPEG" if image.format == "MPO" else str(image.format)
            )  # MPO: a JPEG with further views behind it
            odd = _odd(image)
    except Exception:  # PIL raises a dozen types on damaged headers
        if data.startswith(_FOREIGN_MAGIC) or data[4:12] in _FOREIGN_BRANDS:
            return "", FOREIGN
        if not claimed:
            return "", by_name(name)
        return "", BROKEN if data.startswith(_MAGIC) else NOT_IMAGE
    return found, MISNAMED if found != claimed and odd != WIDE else odd


def _odd(image: Image.Image) -> str:
    """What should be known of an image that was opened and not decoded, the weightiest first."""
    if _wide(image):
        return WIDE
    if any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ())) or image.mode == "I":
        return DEEP
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            return FRAMES
        # PNG: asked for its EXIF data without any, PIL would decode it. TIFF: PIL turns it, as does
        # everyone who reads with it.
        known = image.format != "TIFF" and "exif" in image.info
        return TURNED if known and image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else ""
    except (
        Exception
    ):  # damage beside the pixels, which PIL tells in a dozen ways, does not matter to them
        return ""


def _wide(image: Image.Image) -> bool:
    """Whether no scale is known by which its numbers become 8 bits. PIL reads portable grey maps of
    16 bits as mode I.
    """
    return image.mode == "F" or (image.mode == "I" and image.format != "PPM")


def decode(data: bytes) -> Image.Image:
    """The image as RGB, before anything else is done to it, as torchvision's image folder reads it.

    The order matters for palette and transparent images: resizing first would blend palette indices
    or alpha. EXIF orientation is not applied, since the reference preprocessing does not. Of
    several frames the first is taken, of 16 bits the higher 8.

    Raises:
        Undecodable: not an image, truncated or damaged. JPEG has no checksum: damage that is itself
            valid code (one changed byte, a block of zeros) decodes to wrong pixels without a sign,
            here as in every other reader.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            if _wide(opened):
                raise Undecodable(WIDE)
            if opened.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
                return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
            return opened.convert("RGB")
    except (MemoryError, Undecodable):
        raise
    except UnidentifiedImageError as error:
        raise Undecodable(inspect(data, "unknown.png")[1] or BROKEN) from error
    except (
        Exception
    ) as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage
        raise Undecodable(f"{BROKEN}: {error}") from error


def decode_fast(data: bytes) -> NDArray[np.uint8]:
    """As `decode`, (H, W, 3) uint8, by torchvision where it can: JPEG files of one or three
    channels. Others are left to PIL.

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
        except RuntimeError:  # damaged, or of a kind that it does not know: PIL tells
            return np.asarray(decode(data))
        if made.shape[2] in (1, 3):
            return np.asarray(made.expand(-1, -1, 3).numpy())
    return np.asarray(decode(data))


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower() if "." in name else ""
