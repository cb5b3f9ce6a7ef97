"""Data-parallel training on one machine: a process per device that exchanges gradients.

The leader (rank 0) is the process of the run itself: it alone decides, reports, scores and writes.
The followers take the same steps. Commands go through pipes, which wait as long as necessary and
break when the other end dies; tensors go through torch.distributed (NCCL between GPUs, Gloo between
CPUs). Nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.batches import share
from ..engine import Engine
from ..errors import BenchError
from ..stopping import Reporter, foreign, stop_if_requested

#: How long a collective waits for the slowest process. Between two of them is at most the work of
#: one step: whatever may take longer, such as scoring, is waited for at the pipe.
_TIMEOUT = timedelta(minutes=10)
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_RERUN = "run the same command again: it continues from the last checkpoint"


class DeviceLost(BenchError):
    """An error: another process of the same training has died."""


@dataclass(frozen=True)
class _Follower:
    name: str
    process: BaseProcess
    pipe: Connection


class Ranks:
    """The group of processes that train one model, as one of them sees it; by default it is alone.

    Attributes:
        rank: number of this process; 0 is the leader.
        count: number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1, followers: Sequence[_Follower] = ()) -> None:
        self.rank, self.count = rank, count
        self._followers = followers

    def share(self, size: int) -> slice:
        """Return the rows of a global batch of `size` images that this process computes."""
        return share(size, self.rank, self.count)

    def advance(self) -> None:
        """Let the followers take a step. The leader has to take the same step afterwards.

        Raises:
            DeviceLost: a follower was killed.
            RuntimeError: a follower failed.
        """
        for follower in self._followers:
            try:
                follower.pipe.send(True)
            except OSError as error:
                raise self._lost(error) from error

    def all_gather(self, mine: Tensor, size: int) -> Tensor:
        """Return all rows (size, ...) of a global batch.

        Args:
            mine: the rows of this process's share.
            size: images of the global batch.
        """
        if self.count == 1:
            return mine
        # `all_gather` needs equal shapes, and the shares differ by one row if `size` is not a
        # multiple of the number of processes. So each is padded, and cut again below.
        most = -(-size // self.count)
        padded = mine.new_zeros(most, *mine.shape[1:])
        padded[: len(mine)] = mine
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        self._exchange(dist.all_gather, gathered, padded)
        lengths = [len(range(size)[share(size, rank, self.count)]) for rank in range(self.count)]
        return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])

    def any_rank(self, *here: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.count == 1:
            return list(here)
        # On the CPU, hence by Gloo: the processes wait for each other, and their GPUs do not.
        flags = torch.tensor(here, dtype=torch.uint8)
        self._exchange(dist.all_reduce, flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags]

    def add_up(self, model: nn.Module, loss: Tensor) -> None:
        """Replace the gradients of `model`, and `loss`, by their sums over the processes.

        Sums and not means: each process has already divided by the size of the global batch.
        """
        if self.count == 1:
            return
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        # A weight that no process used stays without a gradient, so that AdamW skips it, weight
        # decay included, as on a single device.
        used = self.any_rank(*(weight.grad is not None for weight in weights))
        parts = [loss]
        for weight in (weight for weight, is_used in zip(weights, used, strict=True) if is_used):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            parts.append(weight.grad)
        # One large exchange is faster than hundreds of small ones.
        flat = torch.cat([part.reshape(-1) for part in parts])
        self._exchange(dist.all_reduce, flat)
        for part, total in zip(
            parts, flat.split_with_sizes([part.numel() for part in parts]), strict=True
        ):
            part.copy_(total.view_as(part))

    def _exchange(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> Exception:
        """Return why an exchange failed: the last message of a follower, else how one ended."""
        # A follower that fails sends its error before it ends, so that the message is here or about
        # to be. One that was killed sends nothing, and only its exit code says so.
        for follower in self._followers:
            with contextlib.suppress(EOFError, OSError):
                if follower.pipe.poll(1.0):
                    return _raised(follower, *follower.pipe.recv())
        for follower in self._followers:
            follower.process.join(1.0)
            if follower.process.exitcode:
                return DeviceLost(
                    f"the process of another device was killed: {_how_it_ended(follower)}",
                    fix=_RERUN,
                )
        return DeviceLost(f"the processes of the devices lost contact: {error}", fix=_RERUN)


def _raised(follower: _Follower, what: str, trace: str) -> RuntimeError:
    """Return the error of a follower as an exception of this process, with its traceback."""
    error = RuntimeError(f"{what} (on {follower.name})")
    error.add_note(trace)
    return error


def _how_it_ended(follower: _Follower) -> str:
    return f"{follower.name}, exit code {follower.process.exitcode}"


@contextlib.contextmanager
def spawn_workers(
    work: Callable[[Ranks, Callable[[], bool]], None],
    engine: Engine,
    reporter: Reporter,
    *,
    plugin: str | None = None,
) -> Iterator[Ranks]:
    """Start a follower for each further device of `engine`; all end with this block.

    Args:
        work: what a follower does. It has to be picklable. Its second argument waits for
            `Ranks.advance`, and returns False when no further step follows.
        engine: the devices.
        reporter: is polled for a stop while processes start.
        plugin: file of a method, to be loaded before `work` is unpickled.

    Raises:
        BenchError: a process did not start.
        RuntimeError: a process could not unpickle its work.
        Interrupted: a stop was requested while processes started.
    """
    if engine.devices == 1:
        yield Ranks()
        return
    try:
        pickled = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BenchError(
            f"the training cannot be pickled for another process: {error}",
            fix="train on one device: --devices 1",
        ) from error
    with (
        tempfile.TemporaryDirectory(prefix="bench-devices-") as folder,
        contextlib.ExitStack() as ending,
    ):
        # The order of these phases matters. All processes start at the same time, since importing
        # torch takes seconds; each gets its work when it is ready; and only when all have unpickled
        # it does the leader join the group, where a process that never comes would cost a timeout.
        meeting = Path(folder) / "meeting"
        followers = [_started(rank, engine, meeting) for rank in range(1, engine.devices)]
        for follower in followers:
            ending.callback(_end, follower)
        for follower in followers:
            _await(follower, reporter)
            # If it has just died, the next `_await` finds out.
            with contextlib.suppress(OSError):
                follower.pipe.send((plugin, pickled))
        for follower in followers:
            _await(follower, reporter)
        ending.enter_context(_joined(0, engine, meeting))
        # Callbacks run in reverse order, so that the pipes close before this process leaves the
        # group. That lets the followers leave it at the same time, and leaving waits for all.
        for follower in followers:
            ending.callback(follower.pipe.close)
        yield Ranks(0, engine.devices, followers)


def _started(rank: int, engine: Engine, meeting: Path) -> _Follower:
    # Not forked: a fork inherits CUDA's state and torch's threads, neither of which survives it.
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    name = f"device {rank + 1} of {engine.devices}"
    process = context.Process(
        target=_follow, args=(rank, engine, meeting, other_end), name=f"bench, {name}", daemon=True
    )
    # Ctrl-C reaches the whole process group, but the leader alone decides what follows, so that a
    # follower inherits these signals blocked. The resource tracker is started before: it comes with
    # the first process, and starting it would unblock them again.
    ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Otherwise the pipe would not break when the follower dies.
    other_end.close()
    return _Follower(name, process, pipe)


def _end(follower: _Follower) -> None:
    # A closed pipe means that no further step follows. A follower that does not end by itself can
    # be killed: it writes no files.
    follower.pipe.close()
    follower.process.join(5.0)
    if follower.process.is_alive():
        follower.process.kill()
        follower.process.join()


def _await(follower: _Follower, reporter: Reporter) -> None:
    """Wait until a follower is ready for its next phase: first for its work, then for the group."""
    while not wait([follower.pipe, follower.process.sentinel], timeout=0.2):
        stop_if_requested(reporter)
    try:
        reply = follower.pipe.recv()
    except EOFError:
        follower.process.join()
        raise BenchError(
            "the process of another device ended during its start", where=_how_it_ended(follower)
        ) from None
    if reply is not None:
        raise _raised(follower, *reply)


@contextlib.contextmanager
def _joined(rank: int, engine: Engine, meeting: Path) -> Iterator[None]:
    # Gloo and NCCL read the network interface from the environment. By default they listen on the
    # interface of the host's name, which is open to the network.
    os.environ |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
    gpu = engine.device_type == "cuda"
    if gpu:
        torch.cuda.set_device(engine.on(rank).device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        # A file and not a TCP port, which another process might take first.
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=engine.devices,
        timeout=_TIMEOUT,
    )
    leave = dist.destroy_process_group
    try:
        yield
    except BaseException:
        if gpu:
            # Destroying the group waits for what NCCL has queued, which a dead process never
            # answers. torch has no public function to abort it.
            leave = dist.distributed_c10d._abort_process_group
        raise
    finally:
        leave()


def _follow(rank: int, engine: Engine, meeting: Path, pipe: Connection) -> None:
    """Run a follower from its start to its end."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()

    def advanced() -> bool:
        try:
            return bool(pipe.recv())
        except EOFError:
            return False

    try:
        engine.on(rank).apply()
        pipe.send(None)
        plugin, pickled = pipe.recv()
        with foreign():
            if plugin is not None:
                from ..configure import load_method
                from ..plugins import trust

                # The user named the file to the leader.
                trust(plugin)
                load_method(plugin)
            work = pickle.loads(pickled)
            pipe.send(None)
            with _joined(rank, engine, meeting):
                work(Ranks(rank, engine.devices), advanced)
    except (DeviceLost, EOFError):
        # Another process ended first, and the leader reports why.
        return
    except Exception as error:
        # When this process ends, the leader's exchange fails, and it reads this message.
        with contextlib.suppress(OSError):
            pipe.send((f"{type(error).__name__}: {error}", traceback.format_exc()))


def _end_with_the_run() -> None:
    """End this process with its parent, even in the middle of a computation."""
    # A pipe that breaks is noticed between two steps only. A follower that computes, or waits for
    # NCCL, would occupy its GPU for minutes after a run that was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
