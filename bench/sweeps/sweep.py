"""Run a sweep: plan it, execute its jobs with a runner, and read its records from the store."""

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
from ..run_spec import RunSpec, Settings
from ..runs.execute import refresh_finished
from ..stopping import PassedOn, Reporter
from ..storage.atomic import write_text
from .job import LOG, Job, JobResult, Resources, Runner
from .plan import Plan, make_plan
from .queue import Queue
from .sweep_spec import SweepSpec, sweep_of
from .worker import Work


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
    """Return the sweep for the runs of `bench run`; call its `run` to execute it.

    Args:
        spec: the runs.
        jobs: number of processes on this machine; 1: this process.
        store: see `Sweep`.
        settings: see `Sweep`.
        reporter: see `Sweep`.
        fresh: see `Sweep`.
        own: see `Sweep`.
    """
    settings = settings or Settings()
    # Fixed numbers, not those of the machine: both decide the last bits of a result.
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
    """A planned sweep on a store; planning trains nothing and writes nothing.

    Args:
        spec: what to run.
        store: root of the store; None: the default one.
        settings: device, threads and other settings of the machine.
        reporter: receives warnings.
        shard: (i, n): do the i-th (from 1) of n parts of the runs; other processes on the same
            store do the rest.
        fresh: remove the final runs and their fits when the sweep begins.
        own: repeat final runs that came in packs.
        final: see `make_plan`.

    Raises:
        UsageError: a name or a parameter is wrong.
        MissingPrerequisite: data or weights are missing.
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
        # Here, so that a wrong device is reported before any data are opened. The driver of the
        # other runners computes nothing, and must not take memory of a GPU.
        if spec.runner == "inline":
            replace(engine, device=settings.device or default_device()).apply()
        self.plan: Plan = make_plan(
            spec, store=self.store.root, engine=engine, reporter=reporter, **final
        )
        self.queue = Queue(
            self.plan, max_failures=spec.max_failures, shard=shard, fresh=fresh, own=own
        )
        # Absolute paths, since a trial's process may run in another folder. The suite is a
        # placeholder: each job names its own.
        where = spec.run_spec(spec.suites[0], None).model_copy(
            update={"data_root": spec.data_root.absolute() if spec.data_root else None}
        )
        self.work = Work(where, self.store.root, engine, settings.device, spec.timeout)

    @property
    def id(self) -> str:
        """The id of the sweep in the journal, a hash of its spec."""
        return digest(self.spec.model_dump(mode="json"))[:12]

    def runner(self) -> Runner:
        """Return the runner that the spec names.

        Raises:
            UsageError: `--device` contradicts the resources of a trial.
        """
        spec, device, gpus = self.spec, self.work.device, self.spec.gpus_per_trial
        if device is not None and device.startswith("cuda"):
            if ":" in device and spec.runner != "inline":
                raise UsageError(
                    "a sweep assigns GPUs to its trials by itself",
                    where=f"--device {device}",
                    fix=(
                        f"export CUDA_VISIBLE_DEVICES={device.partition(':')[2]}, and use --device"
                        " cuda"
                    ),
                )
            if gpus == 0:
                raise UsageError(
                    "a trial without a GPU cannot use CUDA",
                    where="--gpus-per-trial 0",
                    fix="use --device cpu",
                )
        # Without --gpus-per-trial the device decides; without either, the runner does.
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
        # Imported here, since importing Ray takes seconds that the other runners do not need.
        if spec.runner == "ray":
            from .ray.runner import RayRunner

            return RayRunner(resources, self.store.root / LOG)
        from .local import InlineRunner, LocalRunner

        return LocalRunner(resources) if spec.runner == "local" else InlineRunner()

    def run(self, reporter: Reporter) -> None:
        """Execute all jobs that are not done; a failed run is recorded and stops no other.

        Args:
            reporter: receives the events of all jobs; its `stop` ends the sweep.

        Raises:
            Interrupted: a stop was requested; the running trials have saved their state.
            MissingPrerequisite: the store is not writable.
            BenchError: the runner cannot continue.
        """
        self.queue.begin()
        # A sweep that is done works on a read-only store too.
        if not self.queue.over:
            self._check_store()
        journal = Journal(reporter, self.store.root / "sweep.jsonl", self.id)
        queue = self.queue
        self._refresh_done(reporter)
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
            # A driver that was killed after its last trial left files and processes of Ray, which
            # no other sweep may come to clean up.
            elif self.spec.runner == "ray":
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
                "stopped at once; saved work is not lost"
                if reporter.now
                else "stopped; the state is saved"
            )
            raise Interrupted(
                what, fix="run the same command again: it continues", signal=reporter.stop
            )

    def _refresh_done(self, reporter: Reporter) -> None:
        """Update the records of final runs that are done, and report them."""
        # The averages that a card declares and the search that chose the parameters may have
        # changed since, without any change of the predictions.
        for planned in (
            entry.planned for entry in self.queue if entry.state == "done" and entry.planned.final
        ):
            job, keep_logits = planned.job, self.spec.keep_logits
            refresh_finished(
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
        # Before training, since the first write of a trial may come hours later. `exclusive` makes
        # a hard link, as leases do, which some file systems do not support.
        mark = self.store.root / f".writable-{uuid.uuid4().hex[:12]}"
        try:
            write_text(mark, "", exclusive=True)
        except BenchError as error:
            raise MissingPrerequisite(
                f"the store cannot be written: {error.what}",
                where=str(self.store.root),
                fix="fix its permissions, or choose another store with --store",
            ) from error
        mark.unlink()

    def _tracked(self, reporter: Reporter) -> AbstractContextManager[Reporter]:
        if not self.spec.track:
            return nullcontext(reporter)
        from .trackers import tracked

        return tracked(reporter, self.spec.track, self.store.root)

    def records(self) -> list[RunRecord]:
        """Return the records of the final runs so far, seed by seed in the plan's order."""
        entrants, seeds = self.plan.entrants, self.spec.seeds
        folders = {
            (seeds.index(planned.job.seed), entrants.index(planned.entrant)): planned.path.parent
            for planned in (entry.planned for entry in self.queue)
            if planned.final and planned.entrant is not None and planned.path is not None
        }
        found = [self.store.run_at(folder) for _, folder in sorted(folders.items())]
        return [record for record in found if record is not None]

    def free_disk(self) -> int:
        """Return the free bytes on the store's disk."""
        # Planning does not create the store.
        place = self.store.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free


