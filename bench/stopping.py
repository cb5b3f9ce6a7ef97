"""Where progress goes, how a stop that was asked for is obeyed, and that a plug-in's own exit is
none.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from .errors import EndedByPlugin, Interrupted, Told


class Reporter:
    """Where progress goes, and whether a stop was asked for. This one tells nothing: override what
    is wanted.

    Attributes:
        stop: number of a signal that asked to stop, or 0: what runs saves its state, and nothing
            new is started.
        now: whether a second signal asked to stop without saving anything.
    """

    stop: int = 0
    now: bool = False

    def event(self, kind: str, **fields: Any) -> None:
        """Tell that something happened (`step`, `epoch`, `resumed`, ...).

        A sweep tells of its jobs, with `job` among the fields: `started` (with `where`), whatever
        the job itself tells, and `settled` (with its `outcome`; the queue knows already what
        follows).
        """


class PassedOn(Reporter):
    """A reporter that passes everything on to another one."""

    def __init__(self, to: Reporter) -> None:
        self.to = to

    @property
    def stop(self) -> int:  # type: ignore[override]
        """As the other's."""
        return self.to.stop

    @property
    def now(self) -> bool:  # type: ignore[override]
        """As the other's."""
        return self.to.now

    def event(self, kind: str, **fields: Any) -> None:
        """Pass on."""
        self.to.event(kind, **fields)


def stop_if_asked(reporter: Reporter) -> None:
    """Call between two pieces of long work, when everything worth keeping is saved.

    Raises:
        Interrupted: a stop was asked for.
    """
    if reporter.stop:
        raise Interrupted(
            "stopped; the state is saved",
            fix="run the same command again: it continues",
            signal=reporter.stop,
        )


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Around code of a plug-in, which may raise anything: what is no Exception would end the
    process as if all were well.

    Raises:
        EndedByPlugin: it called `sys.exit`, or raised KeyboardInterrupt though nobody pressed
            Ctrl-C.
        KeyboardInterrupt: somebody did, in a process whose signals are not the command line's.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    if outermost := handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _press)
    try:
        yield
    except (Exception, Told, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (_pressed.is_set() or _may_raise(handler)):
            raise
        raise EndedByPlugin(error) from error
    finally:
        if outermost:
            _pressed.clear()
            signal.signal(signal.SIGINT, handler)


#: Whether Ctrl-C was pressed while Python's own handler would have told of it.
_pressed = threading.Event()


def _press(number: int, frame: FrameType | None) -> None:
    _pressed.set()
    raise KeyboardInterrupt


def _may_raise(handler: Any) -> bool:
    """Whether this is a handler of the caller's own, of which it is not known what it raises."""
    known = handler is _press or handler is signal.default_int_handler
    return (
        callable(handler)
        and not known
        and not str(getattr(handler, "__module__", "")).startswith("bench.")
    )
