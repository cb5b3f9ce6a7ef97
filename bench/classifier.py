"""A classifier: image tower + linear head. What a method starts from, trains, and returns."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from .backbones.backbone import Head, ImageTower, can_be_weight


class Classifier(nn.Module):
    """logits = head(tower(images)).

    Its weights are a plain mapping of names to tensors, on which weight-space methods
    (interpolation, soups) work.
    """

    def __init__(self, tower: ImageTower, head: Head) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.tower(images))
        return logits

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (N, D), not normalised; `keep` (N, P) leaves patches out (see ImageTower)."""
        features: Tensor = self.tower(images, keep)
        return features

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, C), features (N, D) and the tensors that class-activation maps are computed
        from (see ImageTower).
        """
        features, maps = self.tower.explain(images)
        return self.head(features), features, maps

    def named_weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name: detached, sharing memory with the classifier."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Classifier:
        """A copy that carries `weights`.

        Raises:
            RuntimeError: a name is missing, unknown, or has another shape, or is not of
                floating-point numbers where it should.
        """
        other = copy.deepcopy(self)
        for name, own in other.state_dict().items():
            given = weights.get(name, own)
            if own.is_floating_point() and (
                not can_be_weight(given) or given.is_meta > own.is_meta
            ):
                raise RuntimeError(
                    f"{name} is {given.dtype}, {given.layout} on {given.device}, and not plain"
                    " floating-point numbers"
                )
        other.load_state_dict(dict(weights), strict=True)
        return other


def interpolate(start: Classifier, end: Classifier, alpha: float) -> Classifier:
    """(1 - alpha) * start + alpha * end for every floating tensor (Wortsman et al., 2022, eq. 1);
    others are the end's.

    The ends themselves (alpha 0 and 1) are exact copies. What lies between is on the device of
    `end`.

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
