"""Give one process at a time ownership of a folder, on shared file systems too.

A claim is a file `lease/<generation>.json` in the folder; the owner is the highest generation. It
rewrites its claim every few seconds. A process that waits takes over when the claim has not changed
for a minute, or at once when the owner is known to be dead.
"""

# Why this is safe. (1) Two processes cannot both take over: a claim is created by a hard link under
# the number after the highest one, which succeeds for one process only, on NFS too. A taker that
# was delayed so long that its number has come and gone gets a claim below the highest; it does not
# own the folder either, withdraws the claim, and waits on. (2) No clocks are compared: the waiting
# process watches the beat stand still on its own monotonic clock, so that neither the clocks of two
# machines nor a step of one matter. (3) A stalled owner that wakes up does no harm: it calls
# `check` before every commit; should it stall again between check and write, it writes only files
# that carry its own generation or are created exclusively, so it overwrites nothing of its
# successor. (4) An owner on this machine is known to be dead by its process number together with
# the start time of the process, the boot of the machine and the process namespace, so a reused
# number is not taken for it. The filelock package was rejected: its locks do not show that an owner
# stalls, and on a file server they can outlive an owner that was killed.

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import BenchError
from .atomic import write_text

#: Subfolders of a claimed folder to which only the owner writes.
_WRITTEN_BELOW = ("checkpoint", "predictions", "curve")


class LeaseLost(BenchError):
    """The error that another process took the folder over while this one stalled."""


def _this_process() -> dict[str, Any]:
    pid, boot = os.getpid(), _boot()
    # Without /proc (macOS) there is no start time; takeover then relies on the beat alone.
    started = _started(pid) if boot else None
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "space": _process_space(),
        "pid": pid,
        "started": started,
    }


@cache
def _boot() -> str:
    """Return an id of the machine's current boot; "" if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _process_space() -> str:
    """Return the process namespace; two containers of one host have different ones."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return the start time of a process in ticks since boot; None for a zombie.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: the system does not report it.
    """
    try:
        # The second field, the program's name, may contain spaces and brackets, so parsing begins
        # behind the last bracket; the start time is field 22 of proc(5).
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        # /proc may hide the processes of other users (hidepid); a signal still finds them, and
        # raises ProcessLookupError only if there is none.
        os.kill(pid, 0)
        raise
    return None if state == b"Z" else int(fields[18])


def _surely_dead(claim: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that no longer exists."""
    # A shortcut past the minute of waiting, which matters after every Ctrl-C or kill on one
    # machine. When in doubt the answer is False, and the beat decides.
    pid, started = claim.get("pid"), claim.get("started")
    if not _boot() or (claim.get("boot"), claim.get("space")) != (_boot(), _process_space()):
        return False
    if not isinstance(pid, int) or not isinstance(started, int) or pid <= 0:
        return False
    try:
        return _started(pid) != started
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False


def _claim(text: str) -> dict[str, Any]:
    """Parse a claim; an empty or damaged one counts as released."""
    # Claims are written atomically, so a damaged one is no half-written claim of a live owner. Its
    # owner would not find its own token in it either.
    try:
        claim = json.loads(text)
    except (ValueError, RecursionError):
        claim = None
    return claim if isinstance(claim, dict) else {"released": True}


