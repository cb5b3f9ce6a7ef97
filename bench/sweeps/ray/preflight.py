"""Check before a sweep that all nodes can run its trials, and would compute the same results."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal as size

from ...data.cards.locations import cache_dir, data_roots, find_root
from ...data.cards.suite_card import FolderSource, find_card
from ...errors import BenchError, MissingPrerequisite
from ...stopping import Reporter
from ...storage.atomic import write_text
from ..job import Resources
from ..queue import Queue
from ..worker import Work
from .session import carried

#: Free bytes on a disk below which a node is refused, and below which the user is warned.
_TOO_LITTLE, _LITTLE = 500 * 2**20, 5 * 2**30
_FIX = "fix these nodes or remove them from the cluster; run `bench doctor` on a node for details"
#: Seconds that a node may take. It imports torch, and hashes the weights of the backbones, perhaps
#: over a slow network.
_PATIENCE = 600.0


@dataclass(frozen=True)
class NodeQuery:
    """The questions to a node, as plain values.

    Args:
        places: (suite, backbone) of the jobs.
        files: files of methods.
        store: absolute path of the store.
        mark: name of the file in the store that the driver wrote.
        token: content of that file.
        data_root: absolute path of the datasets, if given.
        gpus: number of GPUs that Ray offers on the node; 0 if trials use none.
        environment: variables of the driver, as (name, value).
    """

    places: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    store: Path
    mark: str
    token: str
    data_root: Path | None = None
    gpus: int = 0
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """The answers of a node.

    Attributes:
        host: name of the machine.
        facts: versions and hashes that must be the same on all nodes.
        problems: reasons why the node cannot run trials.
        notes: warnings.
    """

    host: str
    facts: dict[str, str]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def preflight(
    queue: Queue, work: Work, reporter: Reporter, resources: Resources, nodes: list[dict[str, Any]]
) -> None:
    """Check every node; the answers of the driver's own process are the reference.

    Args:
        queue: the jobs of the sweep.
        work: settings that all trials share.
        reporter: receives warnings; its `stop` ends the check.
        resources: resources of a trial.
        nodes: the nodes on which trials may run, as `ray.nodes()` lists them.

    Raises:
        MissingPrerequisite: nodes lack something or would compute something else; the error names
            all of them.
    """
    # A trial that finds another fit than the plan's fails by itself, and so does one without data.
    # But it fails after minutes in a queue, once per job, and names one problem at a time.
    mark, token = f".preflight-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    jobs = [entry.job for entry in queue if entry.state != "done"]
    question = NodeQuery(
        places=tuple(dict.fromkeys((job.suite, job.backbone) for job in jobs)),
        files=tuple(
            dict.fromkeys(job.method["name"] for job in jobs if job.method["name"].endswith(".py"))
        ),
        store=work.store,
        mark=mark,
        token=token,
        data_root=work.spec.data_root,
        environment=tuple(carried().items()),
    )
    # A path alone does not show that two machines have the same store, so the driver leaves a mark
    # there, which every node has to find.
    uses_gpus = bool(resources.gpus) and (work.device is None or work.device.startswith("cuda"))
    offered = {
        node["NodeID"]: int(node["Resources"].get("GPU", 0)) if uses_gpus else 0 for node in nodes
    }
    try:
        work.store.mkdir(parents=True, exist_ok=True)
        (work.store / mark).write_text(token, encoding="utf-8")
        if resources.address is None:
            # The only node is this machine, with the driver's own installation.
            here = inspect(_with_gpus(question, max(offered.values(), default=0)))
            answers = [here]
        else:
            here = inspect(question)
            answers = _ask(question, offered, reporter)
    except OSError as error:
        raise MissingPrerequisite(
            f"the store cannot be written: {error.strerror}",
            where=str(work.store),
            fix="fix its permissions, or choose another store with --store",
        ) from error
    finally:
        with suppress(OSError):
            (work.store / mark).unlink(missing_ok=True)
    for answer in answers:
        for text in answer.notes:
            reporter.event("warning", text=f"{answer.host}: {text}")
    if reporter.stop:
        return
    if not answers:
        raise MissingPrerequisite(
            "no node of the cluster answers",
            where=f"--address {resources.address}",
            fix="check the cluster with `ray status`",
        )
    wrong = {
        index: [*answer.problems, *_differences(here, answer)]
        for index, answer in enumerate(answers)
    }
    # All problems of all nodes in one error, so that one round of repairs is enough.
    if any(wrong.values()):
        here_alone = resources.address is None
        raise MissingPrerequisite(
            (
                "this machine cannot run the sweep"
                if here_alone
                else f"{sum(map(bool, wrong.values()))} of {len(answers)} nodes cannot run trials"
            ),
            where="; ".join(
                dict.fromkeys(
                    f"{answers[index].host}: {text}"
                    for index, texts in wrong.items()
                    for text in texts
                )
            ),
            fix="run `bench doctor` for details" if here_alone else _FIX,
        )


def _with_gpus(question: NodeQuery, gpus: int) -> NodeQuery:
    return NodeQuery(**{**question.__dict__, "gpus": gpus})


def _ask(question: NodeQuery, offered: dict[str, int], reporter: Reporter) -> list[Answer]:
    """Query all nodes in parallel; after a requested stop, return the answers so far."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A process of its own (max_calls=1): it sees all GPUs of the node, which no trial's process
    # should. Without a CPU, so that it also runs on a node that is busy with others' work.
    remote = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_inspect_on_node)
    requested = {
        node: (
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(_with_gpus(question, gpus))
        )
        for node, gpus in offered.items()
    }
    until, left = time.monotonic() + _PATIENCE, list(requested.values())
    while left and time.monotonic() < until and not reporter.stop:
        _, left = ray.wait(left, num_returns=len(left), timeout=0.5)
    answers = []
    for node, answer in requested.items():
        try:
            answers.append(ray.get(answer, timeout=0))
        except ray.exceptions.GetTimeoutError:
            if not reporter.stop:
                answers.append(
                    Answer(f"node {node[:8]}", {}, (f"no answer within {_PATIENCE:g} s",))
                )
        # The node has just died, and Ray still lists it.
        except ray.exceptions.TaskUnschedulableError:
            continue
        # A node without ShiftBench cannot even unpickle the query.
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            answers.append(Answer(f"node {node[:8]}", {}, (f"the check failed: {reason}",)))
    return answers


