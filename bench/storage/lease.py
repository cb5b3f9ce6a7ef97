"""A claim on a folder that two takers or a stalled owner cannot both hold, on a shared file system
too.

Claims are numbered files `lease/<generation>.json`, made by a hard link, which only one process can
win. The owner is the highest generation. It rewrites its file every few seconds. Whoever waits
judges it stale by watching that beat stand still on its own monotonic clock: clocks of two machines
are never compared, and steps of one do not matter. On Linux an owner is also known to be dead if it
was a process since the machine's last start that no longer exists. The waiting process then creates
the next generation. Nothing that an owner writes is shared between generations, and the final
result is created exclusively, so a stalled owner that wakes up after its last check can still
overwrite nothing.

A lock of the filelock package says nothing of an owner that stalls, and on a file server it
outlives one that was killed.
"""

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

#: Folders below a claimed one that its holder alone writes to.
_WRITTEN_BELOW = ("checkpoint", "predictions", "curve")


class LeaseLost(BenchError):
    """Somebody else took the folder over while this process stood still."""


def _this_process() -> dict[str, Any]:
    pid, boot = os.getpid(), _boot()
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
    """What this start of the machine is known by; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _process_space() -> str:
    """The namespace in which a process number means something: two containers of one host do not
    share it.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was, which no step of the clock
    changes; None if it is dead.

    Raises:
        OSError: the system does not say.
    """
    try:
        # The second field, the program's name, may hold spaces and brackets.
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        os.kill(pid, 0)  # processes of other users may be hidden
        raise
    return None if state == b"Z" else int(fields[18])


def _surely_dead(claim: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that no longer exists (quicker than waiting
    for its beat).
    """
    pid, born = claim.get("pid"), claim.get("started")
    if not _boot() or (claim.get("boot"), claim.get("space")) != (_boot(), _process_space()):
        return False
    if not isinstance(pid, int) or not isinstance(born, int) or pid <= 0:
        return False
    try:
        return _started(pid) != born
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False


def _claim(text: str) -> dict[str, Any]:
    """What a claim says. One that is empty or garbage is nobody's: its owner would not know it as
    its own either.
    """
    try:
        claim = json.loads(text)
    except (ValueError, RecursionError):
        claim = None
    return claim if isinstance(claim, dict) else {"released": True}


class Lease:
    """Hold a folder: `with Lease(folder) as lease: ... lease.check(); commit`.

    Args:
        folder: what is claimed.
        beat: seconds between signs of life.
        stale_after: seconds without a sign of life (on the watcher's clock) after which the folder
            is taken over.
        waiting: called about once a second while another process holds the folder; may raise to
            give up.
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
                fix="mend its permissions, or use another one with --store",
            ) from error
        seen: tuple[int, str] | None = None
        since = time.monotonic()
        while True:
            top = self._top()
            text = self._read(top)
            claim = _claim(text)
            if (top, text) != seen:
                seen, since = (top, text), time.monotonic()
            if (
                claim.get("released")
                or _surely_dead(claim)
                or time.monotonic() - since > self._stale_after
            ):
                if write_text(self._path(top + 1), self._text(), exclusive=True):
                    self.generation = top + 1
                    break
                continue
            self._waiting(claim)
            time.sleep(min(1.0, self._stale_after / 4))
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
            # Best effort, since an error is on its way perhaps: a claim that stays is judged by its
            # owner's death.
            with contextlib.suppress(BenchError):
                write_text(self._path(self.generation), self._text(released=True))

    def held(self) -> bool:
        """Whether this process is still the owner."""
        return self._top() == self.generation and self._token in self._read(self.generation)

    def check(self) -> None:
        """Call before every commit.

        Raises:
            LeaseLost: another process has taken over.
        """
        if not self._claims.exists():
            raise LeaseLost(
                "its folder is gone: the store was moved or removed while this ran",
                where=str(self._claims.parent),
                fix=(
                    "run the same command with --store naming its new place; it goes on from the"
                    " last checkpoint there"
                ),
            )
        if not self.held():
            raise LeaseLost(
                "another process took this fit over while this one stood still; nothing was"
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
    """Remove what writers that were killed have left behind: our parts, and the temporary files of
    the safetensors library.
    """
    for place in (folder, *(folder / name for name in _WRITTEN_BELOW)):
        for pattern in (".*.part", ".tmp??????"):
            for left in place.glob(pattern):
                with contextlib.suppress(OSError):
                    left.unlink()


def is_live(folder: Path) -> bool:
    """Whether some process seems to hold `folder` (its claim is not released and its owner is not
    known to be dead).
    """
    claims = _numbered(folder / "lease")
    if not claims:
        return False
    try:
        claim = _claim(max(claims)[1].read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return True
    return not claim.get("released") and not _surely_dead(claim)