class Journal(PassedOn):
    """A reporter that appends the state changes of jobs to a JSON Lines file.

    A line is `{"time": unix seconds, "sweep": id, "event": "planned" | "started" | "epoch" |
    "settled" | "note" | "ended", ...}`; docs/sweeps.md describes the fields.

    Args:
        to: receives all events too.
        path: the file, which several sweeps may share.
        sweep: id of the sweep.
    """

    def __init__(self, to: Reporter, path: Path, sweep: str) -> None:
        super().__init__(to)
        self._path, self._sweep, self._broken = path, sweep, False

    def event(self, kind: str, **fields: Any) -> None:
        """Write a line for a change of a job's state, an epoch or a note; pass on every event."""
        # Steps are not written: they would make the file grow by megabytes per run.
        job: Job | None = fields.get("job")
        if kind == "warning" and job is None:
            self.write("note", text=fields["text"])
        elif kind == "started" and job is not None:
            self.write(kind, where=fields["where"], **_named(job))
        elif kind == "epoch" and job is not None:
            self.write(kind, **{**fields, "job": job.id})
        elif kind == "settled" and job is not None:
            ended: JobResult = fields["outcome"]
            self.write(
                kind,
                status=ended.status,
                error=ended.error,
                seconds=round(ended.seconds, 3),
                **_named(job),
            )
        super().event(kind, **fields)

    def write(self, event: str, **fields: Any) -> None:
        """Append a line with the given fields.

        Args:
            event: kind of the line.
            fields: plain values.
        """
        # The journal is a convenience: a full disk ends it with one warning, but not the sweep.
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
            # One write in append mode per line, so that the lines of sweeps that share the file do
            # not mix. A buffered file could split a line.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._broken = True
            text = (
                f"{self._path} cannot be written ({error.strerror}); the sweep continues without it"
            )
            self.to.event("warning", text=text)


def _named(job: Job) -> dict[str, Any]:
    keys = ("phase", "label", "suite", "backbone", "seed", "trial", "fit_id")
    return {"job": job.id, "method": job.method["name"], **{key: getattr(job, key) for key in keys}}
