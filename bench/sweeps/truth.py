"""What is done of a sweep, which the store alone tells."""

from __future__ import annotations

from typing import Any

from ..errors import BenchError
from ..results.record import RunRecord
from ..results.store import Store
from ..runs.standing import done_before
from ..storage.lease import is_live
from .plan import Planned


class Truth:
    """What a store has of the jobs of a plan.

    Args:
        keep_logits: whether a final run is done only with the logits of its predictions.

    Attributes:
        fits: the finished fits that were seen there; what was there once counts as there.
        forgotten: fits, and runs by their jobs, that count as not there, since they will be
            forgotten first.
    """

    def __init__(self, store: Store, *, keep_logits: bool = False) -> None:
        self.fits: set[str] = set()
        self.forgotten: set[str] = set()
        self._store, self._keep_logits = store, keep_logits
        self._epochs: dict[str, list[dict[str, Any]]] = {}

    def has(self, fit_id: str) -> bool:
        """Whether the store has a finished fit."""
        if fit_id not in self.fits | self.forgotten and self._store.fit(fit_id) is not None:
            self.fits.add(fit_id)
        return fit_id in self.fits

    def forget(self, planned: Planned, *, fit: bool) -> None:
        """Count a run as not there, or, without its fit, one that came in a pack."""
        record = self.record(planned)
        if fit:
            self.fits.discard(planned.job.fit_id)
            self.forgotten |= {planned.job.fit_id, planned.job.id}
        elif record is not None and record.origin:
            self.forgotten.add(planned.job.id)

    def done(self, planned: Planned) -> bool:
        """Whether a job needs not be done (again)."""
        job = planned.job
        if job.id in self.forgotten:
            return False
        if job.phase == "stage":
            return self.has(job.fit_id)
        if job.epoch is not None:
            return self.score(job.fit_id, job.epoch) is not None
        if self.record(planned) is None:
            return False
        assert planned.path is not None, "a stage has no record"
        keep_logits = self._keep_logits and job.phase == "final"
        found = done_before(
            planned.experiment,
            planned.method,
            planned.path.parent,
            curve=job.curve,
            keep_logits=keep_logits,
        )
        return (
            found is not None
            and not found.wanted
            and found.record.search_trials >= job.chosen.get("search_trials", 0)
        )

    def failure(self, planned: Planned) -> str:
        """Why a run failed, unless some process is at it again; empty if it did not, and for
        stages, which leave no record.
        """
        record = self.record(planned) if planned.path is not None else None
        if (
            planned.path is None
            or record is None
            or record.status != "failed"
            or is_live(planned.path.parent)
        ):
            return ""
        return record.error

    def record(self, planned: Planned) -> RunRecord | None:
        """The record of a run, whatever its status; see `Store.run_at`."""
        assert planned.path is not None, "a stage has no record"
        try:
            return self._store.run_at(planned.path.parent)
        except BenchError:
            return None  # damaged: made again, or told by the trial that finds it in its way

    def score(self, fit_id: str, epoch: int) -> tuple[float, float] | None:
        """Score and NLL on id-val of a fit after an epoch, be it finished or not; None if it has
        not come there.
        """
        if fit_id not in self._epochs:
            self._epochs[fit_id] = self._store.epochs(fit_id)
        return next(
            (
                (one["id_val"], one["id_val_nll"])
                for one in self._epochs[fit_id]
                if one["epoch"] == epoch
            ),
            None,
        )

    def spent(self, fit_id: str) -> float:
        """Seconds of training that a fit has taken so far, without those of the fits that it is
        built on.
        """
        record = self._store.fit(fit_id)
        if record is not None:
            return record.seconds
        return max((one.get("seconds", 0.0) for one in self._store.epochs(fit_id)), default=0.0)

    def look_again(self, fit_id: str) -> None:
        """Something has been done to a fit: its epochs are read anew when a rung asks for them."""
        self._epochs.pop(fit_id, None)
