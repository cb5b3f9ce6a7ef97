"""Where progress goes, and how a stop that was asked for is obeyed."""

from __future__ import annotations

from typing import Any, Protocol

from .errors import Interrupted


class Reporter(Protocol):
    """Where progress goes, and whether a stop was asked for."""

    @property
    def stop(self) -> int:
        """Number of a signal that asked to stop, or 0."""
        ...

    def event(self, kind: str, **fields: Any) -> None:
        """Tell that something happened (`step`, `epoch`, `resumed`, ...)."""


class Silent:
    """A reporter that tells nothing."""

    stop = 0

    def event(self, kind: str, **fields: Any) -> None:
        """Ignore."""


def stop_if_asked(reporter: Reporter) -> None:
    """Call between two pieces of long work, when everything worth keeping is saved.

    Raises:
        Interrupted: a stop was asked for.
    """
    if reporter.stop:
        raise Interrupted("stopped; the state is saved", fix="run the same command again: it continues", signal=reporter.stop)
