"""The mutable state of a sweep: what is done, running, ready, waiting or failed. Every runner pulls
from it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BenchError, Interrupted
from ..method import Method
from ..runs.execute import make_here, record_failure, start_over
from ..runs.standing import Standing, stages, standing
from ..spec import SEARCH_SEED
from ..storage.lease import is_live
from .estimate import Ahead, Costs, ahead
from .job import Job, Outcome
from .plan import Entrant, Plan, Planned, stage_task
from .search.samplers import Found
from .search.trials import Search, State
from .truth import Truth


@dataclass
class Entry:
    """A job of the sweep and where it stands.

    Attributes:
        state: `stopped`: interrupted, its work saved; the next start of the sweep continues it.
        reason: why it failed.
        attempts: how often its process has died.
        mine: whether this shard does it.
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


class Queue:
    """Hands out jobs whose inputs are in the store, and learns how they ended. Not thread-safe: one
    process, one thread.

    A fit that several runs are built on is a job of its own, unless one of the runs makes it
    anyway. So no trial ever waits for another one, and one slot finishes any plan.

    Args:
        max_failures: how often a job is offered again after its process died.
        shard: (i, n): hand out only the i-th (from 1) of n parts of the runs, with what they are
            built on; others do the rest.
        fresh: forget the final runs and their own fits when the sweep begins; see `start_over`.
        own: make the final runs here though they came in packs; see `make_here`.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        max_failures: int = 3,
        shard: tuple[int, int] = (1, 1),
        fresh: bool = False,
        own: bool = False,
    ) -> None:
        self.plan = plan
        self._max_failures, self._shard = max_failures, shard
        self._forget = start_over if fresh else make_here if own else None
        self._to_forget: list[Planned] | None = []
        self.fresh, self.own = fresh, own
        self._entries: dict[str, Entry] = {}
        self._costs: Costs | None = None
        self._known_seconds: dict[str, float | None] = {}
        self._truth = Truth(plan.entrants[0].experiment.store, keep_logits=plan.spec.keep_logits)
        entrants = plan.entrants if plan.spec.searches else []
        shared = shard[1] > 1
        self.searches = [
            Search(plan, entrant, self._truth, self._state, shared=shared) for entrant in entrants
        ]
        if not self.searches:
            self._add_finals([(entrant, entrant.method, None) for entrant in plan.entrants])
        self._conclude()
        if shared:
            self._look_again()

    def begin(self) -> None:
        """From now on things are done: what is to be forgotten is."""
        for planned in self._to_forget or ():
            self._start_over(planned)
        self._to_forget = None
        self._truth.forgotten.clear()

    # What runners call

    def take(self) -> Job | None:
        """The next job to start, which then counts as running; None while nothing is ready (or
        nothing is left: see `over`).
        """
        entry = self._next()
        if entry is None and not self.running:
            # Nothing of ours is under way, so what is waited for can only come from another process
            # on the same store.
            self._look_again()
            entry = self._next()
        if entry is None:
            return None
        entry.state = "running"
        return entry.job

    def settle(self, job_id: str, outcome: Outcome) -> None:
        """An attempt at a job ended.

        `lost` puts it back, up to the limit of failures, after which it is failed; `cancelled` puts
        it back for the next start of the sweep. When the last search trial of a method settles, its
        final runs are added with the parameters that did best on id-val. A failed stage fails what
        needs it, with the reason.
        """
        entry = self._entries[job_id]
        self._truth.look_again(entry.job.fit_id)
        self._truth.has(entry.job.fit_id)
        if outcome.status == "cancelled":
            entry.state = "stopped"
        elif outcome.status == "lost":
            entry.attempts += 1
            entry.state = "to do"
            if entry.attempts > self._max_failures:
                self._fail(
                    entry,
                    f"{outcome.error or 'its process died'}; {entry.attempts}"
                    f" attempt{'s' * (entry.attempts > 1)}",
                )
        elif outcome.status == "failed":
            self._fail(entry, outcome.error)
        elif self._truth.done(entry.planned):
            entry.state = "done"
        else:
            self._fail(
                entry,
                "the trial ended well, and its result is not in the store: is the store shared, and"
                " the same?",
            )
        if self._costs is not None:
            # Of the other fits nothing has changed but what their kind takes: no file of theirs is
            # opened again.
            for under_way in [entry, *self.running]:
                self._costs.look_again(under_way.job.fit_id)
            if entry.state == "done":
                self._costs.learn(entry.planned)
            self._known_seconds.clear()
        self._conclude()

    @property
    def over(self) -> bool:
        """Nothing is running, and nothing is left that this process could do in this start."""
        return self.count("to do", "running") == 0

    @property
    def unfinished(self) -> bool:
        """Something is left, for this start or, after a stop, for the next one."""
        return self.count("to do", "running", "stopped") > 0 or self.finals_to_come > 0

    def leave_failed(self) -> None:
        """Search without the trials that failed before, where they would otherwise be tried again
        first.

        For commands that are started one by one: a trial that fails every time would keep final
        runs from ever being among them.
        """
        while [
            entry
            for entry in self
            if entry.job.phase in ("rung", "search") and self._failed_before(entry)
        ]:
            self._conclude()

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
        """Number of final runs that are not planned yet, since their parameters are still searched
        for.
        """
        return sum(not search.over for search in self.searches) * len(self.plan.spec.seeds)

    @property
    def to_come(self) -> int:
        """Number of jobs that are not planned yet, since they depend on results; those that ASHA
        lets go on not counted.
        """
        return self.finals_to_come + sum(search.trials_to_come for search in self.searches)

    @property
    def elsewhere(self) -> int:
        """Number of jobs of other shards that are not done."""
        return sum(not entry.mine and entry.state == "to do" for entry in self)

    def ahead(self) -> Ahead:
        """The time of what this shard has to do and does not run yet."""
        return ahead(self, self.costs)

    def evaluation(self, job: Job) -> float | None:
        """Seconds of a job's evaluation, 0 if it has none; None if unknown."""
        return self.costs.evaluation(self._entries[job.id].planned, self.plan.spec.limit)

    def observe(self, job: Job, seconds: float) -> bool:
        """Take in what a running job's fit takes as a whole, at its present rate; whether that is
        news of its kind.
        """
        news = self.costs.observe(self._entries[job.id].planned, seconds)
        if news:
            self._known_seconds.clear()
        return news

    @property
    def costs(self) -> Costs:
        """By the records of earlier jobs."""
        if self._costs is None:
            self._costs = Costs(self.plan.entrants[0].experiment.store)
        return self._costs

    def waits_for(self, entry: Entry) -> list[Entry]:
        """What has to be done before a job can start."""
        if entry.state != "to do":
            return []
        missing = self._missing(entry.job)
        return [other for other in self if other.job.fit_id in missing and other.state != "failed"]

    def standing(self, entry: Entry) -> Standing | None:
        """What will be done about a run; None of what is no run, or has failed."""
        planned = entry.planned
        if entry.reason or planned.path is None or not planned.job.is_run:
            return None
        return standing(
            planned.experiment,
            planned.method,
            planned.path.parent,
            curve=planned.job.curve,
            keep_logits=self.plan.spec.keep_logits and planned.job.phase == "final",
            own=self.own and planned.final,
            fresh=self.fresh and planned.final,
        )

    # Order

    def _next(self) -> Entry | None:
        waiting = [
            entry for entry in self._entries.values() if entry.mine and entry.state == "to do"
        ]
        training = {entry.job.fit_id for entry in self.running}
        built_on: dict[str, list[Job]] = defaultdict(list)
        ready = []
        for entry in waiting:
            made, missing = entry.job.fit_id in self._truth.fits, self._missing(entry.job)
            for fit_id in missing:
                built_on[fit_id].append(entry.job)
            if made and entry.job.phase == "stage":
                entry.state = "done"
            elif not missing and (made or entry.job.fit_id not in training):
                ready.append(entry.job)
        if len(ready) > 1:
            todo, slots = [entry.job for entry in waiting], len(self.running) + 1
            ready = in_order(ready, todo, built_on, slots, self.plan.spec.seeds, self._seconds)
        entries = [self._entries[job.id] for job in ready]
        here = next((entry for entry in entries if not self._elsewhere(entry)), None)
        # A fit that a process elsewhere is at could only be waited for, so it comes when there is
        # nothing else to do.
        return here if here is not None or training or not entries else entries[0]

    def _seconds(self, job: Job) -> float | None:
        """What a job will take, by the records of earlier ones."""
        if job.id not in self._known_seconds:
            self._known_seconds[job.id] = self.costs.of(
                self._entries[job.id].planned, self.plan.spec.limit
            )
        return self._known_seconds[job.id]

    def _missing(self, job: Job) -> set[str]:
        """The fits that have to be made before a job can start. One whose own fit is there needs
        none, but for a curve.
        """
        return (
            set()
            if job.fit_id in self._truth.fits and not job.curve
            else set(job.needs) - self._truth.fits
        )

    def _elsewhere(self, entry: Entry) -> bool:
        store = entry.planned.experiment.store
        return entry.job.fit_id not in self._truth.fits and is_live(store.fit_dir(entry.job.fit_id))

    def _look_again(self) -> None:
        for entry in self:
            if entry.state == "to do":
                for fit_id in entry.job.needs:
                    self._truth.has(fit_id)
                self._truth.look_again(entry.job.fit_id)
                if not entry.mine and self._truth.done(entry.planned):
                    entry.state = "done"
                elif not entry.mine:
                    self._failed_before(entry)
        self._conclude()

    def _failed_before(self, entry: Entry) -> bool:
        """Count a job that is to do as failed if the store says that it has failed."""
        if entry.state != "to do" or not (error := self._truth.failure(entry.planned)):
            return False
        entry.state, entry.reason = "failed", error
        return True

    # Growth

    def _add(self, planned: Planned) -> Entry:
        if planned.job.id not in self._entries:
            entry = self._entries[planned.job.id] = Entry(planned)
            if self._forget is not None and planned.final:
                if self._to_forget is None:
                    self._start_over(planned)
                else:
                    self._to_forget.append(planned)
                    self._truth.forget(planned, fit=self.fresh)
            if planned.job.phase != "stage":
                # By what it leaves, so that every shard comes to the same division, whatever it
                # knows already.
                number = int(planned.job.id.split("-")[1], 16)
                entry.mine = number % self._shard[1] == self._shard[0] - 1
            self._truth.has(planned.job.fit_id)
            if self._truth.done(planned):
                entry.state = "done"
        return self._entries[planned.job.id]

    def _start_over(self, planned: Planned) -> None:
        assert self._forget is not None, "only a queue that forgets has something to forget"
        self._forget(
            planned.experiment,
            planned.method,
            limit=self.plan.spec.limit,
            search=planned.job.phase == "search",
        )

    def _add_stages(self) -> None:
        """A job for every missing fit that a job is built on, where no other job of this shard
        makes it.
        """
        todo = [entry for entry in self if entry.mine and entry.state == "to do"]
        while todo:
            entry = todo.pop()
            if entry.job.fit_id in self._truth.fits and not entry.job.curve:
                continue
            for stage in stages(entry.planned.experiment, entry.planned.method):
                planned = stage_task(entry.planned, stage)
                if not self._truth.has(planned.job.fit_id) and not self._makers(planned.job.fit_id):
                    todo.append(self._add(planned))

    def _makers(self, fit_id: str) -> list[Entry]:
        return [
            entry
            for entry in self
            if entry.mine
            and entry.job.fit_id == fit_id
            and entry.job.phase != "rung"
            and entry.state in ("to do", "running")
        ]

    def _add_finals(self, chosen: list[tuple[Entrant, Method, Found | None]]) -> None:
        # Seed by seed: an interrupted sweep has whole seeds of all methods rather than all seeds of
        # some.
        for seed in self.plan.spec.seeds:
            for entrant, method, found in chosen:
                self._add(self.plan.final(entrant, method, seed, found))

    # Search

    def _state(self, job_id: str) -> tuple[State, str]:
        """Where a job stands, and why it failed."""
        return self._entries[job_id].state, self._entries[job_id].reason

    def _conclude(self) -> None:
        """Go on with every search as far as what has settled allows, and add the final runs of
        those that are over.
        """
        # Trial by trial, not method by method: what the methods share comes up together.
        while sum(self._step(search) for search in self.searches):
            pass
        chosen: list[tuple[Entrant, Method, Found | None]] = []
        for search in self.searches:
            if search.over or search.pending:
                continue
            search.over = True
            found = search.found()
            if found is None:
                records = search.records()
                self._fail_finals(search, f"all {len(records)} trials failed: {records[0].error}")
            else:
                chosen.append((search.entrant, found.method, found))
        self._add_finals(chosen)
        self._add_stages()

    def _step(self, search: Search) -> int:
        """Add what a search has to be done now, and say how many jobs that is."""
        return len([self._add(planned) for planned in search.step()])

    # Failure

    def _fail(self, entry: Entry, reason: str) -> None:
        """Mark a job and everything that is built on its fit as failed, each run with a row that
        says why.
        """
        entry.state, entry.reason = "failed", reason
        job, planned = entry.job, entry.planned
        if job.phase != "stage":
            try:
                record = self._truth.record(planned)
                if record is None or record.status != "failed":
                    record_failure(
                        planned.experiment,
                        planned.method,
                        reason,
                        limit=self.plan.spec.limit,
                        search=job.phase != "final",
                    )
            except (BenchError, Interrupted) as error:
                entry.reason += f" (and the row could not be written: {error.what})"
        if job.phase == "rung" or self._truth.has(job.fit_id) or self._makers(job.fit_id):
            return
        for other in self:
            if other.state == "to do" and job.fit_id in self._missing(other.job):
                self._fail(
                    other, f"{job.label} (seed {job.seed}), which it is built on, failed: {reason}"
                )

    def _fail_finals(self, search: Search, reason: str) -> None:
        for seed in self.plan.spec.seeds:
            entry = self._add(self.plan.final(search.entrant, search.entrant.method, seed, None))
            if entry.state != "done" and entry.mine:
                self._fail(entry, reason)


