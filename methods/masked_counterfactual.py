"""Masked images as counterfactual samples: distil features on images whose object or context is
replaced.
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

#: The paper's repository has one threshold per mask and fill, and one share of random patches with
#: and without a fill.
THRESHOLDS: Mapping[tuple[str, str], float] = {
    ("object", "none"): 0.3, ("object", "single"): 0.3, ("object", "multi"): 0.6,
    ("context", "none"): 0.6, ("context", "single"): 0.5, ("context", "multi"): 0.3,
}  # fmt: skip
PROBABILITIES: Mapping[str, float] = {"none": 0.75, "single": 0.5, "multi": 0.5}


class Look(NamedTuple):
    """What the student saw on clean images: logits (n, C), the mask (n, P), and the map (n, P) if
    the mask came from one.
    """

    logits: Tensor
    mask: Tensor
    cam: Tensor | None


class MaskedCounterfactual(FeatureDistillation):
    """CE(head(f_s(x)), y) + w MSE(f_s(x~), f_t(x~)), with x~ a masked x (Xiao et al., 2023).

    The mask covers the object or the context, told apart by the class-activation map of the
    student's true-class logit, or random patches. Masked patches are refilled from other images of
    the global batch (`single`: one image for all patches of an image, `multi`: one for each patch),
    or left out of the transformer (`none`). The teacher sees the same x~. Map and cross-entropy
    share one clean forward, which presumes that dropout and batch statistics are off while
    training.
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
            " without"
        ),
    )

    @property
    def batch_coupled(self) -> bool:
        """Fills couple images; they are planned on the global batch."""
        return self.fill != "none"

    def resolved(self, traits: Traits) -> Self:
        """Fill in the paper's threshold or probability; UsageError for options that contradict each
        other or the backbone.
        """
        if self.fill == "none" and traits.layout == "conv":
            raise UsageError(
                "a convolutional backbone has no tokens to leave out, so a mask needs a fill",
                where=f"method {self.name}, fill=none",
                fix="--set fill=single, or --set fill=multi",
            )
        if self.norm == "train":
            self._contradiction(
                "map and cross-entropy share one forward, which needs frozen batch statistics",
                "--set norm=frozen",
            )
        if self.mask == "random" and self.threshold is not None:
            self._contradiction("random masks have no threshold", "--set probability=...")
        if self.mask_share is not None and self.probability is not None:
            self._contradiction(
                "mask_share and probability say the same of random masks", "give one of the two"
            )
        if self.mask != "random" and self.probability is not None:
            self._contradiction(
                "only random masks have a probability", "--set mask=random, or --set threshold=..."
            )
        if self.threshold is not None and self.mask_share is not None:
            self._contradiction(
                "threshold and mask_share exclude each other", "give one of the two"
            )
        chosen = super().resolved(traits)
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

    def draw(self, size: int, grid: tuple[int, int], generator: Generator) -> Mapping[str, Tensor]:
        """Random masks (N, P) and where fills come from, (N,) or (N, P), for the global batch."""
        patches = grid[0] * grid[1]
        draws: dict[str, Tensor] = {}
        if self.mask == "random":
            assert self.probability is not None, "a method is resolved before it draws"
            random_mask = masking.exact_mask if self.fill == "none" else masking.bernoulli_mask
            draws["mask"] = random_mask(size, patches, self.probability, generator)
        if self.fill == "single":
            draws["source"] = masking.single_source(size, generator)
        elif self.fill == "multi":
            draws["source"] = masking.multi_source(size, patches, generator)
        return draws

    def look(self, batch: Batch, student: Classifier) -> Look:
        """One clean forward of the student, and the mask that follows from it (or from the
        draws).
        """
        if self.mask == "random":
            return Look(student(batch.images), batch.draws["mask"], None)
        logits, _, maps = student.explain(batch.images)
        score = logits.float().gather(1, batch.labels[:, None]).sum()
        cam = class_activation_map(score, maps, student.tower.layout)
        if self.mask_share is not None:
            return Look(
                logits, masking.share_mask(cam, self.mask_share, highest=self.mask == "object"), cam
            )
        assert self.threshold is not None, "a method is resolved before it masks"
        cut = masking.object_mask if self.mask == "object" else masking.context_mask
        return Look(logits, cut(cam, self.threshold), cam)

    def counterfactual(
        self, batch: Batch, mask: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """x~ as the towers take it: images (n, 3, H, W), and the patches to keep (n, P) where
        masked ones are left out.
        """
        if self.fill == "none":
            return batch.images, ~mask
        return masking.refill(batch.images, batch.pool, mask, batch.draws["source"], grid), None

    def illustrate(self, batch: Batch, student: Classifier) -> Mapping[str, Tensor]:
        """The images, their map (where the mask follows from one), the mask in grey, and the
        counterfactual images.
        """
        _, mask, cam = self.look(batch, student)
        grid, size = student.tower.grid, batch.images.shape[-2:]

        def in_pixels(patches: Tensor) -> Tensor:
            return F.interpolate(patches.float().view(-1, 1, *grid), size=size, mode="nearest")

        covered = torch.where(in_pixels(mask) > 0, 0.5, batch.images)
        pictures = {"image": batch.images}
        if cam is not None:
            heat = in_pixels(normalized(cam))
            pictures["map"] = 0.35 * batch.images + 0.65 * torch.cat(
                [heat, 0.25 * heat, 1 - heat], dim=1
            )
        pictures["mask"] = covered
        filled, keep = self.counterfactual(batch, mask, grid)
        pictures["counterfactual"] = covered if keep is not None else filled
        return pictures

    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """CE(head(f_s(x)), y) + w MSE(f_s(x~), f_t(x~))."""
        logits, mask, _ = self.look(batch, student)
        images, keep = self.counterfactual(batch, mask, student.tower.grid)
        with torch.no_grad():
            target = teacher.features(images, keep)
        distance = F.mse_loss(student.features(images, keep), target)
        return F.cross_entropy(logits, batch.labels) + self.raw_weight(constants) * distance
