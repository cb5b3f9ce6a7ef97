"""`bench evaluate`: measure weights that somebody trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console.options import DeviceOption, ThreadsOption, engine, with_options
from ..spec import RunSpec
from ..tables.table import Format, FormatOption, StoreOption, print_json, print_tables


@with_options(RunSpec, "suite", "backbone", "limit", "keep_logits", "skip_unreadable", "data_root")
def command(
    runspec: dict[str, Any],
    weights: Annotated[
        Path,
        typer.Argument(
            help="safetensors, torch or pickle file of a classifier, or a fit's folder",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="label of the row", show_default="the file's name")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            show_default=False,
            help="whether the head divides features by their norm",
        ),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option(
            "--ema/--no-ema",
            help="of a file with averaged weights and others, measure the averaged ones",
        ),
    ] = True,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 2,
    form: FormatOption = Format.table,
) -> None:
    """Measure existing WEIGHTS on a suite; the row is marked as external, its training unverified.

    Checkpoints of wise-ft, FLYP, model-soups, open_clip and robust-finetuning are recognised by the
    names of their tensors; nothing in them is executed. Without a head (FLYP, open_clip), the
    zero-shot head of their own text tower is built. --backbone is the architecture with its
    activation and its pixels: the backbone that the training started from. Hugging Face's CLIPModel
    and timm's models with their classifier are, too. Others have to hold `tower.*`, `head.weight`
    and `head.bias`, as ours do.

    \b
    Examples:
      bench evaluate checkpoint_10.pt --suite imagenet-shifts --backbone open_clip:ViT-B-32/openai
      bench evaluate bench-store/fits/3f2a...  --suite pacs --backbone timm:tf_efficientnet_lite0
    """
    from ..api import evaluate
    from ..console.progress import ConsoleReporter
    from ..spec import run_spec
    from .run import check_names, result_table

    spec = run_spec({**runspec, "methods": ("external",)})
    check_names((), spec.suite, spec.backbone)
    with ConsoleReporter() as reporter:
        record = evaluate(
            weights,
            spec,
            name=name or weights.name,
            normalize=normalize,
            averaged=ema,
            store=store,
            engine=engine(device, threads),
            reporter=reporter,
        )
    if form is Format.json:
        print_json({"runs": [record.model_dump(mode="json")]})
    else:
        print_tables([result_table([record])], form)
