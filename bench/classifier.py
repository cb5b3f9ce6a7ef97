"""The classifier that methods start from, train and return: an image tower and a linear head."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from .backbones.backbone import Head, ImageTower, can_be_weight


class Classifier(nn.Module):
    """An image tower and a linear head: logits = head(tower(images)).

    Weight-space methods (interpolation, soups) work on its weights as a mapping of names to
    tensors: see `named_weights` and `with_weights`.
    """

    def __init__(self, tower: ImageTower, head: Head) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of images (N, 3, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.tower(images))
        return logits

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return features (N, D), not normalised.

        Args:
            images: (N, 3, H, W) in [0, 1].
            keep: (N, P) bool; patches that are False are left out (see ImageTower).
        """
        features: Tensor = self.tower(images, keep)
        return features

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return logits (N, C), features (N, D) and the inputs of class-activation maps.

        For the last, see `ImageTower.explain`.
        """
        features, maps = self.tower.explain(images)
        return self.head(features), features, maps

    def named_weights(self) -> dict[str, Tensor]:
        """Return every parameter and buffer by name, detached; memory is shared, not copied."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Classifier:
        """Return a copy of the classifier with other weights.

        Raises:
            RuntimeError: a tensor is missing, unknown, of another shape, or not of floating-point
                numbers although the classifier's is.
        """
        other = copy.deepcopy(self)
        # `load_state_dict` converts silently: integers, 8-bit or sparse tensors become weights of
        # another meaning, and a tensor on the meta device leaves the old values in place.
        for name, own in other.state_dict().items():
            given = weights.get(name, own)
            if own.is_floating_point() and (
                not can_be_weight(given) or given.is_meta > own.is_meta
            ):
                raise RuntimeError(
                    f"{name} is {given.dtype}, {given.layout} on {given.device}, expected dense"
                    " floating-point numbers"
                )
        other.load_state_dict(dict(weights), strict=True)
        return other


def interpolate(start: Classifier, end: Classifier, alpha: float) -> Classifier:
    """Return (1 - alpha) * start + alpha * end (Wortsman et al., 2022, eq. 1).

    Tensors of integers are those of `end`. The result is on the device of `end`.

    Raises:
        ValueError: the two do not have the same tensors.
    """
    last = end.named_weights()
    first = {
        name: tensor.to(last[name].device) if name in last else tensor
        for name, tensor in start.named_weights().items()
    }
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in last.items()}:
        raise ValueError("the two classifiers do not have the same tensors")
    # Exact copies, since 0 * x is not 0 for an x that is not finite, and so that an end of the
    # interpolation curve is the run that it stands for to the bit.
    if alpha in (0, 1):
        return copy.deepcopy(end if alpha == 1 else start)
    mixed = {
        name: (
            (1 - alpha) * first[name] + alpha * last[name]
            if last[name].is_floating_point()
            else last[name]
        )
        for name in last
    }
    return end.with_weights(mixed)
