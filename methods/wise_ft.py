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

#: The candidates of `alpha = "id-val"`.
ALPHAS = tuple(step / 10 for step in range(11))


class WiSEFT(Method):
    """Interpolate weights: (1 - alpha) theta_0 + alpha theta_1 (Wortsman et al., 2022, eq. 1).

    theta_0 is the starting classifier and theta_1 the fine-tuned one, of any fine-tuner `of`. It is
    trained once, and shared with every run that uses the same one.
    """

    name: ClassVar[str] = "wise-ft"
    paper: ClassVar[str] = FullFinetune.paper
    bibtex: ClassVar[str] = FullFinetune.bibtex

    of: Nested = Field(default=FullFinetune(), description="the fine-tuner that gives theta_1")
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["id-val"] = Field(
        default=0.5,
        description=(
            "weight of the fine-tuned classifier; `id-val`: the best of 0, 0.1, ..., 1 on id-val"
        ),
    )

    @field_validator("of")
    @classmethod
    def _has_a_start(cls, of: Method) -> Method:
        if not isinstance(of, FineTuner):
            raise ValueError(
                f"`{of.name}` has no starting classifier to interpolate with, since it is not a"
                " fine-tuner"
            )
        return of

    @property
    def _of(self) -> FineTuner:
        assert isinstance(self.of, FineTuner)
        return self.of

    def bind(self, traits: Traits) -> Self:
        """Bind `of`, which starts from a probe instead of a random head.

        Raises:
            UsageError: `of` trains batch statistics, or cannot run on this backbone.
        """
        of = self._of.bind(traits)
        # Statistics belong to the weights that they were measured with. Interpolated ones are those
        # of no network.
        if of.norm == "train":
            raise UsageError(
                "trained batch statistics cannot be interpolated",
                where=f"method {self.name}",
                fix="use --set of.norm=frozen",
            )
        # theta_0 has to be a classifier in its own right, which a random head is not.
        if self._of.head_init is None and of.head_init == "random":
            of = of.model_copy(update={"head_init": "probe"})
        return self.model_copy(update={"of": of})

    def fit(self, task: Task) -> Classifier:
        """Fine-tune, or load the fine-tuned classifier, and interpolate."""
        assert self._of.head_init is not None, "call bind() before fit()"
        theta_0, theta_1 = task.start(self._of.head_init), task.fit(self._of)
        alpha = self.alpha
        if alpha == "id-val":
            alpha = task.choose(
                "alpha", [(a, *task.score(interpolate(theta_0, theta_1, a))) for a in ALPHAS]
            )
        return interpolate(theta_0, theta_1, float(alpha))
