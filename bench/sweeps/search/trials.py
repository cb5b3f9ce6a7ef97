"""The search of one method of a sweep: which trials there are, which of them may go on, and which
did best on id-val.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from ...method import Method
from ...results.record import RunRecord
from ...runs.execute import planned_record
from ...runs.measure import fine_tuned
from ..plan import Entrant, Plan, Planned
from ..truth import Truth
from .asha import epochs_expected, promoted, rungs
from .samplers import Found, all_drawn, best_of, sampler, training_seconds

State = Literal["done", "to do", "running", "failed", "stopped"]
#: A search by hours ends when its draws no longer differ from earlier ones.
REPEATS = 10


class Search:
    """An entrant's trials, drawn one by one; jobs that come of them are handed out by `step`.

    Under ASHA a trial is trained as far as the first rung, then, if it is among the best there, to
    the next, then to its end. What is not trained in epochs has no rungs. A method that wraps one
    fine-tuner is judged at them by what it wraps, which is the same fit for every method that wraps
    it.

    Args:
        state: where a job of the sweep stands, and why it failed.
        shared: other processes do a part of the trials. A rung then lets nobody go on before all
            trials have come to it, since who has come first is not the same for all of them.
    """

    def __init__(
        self,
        plan: Plan,
        entrant: Entrant,
        truth: Truth,
        state: Callable[[str], tuple[State, str]],
        *,
        shared: bool = False,
    ) -> None:
        self.entrant, self.over = entrant, False
        self._store = entrant.experiment.store
        self._plan, self._truth, self._state, self._shared = plan, truth, state, shared
        self._draws = bool(all_drawn(entrant.method, entrant.fixed))
        self._sampler = sampler(plan.spec.search, plan.spec.most_trials)
        tuner = (
            fine_tuned(entrant.method, entrant.experiment.setup.traits) if plan.spec.asha else None
        )
        #: Shares of the schedule at which trials are paused.
        self.rungs: tuple[Fraction, ...] = rungs(tuner.epochs) if tuner is not None else ()
        #: The whole run of each trial, by its number; two may be one job.
        self._trials: list[Planned] = []
        #: Under ASHA: the trials of every fine-tuning, and its jobs as far as each rung.
        self._fits: dict[str, list[Planned]] = {}
        self._as_far_as: dict[tuple[str, int], Planned] = {}
        #: The jobs that were handed out, and their rungs (from 0; the whole run: behind the last).
        self._jobs: dict[str, int] = {}

    @property
    def pending(self) -> bool:
        """Whether a job of a trial has not settled yet."""
        return self._pending(len(self.rungs))

    def _pending(self, rung: int) -> bool:
        return any(
            level <= rung and self._state(job)[0] not in ("done", "failed")
            for job, level in self._jobs.items()
        )

    def step(self) -> list[Planned]:
        """The jobs of trials that may go on, else that of the next trial; nothing if that has to
        wait, or there is none.
        """
        jobs = [] if self.over else self._going_on() or self._next_trial()
        self._jobs |= {planned.job.id: rung for planned, rung in jobs}
        return [planned for planned, _ in jobs]

    def records(self) -> list[RunRecord]:
        """Of every trial, in order; one that has none yet, or was cut short, gets one that says so
        and what was spent on it.
        """
        return [self._record(trial) for trial in self._trials]

    def found(self) -> Found | None:
        """The trial that did best; None if none is done."""
        records = self.records()
        best = best_of(records)
        if best is None:
            return None
        return Found(
            self._trials[best].method,
            records,
            self._seconds(records),
            self._plan.spec.search,
            cut_short=bool(self.rungs),
        )

    @property
    def first(self) -> Planned:
        """The whole run of trial 0, the recipe as it stands."""
        return self._trials[0]

    @property
    def trials_to_come(self) -> int:
        """Trials that are not drawn yet, since those before them have to be done first; 0 if a
        budget in hours decides that.
        """
        return (
            0
            if self.over or not self._draws or self._plan.spec.hours
            else self._plan.spec.most_trials - len(self._trials)
        )

    @property
    def seconds_to_come(self) -> float:
        """What is left of a budget in hours."""
        if self.over or not self._draws or not self._plan.spec.hours:
            return 0.0
        return max(0.0, self._plan.spec.hours * 3600 - self._seconds(self.records()))

    def rest(self) -> tuple[Planned, float] | None:
        """A fine-tuning like those of the trials, and how many of its schedules they have ahead of
        them beyond the jobs that were handed out, if every rung lets just its share go on; None
        without rungs.
        """
        if not self.rungs:
            return None
        tuner, shares = self.first.tuner, [*self.rungs, Fraction(1)]
        assert tuner is not None, "a method that has rungs is trained in epochs"
        handed_out = sum(
            shares[max(self._jobs[job] for job in self._jobs_of(fit_id))] for fit_id in self._fits
        )
        expected = epochs_expected(len(self._fits), tuner.epochs) / tuner.epochs
        return self._rung(next(iter(self._fits)), 0), max(0.0, expected - float(handed_out))

    # Drawing

    def _next_trial(self) -> list[tuple[Planned, int]]:
        in_turn = self._sampler.looks_back or self._plan.spec.hours is not None
        if self._all_drawn() or (in_turn and self.pending):
            return []
        entrant, number = self.entrant, len(self._trials)
        history = self.records() if self._sampler.looks_back else []
        method: Method = self._sampler.trial(entrant.method, number, entrant.fixed, history)
        trial = self._plan.trial(entrant, method.resolved(entrant.experiment.setup.traits), number)
        self._trials.append(trial)
        if not self.rungs:
            return [(trial, 0)]
        assert trial.tuner is not None, "a method that has rungs is trained in epochs"
        fit_id = trial.experiment.fit_id(trial.tuner)
        self._fits.setdefault(fit_id, []).append(trial)
        return [(self._rung(fit_id, 0), 0)]

    def _all_drawn(self) -> bool:
        """Whether the budget holds no further trial."""
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

    # Rungs

    def _going_on(self) -> list[tuple[Planned, int]]:
        """The next jobs of those that a rung lets go on, and have none yet."""
        fits = [fit_id for fit_id in self._fits if not self._failure(fit_id)]
        for rung in range(len(self.rungs)):
            closed = self._all_drawn() and not self._pending(rung)
            if self._shared and not closed:
                return []
            known = {
                fit_id: self._truth.score(fit_id, self._rung(fit_id, rung).job.epoch or 0)
                for fit_id in fits
            }
            scores = {fit_id: score for fit_id, score in known.items() if score is not None}
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
        """The job of a fine-tuning as far as a rung."""
        if (fit_id, rung) not in self._as_far_as:
            self._as_far_as[fit_id, rung] = self._plan.rung(self._fits[fit_id][0], self.rungs[rung])
        return self._as_far_as[fit_id, rung]

    def _jobs_of(self, fit_id: str) -> list[str]:
        """The jobs of a fine-tuning and of its trials."""
        runs = {trial.job.id for trial in self._fits[fit_id]}
        return [job for job in self._jobs if job in runs or job.startswith(f"rung-{fit_id}-")]

    def _failure(self, fit_id: str) -> str:
        """Why a job of a fine-tuning failed, if one did."""
        return next(
            (
                reason
                for state, reason in map(self._state, self._jobs_of(fit_id))
                if state == "failed"
            ),
            "",
        )

    # Truth

    def _seconds(self, records: list[RunRecord]) -> float:
        """Of training so far; for a trial that is not done, of the fine-tuning that it is or wraps,
        which others may share.
        """
        trained = []
        for trial, record in zip(self._trials, records, strict=True):
            tuner = trial.tuner if record.status != "done" else None
            trained.append(
                (
                    record.fit_id if tuner is None else trial.experiment.fit_id(tuner),
                    record.fit_seconds or 0.0,
                )
            )
        return training_seconds(self._store, trained)

    def _record(self, trial: Planned) -> RunRecord:
        record = self._truth.record(trial)
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
            record.fit_seconds = self._truth.spent(fit_id)
        return record
