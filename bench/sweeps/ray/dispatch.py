"""Dispatch the jobs of a sweep with Ray Tune, one Tune trial per attempt at a job."""

# Tune places trials on nodes and notices when one dies; everything else is ours. A searcher takes
# jobs from the queue as they become ready, and a callback settles them. Tune's schedulers, retries,
# checkpoints and restores are not used: they would work with this runner only, and their state dies
# with the driver or contradicts the store, which is the only truth.

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...stopping import Reporter
from ..job import Job, JobResult, Resources
from ..queue import Queue
from ..worker import Work
from .session import carried
from .trial import EventQueue, do

#: Seconds between two reads of the trials' events; short enough for a progress bar.
_READ = 0.25


# Not an Exception, since Tune would catch one and clean up, which waits for trials.
class Leave(BaseException):
    """The signal to leave Tune's loop at once, since no trial has to be waited for."""


@dataclass
class _Attempt:
    """A trial of Tune: its job, and the time at which its process began the job, if it has."""

    job: Job
    began: float | None = None


class Dispatch:
    """The state that Tune's searcher and callback share in the driver.

    Args:
        queue: the jobs to take and settle.
        work: settings that all trials share.
        reporter: receives the trials' events.
        slots: number of trials for which there is room now.
        most: largest number of trials at once; None: no limit.
    """

    def __init__(
        self, queue: Queue, work: Work, reporter: Reporter, slots: int, most: int | None
    ) -> None:
        self.queue, self.work, self.reporter = queue, work, reporter
        self.slots, self.most = slots, most
        # On the driver's node: an actor elsewhere would take the stop signal with it if its node
        # died.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = EventQueue.options(scheduling_strategy=here)  # type: ignore[attr-defined]
        self.events = actor.remote()
        self.attempts: dict[str, _Attempt] = {}
        #: The signal that was forwarded to the trials, or 0.
        self._forwarded = 0
        #: A read of the events that has not been answered yet.
        self._pending: Any = None
        self._read_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles searcher and callback for a restore that never happens.
        return {}

    def next(self, attempt: str) -> Job | None:
        """Take a job for a new attempt.

        Args:
            attempt: Tune's id of the trial.

        Returns:
            None if no job is ready, or enough attempts are waiting for a process.
        """
        waiting = sum(one.began is None for one in self.attempts.values())
        # At least one attempt waits even if there is no room, so that a node that joins finds
        # something to do, and an autoscaler sees demand. No more, since a job that is taken early
        # is taken before its turn.
        if (
            waiting >= max(1, self.slots - (len(self.attempts) - waiting))
            or len(self.attempts) == self.most
        ):
            return None
        job = self.queue.take()
        if job is not None:
            self.attempts[attempt] = _Attempt(job)
        return job

    def turn(self) -> None:
        """Forward a requested stop, and report new events; called about ten times a second.

        Raises:
            Leave: the stop is complete, or is not to be waited for.
        """
        if self.reporter.stop and not self._forwarded:
            self._forwarded = self.reporter.stop
            self.events.request_stop.remote(self._forwarded)
        self.read()
        # Attempts that have not begun have nothing to save.
        if self.reporter.now or (
            self._forwarded and all(one.began is None for one in self.attempts.values())
        ):
            raise Leave

    def read(self) -> None:
        """Report events that trials have posted, without waiting for new ones."""
        # Two steps, since a call to an actor takes milliseconds, and Tune's loop waits meanwhile.
        if self._pending is None and time.monotonic() - self._read_at > _READ:
            self._pending, self._read_at = self.events.read.remote(), time.monotonic()
        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            answer, self._pending = self._pending, None
            self._report(ray.get(answer))

    def _report(self, events: list[tuple[str, str, dict[str, Any]]]) -> None:
        for attempt, kind, fields in events:
            # An event may arrive after its attempt was settled as lost.
            one = self.attempts.get(attempt)
            if one is None:
                continue
            if kind == "started":
                one.began = time.monotonic()
                self.reporter.event("started", job=one.job, where=fields["where"])
            else:
                self.reporter.event(kind, job=one.job, **fields)

    def settle(self, attempt: str, outcome: JobResult | None, error: str = "") -> None:
        """Settle an attempt that has ended.

        Args:
            attempt: Tune's id of the trial.
            outcome: how it ended; None if its process died.
            error: why the process died.
        """
        # Its last events are reported before its end.
        if self._pending is not None:
            self._report(ray.get(self._pending))
            self._pending = None
        self._report(ray.get(self.events.read.remote()))
        one = self.attempts.pop(attempt)
        seconds = 0.0 if one.began is None else time.monotonic() - one.began
        patience = self.work.patience
        # A process that died about when its patience ended has killed itself because it hung. The
        # margin of half a grace period covers that this clock started later than the trial's own.
        if outcome is None and patience is not None and seconds > patience - self.work.grace / 2:
            outcome = JobResult("failed", self.work.hung, seconds)
        outcome = outcome or JobResult("lost", error, seconds)
        self.queue.settle(one.job.id, outcome)
        if one.began is not None or outcome.status != "cancelled":
            self.reporter.event("settled", job=one.job, outcome=outcome)


