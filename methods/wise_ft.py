"""WiSE-FT: interpolate the weights of the starting and the fine-tuned classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator

from bench.classifier import Classifier, interpolate
from bench.errors import UsageError
from bench.method import FineTuner, Method, Nested, Traits

from .full_finetune import FullFinetune

if TYPE_CHECKING:
    from bench.task import Task

ALPHAS = tuple(step / 10 for step in range(11))


class WiSEFT(Method):
    """theta = (1 - alpha) theta_start + alpha theta_fine-tuned, for every tensor (Wortsman et al.,
    2022, eq. 1).

    Works on any fine-tuner, which is trained once and shared with every run that asks for the same
    one.
    """

    name: ClassVar[str] = "wise-ft"
    paper: ClassVar[str] = FullFinetune.paper
    bibtex: ClassVar[str] = FullFinetune.bibtex

    of: Nested = Field(
        default=FullFinetune(), description="the fine-tuner whose weights are one end"
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["id-val"] = Field(
        default=0.5,
        description=(
            "share of the fine-tuned weights; `id-val`: the best of 0, 0.1, ..., 1 on id-val"
        ),
    )

    @field_validator("of")
    @classmethod
    def _has_a_start(cls, of: Method) -> Method:
        if not isinstance(of, FineTuner):
            raise ValueError(
                f"`{of.name}` is not trained from a starting classifier that it could be"
                " interpolated with"
            )
        return of

    @property
    def _of(self) -> FineTuner:
        assert isinstance(self.of, FineTuner)
        return self.of

    def resolved(self, traits: Traits) -> Self:
        """Resolve `of`; where it would start from a random head, it starts from the probe's, since
        a random head is no base.
        """
        of = self._of.resolved(traits)
        if of.norm == "train":
            raise UsageError(
                "batch statistics that were trained cannot be interpolated",
                where=f"method {self.name}",
                fix="--set of.norm=frozen",
            )
        if self._of.head_init is None and of.head_init == "random":
            of = of.model_copy(update={"head_init": "probe"})
        return self.model_copy(update={"of": of})

    def fit(self, task: Task) -> Classifier:
        """Fine-tune (or reuse the fine-tuned classifier) and interpolate."""
        assert self._of.head_init is not None, "a method is resolved before it is fitted"
        start, end = task.start(self._of.head_init), task.fit(self._of)
        alpha = self.alpha
        if alpha == "id-val":
            alpha = task.choose(
                "alpha", [(value, *task.score(interpolate(start, end, value))) for value in ALPHAS]
            )
        return interpolate(start, end, float(alpha))