Cost = Callable[[Job], float | None]


def in_order(
    ready: Iterable[Job],
    todo: Sequence[Job],
    built_on: Mapping[str, Sequence[Job]],
    slots: int,
    seeds: Sequence[int],
    cost: Cost,
) -> list[Job]:
    """Searches before final runs, seed by seed, and among these first what begins the longest chain
    of work.

    Seed by seed, so that an interrupted sweep has whole seeds of all methods rather than all seeds
    of some. The longest chain (a job and the longest of those that wait for its fit) first, so that
    a sweep does not end with one long job alone. A chain that takes longer than all that is left
    takes on so many slots comes before its seed's turn: the end of the sweep waits for it.

    Args:
        todo: all that is left, `ready` included.
        built_on: the jobs that wait for a fit.
        slots: trials that run at once.
        cost: seconds that a job will take; None, unknown, counts as the longest, since it is better
            learnt early.
    """
    chains: dict[str, float] = {}

    def seconds(job: Job) -> float:
        known = cost(job)
        return math.inf if known is None else known

    def waiting(job: Job) -> Sequence[Job]:
        return () if job.phase == "rung" else built_on.get(job.fit_id, ())

    def chain(job: Job) -> float:
        if job.id not in chains:
            chains[job.id] = seconds(job) + max(map(chain, waiting(job)), default=0.0)
        return chains[job.id]

    turn = {SEARCH_SEED: -1, **{seed: number for number, seed in enumerate(seeds)}}
    together = sum(map(seconds, todo)) / slots
    late = {job.id for job in ready if together <= chain(job) < math.inf}
    return sorted(
        ready, key=lambda job: (job.id not in late, turn[job.seed], -chain(job), not waiting(job))
    )
