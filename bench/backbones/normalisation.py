"""An image tower that normalises its pixels itself, so that whoever feeds it works on plain RGB in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbone import ImageTower


class NormalisingTower(ImageTower):
    """Adds `normalised` to an image tower.

    Mean and standard deviation are buffers, so that they follow the tower to its device, but not part of its state: they are
    constants, and averaging weights must not touch them.

    Args:
        mean, std: of the three channels, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """(images - mean) / std for images (N, 3, H, W)."""
        return (images - self.mean) / self.std


def refuse_keep(keep: Tensor | None) -> None:
    """Raise NotImplementedError if `keep` was given to a convolutional tower."""
    if keep is not None:
        raise NotImplementedError("a convolutional tower has no tokens to leave out; mask the pixels of the image instead")


def differentiable(feature_map: Tensor) -> Tensor:
    """The same map, of which gradients can be taken even if no weight of the tower requires one."""
    if torch.is_grad_enabled() and not feature_map.requires_grad:
        feature_map.requires_grad_()
    return feature_map
