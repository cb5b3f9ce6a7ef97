"""A sweep from its spec to its records: plan, queue, runner, and what is left in the store."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine import Engine, default_device
from ..errors import BenchError, Interrupted, MissingPrerequisite, UsageError
from ..identity import digest
from ..results.record import RunRecord
from ..results.store import Store, store_root
from ..runs.execute import look_again
from ..spec import RunSpec, Settings
from ..stopping import PassedOn, Reporter
from ..storage.atomic import write_text
from .job import LOG, Job, Outcome, Resources, Runner
from .plan import Plan, make_plan
from .queue import Queue
from .spec import SweepSpec, sweep_of
from .work import Work


def run_sweep(
    spec: RunSpec,
    *,
    jobs: int = 1,
    store: Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter,
    fresh: bool = False,
    own: bool = False,
) -> Sweep:
    """The sweep that makes the runs of a spec, in this process or as several jobs on this machine.

    Args:
        settings, reporter, fresh, own: see `Sweep`.
    """
    settings = settings or Settings()
    settings = settings.model_copy(
        update={"threads": settings.threads or 2, "devices": settings.devices or 1}
    )
    return Sweep(
        sweep_of(spec, jobs),
        store=store,
        settings=settings,
        reporter=reporter,
        fresh=fresh,
        own=own,
        blind=spec.search,
        every_curve=True,
    )


class Sweep:
    """A planned sweep on a store. Planning trains nothing and writes nothing.

    Args:
        shard: (i, n): this process does the i-th of n parts of the runs; others on the same store
            do the rest.
        fresh: forget the final runs and their own fits first.
        own: make them here though they came in packs.
        final: see `make_plan`.

    Raises:
        UsageError: a name or a parameter is wrong.
        MissingPrerequisite: data or weights are not here.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        store: Path | None = None,
        settings: Settings | None = None,
        reporter: Reporter,
        shard: tuple[int, int] = (1, 1),
        fresh: bool = False,
        own: bool = False,
        **final: bool,
    ) -> None:
        settings = settings or Settings()
        self.spec = spec
        self.store = Store(store_root(store).absolute())
        engine = Engine(
            threads=settings.threads or math.ceil(spec.cpus_per_trial),
            workers=settings.workers,
            cores=None if spec.runner == "inline" else math.ceil(spec.cpus_per_trial),
            micro_batch=settings.micro_batch,
            deterministic=settings.deterministic,
            checkpoint_seconds=settings.checkpoint_seconds,
            devices=settings.devices or max(1, int(spec.gpus_per_trial or 1)),
        )
        if spec.runner == "inline":  # told before anything is opened
            replace(engine, device=settings.device or default_device()).apply()
        # The driver of other runners computes nothing, so it takes no memory of any GPU.
        self.plan: Plan = make_plan(
            spec, store=self.store.root, engine=engine, reporter=reporter, **final
        )
        self.queue = Queue(
            self.plan, max_failures=spec.max_failures, shard=shard, fresh=fresh, own=own
        )
        where = spec.run_spec(spec.suites[0], None).model_copy(
            update={"data_root": spec.data_root.absolute() if spec.data_root else None}
        )
        self.work = Work(where, self.store.root, engine, settings.device, spec.timeout)

    @property
    def id(self) -> str:
        """Names the sweep in the journal: the same for the same spec."""
        return digest(self.spec.model_dump(mode="json"))[:12]

    def runner(self) -> Runner:
        """The runner that the spec names.

        Raises:
            UsageError: the device contradicts what a trial gets.
        """
        spec, device, gpus = self.spec, self.work.device, self.spec.gpus_per_trial
        if device is not None and device.startswith("cuda"):
            if ":" in device and spec.runner != "inline":
                raise UsageError(
                    "which GPU a trial computes on is the sweep's to say",
                    where=f"--device {device}",
                    fix=(
                        f"export CUDA_VISIBLE_DEVICES={device.partition(':')[2]}, and --device cuda"
                    ),
                )
            if gpus == 0:
                raise UsageError(
                    "a trial without a GPU cannot use CUDA",
                    where="--gpus-per-trial 0",
                    fix="--device cpu",
                )
        if gpus is None and device is not None:
            gpus = float(device.startswith("cuda"))
        resources = Resources(
            gpus=gpus,
            cpus=spec.cpus_per_trial,
            most=spec.max_concurrent,
            timeout=spec.timeout,
            max_failures=spec.max_failures,
            custom=tuple(spec.resources.items()),
            labels=tuple(spec.labels.items()),
            address=spec.address,
        )
        if spec.runner == "ray":
            from .ray.runner import RayRunner

            return RayRunner(resources, self.store.root / LOG)
        from .local import InlineRunner, LocalRunner

        return LocalRunner(resources) if spec.runner == "local" else InlineRunner()

    def run(self, reporter: Reporter) -> None:
        """Have everything done that is not done yet; failed runs are rows, and do not stop the
        others.

        Raises:
            Interrupted: a stop was asked for; the trials that ran have saved their state.
            MissingPrerequisite: the store cannot be written.
            BenchError: the runner cannot go on.
        """
        self.queue.begin()
        if not self.queue.over:
            self._check_store()
        journal = Journal(reporter, self.store.root / "sweep.jsonl", self.id)
        queue = self.queue
        self._tell_done(reporter)
        journal.write(
            "planned",
            done=queue.count("done"),
            todo=queue.count("to do"),
            finals_to_come=queue.finals_to_come,
        )
        try:
            if not queue.over:
                with self._tracked(journal) as tracked:
                    self.runner().run(queue, self.work, tracked)
            elif (
                self.spec.runner == "ray"
            ):  # what a driver left that was killed after its last trial
                from .ray.session import remove_dead_sessions

                remove_dead_sessions()
        finally:
            journal.write(
                "ended",
                done=queue.count("done"),
                failed=queue.count("failed"),
                signal=reporter.stop,
            )
        if reporter.stop and queue.unfinished:
            what = (
                "stopped at once; what was saved before is kept"
                if reporter.now
                else "stopped; the state is saved"
            )
            raise Interrupted(
                what, fix="run the same command again: it continues", signal=reporter.stop
            )

    def _tell_done(self, reporter: Reporter) -> None:
        """Bring the records of final runs that are done up to what the card and the search say
        today, and tell of them.
        """
        for planned in (
            entry.planned for entry in self.queue if entry.state == "done" and entry.planned.final
        ):
            job, keep_logits = planned.job, self.spec.keep_logits
            look_again(
                planned.experiment,
                planned.method,
                limit=self.spec.limit,
                search=job.phase == "search",
                curve=job.curve,
                keep_logits=keep_logits,
                reporter=reporter,
                **job.chosen,
            )

    def _check_store(self) -> None:
        mark = self.store.root / f".writable-{uuid.uuid4().hex[:12]}"
        try:
            write_text(mark, "", exclusive=True)  # by a hard link, as leases are
        except BenchError as error:
            raise MissingPrerequisite(
                f"the store cannot be written: {error.what}",
                where=str(self.store.root),
                fix="mend its permissions, or use another one with --store",
            ) from error
        mark.unlink()

    def _tracked(self, reporter: Reporter) -> AbstractContextManager[Reporter]:
        if not self.spec.track:
            return nullcontext(reporter)
        from .trackers import tracked

        return tracked(reporter, self.spec.track, self.store.root)

    def records(self) -> list[RunRecord]:
        """The records of the final runs that there are, seed by seed in the plan's order."""
        entrants, seeds = self.plan.entrants, self.spec.seeds
        folders = {
            (seeds.index(planned.job.seed), entrants.index(planned.entrant)): planned.path.parent
            for planned in (entry.planned for entry in self.queue)
            if planned.final and planned.entrant is not None and planned.path is not None
        }
        found = [self.store.run_at(folder) for _, folder in sorted(folders.items())]
        return [record for record in found if record is not None]

    def free_disk(self) -> int:
        """Bytes free where the store is."""
        place = self.store.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free


