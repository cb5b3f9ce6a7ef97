"""Progress reporting and graceful stops, and protection from plug-ins that end the process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from .errors import EndedByPlugin, Interrupted, UserFacingError


class Reporter:
    """A receiver of progress, and the flag that requests a stop. This one ignores all events.

    Attributes:
        stop: number of the signal that requested a stop, or 0. What runs saves its state, and
            nothing new is started.
        now: whether a second signal requested to stop at once, without saving.
    """

    # A flag that is polled, instead of an exception from a signal handler: that would come in the
    # middle of an optimiser step or a write.

    stop: int = 0
    now: bool = False

    def event(self, kind: str, **fields: Any) -> None:
        """Receive an event (`step`, `epoch`, `resumed`, ...).

        The events of a sweep have a field `job`: `started` (with `where`), the events of the job
        itself, and `settled` (with its `outcome`, after the queue was updated).
        """


class PassedOn(Reporter):
    """A reporter that forwards everything to another one; a base class for filters."""

    def __init__(self, to: Reporter) -> None:
        self.to = to

    @property
    def stop(self) -> int:  # type: ignore[override]
        """`stop` of the other reporter."""
        return self.to.stop

    @property
    def now(self) -> bool:  # type: ignore[override]
        """`now` of the other reporter."""
        return self.to.now

    def event(self, kind: str, **fields: Any) -> None:
        """Forward the event."""
        self.to.event(kind, **fields)


def stop_if_requested(reporter: Reporter) -> None:
    """Raise Interrupted if a stop was requested.

    Call it between two pieces of long work, after everything worth saving is saved.

    Raises:
        Interrupted: a stop was requested.
    """
    if reporter.stop:
        raise Interrupted(
            "stopped; the state is saved",
            fix="run the same command again to continue",
            signal=reporter.stop,
        )


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Turn a plug-in's attempt to end the process into an error.

    A context manager or decorator for code that calls a plug-in.

    Raises:
        EndedByPlugin: the plug-in called `sys.exit`, or raised KeyboardInterrupt without Ctrl-C.
        KeyboardInterrupt: Ctrl-C was pressed in a process that does not use our signal handlers.
    """
    # `sys.exit(0)` in a plug-in is the dangerous case: `except Exception` does not catch it, and
    # the command would end as a success with its runs missing.
    #
    # A KeyboardInterrupt has to be the user's to pass. The command line's handlers never raise one,
    # and Python's own handler, which programs that `import bench` have, gives no sign that it was
    # called. So for the duration of the outermost call it is replaced by `_press`, which sets a
    # flag first. A program's own handler may raise what it likes, and is trusted.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    if outermost := handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _press)
    try:
        yield
    except (Exception, UserFacingError, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (_pressed.is_set() or _may_raise(handler)):
            raise
        raise EndedByPlugin(error) from error
    finally:
        if outermost:
            _pressed.clear()
            signal.signal(signal.SIGINT, handler)


#: Set if Ctrl-C was pressed while `_press` stood in for Python's own handler.
_pressed = threading.Event()


def _press(number: int, frame: FrameType | None) -> None:
    _pressed.set()
    raise KeyboardInterrupt


def _may_raise(handler: Any) -> bool:
    """Return whether a handler is the calling program's own, which may raise KeyboardInterrupt."""
    known = handler is _press or handler is signal.default_int_handler
    return (
        callable(handler)
        and not known
        and not str(getattr(handler, "__module__", "")).startswith("bench.")
    )
