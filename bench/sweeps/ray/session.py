"""Start Ray on this machine for one sweep, or join an existing cluster."""

# A Ray that is started here has to be invisible to everybody else: every socket on localhost, a
# token for each connection, a session folder that only this user can enter, and nothing left behind
# after any end, be it an exception, Ctrl-C or kill -9. Much of this file works around defaults of
# Ray that are made for clusters and notebooks.

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

#: Environment variables that Ray reads when it is imported or starts, set during a session.
_QUIET = {
    # The new output engine cannot be silenced.
    "RAY_AIR_NEW_OUTPUT": "0",
    # So that relative paths keep their meaning in a trial.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # `uv run bench` would send the working directory to every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The command line handles Ctrl-C, and lets trials save their state.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own snapshots are never read: the store has all state.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
}
#: The same for a Ray that is started on this machine.
_LOCAL = {
    # On Linux this keeps every socket on 127.0.0.1; Ray otherwise listens on all interfaces even
    # for one machine.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # A trial without a GPU must see none, rather than all.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
_CARRIED = ("BENCH_DATA", "BENCH_CACHE", "BENCH_DEBUG", "HF_HUB_OFFLINE", "HF_HOME")
#: Bytes of Ray's object store. Only jobs and outcomes pass through it, a few kB each; Ray's default
#: is 30 % of the machine's memory.
_OBJECT_STORE = 100 * 2**20
#: Those of Ray's log files that explain a failure, and the bytes of each that are saved.
_LOGS = ("worker-*.out", "worker-*.err", "raylet.out", "raylet.err", "gcs_server.err")
_LOG_BYTES = 20_000


def carried() -> dict[str, str]:
    """Return the environment variables that every process of the sweep gets from the driver."""
    return {name: os.environ[name] for name in _CARRIED if name in os.environ}


@contextlib.contextmanager
def session(address: str | None, log: Path) -> Iterator[Path]:
    """Connect to Ray during the `with` block; yield a temporary folder on this machine.

    Args:
        address: `host:port` of an existing cluster, or `auto`; None starts Ray on this machine.
        log: file for the output of Ray.

    Raises:
        UsageError: the address is malformed, or the process already uses Ray.
        MissingPrerequisite: no cluster answers, or it cannot be joined.
        BenchError: Ray does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # The order matters: the environment comes before anything that may import Ray, and the folder
    # is removed after Ray has shut down.
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
        # Ray prints news of nodes (that one died) on stdout, which is for a command's result.
        stack.enter_context(contextlib.redirect_stdout(file))
        _start(how, address, log)
        # Ray's start has replaced its log handlers.
        attach()
        import ray

        stack.callback(ray.shutdown)
        yield folder


def _start(how: dict[str, object], address: str | None, log: Path) -> None:
    import ray

    if ray.is_initialized():
        raise UsageError(
            "this process already uses Ray, but a sweep needs a Ray of its own",
            fix="call ray.shutdown() first",
        )
    if address is None:
        # Tried twice: Ray gives its own processes 30 seconds to start, which may be too few on a
        # busy machine.
        error = _init(how) and _init(how)
    else:
        before = log.stat().st_size
        # A cluster's refusal of the token is only written to stderr, by C++ code, while Ray tries
        # again for 20 seconds; the exception names another cause.
        with _stderr_to(log):
            error = _init(how)
    if error is None:
        return
    reason = " ".join(str(error).split()) or type(error).__name__
    if address is None:
        raise BenchError(
            f"Ray does not start: {reason}",
            where=f"log: {log}",
            fix="use --runner local, which needs no Ray",
        ) from error
    if b"InvalidAuthToken" in log.read_bytes()[before:]:
        raise MissingPrerequisite(
            "the Ray cluster requires a token, and this process has none or the wrong one",
            where=f"--address {address}",
            fix=(
                "export RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on"
                " the cluster's nodes"
            ),
        ) from error
    raise MissingPrerequisite(
        f"the Ray cluster cannot be joined: {reason}",
        where=f"--address {address}; log: {log}",
        fix="use the cluster's Python and Ray versions; check with `ray status` that it runs",
    ) from error


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Redirect the stderr of the whole process to a file, including that of C++ code."""
    # By file descriptor: `redirect_stderr` of the standard library sees only what Python writes.
    usual = os.dup(2)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)


def _init(how: dict[str, object]) -> BaseException | None:
    """Start or join Ray; return the error if that fails, with none of its processes left."""
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = psutil.Process().children()
    try:
        ray.init(log_to_driver=False, configure_logging=False, **how)  # type: ignore[arg-type]
    # It raises errors of every kind, and may even exit.
    except (Exception, SystemExit) as error:
        ray.shutdown()
        for child in psutil.Process().children():
            if child not in before:
                child.kill()
        return error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray replaces the handler of SIGTERM, by which a sweep saves its state.
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return None


