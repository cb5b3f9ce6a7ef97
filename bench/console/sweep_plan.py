"""Show the plan of a sweep: as a table, or as one command per job for other schedulers."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import typer
from rich.filesize import decimal as size

from ..engine import default_device
from ..plain import plain
from ..plugins import code_files
from ..run_spec import Settings
from ..storage.atomic import write_text
from ..sweeps.estimate import Costs, Estimate, estimate, seconds_by_probe
from ..sweeps.memory_budget import peak_of, peak_of_a_trial
from ..sweeps.queue import Entry, Queue
from ..sweeps.sweep import Sweep
from ..sweeps.sweep_spec import as_toml
from ..tables.table import Cell, Column, Row, Table, duration, say
from ..training.memory import available


def plan_table(sweep: Sweep, *, probe: bool | None = None) -> Table:
    """Return a table of all jobs with their states, and estimates of time, memory and disk space.

    Args:
        sweep: The planned sweep.
        probe: Whether to train a few steps to estimate jobs without earlier records; None for
            `bench run`, which has no such option and no search.
    """
    queue, spec = sweep.queue, sweep.spec
    # A probe runs in this process, so on one device, whatever a trial will have.
    engine = replace(sweep.work.engine, device=sweep.work.device or default_device(), devices=1)
    costs = Costs(
        sweep.store, (lambda planned: seconds_by_probe(planned, engine)) if probe else None
    )
    expected = estimate(queue, costs)
    # On a GPU, running out of memory raises an error, and the micro-batch is made smaller. On a CPU
    # the kernel kills the process, so the peak is estimated beforehand.
    on_cpu = (sweep.work.device or default_device()) == "cpu"
    peaks: dict[tuple[Any, ...], int | None] = {}
    rows: list[Row] = [
        _row(queue, entry, expected.seconds.get(entry.job.id), searching=probe is not None)
        | {"memory": peak_of(entry.planned, peaks) if on_cpu and entry.state != "done" else None}
        for entry in queue
        if entry.mine
    ]
    # The final runs of a search have no parameters yet, so they are no jobs of the queue.
    for search in queue.searches:
        if not search.over:
            for seed in spec.seeds:
                entrant = search.entrant
                rows.append(
                    {
                        "phase": "final",
                        "suite": entrant.suite,
                        "backbone": entrant.backbone,
                        "method": entrant.requested,
                        "seed": seed,
                        "state": "waits",
                        "why": "for its search",
                    }
                )
    for one in sweep.plan.impossible:
        rows.append(
            {
                "suite": one.suite,
                "backbone": one.backbone,
                "method": one.requested,
                "state": "left out",
                "why": one.reason,
            }
        )
    # A column with the same value in every row is hidden in the table; other formats have it.
    several = len(spec.suites) > 1, len(spec.backbones) > 1
    columns = [
        Column("phase"),
        Column("suite", human=several[0]),
        Column("backbone", human=several[1]),
        Column("method"),
        Column("seed", kind="count"),
        Column("trial", kind="count", human=any(row.get("trial") is not None for row in rows)),
        Column("fit_id", "fit"),
        Column("state"),
        Column("fits", human=False),
        Column("why"),
        Column("seconds", "about", "seconds"),
        Column("estimate", human=False),
        Column("memory", "peak memory", "bytes", human=any(row.get("memory") for row in rows)),
    ]
    return Table(columns, rows, notes=_notes(sweep, expected, probe=probe))


def _row(queue: Queue, entry: Entry, seconds: float | None, *, searching: bool) -> dict[str, Cell]:
    job, waits, now = entry.job, queue.waits_for(entry), queue.status_of(entry)
    why = entry.reason if now is None else now.why
    # To the queue, a run from a pack is done like any other; a user wants to know the difference.
    shown: str = (
        "merged"
        if entry.state == "done" and now is not None and now.state == "merged"
        else entry.state
    )
    if waits:
        shown, why = "waits", f"for fit {', '.join(other.job.fit_id[:8] for other in waits)}"
    elif now is not None and entry.state == "to do" and not why:
        why = {"to evaluate": "trained already", "to continue": "from its checkpoint"}.get(
            now.state, ""
        )
    # `bench run` has runs only, so it shows what will be done about each: to train, to evaluate, to
    # continue.
    if not searching and now is not None and entry.state == "to do":
        shown, why = now.state, now.why
    return {
        "phase": job.phase,
        "suite": job.suite,
        "backbone": job.backbone,
        "method": job.label + (f" to epoch {job.epoch}" if job.epoch is not None else ""),
        "seed": job.seed,
        "trial": job.trial,
        "fit_id": job.fit_id[:8] if searching else job.fit_id,
        "state": shown,
        "fits": ", ".join(fit.name for fit in now.fits) if now is not None else "",
        "why": why,
        "seconds": seconds,
        "estimate": seconds,
    }


def _notes(sweep: Sweep, expected: Estimate, *, probe: bool | None) -> list[str]:
    """Return sentences on the number of jobs, the search, and the time, memory and disk space."""
    queue, spec = sweep.queue, sweep.spec
    todo = queue.count("to do")
    if not todo and queue.over:
        return ["everything is done already"]
    # TPE, ASHA and a budget in hours plan a trial only when the results before it are known.
    trials = queue.to_come - queue.finals_to_come
    more = f"{trials} trials to come, each after those before it, " if trials else ""
    notes = [
        f"{queue.count('done')} jobs done, {todo} to do"
        + (
            f", {more}{queue.finals_to_come} final runs to come after the searches."
            if spec.has_search
            else "."
        )
    ]
    dependencies = [entry for entry in queue if entry.mine and entry.job.phase == "stage"]
    if dependencies:
        served = [
            sum(stage.job.fit_id in entry.job.needs for entry in queue) for stage in dependencies
        ]
        notes.append(
            f"{len(dependencies)} shared fits are trained once each; {sum(served)} jobs build on"
            " them."
        )
    if spec.has_search:
        hours = None if spec.hours is None else f"{spec.hours:g} h of training"
        count = None if spec.trials is None and hours else f"{spec.most_trials} trials"
        budget = " or ".join(part for part in (hours, count) if part)
        sampled = {
            "random": "sampled at random in advance",
            "grid": "from a grid",
            "tpe": "each proposed from the results before it",
        }
        notes.append(
            f"Search: {budget} for every method, {sampled[spec.search]}, ranked on id-val with a"
            " seed of its own."
        )
        if spec.asha:
            notes.append(_asha(queue))
    if expected.total:
        partial = (
            f" There are no records to estimate all or part of {expected.unknown} jobs."
            if expected.unknown
            else ""
        )
        about = "At least" if partial else "About"
        how = "earlier records and a probe" if probe else "earlier records"
        notes.append(
            f"{about} {duration(expected.total)} of trial time, estimated from {how}. Parallel"
            f" trials divide it.{partial}"
        )
    else:
        hint = "" if probe is None else " --probe measures a few steps."
        notes.append(f"There is no earlier record to estimate the time from.{hint}")
    if (sweep.work.device or default_device()) == "cpu":
        notes.append(
            f"A trial takes up to {size(peak_of_a_trial(queue))} of memory; {size(available())} are"
            " free."
        )
    # A warning and no error: the estimate is rough, and the user may free space meanwhile.
    free = sweep.free_disk()
    notes.append(
        f"The sweep takes about {size(expected.bytes)} of disk space; {size(free)} are free."
        + (" That is not enough." if expected.bytes > free else "")
    )
    return notes


def _asha(queue: Queue) -> str:
    """Return a sentence on what ASHA does to the trials of this plan."""
    cut = [search for search in queue.searches if search.rungs]
    whole = sorted({search.entrant.requested for search in queue.searches if not search.rungs})
    if not cut:
        return "ASHA: no method here trains for more than one epoch, so no trial is stopped early."
    note = (
        "ASHA: trials pause at a ninth and a third of their epochs, and the best third on id-val"
        " continues. This favours methods that learn fast early. The choice depends on the order in"
        " which results arrive, and rows chosen in this way are marked."
    )
    return note + (
        f" Not stopped early, since not trained for several epochs: {', '.join(whole)}."
        if whole
        else ""
    )


def print_commands_of(sweep: Sweep, settings: Settings) -> None:
    """Print a command for each job that is to do, on stdout, after those that it depends on.

    Args:
        sweep: The planned sweep.
        settings: Settings of this machine, which the commands repeat.
    """
    # The commands refer to a copy of the configuration in the store, with absolute paths: they may
    # run in any folder, and the user's file may change before they do.
    config = sweep.store.root / "sweeps" / f"{sweep.id}.toml"
    write_text(config, as_toml(sweep.spec.with_absolute_paths()))
    # The user named these files for this command, so the printed ones may execute them too.
    allowed = ["--allow-code"] if code_files(sweep.spec.model_dump()) else []
    common = [
        "bench",
        "sweep",
        "--config",
        str(config),
        *allowed,
        "--store",
        str(sweep.store.root),
        *_options(settings),
    ]
    for entry in sweep.queue:
        if entry.state == "failed" and entry.job.phase != "final":
            say(
                f"note: {entry.job.title} failed and is left out; `--job {entry.job.id}` retries"
                f" it: {entry.reason}"
            )
    # In levels, each of which a scheduler can run as an array of jobs: a job is ready when nothing
    # that it needs is made by a job that is still left. Two runs may need the fit that one of them
    # makes itself, hence without the job's own.
    left = [entry for entry in sweep.queue if entry.mine and entry.state == "to do"]
    level = 0
    while left:
        makes = {entry.job.fit_id for entry in left}
        ready = [entry for entry in left if not (set(entry.job.needs) & makes - {entry.job.fit_id})]
        if level:
            typer.echo("# after all of the above:")
        for entry in ready:
            typer.echo(
                f"{shlex.join([*common, '--job', entry.job.id])}  # {plain(entry.job.title)}"
            )
        left = [entry for entry in left if entry not in ready]
        level += 1
    if sweep.queue.finals_to_come:
        say(
            f"note: {sweep.queue.finals_to_come} final runs depend on the searches; when these are"
            " done, run --print-commands again for the rest"
        )


def _options(settings: Settings) -> list[str]:
    """Return command-line options for the settings that differ from the defaults."""
    found = []
    for name, field in Settings.model_fields.items():
        value, extra = getattr(settings, name), field.json_schema_extra
        if value != field.default and isinstance(extra, dict):
            # A flag of a boolean has two forms, such as `--deterministic/--no-deterministic`.
            yes, _, no = str(extra["flag"] or f"--{name.replace('_', '-')}").partition("/")
            found += [no] if value is False else [yes, str(value)]
    return found
