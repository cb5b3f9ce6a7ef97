"""Ray Tune as the dispatcher: its searcher takes jobs from the queue, its callback settles them,
one trial per attempt.
"""

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
from ..job import Job, Outcome, Resources
from ..queue import Queue
from ..work import Work
from .session import carried
from .trial import Board, do

#: Seconds between two readings of the board.
_READ = 0.25


class Leave(BaseException):
    """Leave Tune's loop without its cleaning up: nothing runs that has something to save, or it is
    not to be waited for.
    """


@dataclass
class _Attempt:
    """A trial of Tune's: its job, and when its process began, if it has."""

    job: Job
    began: float | None = None


class Dispatch:
    """What searcher and callback share. Tune pickles them for a restore that never happens; this
    stays in the driver.
    """

    def __init__(
        self, queue: Queue, work: Work, reporter: Reporter, slots: int, most: int | None
    ) -> None:
        self.queue, self.work, self.reporter, self.slots, self.most = (
            queue,
            work,
            reporter,
            slots,
            most,
        )
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self.attempts: dict[str, _Attempt] = {}
        self._told = 0
        self._news: Any = None
        self._read_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def next(self, attempt: str) -> Job | None:
        """A job for a new attempt, if one is ready and may start."""
        wanted = sum(one.began is None for one in self.attempts.values())
        # One more than there is room for: a node that joins, or an autoscaler, finds something to
        # do.
        if (
            wanted >= max(1, self.slots - (len(self.attempts) - wanted))
            or len(self.attempts) == self.most
        ):
            return None
        job = self.queue.take()
        if job is not None:
            self.attempts[attempt] = _Attempt(job)
        return job

    def turn(self) -> None:
        """Called about ten times a second: pass on a stop, and tell what trials posted."""
        if self.reporter.stop and not self._told:
            self._told = self.reporter.stop
            self.board.ask_to_stop.remote(self._told)
        self.read()
        if self.reporter.now or (
            self._told and all(one.began is None for one in self.attempts.values())
        ):
            raise Leave

    def read(self) -> None:
        """Tell what trials posted, without waiting for the answer."""
        if self._news is None and time.monotonic() - self._read_at > _READ:
            self._news, self._read_at = self.board.read.remote(), time.monotonic()
        if self._news is not None and ray.wait([self._news], timeout=0)[0]:
            news, self._news = self._news, None
            self._tell(ray.get(news))

    def _tell(self, news: list[tuple[str, str, dict[str, Any]]]) -> None:
        for attempt, kind, fields in news:
            one = self.attempts.get(attempt)
            if one is None:
                continue
            if kind == "started":
                one.began = time.monotonic()
                self.reporter.event("started", job=one.job, where=fields["where"])
            else:
                self.reporter.event(kind, job=one.job, **fields)

    def settle(self, attempt: str, outcome: Outcome | None, error: str = "") -> None:
        """An attempt ended: with an outcome, or with its process."""
        # Its last words come before its end.
        if self._news is not None:
            self._tell(ray.get(self._news))
            self._news = None
        self._tell(ray.get(self.board.read.remote()))
        one = self.attempts.pop(attempt)
        seconds = 0.0 if one.began is None else time.monotonic() - one.began
        patience = self.work.patience
        # The trial's own clock ended it; this one began when the driver heard of its start.
        if outcome is None and patience is not None and seconds > patience - self.work.grace / 2:
            outcome = Outcome("failed", self.work.hung, seconds)
        outcome = outcome or Outcome("lost", error, seconds)
        self.queue.settle(one.job.id, outcome)
        if one.began is not None or outcome.status != "cancelled":
            self.reporter.event("settled", job=one.job, outcome=outcome)


class QueueSearcher(Searcher):
    """Suggests ready jobs: a stage's dependents appear when it has settled, so that no trial waits
    while it holds a slot.
    """

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a text
        """A trial's configuration; None while nothing is ready; FINISHED at the end."""
        # While nothing runs, Tune's loop asks for trials and does nothing else
        self._dispatch.turn()
        if self._dispatch.reporter.stop or self._dispatch.queue.over:
            return str(Searcher.FINISHED)
        job = self._dispatch.next(trial_id)
        return None if job is None else {"attempt": trial_id, "job": job.as_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The callback settles, since it also sees why a trial died."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the store is the truth."""


class QueueCallback(tune.Callback):
    """Settles attempts, and lets the driver breathe between Tune's steps."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop went around once."""
        self._dispatch.turn()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial returned (or was stopped before it began)."""
        values = trial.last_result.get("outcome") if trial.last_result else None
        self._dispatch.settle(
            trial.config["attempt"], Outcome(**values) if values else Outcome("cancelled")
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, or Ray could not start it."""
        self._dispatch.settle(trial.config["attempt"], *_ended(trial))


def dispatch(
    queue: Queue, work: Work, reporter: Reporter, resources: Resources, slots: int, folder: Path
) -> None:
    """Run Tune until the queue is over or a stop was asked for.

    Args:
        resources: with `gpus` decided.
        slots: for how many trials there is room now.
        folder: of the driver's machine; Tune insists on one, and what it writes there is never
            read.
    """
    shared = Dispatch(queue, work, reporter, slots, resources.most)
    environment, board = carried(), shared.board

    def trial(config: dict[str, Any]) -> dict[str, Any]:
        return {
            "outcome": do(
                Job.from_json(config["job"]), config["attempt"], work, resources, environment, board
            )
        }

    bundle = resources.bundle
    where: dict[str, Any] = (
        {"bundle_label_selector": [dict(resources.labels)]} if resources.labels else {}
    )
    # As many actors may start at once as there are slots; Tune's own figure for a searcher is one.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    tuner = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([bundle], **where)),
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(shared),
            num_samples=-1,
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
            queue.settle(attempt.job.id, Outcome("cancelled"))
    finally:
        os.environ.pop("TUNE_MAX_PENDING_TRIALS_PG", None)


def _name(trial: Any) -> str:
    return f"{trial.config['job']['id']}-{trial.trial_id}"


def _ended(trial: Any) -> tuple[Outcome | None, str]:
    """How a trial ended that returned nothing: failed if its code raised, else lost (None) and
    why.
    """
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError):
        error = None
    if isinstance(error, RayTaskError):
        return Outcome("failed", f"{type(error.cause).__name__}: {error.cause}"), ""
    first = next(iter(str(error or "").strip().splitlines()), "Ray tells no reason")
    return None, f"its process or its machine died: {first}"