def _reach(address: str) -> None:
    """Check that an address is well-formed and that a gRPC server answers there.

    Raises:
        UsageError: the address is malformed, or that of the Ray Client protocol.
        MissingPrerequisite: no gRPC server answers.
    """
    # Ray itself would try for two minutes, and then end the process.
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(
            "the Ray Client protocol is not supported",
            where=f"--address {address}",
            fix="use --address HOST:6379",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"`{address}` is not an address",
            where="--address",
            fix="use --address HOST:6379, as printed by `ray start --head`",
        )
    nobody = MissingPrerequisite(
        "no Ray cluster answers",
        where=f"--address {address}",
        fix="start one with `ray start --head`, which prints its address",
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            # The preface of HTTP/2 and an empty SETTINGS frame; a gRPC server answers with its own
            # SETTINGS frame (type 4). To accept a connection is not enough: another service may
            # listen there.
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
    """A text stream to a log that ignores a full disk, which the trials report themselves."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text.encode(errors="replace"))
        return len(text)


@contextlib.contextmanager
def _logged(file: _Log) -> Iterator[Callable[[], None]]:
    """Send Ray's log records to a file alone; yield the function that sets this up again."""
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
    """Return the file with the token of this user's local Ray sessions, created if needed."""
    # Other users of the machine can connect to localhost too, and whoever can connect to Ray can
    # run code. The token is in a file that only its owner can read, since command lines
    # can be seen by others.
    path = cache_dir("ray") / "token"
    # `exclusive`, so that of two sweeps that start at the same time both use the first one's token.
    # A damaged file is replaced.
    if not path.exists() or not re.fullmatch(
        r"[0-9a-f]{64}", path.read_text(encoding="utf-8", errors="replace")
    ):
        write_with(path, _write_secret, exclusive=not path.exists())
    return path


def _write_secret(path: Path) -> None:
    # Created with its final permissions: there is no moment in which others can open it.
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


@contextlib.contextmanager
def _folder(log: Path) -> Iterator[Path]:
    """Create a folder for Ray's files on this machine, removed after the `with` block."""
    place = _place()
    # Of drivers that were killed, and could not clean up.
    _remove_dead(place)
    folder, lock = _locked(place)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _save_logs(folder, log)
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        # Again, and now with its processes, for a driver that was killed shortly before this one
        # started: by now its trials have saved their state.
        _remove_dead(place, ending=True)


def _place() -> Path:
    """Return the folder for the sessions of this user, which nobody else can enter.

    Raises:
        BenchError: the folder belongs to another user, or is open to others.
    """
    # Ray makes all of its files accessible to everybody, so their parent has to be closed. It
    # contains Unix sockets, whose paths are limited to 107 bytes, but TMPDIR
    # may be a deep folder; then /tmp is used.
    place = Path(tempfile.gettempdir()) / f"bench-ray-{os.getuid()}"
    if len(str(place)) > 30 and Path("/tmp").is_dir():
        place = Path("/tmp") / place.name
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    # The name can be predicted, so somebody else may have created it, or a link, beforehand.
    # `lstat` does not follow a link.
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BenchError(
            "the folder for Ray's sessions is not a folder of this user alone",
            where=str(place),
            fix=(
                "remove it, or set TMPDIR to a folder of yours with a short path, or use --runner"
                " local, which needs no Ray"
            ),
        )
    return place


def remove_dead_sessions() -> None:
    """Clean up after sweeps that were killed: end their Ray processes and remove their folders."""
    _remove_dead(_place(), ending=True)


def _locked(place: Path) -> tuple[Path, FileLock]:
    """Return a new folder name, and its lock, which shows other sweeps that this one lives."""
    # The lock is next to the folder and not in it, since processes of Ray that outlive their driver
    # may create the folder again. The operating system releases it if this process is killed.
    while True:
        folder = place / uuid.uuid4().hex[:8]
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
        # Otherwise another sweep found the file before it was locked, and removed it as a dead one.
        if Path(lock.lock_file).exists():
            return folder, lock
        lock.release()


def _remove_dead(place: Path, *, ending: bool = False) -> None:
    """Remove the folders of sweeps that were killed.

    Args:
        place: the folder of all sessions of this user.
        ending: kill processes of Ray that are left of them; otherwise their folders stay.
    """
    # At the start of a sweep they are not killed: trials of a driver that has just died may still
    # be saving their state.
    for name in {path.stem for path in place.iterdir()}:
        folder, lock = place / name, FileLock(place / f"{name}.lock", timeout=0)
        # A lock that another process holds times out at once: its sweep lives.
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
    """Return the processes of a session, which have its folder on their command lines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{folder}/" in argument for argument in process.cmdline()):
                found.append(process)
    return found


def _save_logs(folder: Path, log: Path) -> None:
    """Append the ends of Ray's own log files to a log."""
    # `session_2*` is the session, named by its date; `session_latest` is a link to it.
    with contextlib.suppress(OSError), log.open("ab") as out:
        for path in sorted(
            path for name in _LOGS for path in folder.glob(f"session_2*/logs/{name}")
        ):
            content = _end_of(path)
            if content.strip():
                out.write(f"\n===== {path.name}\n".encode() + content)


def _end_of(path: Path) -> bytes:
    """Return the last bytes of a file; none of a link, which might point to somebody's secret."""
    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return file.read(_LOG_BYTES)
