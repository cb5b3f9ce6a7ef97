"""The base classes of methods: typed hyper-parameters, and `fit` from a task to a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PlainSerializer

# A method is loaded to list it, to show its fields and to plan a sweep. None of these needs torch,
# whose import takes seconds.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .classifier import Classifier
    from .task import Task

HeadInit = Literal["zero-shot", "native", "probe", "random"]


@dataclass(frozen=True)
class Traits:
    """The properties of a backbone that decide which methods and which first heads it supports.

    Attributes:
        text: whether it has a text tower, from which a zero-shot head can be built.
        native: whether it comes with a head for exactly the suite's classes.
        layout: vision transformer or convolutional network.
    """

    text: bool
    native: bool
    layout: Literal["vit", "conv"]

    def first_head(self, *preferred: HeadInit) -> HeadInit:
        """Return the first of `preferred` that this backbone offers."""
        # A probe can be fitted, and a head initialised at random, on the features of any backbone.
        offered = {"zero-shot": self.text, "native": self.native, "probe": True, "random": True}
        return next(init for init in preferred if offered[init])


@dataclass(frozen=True)
class Space:
    """The search space of one hyper-parameter: a list of choices, or an interval.

    Attributes:
        choices: the values to choose from; if empty, the interval from `low` to `high` is used.
        low: lower end of the interval.
        high: upper end of the interval.
        log: sample log-uniformly.
        relative: the sampled number multiplies the value that the suite's recipe gives.
        together: a field without which this one is meaningless (a weight and its unit). If the user
            sets either, neither is sampled.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    relative: bool = False
    together: str = ""

    def sample(self, uniform: float) -> Any:
        """Return the value at quantile `uniform` in [0, 1)."""
        # The caller supplies the quantile and derives it from method, field and trial. Two methods
        # that share a nested one then get the same values for it, and it is trained once.
        if self.choices:
            return self.choices[int(uniform * len(self.choices))]
        if self.log:
            return float(self.low * (self.high / self.low) ** uniform)
        return self.low + (self.high - self.low) * uniform


def searched(default: Any, space: Space, **field: Any) -> Any:
    """Return a pydantic field with a default and a search space."""
    # In the schema and not in a table of its own: a subclass that redeclares the field replaces
    # its space with it.
    return Field(default, json_schema_extra={"search": space.__dict__}, **field)


class Method(BaseModel, ABC):
    """A fine-tuning algorithm. Subclass it, name it, give it typed fields, and implement `fit`.

    Class attributes:
        name: name on the command line.
        version: increase it whenever the algorithm changes, so that old fits are not reused.
        paper: URL of the paper.
        bibtex: how to cite it.
    """

    # Frozen: a method is part of a fit's identity, so it must not change after it was hashed.
    # Defaults are validated like given values, so that 500 and 500.0 are the same parameter and
    # the same fit. NaN and infinity have no canonical JSON, hence no hash.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    #: False if `fit` uses no image. Then neither the training images nor id-val are part of a fit's
    #: identity, and both may be missing.
    trains: ClassVar[bool] = True
    #: SHA-256 of the file that a plug-in was loaded from. Empty for installed plug-ins: those state
    #: a change by their `version`, while a file is edited between two runs without a new version.
    source_sha256: ClassVar[str] = ""

    @property
    def batch_coupled(self) -> bool:
        """Whether the loss of an image depends on the other images of its batch."""
        return False

    @abstractmethod
    def fit(self, task: Task) -> Classifier:
        """Train on `task` and return the classifier to evaluate."""

    def bind(self, traits: Traits) -> Self:
        """Return a copy in which every field left open (None) is decided for this backbone.

        Raises:
            UsageError: the method cannot run on this backbone.
        """
        # Bound before the identity is computed: leaving a field open and writing out what it
        # becomes have to be the same fit.
        return self

    def dependencies(self) -> list[Method]:
        """Return the methods that `fit` passes to `task.fit`: by default all nested ones.

        A sweep trains each of them once, before the methods that need it.
        """
        values = [getattr(self, key) for key in type(self).model_fields]
        several = [value if isinstance(value, (list, tuple)) else [value] for value in values]
        return [value for group in several for value in group if isinstance(value, Method)]

    def identity(self) -> dict[str, Any]:
        """Return name, version, source and all parameters: the method's part of a fit's hash."""
        parameters = {key: _plain(getattr(self, key)) for key in sorted(type(self).model_fields)}
        return {
            "name": self.name,
            "version": self.version,
            "source": self.source_sha256,
            "parameters": parameters,
        }

    @classmethod
    def search_space(cls) -> dict[str, Space]:
        """Return the search space of every field that has one, by name."""
        extras = {key: field.json_schema_extra for key, field in cls.model_fields.items()}
        return {
            key: Space(**extra["search"])  # type: ignore[arg-type]
            for key, extra in extras.items()
            if isinstance(extra, dict) and "search" in extra
        }


