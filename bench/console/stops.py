"""Ctrl-C and SIGTERM: the first asks to stop and is acknowledged at once, the second ends the
process whatever it is doing.

Python runs a signal's handler between two of its own steps, so not while one call (a backward pass,
a sum over an archive) takes minutes. The numbers of signals therefore also go through a pipe, at
whose other end a thread listens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Self

from ..errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds in which a main thread that is not in the middle of a long call has heard of a signal,
#: and what ends soon has ended.
_PROMPT = 0.5
#: Seconds that are left to one that ends what it has started by itself, after a second signal.
_GRACE = 10.0


def _write(text: str) -> None:
    os.write(2, f"{text}\n".encode())


@dataclass(frozen=True)
class Ear:
    """Who is told of a stop, from the listening thread.

    Attributes:
        say: prints a line that stays on the screen, whatever is painted there.
        close: gives the terminal back.
        ask: told the number of the first signal; None: `Interrupted` is raised in the main thread
            instead.
        hurry: told of the second signal, and expected to end everything soon; None: the process is
            ended.
        stopping: what is said at the first signal.
    """

    say: Callable[[str], None] = _write
    close: Callable[[], None] = lambda: None
    ask: Callable[[int], None] | None = None
    hurry: Callable[[], None] | None = None
    stopping: str = "stopping when this step ends (once more to stop at once)"


class Stops:
    """Listens to signals for as long as the block runs, which has to be in the main thread;
    handlers are put back at its end.
    """

    def __init__(self) -> None:
        self._ears = [Ear()]
        self._first = 0
        self._count = 0
        #: How often the main thread came to run its handler.
        self._heard = 0
        self._last_resort: threading.Timer | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        global _installed
        reader, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._handlers = {
            number: signal.signal(number, self._in_main_thread) for number in _SIGNALS
        }
        self._wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        _installed = self
        return self

    def __exit__(self, *_: object) -> None:
        global _installed
        _installed = None
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._pipe)
        self._over.set()
        if self._last_resort is not None:
            self._last_resort.cancel()

    @contextlib.contextmanager
    def told(self, ear: Ear) -> Iterator[None]:
        """Tell `ear`, for as long as the block runs; also of a stop that an earlier one was asked
        for.
        """
        self._ears.append(ear)
        if self._first and ear.ask is not None:
            ear.ask(self._first)
        try:
            yield
        finally:
            self._ears.pop()

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        self._heard += 1
        if self._heard == 1 and self._ears[-1].ask is None:
            raise Interrupted("interrupted", signal=number)

    def _listen(self, reader: int) -> None:
        while numbers := os.read(reader, 16):
            for number in numbers:
                if number in _SIGNALS:
                    self._hear(number)
        os.close(reader)

    def _hear(self, number: int) -> None:
        ear = self._ears[-1]
        self._count += 1
        self._first = self._first or number
        if self._count == 1:
            if ear.ask is not None:
                ear.ask(number)
            if ear.ask is not None or not self._over.wait(_PROMPT):
                _aside(ear.say, ear.stopping)
        elif self._count == 2 and ear.hurry is not None and self._is_prompt():
            ear.hurry()
            _aside(ear.say, "stopping now")
            self._last_resort = threading.Timer(_GRACE, self._end, (number,))
            self._last_resort.daemon = True
            self._last_resort.start()
        else:
            self._end(number)

    def _is_prompt(self) -> bool:
        """Whether the main thread runs its handlers, and is not in the middle of a long call."""
        until = time.monotonic() + _PROMPT
        while self._heard < self._count and time.monotonic() < until:
            time.sleep(0.01)
        return self._heard >= self._count

    def _end(self, number: int) -> None:
        """End this process and all that it has started, and leave the terminal as it was."""
        _aside(self._ears[-1].close).join(1.0)
        _aside(
            _write, "stopped at once; what was saved before is kept, and the same command continues"
        ).join(1.0)
        _kill_children()
        os._exit(128 + number)


#: That of this process, if there is one.
_installed: Stops | None = None


@contextlib.contextmanager
def heard_by(ear: Ear) -> Iterator[None]:
    """Have signals told to `ear` for as long as the block runs. Outside the main thread, signals
    are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as stack:
        stops = _installed or stack.enter_context(Stops())
        stack.enter_context(stops.told(ear))
        yield


def _aside(work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Do something that writes to the terminal, which may be stopped or gone: nobody has to wait
    for it.
    """

    def quietly() -> None:
        with contextlib.suppress(OSError, ValueError):
            work(*arguments)

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


def _kill_children() -> None:
    """All processes below this one, but for the one that frees what they leave in shared memory,
    which ends by itself.
    """
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in argument for argument in process.cmdline()):
                process.kill()


def _leave_signals_to_the_parent() -> None:
    """A forked child shares the pipe, and would have one Ctrl-C counted twice."""
    if _installed is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
