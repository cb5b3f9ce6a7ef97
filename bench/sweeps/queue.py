"""Track the state of a sweep's jobs, and hand out the next one that is ready to run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BenchError, Interrupted
from ..method import Method
from ..runs.execute import make_here, record_failure, start_over
from ..runs.status import RunStatus, dependencies, status_of
from ..storage.lease import is_live
from .estimate import Ahead, Costs, ahead
from .job import Job, JobResult
from .order import in_order
from .plan import Entrant, Plan, Planned, stage_task
from .search.samplers import Winner
from .search.trials import Search, TrialState
from .status import SweepStatus


@dataclass
class Entry:
    """A job of the sweep and its state.

    Attributes:
        planned: the job, with the driver's objects.
        state: `stopped` means interrupted with its state saved; the next start continues it.
        reason: why it failed.
        attempts: how often its process has died.
        mine: whether this shard does it.
    """

    planned: Planned
    state: TrialState = "to do"
    reason: str = ""
    attempts: int = 0
    mine: bool = True

    @property
    def job(self) -> Job:
        """The job."""
        return self.planned.job


class Queue:
    """The jobs of a sweep, from which every runner pulls; not thread-safe.

    A job is handed out only when everything that it depends on is in the store.

    Args:
        plan: the plan of the sweep.
        max_failures: how often a job is offered again after its process died.
        shard: (i, n): hand out only the i-th (from 1) of n parts of the runs, with their
            dependencies; other processes do the rest.
        fresh: remove the final runs and their fits when the sweep begins; see `start_over`.
        own: repeat final runs that came in packs; see `make_here`.
    """

    # A fit that several runs depend on is a job of its own, unless one of these runs trains it
    # anyway. So no trial holds a slot (and a GPU) while it waits for another one, and a single slot
    # finishes any plan. The store is the truth: the state here is derived from it at every start,
    # and nothing of it is saved. That is why the same command continues a sweep after any crash.

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
        #: Runs to forget when the sweep begins; None once it has begun. Until then they only count
        #: as missing, so that `--dry-run` deletes nothing.
        self._to_forget: list[Planned] | None = []
        self.fresh, self.own = fresh, own
        self._entries: dict[str, Entry] = {}
        self._costs: Costs | None = None
        self._known_seconds: dict[str, float | None] = {}
        self._status = SweepStatus(
            plan.entrants[0].experiment.store, keep_logits=plan.spec.keep_logits
        )
        entrants = plan.entrants if plan.spec.has_search else []
        shared = shard[1] > 1
        self.searches = [
            Search(plan, entrant, self._status, self._state, shared=shared) for entrant in entrants
        ]
        if not self.searches:
            self._add_finals([(entrant, entrant.method, None) for entrant in plan.entrants])
        self._conclude()
        if shared:
            self._refresh()

    def begin(self) -> None:
        """Remove the runs that `fresh` or `own` asks to repeat; call it once, before `take`."""
        for planned in self._to_forget or ():
            self._start_over(planned)
        self._to_forget = None
        self._status.forgotten.clear()

    def take(self) -> Job | None:
        """Return the next job to start, which then counts as running.

        Returns:
            None if no job is ready, or none is left; see `over`.
        """
        entry = self._next()
        if entry is None and not self.running:
            # Nothing of ours is running, so whatever jobs wait for can only come from another
            # process on the same store.
            self._refresh()
            entry = self._next()
        if entry is None:
            return None
        entry.state = "running"
        return entry.job

    def settle(self, job_id: str, outcome: JobResult) -> None:
        """Record how an attempt at a job ended.

        A job that was lost is put back, up to the limit of failures; one that was cancelled waits
        for the next start of the sweep. When the last search trial of a method settles, its final
        runs are added with the best parameters on id-val. A failed stage fails its dependents, with
        the reason.

        Args:
            job_id: id of a running job.
            outcome: how the attempt ended.
        """
        entry = self._entries[job_id]
        self._status.refresh(entry.job.fit_id)
        self._status.has(entry.job.fit_id)
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
        # The word of a trial is not enough: on a cluster it may have written to another disk.
        elif self._status.done(entry.planned):
            entry.state = "done"
        else:
            self._fail(
                entry,
                "the trial succeeded, but its result is not in the store. Do all nodes share the"
                " same store?",
            )
        if self._costs is not None:
            # Only these fits have changed. The files of all others need not be read again, which
            # would take long on a file server.
            for under_way in [entry, *self.running]:
                self._costs.refresh(under_way.job.fit_id)
            if entry.state == "done":
                self._costs.add_finished(entry.planned)
            self._known_seconds.clear()
        self._conclude()

    @property
    def over(self) -> bool:
        """Whether nothing is running, and nothing is left to do in this start."""
        return self.count("to do", "running") == 0

    @property
    def unfinished(self) -> bool:
        """Whether something is left to do, in this start or the next one."""
        return self.count("to do", "running", "stopped") > 0 or self.finals_to_come > 0

    def leave_failed(self) -> None:
        """Give up search trials that failed in an earlier start, instead of trying them again."""
        # For `--print-commands`: a trial that fails every time would otherwise keep the final runs
        # from ever being printed. Repeated, since each failure may lead to further trials.
        while [
            entry
            for entry in self
            if entry.job.phase in ("rung", "search") and self._failed_before(entry)
        ]:
            self._conclude()

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    @property
    def jobs(self) -> list[Job]:
        """All jobs known so far."""
        return [entry.job for entry in self]

    @property
    def running(self) -> list[Entry]:
        """The jobs that are running."""
        return [entry for entry in self if entry.state == "running"]

    def count(self, *states: TrialState) -> int:
        """Return the number of this shard's jobs in any of these states."""
        return sum(entry.mine and entry.state in states for entry in self)

    @property
    def finals_to_come(self) -> int:
        """The number of final runs that are not planned yet, since their search is not over."""
        return sum(not search.over for search in self.searches) * len(self.plan.spec.seeds)

    @property
    def to_come(self) -> int:
        """The number of jobs that are not planned yet, since they depend on results.

        Jobs of trials that ASHA may promote are not counted.
        """
        return self.finals_to_come + sum(search.trials_to_come for search in self.searches)

    @property
    def elsewhere(self) -> int:
        """The number of jobs of other shards that are not done."""
        return sum(not entry.mine and entry.state == "to do" for entry in self)

    def ahead(self) -> Ahead:
        """Estimate the time of this shard's jobs that have not started."""
        return ahead(self, self.costs)

    def evaluation(self, job: Job) -> float | None:
        """Return the seconds of a job's evaluation, 0 if it has none; None if unknown."""
        return self.costs.evaluation(self._entries[job.id].planned, self.plan.spec.limit)

    def observe(self, job: Job, seconds: float) -> bool:
        """Use the rate of a running job for the estimates of its kind; see `Costs.observe`.

        Args:
            job: a running job.
            seconds: expected seconds of its whole fit at the present rate.

        Returns:
            Whether the time of this kind was unknown before.
        """
        is_new = self.costs.observe(self._entries[job.id].planned, seconds)
        if is_new:
            self._known_seconds.clear()
        return is_new

    @property
    def costs(self) -> Costs:
        """The times of earlier fits and evaluations, read from the store when first needed."""
        if self._costs is None:
            self._costs = Costs(self.plan.entrants[0].experiment.store)
        return self._costs

    def waits_for(self, entry: Entry) -> list[Entry]:
        """Return the jobs that have to be done before a job can start."""
        if entry.state != "to do":
            return []
        missing = self._missing(entry.job)
        return [other for other in self if other.job.fit_id in missing and other.state != "failed"]

    def status_of(self, entry: Entry) -> RunStatus | None:
        """Return what executing a run would do; None for other jobs and for failed runs."""
        planned = entry.planned
        if entry.reason or planned.path is None or not planned.job.is_run:
            return None
        return status_of(
            planned.experiment,
            planned.method,
            planned.path.parent,
            curve=planned.job.curve,
            keep_logits=self.plan.spec.keep_logits and planned.job.phase == "final",
            own=self.own and planned.final,
            fresh=self.fresh and planned.final,
        )

    def _next(self) -> Entry | None:
        waiting = [
            entry for entry in self._entries.values() if entry.mine and entry.state == "to do"
        ]
        training = {entry.job.fit_id for entry in self.running}
        built_on: dict[str, list[Job]] = defaultdict(list)
        ready = []
        for entry in waiting:
            made, missing = entry.job.fit_id in self._status.fits, self._missing(entry.job)
            for fit_id in missing:
                built_on[fit_id].append(entry.job)
            # Another process on the same store may have trained the stage.
            if made and entry.job.phase == "stage":
                entry.state = "done"
            # Two jobs with the same fit run one after the other: the second would only hold a slot
            # while it waits for the lease of the first.
            elif not missing and (made or entry.job.fit_id not in training):
                ready.append(entry.job)
        if len(ready) > 1:
            todo, slots = [entry.job for entry in waiting], len(self.running) + 1
            ready = in_order(ready, todo, built_on, slots, self.plan.spec.seeds, self._seconds)
        entries = [self._entries[job.id] for job in ready]
        here = next((entry for entry in entries if not self._elsewhere(entry)), None)
        # A fit that another process is training can only be waited for, so such a job starts when
        # there is nothing else to do.
        return here if here is not None or training or not entries else entries[0]

    def _seconds(self, job: Job) -> float | None:
        """Return the expected seconds of a job, cached until estimates change."""
        if job.id not in self._known_seconds:
            self._known_seconds[job.id] = self.costs.of(
                self._entries[job.id].planned, self.plan.spec.limit
            )
        return self._known_seconds[job.id]

    def _missing(self, job: Job) -> set[str]:
        """Return the fits that have to be in the store before a job can start."""
        # To evaluate a fit that is there takes no other fit, except for a curve, whose ends may be
        # other fits.
        return (
            set()
            if job.fit_id in self._status.fits and not job.curve
            else set(job.needs) - self._status.fits
        )

    def _elsewhere(self, entry: Entry) -> bool:
        """Whether another process is training the fit of a job."""
        store = entry.planned.experiment.store
        return entry.job.fit_id not in self._status.fits and is_live(
            store.fit_dir(entry.job.fit_id)
        )

    def _refresh(self) -> None:
        """Read from the store what other processes have done in the meantime."""
        for entry in self:
            if entry.state == "to do":
                for fit_id in entry.job.needs:
                    self._status.has(fit_id)
                self._status.refresh(entry.job.fit_id)
                # Our own failures are tried again. One of another shard counts, since a search
                # would otherwise wait for it forever.
                if not entry.mine and self._status.done(entry.planned):
                    entry.state = "done"
                elif not entry.mine:
                    self._failed_before(entry)
        self._conclude()

    def _failed_before(self, entry: Entry) -> bool:
        """Mark a job as failed if the store has a record of its failure; return whether it has."""
        if entry.state != "to do" or not (error := self._status.failure(entry.planned)):
            return False
        entry.state, entry.reason = "failed", error
        return True

    def _add(self, planned: Planned) -> Entry:
        if planned.job.id not in self._entries:
            entry = self._entries[planned.job.id] = Entry(planned)
            if self._forget is not None and planned.final:
                if self._to_forget is None:
                    self._start_over(planned)
                else:
                    self._to_forget.append(planned)
                    self._status.forget(planned, fit=self.fresh)
            if planned.job.phase != "stage":
                # By a hash of the result, so that all shards divide the runs in the same way, no
                # matter which of them each one has planned so far. Stages are everybody's: a shard
                # that needs one trains it, or waits for the lease of the one that does.
                number = int(planned.job.id.split("-")[1], 16)
                entry.mine = number % self._shard[1] == self._shard[0] - 1
            self._status.has(planned.job.fit_id)
            if self._status.done(planned):
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

    def _add_dependencies(self) -> None:
        """Add a job for every missing fit that a job depends on, unless another job makes it."""
        # Jobs of this shard only, so that no shard waits for another one's result.
        todo = [entry for entry in self if entry.mine and entry.state == "to do"]
        while todo:
            entry = todo.pop()
            if entry.job.fit_id in self._status.fits and not entry.job.curve:
                continue
            for stage in dependencies(entry.planned.experiment, entry.planned.method):
                planned = stage_task(entry.planned, stage)
                if not self._status.has(planned.job.fit_id) and not self._makers(
                    planned.job.fit_id
                ):
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

    def _add_finals(self, chosen: list[tuple[Entrant, Method, Winner | None]]) -> None:
        # Seed by seed: an interrupted sweep then has complete seeds of all methods, rather than all
        # seeds of a few.
        for seed in self.plan.spec.seeds:
            for entrant, method, found in chosen:
                self._add(self.plan.final(entrant, method, seed, found))

    def _state(self, job_id: str) -> tuple[TrialState, str]:
        """Return the state of a job, and why it failed."""
        return self._entries[job_id].state, self._entries[job_id].reason

    def _conclude(self) -> None:
        """Advance every search as far as results allow, and add final runs where one is over."""
        # Trial by trial, not method by method: stages that methods share are then close together.
        while sum(self._step(search) for search in self.searches):
            pass
        chosen: list[tuple[Entrant, Method, Winner | None]] = []
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
        self._add_dependencies()

    def _step(self, search: Search) -> int:
        """Add the jobs that a search can start now, and return their number."""
        return len([self._add(planned) for planned in search.step()])

    def _fail(self, entry: Entry, reason: str) -> None:
        """Mark a job and its dependents as failed, each run with a record of the reason."""
        entry.state, entry.reason = "failed", reason
        job, planned = entry.job, entry.planned
        if job.phase != "stage":
            try:
                record = self._status.record(planned)
                if record is None or record.status != "failed":
                    record_failure(
                        planned.experiment,
                        planned.method,
                        reason,
                        limit=self.plan.spec.limit,
                        search=job.phase != "final",
                    )
            except (BenchError, Interrupted) as error:
                # A full disk, perhaps: the sweep goes on, and the reason is still shown.
                entry.reason += f" (and its record could not be written: {error.what})"
        # Dependents may still get the fit: it is there (only the evaluation failed), or another job
        # makes it.
        if job.phase == "rung" or self._status.has(job.fit_id) or self._makers(job.fit_id):
            return
        for other in self:
            if other.state == "to do" and job.fit_id in self._missing(other.job):
                self._fail(
                    other, f"{job.label} (seed {job.seed}), which it depends on, failed: {reason}"
                )

    def _fail_finals(self, search: Search, reason: str) -> None:
        for seed in self.plan.spec.seeds:
            entry = self._add(self.plan.final(search.entrant, search.entrant.method, seed, None))
            if entry.state != "done" and entry.mine:
                self._fail(entry, reason)