def _plain(value: Any) -> Any:
    """Convert a parameter to what JSON can hold."""
    if isinstance(value, Method):
        return value.identity()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, dict, type(None))) else str(value)


#: A field that holds another method. `configure` builds it from a name, or from a table with `name`
#: and parameters. It is dumped as its identity, since the name alone would lose the parameters.
Nested = Annotated[InstanceOf[Method], PlainSerializer(lambda method: method.identity())]


@dataclass(frozen=True)
class Batch:
    """The input of a loss: one micro-batch, and the global batch that it is a part of.

    Attributes:
        images: (n, 3, S, S) float in [0, 1].
        labels: (n,) int64.
        rows: (n,) int64, positions of these images in the global batch.
        pool: (N, 3, S, S) uint8, every image of the global batch. A method that mixes images takes
            them from here, so that the size of the micro-batch does not change its result.
        random: the random numbers of `FineTuner.random`, restricted to `rows`.
        step: optimiser step, from 0.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    pool: Tensor
    random: Mapping[str, Tensor]
    step: int


class FineTuner(Method):
    """A method that trains all weights by gradient descent.

    A subclass usually overrides `loss` and nothing else. The defaults are WiSE-FT's end-to-end
    recipe (Wortsman et al., 2022); a suite's card may set others.
    """

    # A search samples a factor of the suite's learning rate: the usual one is 3e-5 on photos and
    # 1e-3 on `mini-shifts`, so that no interval of absolute values serves both.
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
    warmup: float = Field(default=500, ge=0, description="steps; below 1, a fraction of all steps")
    clip: float = Field(
        default=1.0, ge=0, description="maximum global L2 norm of the gradient; 0 disables clipping"
    )
    augment: Literal["none", "flip", "shift-flip", "resized-crop"] = "resized-crop"
    select: Literal["best", "last"] = Field(
        default="last", description="epoch to return: the best on id-val, or the last"
    )
    # Frozen by default: the student on a clean and on a masked batch, and a batch computed in
    # parts, would otherwise each see other statistics.
    norm: Literal["frozen", "train"] = Field(
        default="frozen", description="batch normalisation: statistics and mode during training"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    head_init: HeadInit | None = Field(
        default=None,
        description="initial head; default: zero-shot, else native, else random",
    )

    #: Initial heads by preference, where `head_init` names none.
    _heads: ClassVar[tuple[HeadInit, ...]] = ("zero-shot", "native", "random")

    def bind(self, traits: Traits) -> Self:
        """Choose the initial head, unless `head_init` names one."""
        if self.head_init is not None:
            return self
        return self.model_copy(update={"head_init": traits.first_head(*self._heads)})

    def fit(self, task: Task) -> Classifier:
        """Train with `loss`, from the pre-trained tower with the initial head."""
        assert self.head_init is not None, "call bind() before fit()"
        return task.train(task.start(self.head_init), self)

    def prepare(self, task: Task, start: Classifier) -> Mapping[str, float]:
        """Return constants to measure once before training; they are recorded with the fit."""
        return {}

    def random(
        self, size: int, grid: tuple[int, int], generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Sample the random numbers of one global batch, on the CPU.

        Args:
            size: images of the global batch; the first dimension of every returned tensor.
            grid: rows and columns of the tower's patches.
            generator: seeded by the run's seed and the step.
        """
        # For the global batch, since random numbers sampled inside of `loss` would depend on how
        # many micro-batches there are.
        return {}

    def illustrate(self, batch: Batch, student: Classifier) -> Mapping[str, Tensor]:
        """Return what the method does to a batch as images, for `bench show --masks`.

        Returns:
            By title, (n, 3, H, W) float in [0, 1]; none by default.
        """
        return {}

    @abstractmethod
    def loss(
        self, batch: Batch, student: Classifier, teacher: Classifier, constants: Mapping[str, float]
    ) -> Tensor:
        """Return the mean loss over the micro-batch.

        Args:
            batch: the micro-batch.
            student: the classifier in training.
            teacher: a frozen copy of the classifier that training started from.
            constants: the result of `prepare`.
        """
