"""One piece of work of a sweep, as plain data that any process on any machine can be given, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from ..spec import SEARCH_SEED

Phase = Literal["stage", "rung", "search", "final"]
Status = Literal["done", "failed", "cancelled", "lost"]


@dataclass(frozen=True)
class Job:
    """A fit to make (`stage`) or to make as far as an epoch (`rung`), or a run: a fit and its evaluation on id-val alone
    (`search`) or on everything (`final`).

    Attributes:
        id: names the job in every process and in every start of the same sweep; made of what it leaves in the store: `fit-` and
            the fit_id of a stage, `rung-`, the fit_id and the epoch of a rung, `run-` and the eval_id of a run.
        method: `{"name": ..., "parameters": {...}}`, complete; the name of an installed method, or the absolute path of a file.
        suite: name, or absolute path of a card. backbone: name. label: of the row, for people.
        fit_id: what the fit must turn out to be; a process that arrives at another one has other data, weights or sources.
        needs: fit_ids that have to be in the store before it starts.
        trial: number of the search trial. epoch: as far as which a rung trains. curve: also the interpolation curve.
        search_trials, search_seconds, search_rule: how the parameters of a final run were chosen, for its record.
    """

    id: str
    phase: Phase
    method: dict[str, Any]
    label: str
    suite: str
    backbone: str
    seed: int
    fit_id: str
    needs: tuple[str, ...] = ()
    trial: int | None = None
    epoch: int | None = None
    curve: bool = False
    search_trials: int = 0
    search_seconds: float | None = None
    search_rule: str = ""

    @property
    def is_run(self) -> bool:
        """Whether it is evaluated and leaves a record."""
        return self.phase in ("search", "final")

    @property
    def name(self) -> str:
        """The job in words, without its seed."""
        kind = "stage" if self.phase == "stage" else "run" if self.trial is None else f"trial {self.trial}"
        return f"{kind} {self.label}" + (f" to epoch {self.epoch}" if self.epoch is not None else "")

    @property
    def title(self) -> str:
        """The job in words."""
        if self.seed != SEARCH_SEED:
            return f"{self.name}, seed {self.seed}"
        return f"{self.name} of the search" if self.phase == "stage" else self.name

    def as_json(self) -> dict[str, Any]:
        """The job as JSON values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The job that `as_json` wrote."""
        return cls(**{**values, "needs": tuple(values["needs"])})


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a job ended.

    Attributes:
        status: `cancelled`: a stop was asked for, and the state is saved. `lost`: its process died without a word (killed, out of
            memory, its machine gone); the queue offers the job again, as often as its limit allows.
        error: one sentence, for `failed` and `lost`. seconds: wall time of the attempt, waiting excluded.
    """

    status: Status
    error: str = ""
    seconds: float = 0.0
