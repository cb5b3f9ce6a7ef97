"""`bench sweep`: search parameters with equal budgets, then run the best of every method."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import completion
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
from ..run_spec import Settings
from ..sweeps.sweep_spec import SweepSpec
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
            help="names or .py files of methods, METHOD:KEY=VALUE,..., or `all` for all installed",
            show_default=False,
            autocompletion=completion.methods,
        ),
    ] = None,
    seeds: SeedsOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    allow_code: AllowCodeOption = False,
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="print the configuration as TOML and exit")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="show the plan with the state of every job, time and disk space; train nothing",
        ),
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="with --dry-run: train a few steps to estimate jobs without earlier records",
        ),
    ] = False,
    print_commands: Annotated[
        bool,
        typer.Option(
            "--print-commands",
            help="print one command per job, for another scheduler on this store, and exit",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="do only part I of N of the runs; other processes on this store do the rest",
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            "--job", help="do only this job of the plan, in this process", show_default=False
        ),
    ] = None,
    store: StoreOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Search parameters with equal budgets, run the best per method and print the leaderboard.

    Phase 1 samples --trials configurations per method and ranks them on id-val. It evaluates no
    shift. Phase 2 runs the best configuration with other seeds on the ID data and every shift.
    Fits that methods share are trained once.

    To resume, run the same command again: finished jobs in the store are never repeated.

    \b
    Examples:
      # 8 trials for each method, then the best of each with 3 seeds
      bench sweep full-finetune wise-ft masked-counterfactual
      # the default recipe of every method, without a search
      bench sweep all --trials 0 --runner local
      bench sweep wise-ft wise-ft:of=lp-ft --seeds 5 --hours 2
      bench sweep all --suite pacs --backbone timm:resnet50 --dry-run
      bench sweep all --dump-config > sweep.toml; bench sweep --config sweep.toml
      # one command per job, for Slurm and other schedulers
      bench sweep --config sweep.toml --print-commands

    Exit codes: 0 done, 1 a run failed, 2 usage, 3 data or weights are missing, 130/143 interrupted.
    """
    options = {**sweepspec, "methods": methods or None, "seeds": seeds_of(seeds, seed)}
    spec = _read_spec(options, config, allow_code=allow_code)
    if dump_config:
        from ..sweeps.sweep_spec import as_toml

        typer.echo(as_toml(spec), nl=False)
        return
    part = _read_shard(shard)
    _check_names(spec)

    # Imported only now: planning imports torch, and a misspelt name should be reported at once.
    from ..console.sweep_plan import plan_table, print_commands_of

    machine = Settings(**{key: value for key, value in settings.items() if value is not None})
    sweep = _plan(spec, store, machine, part)
    if dry_run:
        print_tables([plan_table(sweep, probe=probe)], form)
        return
    # A sweep tries failed trials again first. Commands that a scheduler starts one by one must not
    # wait for them, or a trial that always fails would keep the final runs from being planned.
    if print_commands or job is not None:
        sweep.queue.leave_failed()
    if print_commands:
        print_commands_of(sweep, machine)
    elif job is not None:
        _run_job(sweep, job)
    else:
        _run(sweep)
        _print_results(sweep, form)


def _read_spec(options: dict[str, Any], config: Path | None, *, allow_code: bool) -> SweepSpec:
    from ..run_spec import read_config
    from ..sweeps.sweep_spec import sweep_spec

    # Files that the command line names may be executed. Those that only the configuration names
    # may come from somebody else, so they need --allow-code.
    trust([options, read_config(config) if allow_code else {}])
    return sweep_spec(options, config)


def _check_names(spec: SweepSpec) -> None:
    methods = tuple(contender.name for contender in spec.contenders)
    for suite in spec.suites:
        for backbone in spec.backbones or (None,):
            check_names(methods, suite, backbone)


def _plan(spec: SweepSpec, store: Path | None, settings: Settings, shard: tuple[int, int]) -> Sweep:
    """Plan the sweep, and report the methods that a backbone cannot run."""
    from ..console.progress import ConsoleReporter
    from ..stopping import stop_if_requested
    from ..sweeps.sweep import Sweep

    # Planning opens data and weights, which may have to be indexed or downloaded, so it shows
    # progress and can be interrupted.
    with ConsoleReporter() as reporter:
        sweep = Sweep(spec, store=store, settings=settings, reporter=reporter, shard=shard)
        stop_if_requested(reporter)
    for skipped in sweep.plan.impossible:
        say(f"note: {skipped.requested} is left out on {skipped.backbone}: {skipped.reason}")
    return sweep


def _run(sweep: Sweep) -> None:
    from ..console.sweep import SweepConsole

    try:
        # The inline runner trains in this process and so cannot watch for a second Ctrl-C.
        with SweepConsole(sweep.queue, patient=sweep.spec.runner != "inline") as console:
            sweep.run(console)
    except Interrupted as stopped:
        stopped.fix = f"`{shlex.join(['bench', *sys.argv[1:]])}` continues"
        raise


def _print_results(sweep: Sweep, form: Format) -> None:
    """Print failures and the leaderboard, and exit with code 1 if a job failed."""
    for line in _summary(sweep):
        say(line)
    _print_board(sweep, form)
    if sweep.queue.count("failed"):
        raise typer.Exit(1)


def _read_shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise UsageError(
            f"`{text}` is not I/N", where="--shard", fix="use `--shard 1/4` to `--shard 4/4`"
        )
    return int(first), int(of)


def _run_job(sweep: Sweep, job_id: str) -> None:
    """Do the one job that a line of --print-commands names."""
    from ..console.progress import ConsoleReporter

    entry = next((entry for entry in sweep.queue if entry.job.id == job_id), None)
    # A fit that others build on leaves the plan once it is done, but its line may be started again.
    if entry is None and sweep.store.fit(job_id.removeprefix("fit-")) is not None:
        say(f"already done: {job_id}")
        return
    if entry is None:
        raise NothingMatched(
            f"the plan has no job `{job_id}`",
            where="--job",
            fix=(
                "the configuration or the data has changed, or the search has ended since:"
                " run --print-commands again"
            ),
        )
    if entry.state == "done":
        say(f"already done: {entry.job.title}")
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
        # Settling records the failure of jobs that record nothing themselves, such as a lost one,
        # and of the runs that are built on this job.
        sweep.queue.settle(entry.job.id, outcome)
        raise BenchError(
            f"{entry.job.title}: {outcome.error}",
            fix="see the run's record in the store (`bench show`)",
        )


def _summary(sweep: Sweep) -> list[str]:
    """Return a line per failed job, the counts, and what other shards still have to do."""
    queue = sweep.queue
    lines = []
    for entry in queue:
        if entry.state == "failed" and entry.mine:
            lines.append(f"error: {entry.job.title}: {entry.reason}")
    lines.append(
        f"sweep {sweep.id}: {queue.count('done')} jobs done, {queue.count('failed')} failed"
    )
    if queue.elsewhere:
        lines.append(f"note: {queue.elsewhere} jobs of other shards are not done")
    if queue.finals_to_come:
        lines.append(
            f"note: {queue.finals_to_come} final runs wait for trials of other shards; start this"
            " shard again when they are done"
        )
    return lines


def _print_board(sweep: Sweep, form: Format) -> None:
    """Print the leaderboard of the sweep's suites and backbones."""
    from . import build_app

    # By the command and not by an import: the leaderboard is a plug-in, and the sweep works
    # without it.
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
    # Runs with --limit are on no leaderboard by default, but here they are all that was requested.
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
