"""End-to-end fine-tuning with cross-entropy: the baseline that the robust methods improve on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch.nn import functional as F

from bench.method import Batch, FineTuner

if TYPE_CHECKING:
    from torch import Tensor

    from bench.classifier import Classifier


class FullFinetune(FineTuner):
    """Minimise the cross-entropy over all weights, by WiSE-FT's recipe (Wortsman et al., 2022)."""

    name: ClassVar[str] = "full-finetune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2109.01903"
    bibtex: ClassVar[str] = """@inproceedings{wortsman2022robust,
  title = {Robust Fine-Tuning of Zero-Shot Models},
  author = {Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and
            Kornblith, Simon and Roelofs, Rebecca and Gontijo Lopes, Raphael and
            Hajishirzi, Hannaneh and Farhadi, Ali and Namkoong, Hongseok and Schmidt, Ludwig},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}"""

    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Return CE(head(f(x)), y)."""
        return F.cross_entropy(student(batch.images), batch.labels)