def _inspect_on_node(question: NodeQuery) -> Answer:
    # Ray may hide GPUs from a task that requests none, but this one counts all of them.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.update(question.environment)
    return inspect(question)


def inspect(question: NodeQuery) -> Answer:
    """Answer a query about this machine.

    Args:
        question: the query.
    """
    problems: list[str] = []
    notes: list[str] = []
    facts = _versions()
    for path in question.files:
        facts[f"the file {path}"] = _sha(Path(path))
    # Each check yields (whether it is a problem, text); a text that is no problem is a note.
    for check in (_store, _disk, _gpus):
        for bad, text in check(question):
            (problems if bad else notes).append(text)
    for suite, backbone in question.places:
        try:
            facts |= _data(suite, question.data_root)
            facts[f"the weights of {backbone}"] = _weights(backbone)
        except BenchError as error:
            problems.append(f"{error.what}" + (f" ({error.where})" if error.where else ""))
    return Answer(socket.gethostname(), facts, tuple(problems), tuple(notes))


def _versions() -> dict[str, str]:
    from ...results.provenance import source_sha256, versions

    # The source too: two checkouts of one version may differ.
    return {
        **{name: str(version) for name, version in versions().items()},
        "ShiftBench's source": source_sha256()[:12],
    }


def _store(question: NodeQuery) -> Iterator[tuple[bool, str]]:
    try:
        seen = (question.store / question.mark).read_text(encoding="utf-8")
    except OSError:
        seen = ""
    if seen != question.token:
        yield (
            True,
            (
                f"the store {question.store} is not the driver's: it has to be on a file system"
                " that all nodes share"
            ),
        )
        return
    # `exclusive` makes a hard link, as leases do, which some file systems do not support.
    mine = question.store / f"{question.mark}-{uuid.uuid4().hex[:8]}"
    try:
        write_text(mine, "", exclusive=True)
    except BenchError as error:
        yield True, f"the store cannot be written: {error.what}"
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)


def _disk(question: NodeQuery) -> Iterator[tuple[bool, str]]:
    for what, folder in (("the store", question.store), ("the cache", cache_dir())):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            if free < _LITTLE:
                wanted = f", at least {size(_TOO_LITTLE)} are needed" if free < _TOO_LITTLE else ""
                yield free < _TOO_LITTLE, f"{size(free)} are free for {what} ({folder}){wanted}"


def _gpus(question: NodeQuery) -> Iterator[tuple[bool, str]]:
    if question.gpus:
        import torch

        seen = torch.cuda.device_count()
        if seen < question.gpus:
            yield (
                True,
                (
                    f"Ray offers {question.gpus} GPUs, but torch sees {seen} (install a torch build"
                    " for its driver, or use --device cpu)"
                ),
            )


def _data(suite: str, data_root: Path | None) -> dict[str, str]:
    """Return the hash of a suite's card, and the data folders that exist."""
    # Only the names of folders: to read all images would take long, and the fit_id, which every
    # trial checks, covers the training images.
    card, path = find_card(suite)
    facts = {f"the card of {card.name}": _sha(path)}
    if isinstance(card.source, FolderSource):
        root = find_root(card, data_roots(data_root), card_path=path)
        parts = sorted(part.name for part in root.iterdir() if part.is_dir())
        facts[f"the folders of {card.name}"] = ", ".join(parts)
    return facts


def _weights(backbone: str) -> str:
    from ...backbones.backbone import load_backbone

    return load_backbone(backbone).weights_sha256[:12]


def _sha(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _differences(here: Answer, there: Answer) -> Iterator[str]:
    for name, value in there.facts.items():
        if here.facts.get(name) != value:
            yield f"{name} is {value}, but {here.facts.get(name)} on the driver ({here.host})"
