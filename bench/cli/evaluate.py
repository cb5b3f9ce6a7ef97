"""`bench evaluate`: measure weights that somebody trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .engine_options import (
    BackboneOption,
    DataOption,
    DeviceOption,
    LimitOption,
    LogitsOption,
    SkipOption,
    SuiteOption,
    ThreadsOption,
    engine,
)
from .output import Format, FormatOption, StoreOption, print_json, print_tables


def command(
    weights: Annotated[
        Path, typer.Argument(help="safetensors or torch file with a state dict, or a fit's folder", show_default=False)
    ],
    name: Annotated[str | None, typer.Option("--name", help="label of the row", show_default="the file's name")] = None,
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    limit: LimitOption = None,
    keep_logits: LogitsOption = None,
    skip_unreadable: SkipOption = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", show_default=False, help="whether the head divides features by their norm"),
    ] = None,
    data_root: DataOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 2,
    form: FormatOption = Format.table,
) -> None:
    """Measure existing WEIGHTS on a suite; the row is marked as external, its training unverified.

    The file must hold the tensors of a classifier on the backbone: `tower.*`, `head.weight`, `head.bias`. A checkpoint in
    the format of timm or open_clip is a backbone: `bench run zero-shot --backbone open_clip:ViT-B-32@/path/to/file`.

    \b
    Examples:
      bench evaluate finetuned.safetensors --name theirs
      bench evaluate bench-store/fits/3f2a...  --suite pacs --backbone timm:tf_efficientnet_lite0
    """
    from ..api import evaluate
    from ..spec import run_spec
    from .progress import ConsoleReporter
    from .run import check_names, result_table

    spec = run_spec(
        {
            "methods": ("external",),
            "suite": suite,
            "backbone": backbone,
            "limit": limit,
            "skip_unreadable": skip_unreadable,
            "keep_logits": keep_logits,
            "data_root": data_root,
        }
    )
    check_names((), spec.suite, spec.backbone)
    with ConsoleReporter() as reporter:
        record = evaluate(
            weights,
            spec,
            name=name or weights.name,
            normalize=normalize,
            store=store,
            engine=engine(device, threads),
            reporter=reporter,
        )
    if form is Format.json:
        print_json({"runs": [record.model_dump(mode="json")]})
    else:
        print_tables([result_table([record])], form)
