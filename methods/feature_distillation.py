"""Feature distillation: fine-tune, and stay close to the features of the starting classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from bench.method import Batch, FineTuner, HeadInit, Space, searched

if TYPE_CHECKING:
    from torch import Tensor

    from bench.classifier import Classifier
    from bench.task import Task


class FeatureDistillation(FineTuner):
    """Minimise CE(head(f_s(x)), y) + w MSE(f_s(x), f_t(x)).

    f_s is the student's tower and f_t the frozen starting tower, the teacher. This is the unmasked
    baseline of Xiao et al. (2023), with the recipe of their code where it differs from WiSE-FT's.
    """

    # MSE is a mean over images and dimensions of features that are not normalised, so that the same
    # w means another strength for another backbone. In the unit `teacher_ms`, w is divided by the
    # mean square of the teacher's features; searches sample it in that unit.

    name: ClassVar[str] = "feature-distillation"
    paper: ClassVar[str] = "https://arxiv.org/abs/2303.03052"
    bibtex: ClassVar[str] = """@inproceedings{xiao2023masked,
  title = {Masked Images Are Counterfactual Samples for Robust Fine-Tuning},
  author = {Xiao, Yao and Tang, Ziyi and Wei, Pengxu and Liu, Cong and Lin, Liang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages = {20301--20310},
  year = {2023}
}"""

    weight: float = searched(
        30.0,
        Space(low=0.5, high=20, log=True, together="weight_unit"),
        ge=0,
        description="w, in the unit `weight_unit`",
    )
    weight_unit: Literal["raw", "teacher_ms"] = searched(
        "raw",
        Space(choices=("teacher_ms",), together="weight"),
        description="`raw`: as in the paper; `teacher_ms`: per mean-square teacher feature",
    )
    # From here on, the paper's recipe.
    schedule: Literal["warmup-cosine", "one-cycle"] = "one-cycle"
    warmup: float = Field(default=0.02, ge=0, description="steps; below 1, a fraction of all steps")
    augment: Literal["none", "flip", "shift-flip", "resized-crop"] = "none"
    select: Literal["best", "last"] = Field(
        default="best", description="epoch to return: the best on id-val, or the last"
    )

    _heads: ClassVar[tuple[HeadInit, ...]] = ("zero-shot", "native", "probe")

    def prepare(self, task: Task, start: Classifier) -> Mapping[str, float]:
        """Return `teacher_ms`, the mean square of the teacher's features on the training images."""
        # Measured in either unit, so that the record of a fit allows converting w.
        features, _ = task.features("train")
        return {"teacher_ms": float(np.square(features, dtype=np.float64).mean())}

    def raw_weight(self, constants: Mapping[str, float]) -> float:
        """Return w as the factor of the MSE, whatever its unit."""
        return (
            self.weight / constants["teacher_ms"]
            if self.weight_unit == "teacher_ms"
            else self.weight
        )

    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Return CE(head(f_s(x)), y) + w MSE(f_s(x), f_t(x))."""
        with torch.no_grad():
            target = teacher.features(batch.images)
        # One forward pass of the student serves both terms.
        features = student.features(batch.images)
        cross_entropy = F.cross_entropy(student.head(features), batch.labels)
        return cross_entropy + self.raw_weight(constants) * F.mse_loss(features, target)
