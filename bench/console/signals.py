"""Handle Ctrl-C and SIGTERM: the first requests a stop, the second ends the process.

Python runs a signal handler between two bytecodes, so not during a single call (a backward pass, a
checksum of an archive), which may take minutes. The numbers of signals therefore also go through a
pipe (`signal.set_wakeup_fd`), and a thread reads its other end. So the first signal is acknowledged
at once, and the second ends the process whatever the main thread is doing.
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
#: Seconds after which a main thread that has not run its handler is taken to be in a long call.
#: Also the time in which short work ends by itself and needs no acknowledgement.
_PROMPT = 0.5
#: Seconds that `StopHandler.hurry` has to end what it started, after the second signal. Then the
#: process is ended.
_GRACE = 10.0


def _write(text: str) -> None:
    # Not `print`: the main thread may hold the lock of the stream when the process is ended.
    os.write(2, f"{text}\n".encode())


@dataclass(frozen=True)
class StopHandler:
    """The callbacks for signals. They are called in the listening thread.

    Attributes:
        say: Prints a line above whatever display the terminal shows.
        close: Restores the terminal.
        ask: Called with the number of the first signal. If None, `Interrupted` is raised in the
            main thread instead.
        hurry: Called at the second signal; should end all work within seconds. If None, the process
            is ended.
        stopping: Message at the first signal.
    """

    say: Callable[[str], None] = _write
    close: Callable[[], None] = lambda: None
    ask: Callable[[int], None] | None = None
    hurry: Callable[[], None] | None = None
    stopping: str = "stopping when this step ends (press Ctrl-C again to stop at once)"


class Stops:
    """A context manager that handles signals, and restores the earlier handlers at its end.

    It must be entered in the main thread, where Python allows handlers to be set.
    """

    def __init__(self) -> None:
        # The last one is in charge: a command's display replaces the callbacks of `main`.
        self._listening = [StopHandler()]
        self._first = 0
        # Signals that the listening thread has read, and calls of the handler in the main thread.
        # While the second number is smaller, the main thread is in a long call.
        self._received = 0
        self._handled = 0
        self._last_resort: threading.Timer | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        global _installed
        # Python requires a non-blocking descriptor, as the write happens inside the C handler.
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
    def calling(self, handler: StopHandler) -> Iterator[None]:
        """Call the callbacks of `handler` as long as the block runs."""
        self._listening.append(handler)
        # A stop that was requested before the block began counts for the block too.
        if self._first and handler.ask is not None:
            handler.ask(self._first)
        try:
            yield
        finally:
            self._listening.pop()

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        # Only the first signal raises. A second exception could interrupt the cleanup that the
        # first one has started; the listening thread takes care of later signals.
        self._handled += 1
        if self._handled == 1 and self._listening[-1].ask is None:
            raise Interrupted("interrupted", signal=number)

    def _listen(self, reader: int) -> None:
        # Each signal is one byte, its number; `__exit__` closes the writing end, which ends this.
        while numbers := os.read(reader, 16):
            for number in numbers:
                # The pipe gets every signal with a Python handler, also those of other libraries.
                if number in _SIGNALS:
                    self._handle(number)
        os.close(reader)

    def _handle(self, number: int) -> None:
        handler = self._listening[-1]
        self._received += 1
        self._first = self._first or number
        if self._received == 1:
            if handler.ask is not None:
                handler.ask(number)
            # Without `ask`, the main thread is raising `Interrupted`. A message is only of use if
            # that takes longer than a moment.
            if handler.ask is not None or not self._over.wait(_PROMPT):
                _in_background(handler.say, handler.stopping)
        elif self._received == 2 and handler.hurry is not None and self._is_responsive():
            # The main thread ends its trials itself, which is cleaner than killing them. Should it
            # fail to, the timer ends the process.
            handler.hurry()
            _in_background(handler.say, "stopping now")
            self._last_resort = threading.Timer(_GRACE, self._end, (number,))
            self._last_resort.daemon = True
            self._last_resort.start()
        else:
            self._end(number)

    def _is_responsive(self) -> bool:
        """Whether the main thread runs its handlers, and is not in a long call."""
        until = time.monotonic() + _PROMPT
        while self._handled < self._received and time.monotonic() < until:
            time.sleep(0.01)
        return self._handled >= self._received

    def _end(self, number: int) -> None:
        """End this process and its children, and restore the terminal."""
        # A terminal that is gone must not delay the end, hence the time limits. `os._exit`, since
        # `sys.exit` would only end this thread; 128 plus the signal's number is what shells report.
        _in_background(self._listening[-1].close).join(1.0)
        _in_background(
            _write, "stopped at once; saved work is not lost, and the same command continues"
        ).join(1.0)
        _kill_children()
        os._exit(128 + number)


#: The handler of this process. Signal handlers belong to the process, so there is at most one.
_installed: Stops | None = None


@contextlib.contextmanager
def handled_by(handler: StopHandler) -> Iterator[None]:
    """Call the callbacks of `handler` on signals as long as the block runs.

    In another thread than the main one, this does nothing: signals are the main thread's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as stack:
        stops = _installed or stack.enter_context(Stops())
        stack.enter_context(stops.calling(handler))
        yield


def _in_background(work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Write to the terminal in a thread of its own, since a stopped terminal blocks the writer."""

    def quietly() -> None:
        with contextlib.suppress(OSError, ValueError):
            work(*arguments)

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


def _kill_children() -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # Python's resource tracker frees the shared memory that killed processes leave, and
            # then ends by itself.
            if not any("resource_tracker" in argument for argument in process.cmdline()):
                process.kill()


def _leave_signals_to_the_parent() -> None:
    # A forked child inherits the pipe, and Ctrl-C reaches the whole process group: without this,
    # one Ctrl-C would be counted twice. SIGTERM still ends a child, since that is how it is
    # stopped.
    if _installed is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
