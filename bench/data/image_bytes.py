"""What the bytes of a file are: an image and of which format, or what is wrong with them; and their pixels."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

#: Raised when the same bytes are judged differently, so that older indexes are not believed.
VERSION = 1

EMPTY: Final = "empty"
NOT_IMAGE: Final = "not an image"
BROKEN: Final = "broken image"
DANGLING: Final = "link to nothing"
SPECIAL: Final = "pipe or device"
MISNAMED: Final = "misnamed"
SYSTEM: Final = "system file"
OTHER: Final = "other file"

#: Files that should be an image and are not.
UNREADABLE = (EMPTY, NOT_IMAGE, BROKEN, DANGLING, SPECIAL)

#: Others are refused: decoders that run external programs have no place in reading data.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
}
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")


class Undecodable(Exception):
    """Bytes that are no image, or a damaged one; the message is the reason."""


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name claims to be an image."""
    return _suffix(name) in _SUFFIXES


def inspect(data: bytes, name: str) -> tuple[str, str]:
    """Format by content and problem of a file, each "" if there is none; the pixels are not decoded.

    Damage behind the header is found when the pixels are decoded (`decode`).
    """
    claimed = _SUFFIXES.get(_suffix(name), "")
    if not data:
        return "", EMPTY if claimed else OTHER
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            found = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with further views behind it
    except Exception:  # PIL raises a dozen types on damaged headers
        if not claimed:
            return "", OTHER
        return "", BROKEN if data.startswith(_MAGIC) else NOT_IMAGE
    return found, "" if found == claimed else MISNAMED


def decode(data: bytes) -> Image.Image:
    """The image as RGB, before anything else is done to it, as torchvision's image folder reads it.

    The order matters for palette and transparent images: resizing first would blend palette indices or alpha. EXIF orientation
    is not applied, since the reference preprocessing does not. Of several frames the first is taken.

    Raises:
        Undecodable: not an image, truncated or damaged. JPEG has no checksum: damage that is itself valid code (one changed
            byte, a block of zeros) decodes to wrong pixels without a sign, here as in every other reader.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            return opened.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Undecodable(BROKEN if data.startswith(_MAGIC) else NOT_IMAGE if data else EMPTY) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage
        raise Undecodable(f"{BROKEN}: {error}") from error


def decode_fast(data: bytes) -> NDArray[np.uint8]:
    """As `decode`, (H, W, 3) uint8, by torchvision where it can: JPEG files of one or three channels. Others are left to PIL.

    Raises:
        Undecodable: as `decode`.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    if data.startswith(_MAGIC[0]):
        try:
            made = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED).permute(1, 2, 0)
        except RuntimeError:  # damaged, or of a kind that it does not know: PIL tells
            return np.asarray(decode(data))
        if made.shape[2] in (1, 3):
            return np.asarray(made.expand(-1, -1, 3).numpy())
    return np.asarray(decode(data))


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower() if "." in name else ""
