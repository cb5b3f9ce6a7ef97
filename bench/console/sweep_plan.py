"""What `bench sweep` shows without doing anything: the plan as a table, and one command per job for
other schedulers.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import typer
from rich.filesize import decimal as size

from ..engine import default_device
from ..plain import plain
from ..plugins import code_files
from ..spec import Settings
from ..storage.atomic import write_text
from ..sweeps.estimate import Costs, Estimate, estimate, seconds_by_probe
from ..sweeps.queue import Entry, Queue
from ..sweeps.room import peak_of, peak_of_a_trial
from ..sweeps.spec import as_toml
from ..sweeps.sweep import Sweep
from ..tables.table import Cell, Column, Row, Table, duration, say
from ..training.memory import available


def plan_table(sweep: Sweep, *, probe: bool | None = None) -> Table:
    """Every job with its state, and what the rest will take, by earlier records or else, if asked
    for, by a probe.

    Args:
        probe: None where that cannot be asked for.
    """
    queue, spec = sweep.queue, sweep.spec
    engine = replace(sweep.work.engine, device=sweep.work.device or default_device(), devices=1)
    costs = Costs(
        sweep.store, (lambda planned: seconds_by_probe(planned, engine)) if probe else None
    )
    expected = estimate(queue, costs)
    on_cpu = (sweep.work.device or default_device()) == "cpu"
    peaks: dict[tuple[Any, ...], int | None] = {}
    rows: list[Row] = [
        _row(queue, entry, expected.seconds.get(entry.job.id), searching=probe is not None)
        | {"memory": peak_of(entry.planned, peaks) if on_cpu and entry.state != "done" else None}
        for entry in queue
        if entry.mine
    ]
    for search in queue.searches:
        if not search.over:
            for seed in spec.seeds:
                entrant = search.entrant
                rows.append(
                    {
                        "phase": "final",
                        "suite": entrant.suite,
                        "backbone": entrant.backbone,
                        "method": entrant.asked,
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
                "method": one.asked,
                "state": "left out",
                "why": one.reason,
            }
        )
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
    job, waits, now = entry.job, queue.waits_for(entry), queue.standing(entry)
    why = entry.reason if now is None else now.why
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
    if (
        not searching and now is not None and entry.state == "to do"
    ):  # runs alone are told by what is done about each
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
    queue, spec = sweep.queue, sweep.spec
    todo = queue.count("to do")
    if not todo and queue.over:
        return ["everything is done already"]
    trials = queue.to_come - queue.finals_to_come
    more = f"{trials} trials to come, each after those before it, " if trials else ""
    notes = [
        f"{queue.count('done')} jobs done, {todo} to do"
        + (
            f", {more}{queue.finals_to_come} final runs to come after the searches."
            if spec.searches
            else "."
        )
    ]
    stages = [entry for entry in queue if entry.mine and entry.job.phase == "stage"]
    if stages:
        served = [sum(stage.job.fit_id in entry.job.needs for entry in queue) for stage in stages]
        notes.append(
            f"{len(stages)} fits are trained for others to build on, each once; they serve"
            f" {sum(served)} jobs."
        )
    if spec.searches:
        hours = None if spec.hours is None else f"{spec.hours:g} h of training"
        count = None if spec.trials is None and hours else f"{spec.most_trials} trials"
        budget = " or ".join(part for part in (hours, count) if part)
        drawn = {
            "random": "drawn at random beforehand",
            "grid": "from a grid",
            "tpe": "each proposed from the results before it",
        }
        notes.append(
            f"Search: {budget} for every method, {drawn[spec.search]}, on id-val with a seed of its"
            " own."
        )
        if spec.asha:
            notes.append(_asha(queue))
    if expected.total:
        partial = (
            f", {expected.unknown} jobs left out, in part or whole, of which nothing tells"
            if expected.unknown
            else ""
        )
        about = "At least" if partial else "About"
        how = "earlier records and a probe" if probe else "earlier records"
        notes.append(
            f"{about} {duration(expected.total)} of trial time, by {how}{partial}; trials at once"
            " divide it."
        )
    else:
        ask = "" if probe is None else "; --probe measures a few steps"
        notes.append(f"No earlier record tells how long this takes{ask}.")
    if (sweep.work.device or default_device()) == "cpu":
        notes.append(
            f"A trial takes up to {size(peak_of_a_trial(queue))} of memory, of {size(available())}"
            " free."
        )
    free = sweep.free_disk()
    notes.append(
        f"About {size(expected.bytes)} of disk, of {size(free)} free."
        + (" That is not enough." if expected.bytes > free else "")
    )
    return notes


def _asha(queue: Queue) -> str:
    """What ASHA does to the trials of this plan."""
    cut = [search for search in queue.searches if search.rungs]
    whole = sorted({search.entrant.asked for search in queue.searches if not search.rungs})
    told = (
        "ASHA: trials are paused at a ninth and a third of their epochs, and the best third by"
        " id-val goes on; it favours quick starters, its choice depends on the order in which"
        " results arrive, and rows chosen so are marked."
    )
    if not cut:
        return "ASHA: nothing here is trained in more than one epoch, so no trial is cut short."
    return told + (
        f" Not cut short, since not trained in several epochs: {', '.join(whole)}." if whole else ""
    )


def print_commands_of(sweep: Sweep, settings: Settings) -> None:
    """One line per job that is to do, on stdout, in an order in which each finds what it is built
    on already made.
    """
    config = sweep.store.root / "sweeps" / f"{sweep.id}.toml"
    write_text(config, as_toml(sweep.spec.anywhere()))
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
                f"note: {entry.job.title} failed and is left out, `--job {entry.job.id}` tries it"
                f" again: {entry.reason}"
            )
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
            f"note: {sweep.queue.finals_to_come} final runs follow from the searches: when these"
            " are done, ask again for the rest"
        )


def _options(settings: Settings) -> list[str]:
    """The options that make these settings, those that differ from the defaults."""
    found = []
    for name, field in Settings.model_fields.items():
        value, extra = getattr(settings, name), field.json_schema_extra
        if value != field.default and isinstance(extra, dict):
            yes, _, no = str(extra["flag"] or f"--{name.replace('_', '-')}").partition("/")
            found += [no] if value is False else [yes, str(value)]
    return found
