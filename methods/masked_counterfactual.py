"""Masked images as counterfactual samples: distil features on images with parts replaced.

After Xiao et al. (2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch.nn import functional as F

from bench.errors import UsageError
from bench.method import Batch, Traits

from . import masking
from .cam import class_activation_map, normalized
from .feature_distillation import FeatureDistillation

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.classifier import Classifier

#: (mask, fill) -> threshold of the map, and fill -> share of random patches: the values of the
#: paper's code, which sets other ones for each combination.
THRESHOLDS: Mapping[tuple[str, str], float] = {
    ("object", "none"): 0.3, ("object", "single"): 0.3, ("object", "multi"): 0.6,
    ("context", "none"): 0.6, ("context", "single"): 0.5, ("context", "multi"): 0.3,
}  # fmt: skip
PROBABILITIES: Mapping[str, float] = {"none": 0.75, "single": 0.5, "multi": 0.5}


class Look(NamedTuple):
    """The result of a forward pass on clean images.

    Attributes:
        logits: (n, C) of the student.
        mask: (n, P) bool.
        cam: map (n, P) that the mask follows from; None for a random mask.
    """

    logits: Tensor
    mask: Tensor
    cam: Tensor | None


class MaskedCounterfactual(FeatureDistillation):
    """Minimise CE(head(f_s(x)), y) + w MSE(f_s(x~), f_t(x~)), with x~ a masked x.

    The method of Xiao et al. (2023). The mask covers the object or the context, which the
    class-activation map of the student's true-class logit separates, or random patches. Masked
    patches are replaced by patches of other images of the global batch (`single`: all from one
    image, `multi`: each from another one), or left out of the transformer (`none`). The teacher
    sees the same x~.
    """

    name: ClassVar[str] = "masked-counterfactual"

    mask: Literal["object", "context", "random"] = "object"
    fill: Literal["none", "single", "multi"] = "single"
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description=(
            "map values strictly above it are object; default: the paper's (object, single fill:"
            " 0.3)"
        ),
    )
    mask_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "mask this share of patches: those with the highest (object) or lowest (context) map"
            " values, or random ones"
        ),
    )
    probability: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "random masks: share of masked patches, exact without a fill; default: 0.5, or 0.75"
            " without a fill"
        ),
    )

    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Return CE(head(f_s(x)), y) + w MSE(f_s(x~), f_t(x~))."""
        logits, mask, _ = self.look(batch, student)
        images, keep = self.counterfactual(batch, mask, student.tower.grid)
        with torch.no_grad():
            target = teacher.features(images, keep)
        distance = F.mse_loss(student.features(images, keep), target)
        return F.cross_entropy(logits, batch.labels) + self.raw_weight(constants) * distance

    def look(self, batch: Batch, student: Classifier) -> Look:
        """Return the student's logits on the clean images x, and the mask."""
        if self.mask == "random":
            return Look(student(batch.images), batch.random["mask"], None)
        # Map and cross-entropy share one forward pass, which presumes that dropout and batch
        # statistics are off during training. `bind` refuses the rest.
        logits, _, maps = student.explain(batch.images)
        score = logits.float().gather(1, batch.labels[:, None]).sum()
        cam = class_activation_map(score, maps, student.tower.layout)
        if self.mask_share is not None:
            return Look(
                logits, masking.share_mask(cam, self.mask_share, highest=self.mask == "object"), cam
            )
        assert self.threshold is not None, "call bind() before fit()"
        cut = masking.object_mask if self.mask == "object" else masking.context_mask
        return Look(logits, cut(cam, self.threshold), cam)

    def counterfactual(
        self, batch: Batch, mask: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return x~ as images (n, 3, H, W), and the patches to keep (n, P) if some are left out."""
        if self.fill == "none":
            return batch.images, ~mask
        return masking.refill(batch.images, batch.pool, mask, batch.random["source"], grid), None

    @property
    def batch_coupled(self) -> bool:
        """Whether patches come from other images of the batch."""
        return self.fill != "none"

    def random(
        self, size: int, grid: tuple[int, int], generator: Generator
    ) -> Mapping[str, Tensor]:
        """Sample random masks (N, P), and the sources of fills, (N,) or (N, P)."""
        patches = grid[0] * grid[1]
        sampled: dict[str, Tensor] = {}
        if self.mask == "random":
            assert self.probability is not None, "call bind() before fit()"
            random_mask = masking.exact_mask if self.fill == "none" else masking.bernoulli_mask
            sampled["mask"] = random_mask(size, patches, self.probability, generator)
        if self.fill == "single":
            sampled["source"] = masking.single_source(size, generator)
        elif self.fill == "multi":
            sampled["source"] = masking.multi_source(size, patches, generator)
        return sampled

    def bind(self, traits: Traits) -> Self:
        """Fill in the paper's threshold or probability.

        Raises:
            UsageError: options contradict each other, or do not suit the backbone.
        """
        if self.fill == "none" and traits.layout == "conv":
            raise UsageError(
                "a convolutional backbone has no tokens to leave out, so that a mask needs a fill",
                where=f"method {self.name}, fill=none",
                fix="use --set fill=single or --set fill=multi",
            )
        if self.norm == "train":
            self._contradiction(
                "map and cross-entropy share one forward pass, which needs frozen batch statistics",
                "use --set norm=frozen",
            )
        if self.mask == "random" and self.threshold is not None:
            self._contradiction("random masks have no threshold", "use --set probability=...")
        if self.mask_share is not None and self.probability is not None:
            self._contradiction(
                "mask_share and probability mean the same for random masks", "set one of the two"
            )
        if self.mask != "random" and self.probability is not None:
            self._contradiction(
                "only random masks have a probability",
                "use --set mask=random or --set threshold=...",
            )
        if self.threshold is not None and self.mask_share is not None:
            self._contradiction("threshold and mask_share exclude each other", "set one of the two")
        chosen = super().bind(traits)
        # For random masks, `mask_share` becomes `probability`: a suite's recipe can set one share
        # for all kinds of masks, and both spellings are the same fit.
        if self.mask == "random":
            probability = self.probability or self.mask_share or PROBABILITIES[self.fill]
            return chosen.model_copy(update={"probability": probability, "mask_share": None})
        if self.mask_share is None and self.threshold is None:
            return chosen.model_copy(update={"threshold": THRESHOLDS[self.mask, self.fill]})
        return chosen

    def _contradiction(self, what: str, fix: str) -> None:
        raise UsageError(
            what, where=f"method {self.name}, mask={self.mask}, fill={self.fill}", fix=fix
        )

    def illustrate(self, batch: Batch, student: Classifier) -> Mapping[str, Tensor]:
        """Return the images, their map (if there is one), the mask in grey, and the images x~."""
        _, mask, cam = self.look(batch, student)
        grid, size = student.tower.grid, batch.images.shape[-2:]

        def in_pixels(patches: Tensor) -> Tensor:
            return F.interpolate(patches.float().view(-1, 1, *grid), size=size, mode="nearest")

        covered = torch.where(in_pixels(mask) > 0, 0.5, batch.images)
        panels = {"image": batch.images}
        if cam is not None:
            # Red where the map is high and blue where it is low, over a dimmed image.
            heat = in_pixels(normalized(cam))
            panels["map"] = 0.35 * batch.images + 0.65 * torch.cat(
                [heat, 0.25 * heat, 1 - heat], dim=1
            )
        panels["mask"] = covered
        filled, keep = self.counterfactual(batch, mask, grid)
        panels["counterfactual"] = covered if keep is not None else filled
        return panels
