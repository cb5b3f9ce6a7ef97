"""One Ray for one sweep: started on this machine with every socket on localhost, or an existing
cluster that is joined.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ...data.cards.locations import cache_dir
from ...errors import BenchError, MissingPrerequisite, UsageError
from ...storage.atomic import write_with

#: Read by Ray when it is imported or starts; set for the time of a session.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output engine cannot be silenced
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in a trial
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": (
        "0"
    ),  # `uv run bench` would send the working directory to every worker
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own snapshots are never read: the store is the truth.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
}
_LOCAL = {
    # On Linux this keeps every socket on 127.0.0.1; Ray otherwise listens on all interfaces even
    # for one machine.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # A trial without a GPU must see none, rather than all.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
_CARRIED = ("BENCH_DATA", "BENCH_CACHE", "BENCH_DEBUG", "HF_HUB_OFFLINE", "HF_HOME")
#: The object store carries jobs and outcomes, a few kB each.
_OBJECT_STORE = 100 * 2**20
#: Which of Ray's log files are kept, and how many bytes of each.
_TELLING, _KEPT = (
    (
        "worker-*.out",
        "worker-*.err",
        "raylet.out",
        "raylet.err",
        "gcs_server.err",
    ),
    20_000,
)


def carried() -> dict[str, str]:
    """The variables that a process on another machine should see as this one does."""
    return {name: os.environ[name] for name in _CARRIED if name in os.environ}


@contextlib.contextmanager
def session(address: str | None, log: Path) -> Iterator[Path]:
    """Ray, for as long as the block runs; its output goes to `log`. Yields a folder of this machine
    that ends with the block.

    Args:
        address: `host:port` of an existing cluster, or `auto`; None starts Ray on this machine.

    Raises:
        UsageError: the address is malformed.
        MissingPrerequisite: no cluster answers, or it cannot be joined.
        BenchError: Ray does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET))
        folder = stack.enter_context(_folder(log))
        if address is None:
            stack.enter_context(_environment({**_LOCAL, "RAY_AUTH_TOKEN_PATH": str(_token())}))
            how = {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_temp_dir": str(folder),
            }
        else:
            _reach(address)
            how = {"address": address}
        file = _Log(stack.enter_context(log.open("ab", buffering=0)))
        attach = stack.enter_context(_logged(file))
        # Ray prints what its nodes tell (a node that died) on stdout, where a command's answer
        # goes.
        stack.enter_context(contextlib.redirect_stdout(file))
        _start(how, address, log)
        attach()  # starting has detached it
        import ray

        stack.callback(ray.shutdown)
        yield folder


def _start(how: dict[str, object], address: str | None, log: Path) -> None:
    import ray

    if ray.is_initialized():
        raise UsageError(
            "this process uses Ray already, and a sweep has one of its own",
            fix="call ray.shutdown() first",
        )
    if address is None:
        # Ray gives its own processes 30 seconds, which are few where much else runs.
        error = _init(how) and _init(how)
    else:
        before = log.stat().st_size
        with _stderr_to(
            log
        ):  # where a cluster's refusal is written once a second, while Ray goes on trying for 20
            error = _init(how)
    if error is None:
        return
    reason = " ".join(str(error).split()) or type(error).__name__
    if address is None:
        raise BenchError(
            f"Ray does not start: {reason}", where=f"log: {log}", fix="--runner local needs no Ray"
        ) from error
    if b"InvalidAuthToken" in log.read_bytes()[before:]:
        raise MissingPrerequisite(
            "the Ray cluster wants a token, and this process has another one or none",
            where=f"--address {address}",
            fix=(
                "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on its"
                " nodes"
            ),
        ) from error
    raise MissingPrerequisite(
        f"the Ray cluster cannot be joined: {reason}",
        where=f"--address {address}; log: {log}",
        fix="use the cluster's Python and Ray versions; see that it runs with `ray status`",
    ) from error


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """What C++ code writes goes to the log (and for so long, what else is written there)."""
    usual = os.dup(2)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)


def _init(how: dict[str, object]) -> BaseException | None:
    """Start or join Ray; the error if that fails, with nothing of it left running."""
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = psutil.Process().children()
    try:
        ray.init(log_to_driver=False, configure_logging=False, **how)  # type: ignore[arg-type]
    except (Exception, SystemExit) as error:  # it raises errors of every kind
        ray.shutdown()
        for child in psutil.Process().children():
            if child not in before:
                child.kill()
        return error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray takes over SIGTERM.
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return None


