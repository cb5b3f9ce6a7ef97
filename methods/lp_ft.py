"""LP-FT: linear probing, then fine-tuning, which distorts features less than a new head does."""

from __future__ import annotations

from typing import ClassVar

from bench.method import HeadInit, Space, searched

from .full_finetune import FullFinetune


class LPFT(FullFinetune):
    """Fine-tune from the head of a linear probe (Kumar et al., 2022).

    The paper trains with SGD, from a head on features that are not normalised. This is the variant
    that most later papers compare with: AdamW at a learning rate of 1e-5 and otherwise WiSE-FT's
    recipe, from the head of `linear-probe`.
    """

    name: ClassVar[str] = "lp-ft"
    paper: ClassVar[str] = "https://arxiv.org/abs/2202.10054"
    bibtex: ClassVar[str] = """@inproceedings{kumar2022finetuning,
  title = {Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution},
  author = {Kumar, Ananya and Raghunathan, Aditi and Jones, Robbie and Ma, Tengyu and Liang, Percy},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""

    lr: float = searched(
        1e-5, Space(low=1e-6, high=1e-3, log=True), gt=0, description="peak learning rate of AdamW"
    )

    # This is the whole method: everything else is full fine-tuning.
    _heads: ClassVar[tuple[HeadInit, ...]] = ("probe",)
