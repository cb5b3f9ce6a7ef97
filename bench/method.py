"""What a method is: typed fields that are its hyper-parameters, and `fit`, which turns a task into
a classifier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PlainSerializer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .classifier import Classifier
    from .task import Task

HeadInit = Literal["zero-shot", "native", "probe", "random"]


@dataclass(frozen=True)
class Traits:
    """What of a backbone decides which methods can run on it, and from which head they start."""

    text: bool
    native: bool
    layout: Literal["vit", "conv"]

    def first_head(self, *preferred: HeadInit) -> HeadInit:
        """The first of `preferred` that this backbone offers (`probe` and `random` always are)."""
        offered = {"zero-shot": self.text, "native": self.native, "probe": True, "random": True}
        return next(init for init in preferred if offered[init])


@dataclass(frozen=True)
class Space:
    """The values that a search draws a hyper-parameter from: a list of choices, or an interval
    (log-uniform if `log`).

    With `relative`, the drawn number multiplies the value that the suite's recipe gives. `together`
    names a field without which this one means nothing: if the user sets either, neither is drawn.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    relative: bool = False
    together: str = ""

    def draw(self, uniform: float) -> Any:
        """The value at quantile `uniform` in [0, 1)."""
        if self.choices:
            return self.choices[int(uniform * len(self.choices))]
        if self.log:
            return float(self.low * (self.high / self.low) ** uniform)
        return self.low + (self.high - self.low) * uniform


def searched(default: Any, space: Space, **field: Any) -> Any:
    """A pydantic field with a default and the space that a search draws it from."""
    return Field(default, json_schema_extra={"search": space.__dict__}, **field)


class Method(BaseModel, ABC):
    """A fine-tuning algorithm. Subclass it, name it, give it typed fields, and implement `fit`.

    Class attributes:
        name: as on the command line.
        version: raised whenever the algorithm changes, so that old fits are not reused.
        paper: address of the source.
        bibtex: how to cite it.
    """

    # Defaults are validated like given values, so that 500 and 500.0 are the same parameter and the
    # same fit.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    #: False if `fit` looks at no image: then neither the training images nor id-val are part of a
    #: fit, and both may be missing.
    trains: ClassVar[bool] = True
    #: SHA-256 of the file that a plug-in was loaded from; empty for installed plug-ins, whose
    #: `version` speaks for them.
    source_sha256: ClassVar[str] = ""

    @property
    def batch_coupled(self) -> bool:
        """Whether the loss of an image depends on the other images of its batch (fills, contrastive
        pairs).
        """
        return False

    @abstractmethod
    def fit(self, task: Task) -> Classifier:
        """Train on `task` and return the classifier to evaluate."""

    def resolved(self, traits: Traits) -> Self:
        """A copy with every choice that was left open (None) made for this backbone; raises
        UsageError if it cannot run.
        """
        return self

    def stages(self) -> list[Method]:
        """What `fit` asks `task.fit` for, so that a sweep trains each of these once and first: the
        nested methods.
        """
        values = [getattr(self, key) for key in type(self).model_fields]
        several = [value if isinstance(value, (list, tuple)) else [value] for value in values]
        return [value for group in several for value in group if isinstance(value, Method)]

    def identity(self) -> dict[str, Any]:
        """Name, version, source and every parameter, nested methods included: what the fit's hash
        covers.
        """
        parameters = {key: _plain(getattr(self, key)) for key in sorted(type(self).model_fields)}
        return {
            "name": self.name,
            "version": self.version,
            "source": self.source_sha256,
            "parameters": parameters,
        }

    @classmethod
    def search_space(cls) -> dict[str, Space]:
        """The fields that a search draws, by name."""
        extras = {key: field.json_schema_extra for key, field in cls.model_fields.items()}
        return {
            key: Space(**extra["search"])  # type: ignore[arg-type]
            for key, extra in extras.items()
            if isinstance(extra, dict) and "search" in extra
        }


def _plain(value: Any) -> Any:
    """A parameter as JSON knows it."""
    if isinstance(value, Method):
        return value.identity()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, dict, type(None))) else str(value)


#: A field that holds another method; `configure` makes one of a name, or of a table with `name` and
#: parameters.
Nested = Annotated[InstanceOf[Method], PlainSerializer(lambda method: method.identity())]


@dataclass(frozen=True)
class Batch:
    """What a loss sees of one optimiser step: a micro-batch, and the global batch that it is a part
    of.

    Attributes:
        images: (n, 3, S, S) float in [0, 1].
        labels: (n,) int64.
        rows: (n,) int64, positions of these images in the global batch.
        pool: (N, 3, S, S) uint8, every image of the global batch (fills come from here, whatever
            the micro-batch is).
        draws: what `FineTuner.draw` drew for the global batch, cut to `rows`.
        step: optimiser step, from 0.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    pool: Tensor
    draws: Mapping[str, Tensor]
    step: int


class FineTuner(Method):
    """A method that trains all weights by gradient descent; a subclass usually overrides `loss` and
    nothing else.

    The defaults are WiSE-FT's end-to-end recipe (Wortsman et al., 2022); a suite's card may set
    others.
    """

    lr: float = searched(
        3e-5,
        Space(low=0.2, high=5, log=True, relative=True),
        gt=0,
        description="peak learning rate of AdamW",
    )
    weight_decay: float = Field(default=0.1, ge=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(
        default=512, ge=2, description="images per optimiser step, over all micro-batches"
    )
    schedule: Literal["warmup-cosine", "one-cycle"] = "warmup-cosine"
    warmup: float = Field(default=500, ge=0, description="steps; a share of all steps if below 1")
    clip: float = Field(
        default=1.0, ge=0, description="maximum global L2 norm of the gradient; 0 does not clip"
    )
    augment: Literal["none", "flip", "shift-flip", "resized-crop"] = "resized-crop"
    select: Literal["best", "last"] = Field(
        default="last", description="which epoch is kept: best on id-val, or the last"
    )
    norm: Literal["frozen", "train"] = Field(
        default="frozen", description="batch normalisation: statistics and mode while training"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    head_init: HeadInit | None = Field(
        default=None,
        description="where the head starts; default: zero-shot, else native, else random",
    )

    _heads: ClassVar[tuple[HeadInit, ...]] = ("zero-shot", "native", "random")

    def resolved(self, traits: Traits) -> Self:
        """Choose the head that the backbone offers where none was named."""
        if self.head_init is not None:
            return self
        return self.model_copy(update={"head_init": traits.first_head(*self._heads)})

    def fit(self, task: Task) -> Classifier:
        """Start from the head init and train with `loss`."""
        assert self.head_init is not None, "a method is resolved before it is fitted"
        return task.train(task.start(self.head_init), self)

    def prepare(self, task: Task, start: Classifier) -> Mapping[str, float]:
        """Constants measured once before training (such as the teacher's mean-square feature);
        recorded with the fit.
        """
        return {}

    def draw(
        self, size: int, grid: tuple[int, int], generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Random numbers for one global batch of `size` images, first dimension `size`; drawn on
        the CPU.
        """
        return {}

    def illustrate(self, batch: Batch, student: Classifier) -> Mapping[str, Tensor]:
        """Pictures of what the method does to a batch, each (n, 3, H, W) in [0, 1], for `bench show
        --masks`; none by default.
        """
        return {}

    @abstractmethod
    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Mean loss over the micro-batch. `teacher` is the frozen starting classifier; `constants`
        come from `prepare`.
        """
