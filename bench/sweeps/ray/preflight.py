"""Before a sweep starts: every node must be able to do its work, and would do the same work as the
driver.
"""

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
from ..work import Work
from .session import carried

#: Free bytes below which a node is refused, and below which it is mentioned.
_TOO_LITTLE, _LITTLE = 500 * 2**20, 5 * 2**30
_MEND = "mend these nodes, or leave them out of the cluster; `bench doctor` on a node tells more"
#: Seconds that a node may take: it imports torch, and reads the backbones' weights.
_PATIENCE = 600.0


@dataclass(frozen=True)
class Question:
    """What a node is asked.

    Args:
        places: (suite, backbone) of the jobs.
        files: those of methods.
        store, data_root: absolute paths.
        token: what the driver wrote to `<store>/<mark>`.
        gpus: how many Ray offers there, 0 if trials use none.
        environment: variables of the driver.
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
    """What a node says.

    Attributes:
        facts: what must be the same everywhere.
        problems: what it lacks.
        notes: what deserves a line.
    """

    host: str
    facts: dict[str, str]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def preflight(
    queue: Queue, work: Work, reporter: Reporter, resources: Resources, nodes: list[dict[str, Any]]
) -> None:
    """Ask every node, and this process, whose answer is the measure.

    Args:
        nodes: as `ray.nodes()` lists them; those on which trials may run.

    Raises:
        MissingPrerequisite: a node lacks something or would compute something else; all of them are
            named.
    """
    mark, token = f".preflight-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    jobs = [entry.job for entry in queue if entry.state != "done"]
    question = Question(
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
    uses_gpus = bool(resources.gpus) and (work.device is None or work.device.startswith("cuda"))
    offered = {
        node["NodeID"]: int(node["Resources"].get("GPU", 0)) if uses_gpus else 0 for node in nodes
    }
    try:
        work.store.mkdir(parents=True, exist_ok=True)
        (work.store / mark).write_text(token, encoding="utf-8")
        if resources.address is None:
            # The one node is this machine, with this very installation.
            here = inspect(_with_gpus(question, max(offered.values(), default=0)))
            answers = [here]
        else:
            here = inspect(question)
            answers = _ask(question, offered, reporter)
    except OSError as error:
        raise MissingPrerequisite(
            f"the store cannot be written: {error.strerror}",
            where=str(work.store),
            fix="another one with --store",
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
            fix="`ray status`",
        )
    wrong = {
        index: [*answer.problems, *_differences(here, answer)]
        for index, answer in enumerate(answers)
    }
    if any(wrong.values()):
        here_alone = resources.address is None
        raise MissingPrerequisite(
            (
                "this machine cannot do it"
                if here_alone
                else f"{sum(map(bool, wrong.values()))} of {len(answers)} nodes cannot take part"
            ),
            where="; ".join(
                dict.fromkeys(
                    f"{answers[index].host}: {text}"
                    for index, texts in wrong.items()
                    for text in texts
                )
            ),
            fix="`bench doctor` tells more" if here_alone else _MEND,
        )


def _with_gpus(question: Question, gpus: int) -> Question:
    return Question(**{**question.__dict__, "gpus": gpus})


def _ask(question: Question, offered: dict[str, int], reporter: Reporter) -> list[Answer]:
    """Every node's answer, asked side by side; those that have answered when a stop is asked
    for.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A process of its own (max_calls=1): what it sees of the GPUs must not stay with a trial.
    remote = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_inspect_on_node)
    asked = {
        node: (
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(_with_gpus(question, gpus))
        )
        for node, gpus in offered.items()
    }
    until, left = time.monotonic() + _PATIENCE, list(asked.values())
    while left and time.monotonic() < until and not reporter.stop:
        _, left = ray.wait(left, num_returns=len(left), timeout=0.5)
    answers = []
    for node, answer in asked.items():
        try:
            answers.append(ray.get(answer, timeout=0))
        except ray.exceptions.GetTimeoutError:
            if not reporter.stop:
                answers.append(
                    Answer(f"node {node[:8]}", {}, (f"no answer within {_PATIENCE:g} s",))
                )
        except ray.exceptions.TaskUnschedulableError:
            continue  # it has died a moment ago, and Ray lists it still
        except ray.exceptions.RayError as error:
            # A node without ShiftBench cannot even unpickle the question.
            reason = str(error).strip().splitlines()[-1]
            answers.append(Answer(f"node {node[:8]}", {}, (f"it cannot be asked: {reason}",)))
    return answers


def _inspect_on_node(question: Question) -> Answer:
    # A task without a GPU may be shown none; here all of them are of interest.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.update(question.environment)
    return inspect(question)


def inspect(question: Question) -> Answer:
    """What this machine is and lacks."""
    problems: list[str] = []
    notes: list[str] = []
    facts = _versions()
    for path in question.files:
        facts[f"the file {path}"] = _sha(Path(path))
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

    return {
        **{name: str(version) for name, version in versions().items()},
        "ShiftBench's source": source_sha256()[:12],
    }


def _store(question: Question) -> Iterator[tuple[bool, str]]:
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
    mine = question.store / f"{question.mark}-{uuid.uuid4().hex[:8]}"
    try:
        write_text(mine, "", exclusive=True)  # by a hard link, as leases are
    except BenchError as error:
        yield True, f"the store cannot be written: {error.what}"
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)


def _disk(question: Question) -> Iterator[tuple[bool, str]]:
    for what, folder in (("the store", question.store), ("the cache", cache_dir())):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            if free < _LITTLE:
                wanted = f", at least {size(_TOO_LITTLE)} are wanted" if free < _TOO_LITTLE else ""
                yield free < _TOO_LITTLE, f"{size(free)} are free for {what} ({folder}){wanted}"


def _gpus(question: Question) -> Iterator[tuple[bool, str]]:
    if question.gpus:
        import torch

        seen = torch.cuda.device_count()
        if seen < question.gpus:
            yield (
                True,
                (
                    f"Ray offers {question.gpus} GPUs and torch sees {seen} (install a torch for"
                    " its driver, or --device cpu)"
                ),
            )


def _data(suite: str, data_root: Path | None) -> dict[str, str]:
    """The card's content, and which of its folders are there."""
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
            yield f"{name} is {value}, and {here.facts.get(name)} on the driver ({here.host})"