class Journal(PassedOn):
    """A reporter that writes the lines and passes everything on.

    A line is `{"time": unix seconds, "sweep": id, "event": "planned" | "started" | "epoch" |
    "settled" | "ended", ...}`. Several sweeps may write to one file: a line is appended in one
    piece.
    """

    def __init__(self, to: Reporter, path: Path, sweep: str) -> None:
        super().__init__(to)
        self._path, self._sweep, self._broken = path, sweep, False

    def event(self, kind: str, **fields: Any) -> None:
        """Write what changes the state of a job, its epochs, and notes on the whole sweep; pass
        everything on.
        """
        job: Job | None = fields.get("job")
        if kind == "warning" and job is None:
            self.write("note", text=fields["text"])
        elif kind == "started" and job is not None:
            self.write(kind, where=fields["where"], **_named(job))
        elif kind == "epoch" and job is not None:
            self.write(kind, **{**fields, "job": job.id})
        elif kind == "settled" and job is not None:
            ended: Outcome = fields["outcome"]
            self.write(
                kind,
                status=ended.status,
                error=ended.error,
                seconds=round(ended.seconds, 3),
                **_named(job),
            )
        super().event(kind, **fields)

    def write(self, event: str, **fields: Any) -> None:
        """Append a line. A full disk ends the journal, told once, and not the sweep."""
        if self._broken:
            return
        line = (
            json.dumps(
                {"time": round(time.time(), 3), "sweep": self._sweep, "event": event, **fields}
            )
            + "\n"
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._broken = True
            text = (
                f"{self._path} cannot be written ({error.strerror}); the sweep goes on without it"
            )
            self.to.event("warning", text=text)


def _named(job: Job) -> dict[str, Any]:
    keys = ("phase", "label", "suite", "backbone", "seed", "trial", "fit_id")
    return {"job": job.id, "method": job.method["name"], **{key: getattr(job, key) for key in keys}}
