"""Manage the search of one method: create its trials, promote them at rungs, and find the best."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from ...method import Method
from ...results.record import RunRecord
from ...runs.execute import planned_record
from ...runs.measure import fine_tuned
from ..plan import Entrant, Plan, Planned
from ..status import SweepStatus
from .asha import epochs_expected, promoted, rungs
from .samplers import Winner, all_sampled, best_of, sampler, training_seconds

TrialState = Literal["done", "to do", "running", "failed", "stopped"]
#: A search by hours ends after this many equal trials: its space is so small that further trials
#: would cost no time, and the budget would never be spent.
REPEATS = 10


class Search:
    """The search of one entrant: its trials, and the jobs that they consist of.

    Args:
        plan: the plan of the sweep.
        entrant: the method on its backbone and suite.
        status: what the store has of the jobs.
        state: returns the state of a job by its id, and why it failed.
        shared: whether other processes do a part of the trials.
    """

    # Under ASHA a trial is trained to the first rung; if it is among the best there, to the next
    # one, and so on to its end. A method that wraps one fine-tuner is judged at the rungs by what
    # it wraps, so that all methods that wrap the same fit share its rungs. A method that is not
    # trained in epochs has no rungs. With several processes a rung promotes nobody before all
    # trials have reached it: the processes see results arrive in different orders, but have to come
    # to the same choice.

    def __init__(
        self,
        plan: Plan,
        entrant: Entrant,
        status: SweepStatus,
        state: Callable[[str], tuple[TrialState, str]],
        *,
        shared: bool = False,
    ) -> None:
        self.entrant, self.over = entrant, False
        self._store = entrant.experiment.store
        self._plan, self._status, self._state, self._shared = plan, status, state, shared
        self._has_space = bool(all_sampled(entrant.method, entrant.fixed))
        self._sampler = sampler(plan.spec.search, plan.spec.most_trials)
        tuner = (
            fine_tuned(entrant.method, entrant.experiment.setup.traits) if plan.spec.asha else None
        )
        #: Shares of the schedule at which trials are paused.
        self.rungs: tuple[Fraction, ...] = rungs(tuner.epochs) if tuner is not None else ()
        #: The complete run of each trial by its number; two trials may be the same job.
        self._trials: list[Planned] = []
        #: Under ASHA: the trials of each fine-tuning by its fit_id, and its job up to each rung.
        self._fits: dict[str, list[Planned]] = {}
        self._to_rung: dict[tuple[str, int], Planned] = {}
        #: Id of each job that was handed out -> its rung, from 0; len(rungs) for a complete run.
        self._jobs: dict[str, int] = {}

    @property
    def pending(self) -> bool:
        """Whether a job of the search has not settled yet."""
        return self._pending(len(self.rungs))

    def _pending(self, rung: int) -> bool:
        return any(
            level <= rung and self._state(job)[0] not in ("done", "failed")
            for job, level in self._jobs.items()
        )

    def step(self) -> list[Planned]:
        """Return the jobs that can start now: of promoted trials, else of the next trial.

        Returns:
            No job if the next trial has to wait for results, or there is none.
        """
        # Promotions come first, so that a slot goes to a good trial rather than to a new one.
        jobs = [] if self.over else self._promotions() or self._next_trial()
        self._jobs |= {planned.job.id: rung for planned, rung in jobs}
        return [planned for planned, _ in jobs]

    def records(self) -> list[RunRecord]:
        """Return a record of every trial, in order.

        A trial that is not done gets a record with its status and the seconds spent on it.
        """
        return [self._record(trial) for trial in self._trials]

    def found(self) -> Winner | None:
        """Return the best trial; None if none is done."""
        records = self.records()
        best = best_of(records)
        if best is None:
            return None
        return Winner(
            self._trials[best].method,
            records,
            self._seconds(records),
            self._plan.spec.search,
            cut_short=bool(self.rungs),
        )

    @property
    def first(self) -> Planned:
        """The complete run of trial 0, which is the recipe as it stands."""
        return self._trials[0]

    @property
    def trials_to_come(self) -> int:
        """The number of trials that are not sampled yet; 0 for a budget in hours."""
        return (
            0
            if self.over or not self._has_space or self._plan.spec.hours
            else self._plan.spec.most_trials - len(self._trials)
        )

    @property
    def seconds_to_come(self) -> float:
        """The seconds that are left of a budget in hours; 0 without one."""
        if self.over or not self._has_space or not self._plan.spec.hours:
            return 0.0
        return max(0.0, self._plan.spec.hours * 3600 - self._seconds(self.records()))

    def rest(self) -> tuple[Planned, float] | None:
        """Estimate the training that promotions will add to the jobs that were handed out.

        Returns:
            A fine-tuning like those of the trials, and the number of its full schedules; None
            without rungs.
        """
        if not self.rungs:
            return None
        tuner, shares = self.first.tuner, [*self.rungs, Fraction(1)]
        assert tuner is not None, "a method that has rungs is trained in epochs"
        # Each fine-tuning counts as far as its last job; jobs at earlier rungs are a part of that.
        handed_out = sum(
            shares[max(self._jobs[job] for job in self._jobs_of(fit_id))] for fit_id in self._fits
        )
        expected = epochs_expected(len(self._fits), tuner.epochs) / tuner.epochs
        return self._rung(next(iter(self._fits)), 0), max(0.0, expected - float(handed_out))

    def _next_trial(self) -> list[tuple[Planned, int]]:
        # One by one if a trial depends on results: on scores (TPE), or on the time that is left.
        in_turn = self._sampler.looks_back or self._plan.spec.hours is not None
        if self._all_sampled() or (in_turn and self.pending):
            return []
        entrant, number = self.entrant, len(self._trials)
        history = self.records() if self._sampler.looks_back else []
        method: Method = self._sampler.trial(entrant.method, number, entrant.fixed, history)
        trial = self._plan.trial(entrant, method.bind(entrant.experiment.setup.traits), number)
        self._trials.append(trial)
        if not self.rungs:
            return [(trial, 0)]
        assert trial.tuner is not None, "a method that has rungs is trained in epochs"
        fit_id = trial.experiment.fit_id(trial.tuner)
        self._fits.setdefault(fit_id, []).append(trial)
        return [(self._rung(fit_id, 0), 0)]

    def _all_sampled(self) -> bool:
        """Whether the budget allows no further trial."""
        spec, trials = self._plan.spec, self._trials
        if len(trials) >= spec.most_trials:
            return True
        if spec.hours is None:
            return False
        if len(trials) >= REPEATS and len({trial.job.id for trial in trials[-REPEATS:]}) == 1:
            return True
        return (
            bool(trials) and not self.pending and self._seconds(self.records()) >= spec.hours * 3600
        )

    def _promotions(self) -> list[tuple[Planned, int]]:
        """Return the next jobs of promoted trials, with their rungs."""
        fits = [fit_id for fit_id in self._fits if not self._failure(fit_id)]
        for rung in range(len(self.rungs)):
            # Closed: no further trial can reach this rung.
            closed = self._all_sampled() and not self._pending(rung)
            if self._shared and not closed:
                return []
            known = {
                fit_id: self._status.score(fit_id, self._rung(fit_id, rung).job.epoch or 0)
                for fit_id in fits
            }
            scores = {fit_id: score for fit_id, score in known.items() if score is not None}
            # Scores come from the store, so a restart knows them, and so do fits that an earlier
            # sweep trained to their end. From the last rung the complete runs of all trials that
            # share the fine-tuning continue.
            ahead: list[Planned] = []
            for fit_id in promoted(scores, closed=closed):
                ahead += (
                    [self._rung(fit_id, rung + 1)]
                    if rung + 1 < len(self.rungs)
                    else self._fits[fit_id]
                )
            new = [(planned, rung + 1) for planned in ahead if planned.job.id not in self._jobs]
            if new:
                return new
        return []

    def _rung(self, fit_id: str, rung: int) -> Planned:
        """Return the job that trains a fine-tuning up to a rung."""
        if (fit_id, rung) not in self._to_rung:
            self._to_rung[fit_id, rung] = self._plan.rung(self._fits[fit_id][0], self.rungs[rung])
        return self._to_rung[fit_id, rung]

    def _jobs_of(self, fit_id: str) -> list[str]:
        """Return the ids of the jobs of a fine-tuning and of its trials."""
        runs = {trial.job.id for trial in self._fits[fit_id]}
        return [job for job in self._jobs if job in runs or job.startswith(f"rung-{fit_id}-")]

    def _failure(self, fit_id: str) -> str:
        """Return why a job of a fine-tuning failed; "" if none did."""
        return next(
            (
                reason
                for state, reason in map(self._state, self._jobs_of(fit_id))
                if state == "failed"
            ),
            "",
        )

    def _seconds(self, records: list[RunRecord]) -> float:
        """Return the seconds of training of all trials so far."""
        trained = []
        for trial, record in zip(self._trials, records, strict=True):
            # A trial that is not done counts by the fine-tuning that it is or wraps, which other
            # trials may share.
            tuner = trial.tuner if record.status != "done" else None
            trained.append(
                (
                    record.fit_id if tuner is None else trial.experiment.fit_id(tuner),
                    record.fit_seconds or 0.0,
                )
            )
        return training_seconds(self._store, trained)

    def _record(self, trial: Planned) -> RunRecord:
        """Return the record of a trial, or one that states why it has none."""
        record = self._status.record(trial)
        if record is not None and record.status == "done":
            return record
        fit_id = trial.experiment.fit_id(trial.tuner) if trial.tuner is not None else ""
        if record is None:
            limit = self._plan.spec.limit
            record = planned_record(trial.experiment, trial.method, limit=limit, search=True)
            reason = self._failure(fit_id) if fit_id in self._fits else self._state(trial.job.id)[1]
            record.status, record.error = (
                ("failed", reason) if reason else ("cancelled", "cut short")
            )
        if fit_id:
            record.fit_seconds = self._status.spent(fit_id)
        return record
