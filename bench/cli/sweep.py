"""`bench sweep`: many methods, backbones, suites and seeds as one plan, with the same search budget
for every method.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console.options import (
    AllowCodeOption,
    ConfigOption,
    SeedOption,
    SeedsOption,
    seeds_of,
    with_options,
)
from ..errors import BenchError, Interrupted, NothingMatched, UsageError
from ..plugins import entries, trust
from ..spec import Settings
from ..sweeps.spec import SweepSpec
from ..tables.table import Format, FormatOption, StoreOption, print_tables, say
from .run import check_names

if TYPE_CHECKING:
    from ..sweeps.sweep import Sweep


@with_options(SweepSpec)
@with_options(Settings, but=("devices",))
def command(
    sweepspec: dict[str, Any],
    settings: dict[str, Any],
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            help="names, files that end in .py, METHOD:KEY=VALUE,..., or `all` installed ones",
            show_default=False,
        ),
    ] = None,
    seeds: SeedsOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    allow_code: AllowCodeOption = False,
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="print the configuration as TOML and stop")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="show the plan: done, to do, waiting and why, time and disk; train nothing",
        ),
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="with --dry-run: measure a few steps of what no earlier record tells"
        ),
    ] = False,
    print_commands: Annotated[
        bool,
        typer.Option(
            "--print-commands",
            help="print one command per job, for another scheduler on this store, and stop",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="the I-th of N parts of the runs; others on this store do the rest",
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", help="do this one job of the plan, here", show_default=False),
    ] = None,
    store: StoreOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Search with the same budget for every method, run what was chosen with every seed, and print
    the leaderboard.

    Phase 1 draws --trials configurations per method and judges them on id-val; it looks at no
    shift. Phase 2 runs the best one with other seeds on everything. What methods share is trained
    once. The same command again is the resume: what is in the store is never done twice.

    \b
    Examples:
      # 8 trials for each method, then the best of each with 3 seeds
      bench sweep full-finetune wise-ft masked-counterfactual
      # every method's recipe as it stands
      bench sweep all --trials 0 --runner local
      bench sweep wise-ft wise-ft:of=lp-ft --seeds 5 --hours 2
      bench sweep all --suite pacs --backbone timm:resnet50 --dry-run
      bench sweep all --dump-config > sweep.toml; bench sweep --config sweep.toml
      # a line for each job, for Slurm and others
      bench sweep --config sweep.toml --print-commands

    Exit codes: 0 done, 1 a run failed, 2 usage, 3 data or weights are missing, 130/143 interrupted.
    """
    from ..spec import read_config
    from ..stopping import stop_if_asked
    from ..sweeps.spec import as_toml, sweep_spec

    options = {**sweepspec, "methods": methods or None, "seeds": seeds_of(seeds, seed)}
    trust([options, read_config(config) if allow_code else {}])
    spec = sweep_spec(options, config)
    if dump_config:
        typer.echo(as_toml(spec), nl=False)
        return
    part = _shard(shard)
    names = tuple(contender.name for contender in spec.contenders)
    for one in spec.suites:
        for tower in spec.backbones or (None,):
            check_names(names, one, tower)

    from ..console.progress import ConsoleReporter
    from ..console.sweep import SweepConsole
    from ..console.sweep_plan import plan_table, print_commands_of
    from ..sweeps.sweep import Sweep

    machine = Settings(**{key: value for key, value in settings.items() if value is not None})
    with ConsoleReporter() as reporter:
        sweep = Sweep(spec, store=store, settings=machine, reporter=reporter, shard=part)
        stop_if_asked(reporter)
    for left_out in sweep.plan.impossible:
        say(f"note: {left_out.asked} is left out on {left_out.backbone}: {left_out.reason}")
    if dry_run:
        print_tables([plan_table(sweep, probe=probe)], form)
        return
    if print_commands or job is not None:
        sweep.queue.leave_failed()
    if print_commands:
        print_commands_of(sweep, machine)
        return
    if job is not None:
        _do_one(sweep, job)
        return
    try:
        with SweepConsole(sweep.queue, patient=spec.runner != "inline") as console:
            sweep.run(console)
    except Interrupted as stopped:
        stopped.fix = f"`{shlex.join(['bench', *sys.argv[1:]])}` continues"
        raise
    for line in _summary(sweep):
        say(line)
    _print_board(sweep, form)
    if sweep.queue.count("failed"):
        raise typer.Exit(1)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise UsageError(
            f"`{text}` is not I/N", where="--shard", fix="such as `--shard 1/4` to `--shard 4/4`"
        )
    return int(first), int(of)


def _do_one(sweep: Sweep, job_id: str) -> None:
    """What a line of --print-commands does."""
    from ..console.progress import ConsoleReporter

    entry = next((entry for entry in sweep.queue if entry.job.id == job_id), None)
    if entry is None and sweep.store.fit(job_id.removeprefix("fit-")) is not None:
        say(f"done before: {job_id}")
        return
    if entry is None:
        raise NothingMatched(
            f"the plan has no job `{job_id}`",
            where="--job",
            fix=(
                "it came from another configuration or other data, or its search has ended since:"
                " --print-commands again"
            ),
        )
    if entry.state == "done":
        say(f"done before: {entry.job.title}")
        return
    with ConsoleReporter() as reporter:
        outcome = sweep.work.do(entry.job, reporter)
        if outcome.status == "cancelled":
            raise Interrupted(
                "stopped; the state is saved",
                fix="run the same command again: it continues",
                signal=reporter.stop,
            )
    if outcome.status != "done":
        sweep.queue.settle(
            entry.job.id, outcome
        )  # a row also of what leaves none itself, and of what is built on it
        raise BenchError(
            f"{entry.job.title}: {outcome.error}", fix="the row in the store says more"
        )


def _summary(sweep: Sweep) -> list[str]:
    """What became of the sweep, and one line per failure."""
    queue = sweep.queue
    lines = []
    for entry in queue:
        if entry.state == "failed" and entry.mine:
            lines.append(f"error: {entry.job.title}: {entry.reason}")
    lines.append(
        f"sweep {sweep.id}: {queue.count('done')} jobs done, {queue.count('failed')} failed"
    )
    if queue.elsewhere:
        lines.append(f"note: jobs of other shards that are not done: {queue.elsewhere}")
    if queue.finals_to_come:
        lines.append(
            f"note: {queue.finals_to_come} final runs wait for trials of other shards; start this"
            " one again after them"
        )
    return lines


def _print_board(sweep: Sweep, form: Format) -> None:
    """The leaderboard of the sweep's suites and backbones, by the command that is installed for
    it.
    """
    from . import build_app

    records = sweep.records()
    if "leaderboard" not in entries("bench.commands") or not records:
        return
    names = {
        "--suite": {record.suite for record in records},
        "--backbone": {record.backbone for record in records},
    }
    chosen = [
        part
        for option, values in names.items()
        for value in sorted(values)
        for part in (option, value)
    ]
    limited = ["--include-limited"] if any(record.limit is not None for record in records) else []
    arguments = [
        "leaderboard",
        "--store",
        str(sweep.store.root),
        "--format",
        form.value,
        *chosen,
        *limited,
    ]
    build_app()(arguments, prog_name="bench", standalone_mode=False)
