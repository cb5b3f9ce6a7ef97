"""Linear probing: logistic regression on the features of the frozen backbone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from bench.backbones.backbone import Head
from bench.classifier import Classifier
from bench.errors import UsageError
from bench.method import HeadInit, Method, Traits
from bench.training.schedules import set_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.task import Task

#: Bias of a class without training images: low enough that it is never predicted, and finite, so
#: that weights can still be interpolated.
ABSENT = -1e3
#: Problems above this size (images x features x classes) are solved on a GPU if there is one:
#: ImageNet's 6.5e11 would take a CPU core more than a week.
LARGE = 1e9

#: A solver stops when no entry of the mean loss's gradient exceeds this. At scikit-learn's default
#: of 1e-4, the heads of two processors differ in several images of a thousand; at this one, in at
#: most one at the chosen C.
TOLERANCE = 1e-5

#: C -> weight (classes, D) and bias (classes,). Each call starts from the solution of the last one.
Solver = Callable[[float], tuple["NDArray[np.float64]", "NDArray[np.float64]"]]


class LinearProbe(Method):
    """Fit logistic regression on the features of the frozen backbone.

    `lbfgs` (default) is the probe of Kumar et al. (2022): L-BFGS, warm-started along 50 values of C
    from 1e-7 to 100. Of these, the smallest within one standard error of the best on id-val is
    chosen. `adamw` is the gradient recipe of Xiao et al. (2023), from the zero-shot head.
    """

    # The paper takes the best C itself. That one differs by a factor of five between two kinds of
    # processors, so it would not be reproducible.

    name: ClassVar[str] = "linear-probe"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2202.10054"
    bibtex: ClassVar[str] = """@inproceedings{kumar2022finetuning,
  title = {Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution},
  author = {Kumar, Ananya and Raghunathan, Aditi and Jones, Robbie and Ma, Tengyu and Liang, Percy},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""

    solver: Literal["lbfgs", "adamw"] = "lbfgs"
    normalize: bool | None = Field(
        default=None,
        description=(
            "L2-normalise features; default: lbfgs, if the backbone has a text tower; adamw, as the"
            " initial head does"
        ),
    )
    grid: int = Field(default=50, ge=1, description="lbfgs: values of C, from 1e-7 to 100")
    max_iter: int = Field(
        default=1000, ge=1, description="lbfgs: maximum number of iterations for each C"
    )
    head_init: HeadInit | None = Field(
        default=None,
        description="adamw: initial head; default: zero-shot, else native, else random",
    )
    lr: float = Field(default=3e-5, gt=0, description="adamw: peak learning rate")
    epochs: int = Field(
        default=10, ge=1, description="adamw: epochs, of which the best on id-val is returned"
    )
    batch_size: int = Field(default=512, ge=1, description="adamw: images per step")
    schedule: Literal["warmup-cosine", "one-cycle"] = Field(
        default="one-cycle", description="adamw: as in full fine-tuning"
    )
    warmup: float = Field(
        default=0.02, ge=0, description="adamw: steps; below 1, a fraction of all steps"
    )
    clip: float = Field(
        default=1.0,
        ge=0,
        description="adamw: maximum global L2 norm of the gradient; 0 disables clipping",
    )

    def bind(self, traits: Traits) -> Self:
        """Decide on normalisation (`lbfgs`) or on the initial head (`adamw`)."""
        if self.solver == "lbfgs":
            return self.model_copy(
                update={"normalize": traits.text if self.normalize is None else self.normalize}
            )
        return self.model_copy(
            update={
                "head_init": self.head_init or traits.first_head("zero-shot", "native", "random")
            }
        )

    def fit(self, task: Task) -> Classifier:
        """Train the head; the tower is not changed."""
        head = self._by_lbfgs(task) if self.solver == "lbfgs" else self._by_adamw(task)
        return Classifier(task.tower(), head)

    def _by_lbfgs(self, task: Task) -> Head:
        assert self.normalize is not None, "call bind() before fit()"
        x, y = task.features("train")
        x_val = torch.from_numpy(task.features("id-val")[0])
        if self.normalize:
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        heads: dict[float, Head] = {}
        grid = np.logspace(-7, 2, self.grid)
        for c, weight, bias in regularization_path(
            x, y, len(task.classes), grid, self.max_iter, task.device
        ):
            heads[c] = Head(
                torch.from_numpy(weight), torch.from_numpy(bias), normalize=self.normalize
            )
            task.stop_if_requested()
        scores = [(c, *_score(task, head, x_val)) for c, head in heads.items()]
        # The grid ascends, so that the first within one standard error is the smallest C.
        chosen: float = task.choose("C", scores, one_se=True)
        return heads[chosen]

    def _by_adamw(self, task: Task) -> Head:
        assert self.head_init is not None, "call bind() before fit()"
        x, y = (torch.from_numpy(part).to(task.device) for part in task.features("train"))
        x_val = torch.from_numpy(task.features("id-val")[0]).to(task.device)
        start = task.start(self.head_init).head
        normalize = start.normalize if self.normalize is None else self.normalize
        head = Head(start.weight, start.bias, normalize=normalize).to(task.device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr, weight_decay=0)
        size = min(self.batch_size, len(y))
        per_epoch = len(y) // size
        total, heads = per_epoch * self.epochs, {}
        for epoch in range(self.epochs):
            order = torch.randperm(len(y), generator=task.generator("linear-probe", epoch)).to(
                task.device
            )
            for step in range(per_epoch):
                set_rate(
                    optimizer, self.schedule, self.lr, self.warmup, epoch * per_epoch + step, total
                )
                rows = order[step * size : (step + 1) * size]
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(head(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                if self.clip:
                    torch.nn.utils.clip_grad_norm_(head.parameters(), self.clip)
                optimizer.step()
            # A `Head` copies its weights.
            heads[epoch + 1] = Head(head.weight, head.bias, normalize=normalize)
        chosen: int = task.choose(
            "epoch", [(epoch, *_score(task, one, x_val)) for epoch, one in heads.items()]
        )
        return heads[chosen].cpu()


def regularization_path(
    x: NDArray[Any],
    y: NDArray[Any],
    classes: int,
    grid: NDArray[np.float64],
    max_iter: int,
    device: str = "cpu",
) -> Iterator[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """Fit multinomial logistic regression for each C of `grid`, warm-started along the grid.

    Args:
        x: (N, D) features.
        y: (N,) labels below `classes`.
        classes: number of classes, with or without training images.
        grid: values of C as in scikit-learn, where C multiplies the sum of the losses.
        max_iter: maximum number of iterations for each C.
        device: a GPU solves large problems.

    Yields:
        C, weight (classes, D) and bias (classes,).

    Raises:
        UsageError: fewer than two classes have images.
    """
    # Features are standardised by one scalar mean m and one scalar standard deviation s over all
    # dimensions. The weights are mapped back to the features as given: W / s, and
    # b - (m / s) * (sum of W over dimensions).
    present, ranks = np.unique(y, return_inverse=True)
    if len(present) < 2:
        raise UsageError(
            "a linear probe needs training images of at least two classes",
            where="linear-probe",
            fix="increase --limit",
        )
    mean, deviation = float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))
    large = device.startswith("cuda") and len(present) > 2 and x.size * len(present) >= LARGE
    solve = (
        _on_device(x, mean, deviation, ranks, max_iter, device)
        if large
        else _on_one_core(x, mean, deviation, y, max_iter)
    )
    for c in grid:
        w, b = solve(float(c))
        # For two classes scikit-learn has a single row: the difference of the logits.
        if len(present) == 2:
            w, b = np.concatenate([-w / 2, w / 2]), np.concatenate([-b / 2, b / 2])
        weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, ABSENT)
        weight[present] = w / deviation
        bias[present] = b - mean / deviation * w.sum(axis=1)
        yield float(c), weight, bias


def _on_one_core(
    x: NDArray[Any], mean: float, deviation: float, y: NDArray[Any], max_iter: int
) -> Solver:
    """Return the solver of scikit-learn, on one core."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    standardized = (x.astype(np.float64) - mean) / deviation
    model = LogisticRegression(solver="lbfgs", tol=TOLERANCE, max_iter=max_iter, warm_start=True)

    def solve(c: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # On matrices this small, BLAS threads mostly wait for each other (two are four times slower
        # than one), and their number changes the last bits.
        with threadpool_limits(1), warnings.catch_warnings():
            # Reaching `max_iter` is part of the recipe.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=c).fit(standardized, y)
        return model.coef_, model.intercept_

    return solve


def _on_device(
    x: NDArray[Any],
    mean: float,
    deviation: float,
    y: NDArray[Any],
    max_iter: int,
    device: str,
    chunk: int = 1 << 16,
) -> Solver:
    """Return a solver of the same problem, with the loss computed in float64 on a device.

    Args:
        x: (N, D) features.
        mean: of all features.
        deviation: standard deviation of all features.
        y: (N,) labels; every number up to the largest one occurs.
        max_iter: maximum number of iterations for each C.
        device: where the loss is computed.
        chunk: images at a time; 500 MB per array at 1000 classes.
    """
    # The same optimiser with the same options as in scikit-learn, so that both solvers take the
    # same path to the same minimum. scikit-learn itself cannot compute on a GPU.
    from scipy.optimize import minimize

    features, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    count, dim = x.shape
    at = np.zeros((dim + 1) * (int(y.max()) + 1))

    def loss(flat: NDArray[np.float64], strength: float) -> tuple[float, NDArray[np.float64]]:
        """Return (1/N) (sum of cross-entropies) + strength/2 |W|^2 and its gradient."""
        # One matrix (D + 1, classes), whose last row is the bias; it is not regularised.
        both = torch.from_numpy(flat).to(device).view(dim + 1, -1)
        weight, total, gradient = both[:-1], both.new_zeros(()), torch.zeros_like(both)
        for first in range(0, count, chunk):
            part = (features[first : first + chunk].double() - mean) / deviation
            truth = (torch.arange(len(part), device=device), labels[first : first + chunk])
            log_p = torch.log_softmax(part @ weight + both[-1], dim=1)
            total -= log_p[truth].sum()
            # Softmax minus one-hot, in the memory of the log-probabilities.
            error = log_p.exp_()
            error[truth] -= 1
            gradient[:-1] += part.T @ error
            gradient[-1] += error.sum(dim=0)
        gradient /= count
        gradient[:-1] += strength * weight
        return (
            float(total / count + strength / 2 * weight.square().sum()),
            gradient.view(-1).cpu().numpy(),
        )

    def solve(c: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        nonlocal at
        at = minimize(
            loss,
            at,
            # scikit-learn minimises C * (sum of losses) + |W|^2/2; this is that over C * N.
            (1 / (c * count),),
            "L-BFGS-B",
            jac=True,
            options={
                "maxiter": max_iter,
                "maxls": 50,
                "gtol": TOLERANCE,
                "ftol": 64 * float(np.finfo(float).eps),
            },
        ).x
        both = at.reshape(dim + 1, -1)
        return both[:-1].T, both[-1]

    return solve


@torch.no_grad()
def _score(task: Task, head: Head, x: torch.Tensor) -> tuple[float, float]:
    """Return (score, NLL) of a head on features (N, D) of id-val."""
    return task.score_logits(head(x).cpu().numpy())