class Lease:
    """Ownership of a folder: `with Lease(folder) as lease: ...; lease.check(); commit`.

    Args:
        folder: the folder to claim; it is created.
        beat: seconds between two signs of life.
        stale_after: seconds without a sign of life, on the clock of the waiting process, after
            which it takes the folder over.
        waiting: called about once a second with the owner's claim while another process holds the
            folder; may raise to give up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        beat: float = 5.0,
        stale_after: float = 60.0,
        waiting: Callable[[dict[str, Any]], None] = lambda claim: None,
    ) -> None:
        self._claims = folder / "lease"
        self._beat, self._stale_after, self._waiting = beat, stale_after, waiting
        self._token = uuid.uuid4().hex
        self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.generation = 0

    def __enter__(self) -> Lease:
        try:
            self._claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"the store cannot be written: {error.strerror}"
            raise BenchError(
                what,
                where=str(self._claims),
                fix="fix its permissions, or choose another store with --store",
            ) from error
        seen: tuple[int, str] | None = None
        since = time.monotonic()
        while True:
            top = self._top()
            text = self._read(top)
            claim = _claim(text)
            # Any change of the text counts as a sign of life: the number of beats is in it.
            if (top, text) != seen:
                seen, since = (top, text), time.monotonic()
            if (
                claim.get("released")
                or _surely_dead(claim)
                or time.monotonic() - since > self._stale_after
            ):
                if write_text(self._path(top + 1), self._text(), exclusive=True):
                    self.generation = top + 1
                    if self.held():
                        break
                    # This process was delayed so long that its number had come and gone, and
                    # another one owns the folder by now: nothing below may be removed.
                    self._path(self.generation).unlink(missing_ok=True)
                # Another process was faster: look at its claim.
                continue
            self._waiting(claim)
            time.sleep(min(1.0, self._stale_after / 4))
        # Only below our own: the highest claim always stays, so that no number is used twice.
        for number, old in _numbered(self._claims):
            if number < self.generation:
                old.unlink(missing_ok=True)
        _remove_leftovers(self._claims.parent)
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.held():
            # Best effort, so that a full disk hides no error of the `with` block: a claim that is
            # not released is taken over once this process has ended.
            with contextlib.suppress(BenchError):
                write_text(self._path(self.generation), self._text(released=True))

    def held(self) -> bool:
        """Return whether this process is still the owner."""
        return self._top() == self.generation and self._token in self._read(self.generation)

    def check(self) -> None:
        """Raise unless this process is still the owner; call it before every commit.

        Raises:
            LeaseLost: another process has taken over, or the folder is gone.
        """
        # A moved store looks like a lost claim, but needs another fix.
        if not self._claims.exists():
            raise LeaseLost(
                "the folder is gone: the store was moved or removed while this ran",
                where=str(self._claims.parent),
                fix=(
                    "run the same command with --store and the store's new path; it continues from"
                    " the last checkpoint there"
                ),
            )
        if not self.held():
            raise LeaseLost(
                "another process took this fit over while this one stalled; nothing was"
                " overwritten",
                where=str(self._claims.parent),
                fix="run the same command again",
            )

    def _path(self, generation: int) -> Path:
        return self._claims / f"{generation:06d}.json"

    def _top(self) -> int:
        return max((number for number, _ in _numbered(self._claims)), default=0)

    def _read(self, generation: int) -> str:
        try:
            return self._path(generation).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _text(self, *, released: bool = False) -> str:
        self._count += 1
        return json.dumps(
            {**_this_process(), "token": self._token, "beat": self._count, "released": released}
        )

    def _live(self) -> None:
        while not self._stop.wait(self._beat):
            # Once lost, a claim is not beaten for again: `check` reports it in the main thread.
            if not self.held():
                return
            try:
                write_text(self._path(self.generation), self._text())
            except BenchError:
                # A full disk must not end training from a side thread: the next commit reports it.
                continue


def _numbered(claims: Path) -> list[tuple[int, Path]]:
    return [
        (int(path.stem), path)
        for path in claims.glob("*.json")
        if path.stem.isascii() and path.stem.isdigit()
    ]


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed writers left behind."""
    for place in (folder, *(folder / name for name in _WRITTEN_BELOW)):
        # The first pattern is that of `write_with`, the second that of the safetensors library.
        for pattern in (".*.part", ".tmp??????"):
            for leftover in place.glob(pattern):
                with contextlib.suppress(OSError):
                    leftover.unlink()


def is_live(folder: Path) -> bool:
    """Return whether a process seems to own a folder, without waiting for its beat.

    It does if its claim is not released and it is not known to be dead.
    """
    claims = _numbered(folder / "lease")
    if not claims:
        return False
    try:
        claim = _claim(max(claims)[1].read_text(encoding="utf-8", errors="replace"))
    except OSError:
        # Its file was just replaced or removed, so somebody is there.
        return True
    return not claim.get("released") and not _surely_dead(claim)
