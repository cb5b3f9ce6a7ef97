"""The search of one method of a sweep: which trials there are, which of them may go on, and which did best on id-val."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from ..method import Method
from ..runs.execute import planned_record
from ..runs.measure import fine_tuned
from ..runs.record import RunRecord
from .asha import MARK, epochs_expected, promoted, rungs, stop_at
from .plan import Entrant, Plan, Planned
from .search import Found, best_of, sampler, training_seconds
from .truth import Truth

State = Literal["done", "to do", "running", "failed", "stopped"]
#: A search by hours ends when its draws no longer differ from earlier ones.
REPEATS = 10


class Search:
    """An entrant's trials, drawn one by one; jobs that come of them are handed out by `step`.

    Under ASHA a trial is trained as far as the first rung, then, if it is among the best there, to the next, then to its end.
    What is not trained in epochs has no rungs. A method that wraps one fine-tuner is judged at them by what it wraps, which is
    the same fit for every method that wraps it.

    Args:
        state: where a job of the sweep stands, and why it failed.
    """

    def __init__(self, plan: Plan, entrant: Entrant, truth: Truth, state: Callable[[str], tuple[State, str]]) -> None:
        self.entrant, self.over = entrant, False
        self._store = entrant.experiment.store
        self._plan, self._truth, self._state = plan, truth, state
        self._sampler = sampler(plan.spec.search, plan.spec.most_trials)
        tuner = fine_tuned(entrant.method, entrant.experiment.traits) if plan.spec.asha else None
        #: Shares of the schedule at which trials are paused.
        self.rungs: tuple[Fraction, ...] = rungs(tuner.epochs) if tuner is not None else ()
        #: The whole run of each trial, by its number; two may be one job.
        self._trials: list[Planned] = []
        #: The jobs that were handed out, and their rungs (from 0; the whole run: behind the last).
        self._jobs: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._trials)

    @property
    def pending(self) -> bool:
        """Whether a job of a trial has not settled yet."""
        return self._pending(len(self.rungs))

    def _pending(self, rung: int) -> bool:
        return any(level <= rung and self._state(job)[0] not in ("done", "failed") for job, level in self._jobs.items())

    def step(self) -> list[Planned]:
        """The jobs of trials that may go on, else that of the next trial; nothing if that has to wait, or there is none."""
        jobs = [] if self.over else self._going_on() or self._next_trial()
        self._jobs |= {planned.job.id: rung for planned, rung in jobs}
        return [planned for planned, _ in jobs]

    def records(self) -> list[RunRecord]:
        """Of every trial, in order; one that has none yet, or was cut short, gets one that says so and what was spent on it."""
        return [self._record(trial) for trial in self._trials]

    def found(self) -> Found | None:
        """The trial that did best; None if none is done."""
        records = self.records()
        best = best_of(records)
        if best is None:
            return None
        rule = self._plan.spec.search + (MARK if self.rungs else "")
        return Found(self._trials[best].method, records, training_seconds(self._store, records), rule)

    def rest(self) -> tuple[Planned, float] | None:
        """A fine-tuning like those of the trials, and how many of its schedules they have ahead of them beyond the jobs that were
        handed out, if every rung lets just its share go on; None without rungs."""
        if not self.rungs:
            return None
        like = self._plan.rung(self._trials[0], self.rungs[0])
        tuner = self._trials[0].tuner
        assert tuner is not None, "a trial that has rungs is trained in epochs"
        fits, shares = self._by_fit(), [*self.rungs, Fraction(1)]
        handed_out = sum(shares[max(self._jobs[job] for job in self._jobs_of(*fit))] for fit in fits.items())
        return like, max(0.0, epochs_expected(len(fits), tuner.epochs) / tuner.epochs - float(handed_out))

    # Drawing

    def _next_trial(self) -> list[tuple[Planned, int]]:
        in_turn = self._sampler.looks_back or self._plan.spec.hours is not None
        if self._all_drawn() or (in_turn and self.pending):
            return []
        entrant, number = self.entrant, len(self._trials)
        history = self.records() if self._sampler.looks_back else []
        method: Method = self._sampler.trial(entrant.method, number, entrant.fixed, history)
        trial = self._plan.trial(entrant, method.resolved(entrant.experiment.traits), number)
        self._trials.append(trial)
        return [(self._plan.rung(trial, self.rungs[0]) if self.rungs else trial, 0)]

    def _all_drawn(self) -> bool:
        """Whether the budget holds no further trial."""
        spec, trials = self._plan.spec, self._trials
        if len(trials) >= spec.most_trials:
            return True
        if spec.hours is None:
            return False
        if len(trials) >= REPEATS and len({trial.job.id for trial in trials[-REPEATS:]}) == 1:
            return True
        return bool(trials) and not self.pending and training_seconds(self._store, self.records()) >= spec.hours * 3600

    # Rungs

    def _going_on(self) -> list[tuple[Planned, int]]:
        """The next jobs of those that a rung lets go on, and have none yet."""
        fits = self._by_fit() if self.rungs else {}
        for rung, share in enumerate(self.rungs):
            scores = {}
            for fit_id, (first, *_) in fits.items():
                assert first.tuner is not None, "a trial that has rungs is trained in epochs"
                found = self._truth.score(fit_id, stop_at(share, first.tuner.epochs))
                if found is not None:
                    scores[fit_id] = found
            ahead: list[Planned] = []
            for fit_id in promoted(scores, closed=self._all_drawn() and not self._pending(rung)):
                last = rung + 1 == len(self.rungs)
                ahead += fits[fit_id] if last else [self._plan.rung(fits[fit_id][0], self.rungs[rung + 1])]
            new = [(planned, rung + 1) for planned in ahead if planned.job.id not in self._jobs]
            if new:
                return new
        return []

    def _by_fit(self) -> dict[str, list[Planned]]:
        """The trials of every fine-tuning, but for those of one that has failed."""
        found: dict[str, list[Planned]] = {}
        for trial in self._trials:
            assert trial.tuner is not None, "a trial that has rungs is trained in epochs"
            found.setdefault(trial.experiment.fit_id(trial.tuner), []).append(trial)
        failed = {job for job in self._jobs if self._state(job)[0] == "failed"}
        return {fit_id: trials for fit_id, trials in found.items() if failed.isdisjoint(self._jobs_of(fit_id, trials))}

    def _jobs_of(self, fit_id: str, trials: list[Planned]) -> list[str]:
        runs = {trial.job.id for trial in trials}
        return [job for job in self._jobs if job in runs or job.startswith(f"rung-{fit_id}-")]

    # Truth

    def _record(self, trial: Planned) -> RunRecord:
        record = self._truth.record(trial)
        if record is not None and record.status == "done":
            return record
        if record is None:
            limit = self._plan.spec.limit
            record = planned_record(trial.experiment, trial.method, limit=limit, search=True)
            reason = self._state(trial.job.id)[1] if trial.job.id in self._jobs else ""
            record.status, record.error = ("failed", reason) if reason else ("cancelled", "cut short")
        if trial.tuner is not None:
            record.fit_seconds = self._truth.spent(trial.experiment.fit_id(trial.tuner))
        return record
