"""The mutable state of a sweep: what is done, running, ready, waiting or blocked. Every runner pulls from it."""

from __future__ import annotations

from .job import Job, Outcome


class Queue:
    """Hands out jobs whose inputs are in the store, and learns how they ended. Not thread-safe: one process, one thread."""

    def take(self) -> Job | None:
        """The next job to start, which then counts as running; None while nothing is ready (or nothing is left: see `over`)."""
        raise NotImplementedError

    def settle(self, job_id: str, outcome: Outcome) -> None:
        """An attempt at a job ended.

        `lost` puts it back, up to the limit of failures, after which it is failed; `cancelled` puts it back for the next start of
        the sweep. When the last search trial of a method settles, its final runs are added with the parameters that did best
        on id-val. A failed stage fails what needs it, with the reason.
        """
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """Nothing is running, and nothing will be ready any more."""
        raise NotImplementedError
