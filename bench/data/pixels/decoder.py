"""The deterministic preprocessing of images for evaluation: decoder, resize and centre crop."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: The library that decodes and resizes. Published numbers were measured with `pil`; `torchvision`
#: takes half the time, and its pixels differ by two grey levels at most.
Decoder = Literal["pil", "torchvision"]

Interpolation = Literal["bicubic", "bilinear"]


class Pixels(BaseModel):
    """Resize the short side to `resize` (antialiased), crop the centre to `size`, RGB, uint8.

    Normalisation (mean, std) is part of the image tower instead, so that methods which mask and
    refill images act on plain pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(gt=0, description="side of the square crop, pixels")
    resize: int = Field(gt=0, description="length of the short side before the crop, pixels")
    interpolation: Interpolation = "bicubic"
    decoder: Decoder = "pil"

    @property
    def name(self) -> str:
        """Name for records and caches, such as `pil-bicubic-256-224`."""
        return f"{self.decoder}-{self.interpolation}-{self.resize}-{self.size}"
