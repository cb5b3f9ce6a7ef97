"""The processes that train together, one for each device: what they exchange, how they start, and
how they end.

The first is the process of the run itself: it alone decides, reports, scores and writes. The others
follow it step by step. They are told through pipes, which wait as long as they have to and break
when the other end dies; tensors go through torch.distributed (NCCL between GPUs, Gloo between
CPUs), and nothing leaves the machine.
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
from ..stopping import Reporter, foreign, stop_if_asked

#: How long an exchange waits for the slowest process; at most the work of one step lies between two
#: of them.
_PATIENCE = timedelta(minutes=10)
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_AGAIN = "run the same command again: it continues from the last checkpoint"


class DeviceLost(BenchError):
    """A process that trains with this one has ended."""


@dataclass(frozen=True)
class _Follower:
    name: str
    process: BaseProcess
    pipe: Connection


class Ranks:
    """What one of the processes that train together knows of the others; by default it is alone.

    Attributes:
        rank: 0 is the process of the run.
        count: processes in all.
    """

    def __init__(self, rank: int = 0, count: int = 1, followers: Sequence[_Follower] = ()) -> None:
        self.rank, self.count = rank, count
        self._followers = followers

    def share(self, size: int) -> slice:
        """The rows of a global batch of `size` images that this process computes."""
        return share(size, self.rank, self.count)

    def go_on(self) -> None:
        """Let the followers take a step, which this process must then take too.

        Raises:
            DeviceLost: one of them was killed.
            RuntimeError: one of them failed.
        """
        for follower in self._followers:
            try:
                follower.pipe.send(True)
            except OSError as error:
                raise self._lost(error) from error

    def whole(self, mine: Tensor, size: int) -> Tensor:
        """The (size, ...) rows of a global batch, each process having given its share of them."""
        if self.count == 1:
            return mine
        most = -(-size // self.count)
        padded = mine.new_zeros(most, *mine.shape[1:])
        padded[: len(mine)] = mine
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        self._exchange(dist.all_gather, gathered, padded)
        lengths = [len(range(size)[share(size, rank, self.count)]) for rank in range(self.count)]
        return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])

    def anywhere(self, *here: bool) -> list[bool]:
        """For each statement, whether it holds in any of the processes (which wait for each other
        here, their GPUs do not).
        """
        if self.count == 1:
            return list(here)
        flags = torch.tensor(here, dtype=torch.uint8)
        self._exchange(dist.all_reduce, flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags]

    def add_up(self, model: nn.Module, loss: Tensor) -> None:
        """Replace the gradients of `model`, and `loss`, by their sums over the processes."""
        if self.count == 1:
            return
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        # A weight that no process used is left without a gradient, so that the optimiser skips it
        # as on a single device.
        used = self.anywhere(*(weight.grad is not None for weight in weights))
        parts = [loss]
        for weight in (weight for weight, is_used in zip(weights, used, strict=True) if is_used):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            parts.append(weight.grad)
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
        """Why an exchange failed: what a follower told last, else the way in which one ended."""
        for follower in self._followers:
            with contextlib.suppress(EOFError, OSError):
                if follower.pipe.poll(1.0):
                    return _raised(follower, *follower.pipe.recv())
        for follower in self._followers:
            follower.process.join(1.0)
            if follower.process.exitcode:
                return DeviceLost(
                    f"a process that trains with this one was killed: {_how_it_ended(follower)}",
                    fix=_AGAIN,
                )
        return DeviceLost(f"the processes that train together lost each other: {error}", fix=_AGAIN)


def _raised(follower: _Follower, what: str, trace: str) -> RuntimeError:
    """The error of a follower, as this process raises it."""
    error = RuntimeError(f"{what} (on {follower.name})")
    error.add_note(trace)
    return error


def _how_it_ended(follower: _Follower) -> str:
    return f"{follower.name}, exit code {follower.process.exitcode}"


@contextlib.contextmanager
def together(
    work: Callable[[Ranks, Callable[[], bool]], None],
    engine: Engine,
    reporter: Reporter,
    *,
    plugin: str | None = None,
) -> Iterator[Ranks]:
    """Join with one more process for each further device of `engine`; they end with this block,
    however it ends.

    Args:
        work: what a follower does, can be pickled; its second argument waits for `Ranks.go_on` and
            returns whether it came.
        plugin: a method's file, to be loaded before `work` is unpickled.

    Raises:
        BenchError: a process did not start.
        RuntimeError: it does not understand its work.
        Interrupted: a stop was asked for while they started.
    """
    if engine.devices == 1:
        yield Ranks()
        return
    try:
        pickled = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BenchError(
            f"the training cannot be sent to another process: {error}", fix="--devices 1"
        ) from error
    with (
        tempfile.TemporaryDirectory(prefix="bench-devices-") as folder,
        contextlib.ExitStack() as ending,
    ):
        meeting = Path(folder) / "meeting"
        followers = [_started(rank, engine, meeting) for rank in range(1, engine.devices)]
        for follower in followers:
            ending.callback(_end, follower)
        for follower in followers:
            _await(follower, reporter)
            with contextlib.suppress(OSError):  # if it has just died, that is found out below
                follower.pipe.send((plugin, pickled))
        for follower in followers:
            _await(follower, reporter)
        ending.enter_context(_joined(0, engine, meeting))
        for follower in followers:
            ending.callback(follower.pipe.close)  # all leave the group at the same time
        yield Ranks(0, engine.devices, followers)


def _started(rank: int, engine: Engine, meeting: Path) -> _Follower:
    context = multiprocessing.get_context("spawn")
    pipe, others = context.Pipe()
    name = f"device {rank + 1} of {engine.devices}"
    process = context.Process(
        target=_follow, args=(rank, engine, meeting, others), name=f"bench, {name}", daemon=True
    )
    # A stop reaches the whole group of processes, and this one decides what follows: the new one is
    # born deaf to it. (The tracker, which comes with the first process, would lift the block
    # again.)
    ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    others.close()
    return _Follower(name, process, pipe)


def _end(follower: _Follower) -> None:
    follower.pipe.close()  # which tells it that no further step comes
    follower.process.join(5.0)
    if follower.process.is_alive():
        follower.process.kill()  # it writes nothing, so there is nothing to lose
        follower.process.join()


def _await(follower: _Follower, reporter: Reporter) -> None:
    """Return when a follower is ready for what comes next: at first to hear of its work, then to
    meet the others.
    """
    while not wait([follower.pipe, follower.process.sentinel], timeout=0.2):
        stop_if_asked(reporter)
    try:
        told = follower.pipe.recv()
    except EOFError:
        follower.process.join()
        raise BenchError(
            "a process for a further device ended as it started", where=_how_it_ended(follower)
        ) from None
    if told is not None:
        raise _raised(follower, *told)


@contextlib.contextmanager
def _joined(rank: int, engine: Engine, meeting: Path) -> Iterator[None]:
    # Both read the network interface from the environment, and would otherwise listen where the
    # host's name leads.
    os.environ |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
    gpu = engine.device_type == "cuda"
    if gpu:
        torch.cuda.set_device(engine.on(rank).device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=meeting.as_uri(),  # a file: no port has to be found
        rank=rank,
        world_size=engine.devices,
        timeout=_PATIENCE,
    )
    leave = dist.destroy_process_group
    try:
        yield
    except BaseException:
        if gpu:
            # To destroy is to wait for what NCCL has queued, which a process that ended never
            # answers.
            leave = dist.distributed_c10d._abort_process_group
        raise
    finally:
        leave()


def _follow(rank: int, engine: Engine, meeting: Path, pipe: Connection) -> None:
    """The whole life of a follower."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()

    def told_to_go_on() -> bool:
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

                trust(plugin)  # the leader has asked
                load_method(plugin)
            work = pickle.loads(pickled)
            pipe.send(None)
            with _joined(rank, engine, meeting):
                work(Ranks(rank, engine.devices), told_to_go_on)
    except (DeviceLost, EOFError):
        return  # whoever caused it tells why
    except Exception as error:
        # It ends, and with it the exchange that the run's process waits in, which then reads this.
        with contextlib.suppress(OSError):
            pipe.send((f"{type(error).__name__}: {error}", traceback.format_exc()))


def _end_with_the_run() -> None:
    """A follower that is deep in a computation, or waits for a GPU, must not outlive a run that was
    killed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