class QueueSearcher(Searcher):
    """A Tune searcher that suggests the jobs of the queue as they become ready."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    # Ray declares a dictionary, and takes the text FINISHED too.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the configuration of a trial; None while no job is ready; FINISHED at the end."""
        # While no trial runs, Tune's loop calls this and no callback.
        self._dispatch.turn()
        if self._dispatch.reporter.stop or self._dispatch.queue.over:
            return str(Searcher.FINISHED)
        job = self._dispatch.next(trial_id)
        return None if job is None else {"attempt": trial_id, "job": job.as_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the callback settles trials, since it also sees why one died."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store has all state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the store has all state."""


class QueueCallback(tune.Callback):
    """A Tune callback that settles attempts, and reports events between Tune's steps."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Report events and forward a stop after each step of Tune's loop."""
        self._dispatch.turn()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Settle a trial that returned; one without a result was stopped before it began."""
        values = trial.last_result.get("outcome") if trial.last_result else None
        self._dispatch.settle(
            trial.config["attempt"], JobResult(**values) if values else JobResult("cancelled")
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Settle a trial whose process died, or could not be started."""
        self._dispatch.settle(trial.config["attempt"], *_ended(trial))


def dispatch(
    queue: Queue, work: Work, reporter: Reporter, resources: Resources, slots: int, folder: Path
) -> None:
    """Run Tune until the queue is over or a requested stop is complete.

    Args:
        queue: the jobs to take and settle.
        work: settings that all trials share.
        reporter: receives the trials' events.
        resources: resources of a trial; `gpus` is not None.
        slots: number of trials for which there is room now.
        folder: temporary folder on the driver's machine, which Tune requires.
    """
    shared = Dispatch(queue, work, reporter, slots, resources.most)
    environment, events = carried(), shared.events

    # Ray pickles this function with everything that it uses, so it must not refer to `shared`.
    def trial(config: dict[str, Any]) -> dict[str, Any]:
        return {
            "outcome": do(
                Job.from_json(config["job"]),
                config["attempt"],
                work,
                resources,
                environment,
                events,
            )
        }

    bundle = resources.bundle
    where: dict[str, Any] = (
        {"bundle_label_selector": [dict(resources.labels)]} if resources.labels else {}
    )
    # As many trials may start at the same time as there are slots. With a searcher Tune's default
    # is one, and starting a process takes seconds.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    tuner = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([bundle], **where)),
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(shared),
            # Until the searcher returns FINISHED.
            num_samples=-1,
            # A process does one job after another, since importing torch takes seconds.
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), callbacks=[QueueCallback(shared)], verbose=0
        ),
    )
    try:
        tuner.fit()
    except Leave:
        for attempt in shared.attempts.values():
            queue.settle(attempt.job.id, JobResult("cancelled"))
    finally:
        os.environ.pop("TUNE_MAX_PENDING_TRIALS_PG", None)


def _name(trial: Any) -> str:
    return f"{trial.config['job']['id']}-{trial.trial_id}"


def _ended(trial: Any) -> tuple[JobResult | None, str]:
    """Return how a trial without a result ended: failed if its code raised, else None and why."""
    # The difference matters: an exception would be raised again, but a process that was killed is
    # worth another attempt.
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError):
        error = None
    if isinstance(error, RayTaskError):
        return JobResult("failed", f"{type(error.cause).__name__}: {error.cause}"), ""
    first = next(iter(str(error or "").strip().splitlines()), "Ray gives no reason")
    return None, f"its process or its machine died: {first}"
