"""The pixels that a backbone is evaluated on: one deterministic resize and crop, named so that it
can be compared.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: What decodes and resizes. `pil` is what published numbers were measured with; `torchvision` takes
#: half the time, and its pixels are others by a few grey levels.
Decoder = Literal["pil", "torchvision"]


Interpolation = Literal["bicubic", "bilinear"]


class Pixels(BaseModel):
    """Resize the short side to `resize` (antialiased), crop the centre to `size`, RGB, uint8.

    Normalisation (mean, std) is not here: it belongs to the image tower, so that a mask-and-refill
    acts on plain pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(gt=0, description="side of the square crop, pixels")
    resize: int = Field(gt=0, description="length of the short side before the crop, pixels")
    interpolation: Interpolation = "bicubic"
    decoder: Decoder = "pil"

    @property
    def name(self) -> str:
        """Such as `pil-bicubic-256-224`."""
        return f"{self.decoder}-{self.interpolation}-{self.resize}-{self.size}"
