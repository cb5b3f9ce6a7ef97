"""The mutable state of a sweep: what is done, running, ready, waiting or failed. Every runner pulls from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..api import forget
from ..errors import BenchError, Interrupted
from ..method import Method
from ..runs.execute import additions, planned_record, record_failure
from ..runs.lease import is_live
from ..runs.record import RunRecord
from .job import Job, Outcome
from .plan import Entrant, Plan, Planned, stage_task, stages
from .search import Found, Sampler, best_of, sampler

State = Literal["done", "to do", "running", "failed", "stopped"]
#: A search by hours ends when its draws no longer differ from earlier ones.
REPEATS = 10


@dataclass
class Entry:
    """A job of the sweep and where it stands.

    Attributes:
        state: `stopped`: interrupted, its work saved; the next start of the sweep continues it.
        reason: why it failed. attempts: how often its process has died. mine: whether this shard does it.
    """

    planned: Planned
    state: State = "to do"
    reason: str = ""
    attempts: int = 0
    mine: bool = True

    @property
    def job(self) -> Job:
        """The job."""
        return self.planned.job


@dataclass
class Search:
    """The trials of one entrant so far. methods, ids: by number of the trial; two trials may be one job."""

    entrant: Entrant
    sampler: Sampler
    methods: list[Method] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    over: bool = False


class Queue:
    """Hands out jobs whose inputs are in the store, and learns how they ended. Not thread-safe: one process, one thread.

    A fit that several runs are built on is a job of its own, unless one of the runs makes it anyway. So no trial ever waits for
    another one, and one slot finishes any plan.

    Args:
        max_failures: how often a job is offered again after its process died.
        shard: (i, n): hand out only the i-th (from 1) of n parts of the runs, with what they are built on; others do the rest.
        fresh: forget the final runs and their own fits first.
    """

    def __init__(self, plan: Plan, *, max_failures: int = 3, shard: tuple[int, int] = (1, 1), fresh: bool = False) -> None:
        self.plan = plan
        self._max_failures, self._shard, self._fresh = max_failures, shard, fresh
        self._entries: dict[str, Entry] = {}
        self._fits: set[str] = set()
        entrants = plan.entrants if plan.spec.searches else []
        self.searches = [Search(entrant, sampler(plan.spec.search, plan.spec.most_trials)) for entrant in entrants]
        if not self.searches:
            self._add_finals([(entrant, entrant.method, None) for entrant in plan.entrants])
        # Trial by trial, not method by method: what the methods share comes up together.
        while sum(self._extend(search) for search in self.searches):
            pass
        self._add_stages()
        self._conclude()

    # What runners call

    def take(self) -> Job | None:
        """The next job to start, which then counts as running; None while nothing is ready (or nothing is left: see `over`)."""
        entry = self._next()
        if entry is None and not self.running:
            # Nothing of ours is under way, so what is waited for can only come from another process on the same store.
            self._look_again()
            entry = self._next()
        if entry is None:
            return None
        entry.state = "running"
        return entry.job

    def settle(self, job_id: str, outcome: Outcome) -> None:
        """An attempt at a job ended.

        `lost` puts it back, up to the limit of failures, after which it is failed; `cancelled` puts it back for the next start of
        the sweep. When the last search trial of a method settles, its final runs are added with the parameters that did best
        on id-val. A failed stage fails what needs it, with the reason.
        """
        entry = self._entries[job_id]
        if outcome.status == "cancelled":
            entry.state = "stopped"
        elif outcome.status == "lost":
            entry.attempts += 1
            entry.state = "to do"
            if entry.attempts > self._max_failures:
                self._fail(entry, f"{outcome.error or 'its process died'}; {entry.attempts} attempts")
        elif outcome.status == "failed":
            self._fail(entry, outcome.error)
        elif self._is_done(entry.planned):
            entry.state = "done"
        else:
            self._fail(entry, "the trial ended well, and its result is not in the store: is the store shared, and the same?")
        self._has(entry.job.fit_id)
        self._conclude()

    @property
    def over(self) -> bool:
        """Nothing is running, and nothing is left that this process could do in this start."""
        return self.count("to do", "running") == 0

    @property
    def unfinished(self) -> bool:
        """Something is left, for this start or, after a stop, for the next one."""
        return self.count("to do", "running", "stopped") > 0 or self.finals_to_come > 0

    # What is shown

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    @property
    def jobs(self) -> list[Job]:
        """All jobs known so far."""
        return [entry.job for entry in self]

    @property
    def running(self) -> list[Entry]:
        """What runs now."""
        return [entry for entry in self if entry.state == "running"]

    def count(self, *states: State) -> int:
        """Number of this shard's jobs in one of these states."""
        return sum(entry.mine and entry.state in states for entry in self)

    @property
    def finals_to_come(self) -> int:
        """Number of final runs that are not planned yet, since their parameters are still searched for."""
        return sum(not search.over for search in self.searches) * len(self.plan.spec.seeds)

    @property
    def elsewhere(self) -> int:
        """Number of jobs of other shards that are not done."""
        return sum(not entry.mine and entry.state == "to do" for entry in self)

    def waits_for(self, entry: Entry) -> list[Entry]:
        """What has to be done before a job can start."""
        if entry.state != "to do":
            return []
        missing = self._missing(entry.job)
        return [other for other in self if other.job.fit_id in missing and other.state != "failed"]

    # Order

    def _next(self) -> Entry | None:
        waiting = [entry for entry in self._entries.values() if entry.mine and entry.state == "to do"]
        wanted = {fit_id for entry in waiting for fit_id in self._missing(entry.job)}
        training = {entry.job.fit_id for entry in self.running}
        ready = []
        for entry in waiting:
            made = entry.job.fit_id in self._fits
            if made and entry.job.phase == "stage":
                entry.state = "done"
            elif not self._missing(entry.job) and (made or entry.job.fit_id not in training):
                ready.append(entry)
        ready.sort(key=lambda entry: entry.job.fit_id not in wanted)  # first what others wait for
        here = next((entry for entry in ready if not self._elsewhere(entry)), None)
        # A fit that a process elsewhere is at could only be waited for, so it comes when there is nothing else to do.
        return here if here is not None or training or not ready else ready[0]

    def _missing(self, job: Job) -> set[str]:
        """The fits that have to be made before a job can start. One whose own fit is there needs none, but for a curve."""
        return set() if job.fit_id in self._fits and not job.curve else set(job.needs) - self._fits

    def _elsewhere(self, entry: Entry) -> bool:
        store = entry.planned.experiment.store
        return entry.job.fit_id not in self._fits and is_live(store.fit_dir(entry.job.fit_id))

    def _look_again(self) -> None:
        for entry in self:
            if entry.state == "to do":
                for fit_id in entry.job.needs:
                    self._has(fit_id)
                if not entry.mine and self._is_done(entry.planned):
                    entry.state = "done"
        self._conclude()

    # Truth, which is what is in the store

    def _has(self, fit_id: str) -> bool:
        """Whether the store has a fit. What was there once counts as there."""
        if fit_id not in self._fits:
            store = self.plan.entrants[0].experiment.store
            if store.fit(fit_id) is not None:
                self._fits.add(fit_id)
        return fit_id in self._fits

    def _is_done(self, planned: Planned) -> bool:
        job = planned.job
        if job.phase == "stage":
            return self._has(job.fit_id)
        record = self._record(planned)
        if record is None or record.status != "done":
            return False
        if record.search_trials < job.search_trials:
            return False
        keep_logits = self.plan.spec.keep_logits and job.phase == "final"
        return not additions(planned.experiment, planned.method, record, curve=job.curve, keep_logits=keep_logits)

    def _record(self, planned: Planned) -> RunRecord | None:
        assert planned.path is not None, "a stage has no record"
        try:
            return planned.experiment.store.read_run(planned.path) if planned.path.exists() else None
        except BenchError:
            return None  # damaged: made again, or told by the trial that finds it in its way

    # Growth

    def _add(self, planned: Planned) -> Entry:
        if planned.job.id not in self._entries:
            entry = self._entries[planned.job.id] = Entry(planned)
            if self._fresh and planned.final:
                forget(planned.experiment, planned.job.fit_id)
            if planned.job.phase != "stage":
                # By what the run is, so that every shard comes to the same division, whatever it knows already.
                number = int(planned.job.id.removeprefix("run-"), 16)
                entry.mine = number % self._shard[1] == self._shard[0] - 1
            self._has(planned.job.fit_id)
            if self._is_done(planned):
                entry.state = "done"
        return self._entries[planned.job.id]

    def _add_stages(self) -> None:
        """A job for every missing fit that a job is built on, where no other job of this shard makes it."""
        todo = [entry for entry in self if entry.mine and entry.state == "to do"]
        while todo:
            entry = todo.pop()
            if entry.job.fit_id in self._fits and not entry.job.curve:
                continue
            for stage in stages(entry.planned.experiment, entry.planned.method):
                planned = stage_task(entry.planned, stage)
                if not self._has(planned.job.fit_id) and not self._makers(planned.job.fit_id):
                    todo.append(self._add(planned))

    def _makers(self, fit_id: str) -> list[Entry]:
        return [e for e in self if e.mine and e.job.fit_id == fit_id and e.state in ("to do", "running")]

    def _add_finals(self, chosen: list[tuple[Entrant, Method, Found | None]]) -> None:
        # Seed by seed: an interrupted sweep has whole seeds of all methods rather than all seeds of some.
        for seed in self.plan.spec.seeds:
            for entrant, method, found in chosen:
                self._add(self.plan.final(entrant, method, seed, found))

    # Search

    def _extend(self, search: Search) -> bool:
        """Add an entrant's next trial, if there is one to add now."""
        spec = self.plan.spec
        number = len(search.ids)
        if search.over or number >= spec.most_trials or (search.sampler.looks_back and self._pending(search)):
            return False
        if spec.hours is not None and (self._pending(search) or self._spent(search) >= spec.hours * 3600):
            return False
        if spec.hours is not None and len(set(search.ids[-REPEATS:])) == 1 and number >= REPEATS:
            return False
        history = self._records(search) if search.sampler.looks_back else []
        method = search.sampler.trial(search.entrant.method, number, search.entrant.fixed, history)
        planned = self.plan.trial(search.entrant, method.resolved(search.entrant.experiment.traits), number)
        search.methods.append(planned.method)
        search.ids.append(self._add(planned).job.id)
        return True

    def _pending(self, search: Search) -> bool:
        """Whether a trial has not settled yet."""
        return any(self._entries[job_id].state not in ("done", "failed") for job_id in search.ids)

    def _records(self, search: Search) -> list[RunRecord]:
        """Of every trial that has settled; one that could not even leave a row has failed."""
        found = []
        for job_id in search.ids:
            entry = self._entries[job_id]
            record = self._record(entry.planned)
            if record is None:
                method, limit = entry.planned.method, self.plan.spec.limit
                record = planned_record(entry.planned.experiment, method, limit=limit, search=True)
                record.status, record.error = "failed", entry.reason
            found.append(record)
        return found

    def _spent(self, search: Search) -> float:
        return Found(search.entrant.method, self._records(search), 0).seconds

    def _conclude(self) -> None:
        """Go on with every search whose trials have settled, and add the final runs of those that are over."""
        chosen: list[tuple[Entrant, Method, Found | None]] = []
        for search in self.searches:
            while self._extend(search):
                pass
            if search.over or self._pending(search):
                continue
            search.over = True
            records = self._records(search)
            best = best_of(records)
            if best is None:
                self._fail_finals(search, f"all {len(search.ids)} trials failed: {records[0].error}")
            else:
                chosen.append((search.entrant, search.methods[best], Found(search.methods[best], records, best)))
        self._add_finals(chosen)
        self._add_stages()

    # Failure

    def _fail(self, entry: Entry, reason: str) -> None:
        """Mark a job and everything that is built on its fit as failed, each run with a row that says why."""
        entry.state, entry.reason = "failed", reason
        job, planned = entry.job, entry.planned
        if job.phase != "stage":
            try:
                record = self._record(planned)
                if record is None or record.status != "failed":
                    record_failure(
                        planned.experiment,
                        planned.method,
                        reason,
                        limit=self.plan.spec.limit,
                        search=job.phase == "search",
                    )
            except (BenchError, Interrupted) as error:
                entry.reason += f" (and the row could not be written: {error.what})"
        if self._has(job.fit_id) or self._makers(job.fit_id):
            return
        for other in self:
            if other.state == "to do" and job.fit_id in self._missing(other.job):
                self._fail(other, f"{job.label} (seed {job.seed}), which it is built on, failed: {reason}")

    def _fail_finals(self, search: Search, reason: str) -> None:
        for seed in self.plan.spec.seeds:
            entry = self._add(self.plan.final(search.entrant, search.entrant.method, seed, None))
            if entry.state != "done" and entry.mine:
                self._fail(entry, reason)
