"""`bench run`: fine-tune with a method, measure ID and every shift, record it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal as size

from ..console.options import (
    BackboneOption,
    DataOption,
    DeviceOption,
    DevicesOption,
    LimitOption,
    LogitsOption,
    SkipOption,
    SuiteOption,
    ThreadsOption,
    engine,
)
from ..tables.table import Column, Format, FormatOption, Row, StoreOption, Table, duration, print_json, print_tables, say

if TYPE_CHECKING:
    from ..api import Outlook
    from ..results.record import RunRecord
    from ..spec import RunSpec
    from ..sweeps.sweep import Settings


def command(
    methods: Annotated[
        list[str] | None, typer.Argument(help="names of methods, or files that end in .py", show_default=False)
    ] = None,
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="run seeds 0 .. N-1", show_default="1")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="run this seed; may be repeated", show_default=False)] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a parameter, such as lr=1e-4 or of.epochs=3")
    ] = None,
    of: Annotated[
        str | None, typer.Option("--of", help="the method that a wrapper wraps (wise-ft --of lp-ft)", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="TOML file with the fields methods, suite, backbone, seeds, of, set, ...; options override it"
        ),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="run the methods' files (.py) that the --config file names: read them first")
    ] = False,
    curve: Annotated[
        bool | None,
        typer.Option(
            "--curve/--no-curve", show_default=False, help="also the interpolation curve start -> fine-tuned, 11 points"
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="fit and score id-val only, for choosing parameters; no shift is looked at")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=0, help="choose parameters first: this many trials per method on id-val, with a seed of their own"
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="forget these fits and runs, and start over; what was merged stays beside")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what is done, what would be trained, and what it cost before")
    ] = False,
    limit: LimitOption = None,
    shots: Annotated[
        int | None,
        typer.Option("--shots", min=1, help="train on this many images per class, drawn by the seed", show_default="all"),
    ] = None,
    keep_logits: LogitsOption = None,
    skip_unreadable: SkipOption = None,
    data_root: DataOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = 1,
    threads: ThreadsOption = 2,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="threads that decode and augment training images ahead",
            show_default="as many as decoding needs",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="runs side by side, a process each, --threads threads each")
    ] = 1,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="images per forward pass in training; same result, less memory")
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic/--no-deterministic", help="refuse operations that do not repeat to the bit (GPUs have some)"
        ),
    ] = True,
    checkpoint_every: Annotated[float, typer.Option("--checkpoint-every", min=0, help="seconds between checkpoints")] = 60.0,
    form: FormatOption = Format.table,
) -> None:
    """Fine-tune a backbone with one or more METHODS, measure ID and every shift, and record it.

    What is done is skipped, what was interrupted continues: the same command again is the resume.

    \b
    Examples:
      bench run wise-ft                                     embedded backbone and suite
      bench run full-finetune wise-ft lp-ft --seeds 3
      bench run wise-ft --of masked-counterfactual --set alpha=0.3
      bench run full-finetune --suite pacs --backbone timm:tf_efficientnet_lite0 --data-root /data
      bench run ./my_method.py --set strength=0.5           a method of your own
      bench run full-finetune masked-counterfactual --trials 8 --seeds 3
      bench run linear-probe full-finetune --shots 16       16 training images per class
      bench run masked-counterfactual --dry-run

    Exit codes: 0 done, 1 a run failed, 2 usage, 3 data or weights are missing, 130/143 interrupted.
    """
    from ..errors import UsageError
    from ..plugins import trust
    from ..spec import parse_assignments, read_config, run_spec

    if seeds is not None and seed:
        raise UsageError("give either --seeds N or --seed K, not both")
    chosen = tuple(seed) if seed else tuple(range(seeds)) if seeds else None
    options = {
        "methods": tuple(methods) if methods else None,
        "suite": suite,
        "backbone": backbone,
        "seeds": chosen,
        "of": of,
        "set": parse_assignments(assignments or []),
        "data_root": data_root,
        "limit": limit,
        "shots": shots,
        "skip_unreadable": skip_unreadable,
        "keep_logits": keep_logits,
        "curve": curve,
        "search": search or None,
        "trials": trials,
    }
    trust([options, read_config(config) if allow_code else {}])
    spec = run_spec(options, config)
    check_names(spec.methods, spec.suite, spec.backbone)
    from ..api import outlook, plan, run_planned, searched
    from ..console.progress import ConsoleReporter

    if jobs > 1 and len(spec.methods) * len(spec.seeds) > 1 and not dry_run:
        from ..sweeps.sweep import Settings

        settings = Settings(device, threads, workers, micro_batch, deterministic, checkpoint_every, devices)
        records = _side_by_side(spec, jobs, store, settings, fresh=fresh)
    else:
        with ConsoleReporter() as reporter:
            machine = engine(device, threads, workers, micro_batch, checkpoint_every, deterministic, devices)
            planned = plan(spec, store=store, engine=machine, reporter=reporter)
            if dry_run:
                print_tables([_plan_table(outlook(planned, spec, fresh=fresh), curve=spec.curve)], form)
                return
            records = [run_planned(one, spec, fresh=fresh) for one in searched(planned, spec)]
    if form is Format.json:
        print_json({"runs": [record.model_dump(mode="json") for record in records]})
    else:
        print_tables([result_table(records)], form)
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        say(f"error: {record.label}, seed {record.seed}: {record.error}")
    if failed:
        raise typer.Exit(1)


def _side_by_side(spec: RunSpec, jobs: int, store: Path | None, settings: Settings, *, fresh: bool) -> list[RunRecord]:
    """The runs as a sweep on this machine."""
    from ..console.progress import ConsoleReporter
    from ..console.sweep import SweepConsole
    from ..stopping import stop_if_asked
    from ..sweeps.spec import sweep_of
    from ..sweeps.sweep import Sweep

    with ConsoleReporter() as reporter:
        sweep = Sweep(sweep_of(spec, jobs), store=store, settings=settings, reporter=reporter, fresh=fresh, blind=spec.search)
        stop_if_asked(reporter)
    with SweepConsole(sweep.queue) as console:
        sweep.run(console)
    return sweep.records()


def check_names(methods: tuple[str, ...], suite: str, backbone: str | None) -> None:
    """Wrong names are told at once, before torch is imported."""
    from ..configure import method_names
    from ..data.cards.suite_card import find_card
    from ..plugins import backbone_kinds, entries, unknown

    for name in methods:
        if not name.endswith(".py") and name not in entries("bench.methods"):
            raise unknown("method", name, method_names(), fix="`bench methods` lists them; a file of your own ends in .py")
    find_card(suite)
    if backbone is not None and backbone.partition(":")[0] not in entries("bench.backbones"):
        raise unknown(
            "kind of backbone", backbone.partition(":")[0], backbone_kinds(), fix="`bench backbones` explains the names"
        )


def _plan_table(found: list[Outlook], *, curve: bool) -> Table:
    """What would happen, with what earlier fits of the same kind took."""
    from ..runs.execute import row_label
    from ..runs.memory import expected_peak
    from ..runs.standing import stages
    from ..sweeps.costs import Costs
    from ..training.memory import available

    if not found:
        return Table([Column("method")], [])
    costs = Costs(found[0].planned.experiment.store)
    rows: list[Row] = []
    missing: dict[str, float | None] = {}
    peaks: dict[str, int | None] = {}
    for one in found:
        planned, now = one.planned, one.standing
        if planned.asked not in peaks:
            peaks[planned.asked] = expected_peak(planned.experiment, planned.method, curve=curve)
        # What a search has yet to choose costs about what the recipe costs.
        fits = now.fits if now else (planned.method, *stages(planned.experiment, planned.method))
        needed = {planned.experiment.fit_id(fit): costs.training(planned.experiment, fit) for fit in fits}
        missing |= needed
        known = [seconds for seconds in needed.values() if seconds is not None]
        rows.append(
            {
                "method": row_label(planned.method, planned.experiment) if now else planned.asked,
                "seed": planned.experiment.seed if one.trial is None else None,
                "trial": one.trial,
                "fit_id": planned.fit_id if now else None,
                "state": now.state if now else "waits",
                "fits": ", ".join(fit.name for fit in now.fits) if now else "",
                "why": now.why if now else "for its search",
                "estimate": sum(known) if len(known) == len(needed) else None,
                "memory": peaks[planned.asked],
            }
        )
    columns = [
        Column("method"),
        Column("trial", kind="count", human=any(one.trial is not None for one in found)),
        Column("seed", kind="count"),
        Column("fit_id", "fit"),
        Column("state"),
        Column("fits", "makes the fits", human=any(row["fits"] for row in rows)),
        Column("why", human=any(row["why"] for row in rows)),
        Column("estimate", "about", "seconds"),
        Column("memory", "peak memory", "bytes", human=any(peaks.values())),
    ]
    note = _time_told(list(missing.values()))
    if any(peaks.values()):
        note += f"; {size(available())} of memory are free"
    states = {row["state"] for row in rows}
    if states <= {"done", "merged"}:
        note = "everything is done already"
    elif states <= {"done", "merged", "to evaluate"}:
        note = "everything is trained already"
    return Table(columns, rows, notes=[note])


def _time_told(missing: list[float | None]) -> str:
    """A sentence on the time of the fits to make, and on those of which no earlier one tells."""
    known = [seconds for seconds in missing if seconds is not None]
    if not known:
        return "no earlier run tells how long training takes"
    if unknown := len(missing) - len(known):
        fits = "1 fit" if unknown == 1 else f"{unknown} fits"
        return f"at least {duration(sum(known))} of training, by earlier runs; of {fits} none of them tells"
    return f"about {duration(sum(known))} of training, by earlier runs"


def result_table(records: list[RunRecord]) -> Table:
    """One row per run: ID, every shift, their mean."""
    splits = list(dict.fromkeys(name for record in records for name in ("id-val", "id-test", *record.shifts)))
    rows: list[Row] = []
    for record in records:
        scores = {name: metrics.score for name, metrics in record.metrics.items()}
        rows.append({"method": record.label, "seed": record.seed, **scores, "ood": record.ood, "status": record.status})
    columns = [Column("method"), Column("seed", kind="count"), *(Column(name, kind="percent") for name in splits)]
    columns += [Column("ood", "OOD", "percent"), Column("status")]
    notes = [f"{name}: {what}" for record in records for name, what in (record.holes | record.miscounted).items()]
    notes += [told for record in records for told in record.duplicates_told()]
    return Table(columns, rows, notes=[*dict.fromkeys(notes)])
