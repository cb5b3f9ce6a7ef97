"""Read from the store which jobs of a sweep are done, and which have failed."""

from __future__ import annotations

from typing import Any

from ..errors import BenchError
from ..results.record import RunRecord
from ..results.store import Store
from ..runs.status import done_before
from ..storage.lease import is_live
from .plan import Planned


class SweepStatus:
    """A view of a store that answers which jobs of a plan are done.

    Args:
        store: the store.
        keep_logits: whether a final run counts as done only with the logits of its predictions.

    Attributes:
        fits: ids of the finished fits that were found.
        forgotten: ids of fits and of the jobs of runs that count as missing, since they will be
            removed before the sweep begins.
    """

    # Finished fits are cached and not checked again, since on a file server every look takes
    # milliseconds. A missing fit is looked up each time: another process may have finished it.

    def __init__(self, store: Store, *, keep_logits: bool = False) -> None:
        self.fits: set[str] = set()
        self.forgotten: set[str] = set()
        self._store, self._keep_logits = store, keep_logits
        self._epochs: dict[str, list[dict[str, Any]]] = {}

    def has(self, fit_id: str) -> bool:
        """Return whether the store has a finished fit."""
        if fit_id not in self.fits | self.forgotten and self._store.fit(fit_id) is not None:
            self.fits.add(fit_id)
        return fit_id in self.fits

    def forget(self, planned: Planned, *, fit: bool) -> None:
        """Let a run count as missing.

        Args:
            planned: the run.
            fit: its fit counts as missing too; otherwise only a run from a pack does.
        """
        record = self.record(planned)
        if fit:
            self.fits.discard(planned.job.fit_id)
            self.forgotten |= {planned.job.fit_id, planned.job.id}
        # `own` repeats only runs that came in a pack.
        elif record is not None and record.origin:
            self.forgotten.add(planned.job.id)

    def done(self, planned: Planned) -> bool:
        """Return whether a job has nothing left to do."""
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
        # A record states how many trials chose its parameters. After a longer search with the same
        # winner the run is the same, but its record has to be updated.
        return (
            found is not None
            and not found.wanted
            and found.record.search_trials >= job.chosen.get("search_trials", 0)
        )

    def failure(self, planned: Planned) -> str:
        """Return why a run failed; "" if it did not, and for stages, which have no record.

        A failed run that another process is trying again has not failed.
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
        """Return the record of a run, whatever its status; see `Store.run_at`."""
        assert planned.path is not None, "a stage has no record"
        try:
            return self._store.run_at(planned.path.parent)
        except BenchError:
            # A damaged record counts as missing. The trial writes it again, or reports why not.
            return None

    def score(self, fit_id: str, epoch: int) -> tuple[float, float] | None:
        """Return score and NLL on id-val of a fit after an epoch; None before that epoch.

        Args:
            fit_id: id of a fit, finished or not.
            epoch: the epoch, from 1.
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
        """Return the seconds of training of a fit so far, without the fits that it depends on."""
        record = self._store.fit(fit_id)
        if record is not None:
            return record.seconds
        # The log of epochs survives an interruption, and each line has the seconds up to it.
        return max((one.get("seconds", 0.0) for one in self._store.epochs(fit_id)), default=0.0)

    def refresh(self, fit_id: str) -> None:
        """Forget the cached epochs of a fit, so that they are read from the store again."""
        self._epochs.pop(fit_id, None)
