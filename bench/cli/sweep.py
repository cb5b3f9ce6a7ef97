"""`bench sweep`: many methods, backbones, suites and seeds as one plan, with the same search budget for every method."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console.options import DataOption, DeviceOption, LimitOption, LogitsOption, SkipOption
from ..tables.table import Format, FormatOption, StoreOption, print_tables, say
from .run import check_names

if TYPE_CHECKING:
    from ..sweeps.sweep import Sweep


def command(
    methods: Annotated[
        list[str] | None,
        typer.Argument(help="names, files that end in .py, METHOD:KEY=VALUE,..., or `all` installed ones", show_default=False),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="name or card; may be repeated", show_default="mini-shifts")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option("--backbone", help="may be repeated", show_default="each suite's own")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="final runs with seeds 0 .. N-1", show_default="3")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="this seed; may be repeated", show_default=False)] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="for every method that has this parameter, or wraps one that has it"),
    ] = None,
    of: Annotated[str | None, typer.Option("--of", help="the method that wrappers wrap", show_default=False)] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=0, help="search trials per method, on id-val; 0: recipes as they are", show_default="8"),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option("--hours", help="search budget per method in hours of training; with --trials, whichever is spent first"),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search", help="random, grid, or tpe (looks back, so a method's trials run in turn)", show_default="random"
        ),
    ] = None,
    asha: Annotated[
        bool | None,
        typer.Option(
            "--asha/--no-asha",
            help="pause trials at a ninth and a third of their epochs and let the best third go on: cheaper, but it favours "
            "quick starters and depends on the order in which results arrive; rows chosen so are marked",
            show_default="no-asha",
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option("--curve", help="interpolation curves: baseline (full-finetune), all or none", show_default="baseline"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with the fields that --dump-config writes; options override it")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="run the methods' files (.py) that the --config file names: read them first")
    ] = False,
    dump_config: Annotated[bool, typer.Option("--dump-config", help="print the configuration as TOML and stop")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the plan: done, to do, waiting and why, time and disk; train nothing")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="with --dry-run: measure a few steps of what no earlier record tells")
    ] = False,
    print_commands: Annotated[
        bool, typer.Option("--print-commands", help="print one command per job, for another scheduler on this store, and stop")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="the I-th of N parts of the runs; others on this store do the rest"),
    ] = None,
    job: Annotated[str | None, typer.Option("--job", help="do this one job of the plan, here", show_default=False)] = None,
    runner: Annotated[
        str | None, typer.Option("--runner", help="ray, local (processes here) or inline (this process)", show_default="ray")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option("--gpus-per-trial", min=0, help="may be a fraction", show_default="1 if there are any")
    ] = None,
    cpus_per_trial: Annotated[
        float | None, typer.Option("--cpus-per-trial", min=0.1, help="also the torch threads", show_default="1")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option("--max-concurrent", min=1, help="trials at once", show_default="what the machine allows")
    ] = None,
    resources: Annotated[
        list[str] | None,
        typer.Option("--resource", metavar="NAME=AMOUNT", help="Ray's custom resource of a trial; may be repeated"),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="run trials on nodes of Ray's with this label only; may be repeated"),
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="of an existing Ray cluster", show_default=False)] = None,
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", min=0, help="restarts of a trial whose process or machine died", show_default="3"),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="seconds per trial; its state is saved, and it counts as failed")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option("--track", help="also tell tensorboard, mlflow or wandb; may be repeated")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option("--shots", min=1, help="train on this many images per class, drawn by the seed", show_default="all"),
    ] = None,
    limit: LimitOption = None,
    keep_logits: LogitsOption = None,
    skip_unreadable: SkipOption = None,
    data_root: DataOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="torch threads of a trial", show_default="--cpus-per-trial")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="threads that decode training images ahead, per trial",
            show_default="as many as decoding needs",
        ),
    ] = None,
    micro_batch: Annotated[int | None, typer.Option("--micro-batch", min=1, help="images per forward pass in training")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic/--no-deterministic", help="refuse operations that do not repeat to the bit")
    ] = True,
    checkpoint_every: Annotated[float, typer.Option("--checkpoint-every", min=0, help="seconds between checkpoints")] = 60.0,
    form: FormatOption = Format.table,
) -> None:
    """Search with the same budget for every method, run what was chosen with every seed, and print the leaderboard.

    Phase 1 draws --trials configurations per method and judges them on id-val; it looks at no shift. Phase 2 runs the best one
    with other seeds on everything. What methods share is trained once. The same command again is the resume: what is in the store
    is never done twice.

    \b
    Examples:
      bench sweep full-finetune wise-ft masked-counterfactual          8 trials each, then 3 seeds
      bench sweep all --trials 0 --runner local                        every method's recipe as it stands
      bench sweep wise-ft wise-ft:of=lp-ft --seeds 5 --hours 2
      bench sweep all --suite pacs --backbone timm:resnet50 --backbone open_clip:ViT-B-32/openai --dry-run
      bench sweep all --dump-config > sweep.toml; bench sweep --config sweep.toml
      bench sweep --config sweep.toml --print-commands                 a line per job, for Slurm and others

    Exit codes: 0 done, 1 a run failed, 2 usage, 3 data or weights are missing, 130/143 interrupted.
    """
    from ..errors import Interrupted, UsageError
    from ..plugins import trust
    from ..spec import parse_assignments, read_config
    from ..stopping import stop_if_asked
    from ..sweeps.spec import as_toml, sweep_spec

    if seeds is not None and seed:
        raise UsageError("give either --seeds N or --seed K, not both")
    options = {
        "methods": methods or None,
        "suites": suite or None,
        "backbones": backbone or None,
        "seeds": tuple(seed) if seed else tuple(range(seeds)) if seeds else None,
        "of": of,
        "set": parse_assignments(assignments or []) or None,
        "trials": trials,
        "hours": hours,
        "search": search,
        "asha": asha,
        "curve": curve,
        "data_root": data_root,
        "shots": shots,
        "limit": limit,
        "skip_unreadable": skip_unreadable,
        "keep_logits": keep_logits,
        "runner": runner,
        "gpus_per_trial": gpus_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "max_concurrent": max_concurrent,
        "resources": parse_assignments(resources or [], option="--resource") or None,
        "labels": {name: str(value) for name, value in parse_assignments(labels or [], option="--label").items()} or None,
        "address": address,
        "max_failures": max_failures,
        "timeout": timeout,
        "track": track or None,
    }
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
    from ..sweeps.sweep import Settings, Sweep

    settings = Settings(device, threads, workers, micro_batch, deterministic, checkpoint_every)
    with ConsoleReporter() as reporter:
        sweep = Sweep(spec, store=store, settings=settings, reporter=reporter, shard=part)
        stop_if_asked(reporter)
    for left_out in sweep.plan.impossible:
        say(f"note: {left_out.asked} is left out on {left_out.backbone}: {left_out.reason}")
    if dry_run:
        print_tables([plan_table(sweep, probe=probe)], form)
        return
    if print_commands or job is not None:
        sweep.queue.leave_failed()
    if print_commands:
        print_commands_of(sweep, settings)
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
    from ..errors import UsageError

    if text is None:
        return 1, 1
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise UsageError(f"`{text}` is not I/N", where="--shard", fix="such as `--shard 1/4` to `--shard 4/4`")
    return int(first), int(of)


def _do_one(sweep: Sweep, job_id: str) -> None:
    """What a line of --print-commands does."""
    from ..console.progress import ConsoleReporter
    from ..errors import BenchError, Interrupted, NothingMatched

    entry = next((entry for entry in sweep.queue if entry.job.id == job_id), None)
    if entry is None and sweep.store.fit(job_id.removeprefix("fit-")) is not None:
        say(f"done before: {job_id}")
        return
    if entry is None:
        raise NothingMatched(
            f"the plan has no job `{job_id}`",
            where="--job",
            fix="it came from another configuration or other data, or its search has ended since: --print-commands again",
        )
    if entry.state == "done":
        say(f"done before: {entry.job.title}")
        return
    with ConsoleReporter() as reporter:
        outcome = sweep.work.do(entry.job, reporter)
        if outcome.status == "cancelled":
            raise Interrupted("stopped; the state is saved", fix="run the same command again: it continues", signal=reporter.stop)
    if outcome.status != "done":
        sweep.queue.settle(entry.job.id, outcome)  # a row also of what leaves none itself, and of what is built on it
        raise BenchError(f"{entry.job.title}: {outcome.error}", fix="the row in the store says more")


def _summary(sweep: Sweep) -> list[str]:
    """What became of the sweep, and one line per failure."""
    queue = sweep.queue
    lines = []
    for entry in queue:
        if entry.state == "failed" and entry.mine:
            lines.append(f"error: {entry.job.title}: {entry.reason}")
    lines.append(f"sweep {sweep.id}: {queue.count('done')} jobs done, {queue.count('failed')} failed")
    if queue.elsewhere:
        lines.append(f"note: jobs of other shards that are not done: {queue.elsewhere}")
    if queue.finals_to_come:
        lines.append(f"note: {queue.finals_to_come} final runs wait for trials of other shards; start this one again after them")
    return lines


def _print_board(sweep: Sweep, form: Format) -> None:
    """The leaderboard of the sweep's suites and backbones, by the command that is installed for it."""
    from ..plugins import entries
    from . import build_app

    records = sweep.records()
    if "leaderboard" not in entries("bench.commands") or not records:
        return
    names = {"--suite": {record.suite for record in records}, "--backbone": {record.backbone for record in records}}
    chosen = [part for option, values in names.items() for value in sorted(values) for part in (option, value)]
    limited = ["--include-limited"] if any(record.limit is not None for record in records) else []
    arguments = ["leaderboard", "--store", str(sweep.store.root), "--format", form.value, *chosen, *limited]
    build_app()(arguments, prog_name="bench", standalone_mode=False)