def _reach(address: str) -> None:
    """Ask the port whether it speaks gRPC: Ray itself would try for two minutes, and then end the
    process.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(
            "the Ray Client protocol is not supported",
            where=f"--address {address}",
            fix="--address HOST:6379",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"`{address}` is no address",
            where="--address",
            fix="--address HOST:6379, as `ray start --head` prints it",
        )
    nobody = MissingPrerequisite(
        "no Ray cluster answers",
        where=f"--address {address}",
        fix="`ray start --head` starts one and prints its address",
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            # The preface of HTTP/2 and an empty SETTINGS frame; a gRPC server answers with its own
            # SETTINGS (type 4).
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            answer = connection.recv(9)
    except OSError as error:
        nobody.what += f": {error.strerror or error}"
        raise nobody from error
    if len(answer) < 4 or answer[3] != 4:
        nobody.what += ": something else listens there"
        raise nobody


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Log(io.TextIOBase):
    """Text for a log that may be on a full disk, which the trials tell of."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text.encode(errors="replace"))
        return len(text)


@contextlib.contextmanager
def _logged(file: _Log) -> Iterator[Callable[[], None]]:
    """Ray's loggers write to the file alone; yields what attaches it (again)."""
    import ray  # noqa: F401 - installs handlers of its own when first imported

    logger = logging.getLogger("ray")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))

    def attach() -> None:
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

    attach()
    try:
        yield attach
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def _token() -> Path:
    """A file with a secret of this user, readable by nobody else, that every process of a local Ray
    has to show.
    """
    path = cache_dir("ray") / "token"
    if not path.exists() or not re.fullmatch(
        r"[0-9a-f]{64}", path.read_text(encoding="utf-8", errors="replace")
    ):
        write_with(path, _write_secret, exclusive=not path.exists())
    return path


def _write_secret(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


@contextlib.contextmanager
def _folder(log: Path) -> Iterator[Path]:
    """A folder for what Ray writes on this machine; those that killed drivers left behind are
    removed, too.
    """
    place = _place()
    _remove_dead(place)
    folder, lock = _locked(place)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _keep_logs(folder, log)
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        # Again, for a driver that was killed shortly before this one started: by now its trials
        # have saved their state.
        _remove_dead(place, ending=True)


def _place() -> Path:
    """Where sessions of this user have their folders, which nobody else can enter: Ray opens all
    that it makes to everybody.

    Raises:
        BenchError: it belongs to somebody else, or is open to others.
    """
    # Ray puts Unix sockets there, whose paths are limited to 107 bytes; a temporary folder
    # elsewhere may be deep.
    place = Path(tempfile.gettempdir()) / f"bench-ray-{os.getuid()}"
    if len(str(place)) > 30 and Path("/tmp").is_dir():
        place = Path("/tmp") / place.name
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BenchError(
            "the folder for Ray's sessions is not a folder of this user alone",
            where=str(place),
            fix=(
                "remove it; or set TMPDIR to a folder of yours with a short path; --runner local"
                " needs no Ray"
            ),
        )
    return place


def remove_dead_sessions() -> None:
    """End what is left of sweeps that were killed, and remove their folders on this machine."""
    _remove_dead(_place(), ending=True)


def _locked(place: Path) -> tuple[Path, FileLock]:
    """A name for a folder, and the lock beside it that says that its sweep lives; Ray's processes
    may make the folder again.
    """
    while True:
        folder = place / uuid.uuid4().hex[:8]
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
        if Path(
            lock.lock_file
        ).exists():  # else another sweep took it for a dead one's before it was locked
            return folder, lock
        lock.release()


def _remove_dead(place: Path, *, ending: bool = False) -> None:
    """Remove the folders of sweeps that were killed.

    Args:
        ending: Ray's processes that are left of them, too; otherwise a folder stays as long as
            there are any.
    """
    for name in {path.stem for path in place.iterdir()}:
        folder, lock = place / name, FileLock(place / f"{name}.lock", timeout=0)
        with contextlib.suppress(Timeout, OSError), lock:
            left = _processes_of(folder)
            if ending:
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(left, timeout=5)
            if ending or not left:
                shutil.rmtree(folder, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Ray's own processes of a session: each is told the session's folder on its command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{folder}/" in argument for argument in process.cmdline()):
                found.append(process)
    return found


def _keep_logs(folder: Path, log: Path) -> None:
    """The end of what Ray's processes had to say, appended to the log."""
    with contextlib.suppress(OSError), log.open("ab") as out:
        for path in sorted(
            path for name in _TELLING for path in folder.glob(f"session_2*/logs/{name}")
        ):
            content = _end_of(path)
            if content.strip():
                out.write(f"\n===== {path.name}\n".encode() + content)


def _end_of(path: Path) -> bytes:
    """The last bytes of a file, of a link to one none."""
    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _KEPT))
        return file.read(_KEPT)
