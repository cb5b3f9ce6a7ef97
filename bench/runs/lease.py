"""A claim on a folder that two takers or a stalled owner cannot both hold, on a shared file system too.

Claims are numbered files `lease/<generation>.json`, made by a hard link, which only one process can win. The owner is the
highest generation. It rewrites its file every few seconds; whoever waits judges it stale by watching that beat stand still
on its own clock (clocks of two machines are never compared), and then creates the next generation. Nothing that an owner
writes is shared between generations, and the final result is created exclusively, so a stalled owner that wakes up after
its last check can still overwrite nothing.
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
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ..errors import BenchError
from .atomic import write_text


class LeaseLost(BenchError):
    """Somebody else took the folder over while this process stood still."""


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "boot": int(psutil.boot_time()),
        "space": _process_space(),
        "pid": process.pid,
        "born": process.create_time(),
    }


def _process_space() -> str:
    """The namespace in which a process number means something: two containers of one host do not share it."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _surely_dead(claim: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that no longer exists (quicker than waiting for its beat)."""
    here = _this_process()
    if claim.get("host") != here["host"] or claim.get("space") != here["space"] or abs(claim.get("boot", 0) - here["boot"]) > 5:
        return False
    try:
        process = psutil.Process(claim["pid"])
        return abs(process.create_time() - claim["born"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Lease:
    """Hold a folder: `with Lease(folder) as lease: ... lease.check(); commit`.

    Args:
        folder: what is claimed.
        beat: seconds between signs of life.
        stale_after: seconds without a sign of life (on the watcher's clock) after which the folder is taken over.
        waiting: called about once a second while another process holds the folder; may raise to give up.
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
                what, where=str(self._claims), fix="mend its permissions, or use another one with --store"
            ) from error
        seen: tuple[int, str] | None = None
        since = time.monotonic()
        while True:
            top = self._top()
            text = self._read(top)
            claim = json.loads(text) if text else {"released": True}
            if (top, text) != seen:
                seen, since = (top, text), time.monotonic()
            if claim.get("released") or _surely_dead(claim) or time.monotonic() - since > self._stale_after:
                if write_text(self._path(top + 1), self._text(), exclusive=True):
                    self.generation = top + 1
                    break
                continue
            self._waiting(claim)
            time.sleep(min(1.0, self._stale_after / 4))
        for old in self._claims.glob("*.json"):
            if int(old.stem) < self.generation:
                old.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.held():
            # Best effort, since an error is on its way perhaps: a claim that stays is judged by its owner's death.
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
        if not self.held():
            raise LeaseLost(
                "another process took this fit over while this one stood still; nothing was overwritten",
                where=str(self._claims.parent),
                fix="run the same command again",
            )

    def _path(self, generation: int) -> Path:
        return self._claims / f"{generation:06d}.json"

    def _top(self) -> int:
        return max((int(path.stem) for path in self._claims.glob("*.json")), default=0)

    def _read(self, generation: int) -> str:
        try:
            return self._path(generation).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _text(self, *, released: bool = False) -> str:
        self._count += 1
        return json.dumps({**_this_process(), "token": self._token, "beat": self._count, "released": released})

    def _live(self) -> None:
        while not self._stop.wait(self._beat):
            if not self.held():
                return
            try:
                write_text(self._path(self.generation), self._text())
            except BenchError:
                # A full disk must not end training from a side thread: the next commit reports it.
                continue


def is_live(folder: Path) -> bool:
    """Whether some process seems to hold `folder` (its claim is not released and its owner is not known to be dead)."""
    claims = sorted((folder / "lease").glob("*.json"))
    if not claims:
        return False
    try:
        claim = json.loads(claims[-1].read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return True
    return not claim.get("released") and not _surely_dead(claim)
