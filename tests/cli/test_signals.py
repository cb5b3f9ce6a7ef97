"""Ctrl-C and SIGTERM while one call computes for minutes: the first is acknowledged at once, the
second ends everything.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

#: Waits in one call for ever: no signal interrupts the second lock of a mutex, and other threads go
#: on meanwhile.
STUCK = """
import ctypes
from pathlib import Path
import torch
from bench import FineTuner
def get_stuck(marker):
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    Path(marker).touch()
    libc.pthread_mutex_lock(mutex)
class Stuck(FineTuner):
    name = "stuck"
    marker: str = "MARKER"
    def loss(self, batch, student, teacher, constants):
        if batch.step == 5:
            get_stuck(f"{self.marker}-{__import__('os').getpid()}")
        return torch.nn.functional.cross_entropy(student(batch.images), batch.labels)
"""
PATIENCE = 120.0
pytestmark = pytest.mark.waits


class Terminal:
    """A command on a terminal of its own, in a process group of its own."""

    def __init__(self, command: list[str]) -> None:
        self._leader, follower = pty.openpty()
        settings = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=follower,
            env=settings,
            start_new_session=True,
        )
        os.close(follower)
        self.shown = ""

    def read(self, seconds: float) -> None:
        """Take in what is written within some time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and select.select(
            [self._leader], [], [], left
        )[0]:
            try:
                self.shown += os.read(self._leader, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                return

    def until(self, true: Callable[[], object]) -> None:
        """Wait for something."""
        start = time.monotonic()
        while not true():
            ended = self.process.poll() is not None
            self.read(0.1)
            assert true() or (not ended and time.monotonic() - start < PATIENCE), self.screen()

    def ctrl_c(self, number: int) -> None:
        """What a terminal does, or a batch system: the signal goes to the whole group."""
        os.killpg(self.process.pid, number)

    def screen(self) -> list[str]:
        """The lines that are there to be read now."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.shown):
            if token == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif token == "\r":
                column = 0
            elif token.endswith("A") and token[0] == "\x1b":
                row = max(0, row - int(token[2:-1] or 1))
            elif token == "\x1b[2K":
                lines[row] = ""
            elif token[0] != "\x1b":
                lines[row] = (
                    lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
                )
                column += len(token)
        return [line.rstrip() for line in lines]


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    """The file of a method whose sixth step does not end; processes that are there leave
    `stuck-PID` beside it.
    """
    file = tmp_path / "stuck.py"
    file.write_text(STUCK.replace("MARKER", str(tmp_path / "stuck")))
    return file


def stopped_twice(
    command: list[str], there: Callable[[], bool], number: int, acknowledged: str
) -> Terminal:
    """Start, wait until it is stuck, stop it, read the acknowledgement, and stop it again: nothing
    of it is left.
    """
    terminal = Terminal([sys.executable, *command])
    try:
        terminal.until(there)
        terminal.read(0.5)
        below = psutil.Process(terminal.process.pid).children(recursive=True)
        terminal.ctrl_c(number)
        terminal.until(lambda: acknowledged in terminal.shown)
        terminal.read(1.5)  # the display is painted several times
        assert any(acknowledged in line for line in terminal.screen()), terminal.screen()
        assert terminal.process.poll() is None
        terminal.ctrl_c(number)
        terminal.until(lambda: terminal.process.poll() is not None)
        assert terminal.process.returncode == 128 + number
        assert not psutil.wait_procs(below, timeout=PATIENCE)[1]
        terminal.read(0.2)
        assert terminal.shown.rfind("\x1b[?25h") >= terminal.shown.rfind("\x1b[?25l"), (
            "the cursor is back"
        )
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
    return terminal


def bench(suite: Path, stuck: Path, *arguments: str) -> list[str]:
    return [
        "-m",
        "bench.cli",
        *arguments,
        "--suite",
        str(suite),
        "--store",
        str(stuck.parent / "store"),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_in_a_long_step(number: signal.Signals, tiny_suite: Path, stuck: Path) -> None:
    command = bench(tiny_suite, stuck, "run", str(stuck), "--checkpoint-every", "0")
    terminal = stopped_twice(
        command,
        lambda: bool(list(stuck.parent.glob("stuck-*"))),
        number,
        "stopping: saving the state",
    )
    assert any("stopped at once" in line for line in terminal.screen())
    assert list(stuck.parent.glob("store/fits/*/checkpoint/*.safetensors")), "what was saved"


def test_trials_side_by_side(tiny_suite: Path, stuck: Path) -> None:
    command = bench(tiny_suite, stuck, "run", str(stuck), "--seeds", "2", "--jobs", "2")
    both = lambda: len(list(stuck.parent.glob("stuck-*"))) == 2  # noqa: E731
    terminal = stopped_twice(
        command, both, signal.SIGINT, "stopping: running trials save their state"
    )
    assert any("stopped at once" in line for line in terminal.screen())


def test_a_sweep_in_this_very_process(tiny_suite: Path, stuck: Path) -> None:
    command = bench(
        tiny_suite,
        stuck,
        "sweep",
        str(stuck),
        "--seeds",
        "1",
        "--trials",
        "0",
        "--runner",
        "inline",
    )
    stopped_twice(
        command,
        lambda: bool(list(stuck.parent.glob("stuck-*"))),
        signal.SIGINT,
        "stopping: running trials save",
    )


def test_a_sweep_by_ray(tiny_suite: Path, stuck: Path) -> None:
    command = bench(
        tiny_suite, stuck, "sweep", str(stuck), "--seeds", "1", "--trials", "0", "--runner", "ray"
    )
    stopped_twice(
        command,
        lambda: bool(list(stuck.parent.glob("stuck-*"))),
        signal.SIGINT,
        "stopping: running trials save",
    )


def test_a_check(tiny_suite: Path, stuck: Path) -> None:
    command = ["-m", "bench.cli", "check", str(stuck), "--suite", str(tiny_suite)]
    stopped_twice(
        command,
        lambda: bool(list(stuck.parent.glob("stuck-*"))),
        signal.SIGINT,
        "stopping when this step ends",
    )


#: What prepares, fetches and verifies data shows its bars in this way.
BARS = """
import runpy, sys
from bench.cli.data import shown_progress
from bench.console.signals import StopHandler, handled_by
stuck = runpy.run_path(sys.argv[1])
with handled_by(StopHandler()), shown_progress() as progress:
    progress("unpacking", 3, 10)
    stuck["get_stuck"](sys.argv[1] + "-there")
"""


def test_work_on_data(stuck: Path) -> None:
    there = stuck.with_name("stuck.py-there")
    stopped_twice(
        ["-c", BARS, str(stuck)], there.exists, signal.SIGINT, "stopping: saving the state"
    )


#: The long step of this one ends when a file appears.
SLOW = STUCK.replace(
    "    libc.pthread_mutex_lock(mutex)\n    Path",
    "    libc.pthread_mutex_lock(mutex)\n"
    "    import threading, time\n"
    "    def end():\n"
    "        while not Path('GO').exists():\n"
    "            time.sleep(0.05)\n"
    "        libc.pthread_mutex_unlock(mutex)\n"
    "    threading.Thread(target=end, daemon=True).start()\n    Path",
)


def test_a_long_step_that_ends_after_the_first_signal_is_saved(
    tiny_suite: Path, tmp_path: Path
) -> None:
    file, go = tmp_path / "slow.py", tmp_path / "go"
    file.write_text(SLOW.replace("MARKER", str(tmp_path / "stuck")).replace("GO", str(go)))
    terminal = Terminal([sys.executable, *bench(tiny_suite, file, "run", str(file))])
    terminal.until(lambda: list(tmp_path.glob("stuck-*")))
    terminal.ctrl_c(signal.SIGINT)
    terminal.until(lambda: "stopping: saving the state" in terminal.shown)
    go.touch()
    terminal.until(lambda: terminal.process.poll() is not None)
    assert terminal.process.returncode == 130
    assert "the same command" in " ".join(terminal.screen())
    assert list(tmp_path.glob("store/fits/*/checkpoint/*.safetensors"))


def test_a_forked_child_does_not_count_a_second_time() -> None:
    code = """
import os, signal, sys, time
from bench.console.signals import StopHandler, handled_by
asked = []
with handled_by(StopHandler(ask=asked.append)):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.killpg(0, signal.SIGINT)
    while not asked:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    print(asked, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[2] -15"), done.stderr
