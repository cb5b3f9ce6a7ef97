"""`bench evaluate`: measure weights that were trained outside ShiftBench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console.options import DeviceOption, ThreadsOption, engine, with_options
from ..run_spec import RunSpec
from ..tables.table import Format, FormatOption, StoreOption, print_json, print_tables


@with_options(RunSpec, "suite", "backbone", "limit", "keep_logits", "skip_unreadable", "data_root")
def command(
    runspec: dict[str, Any],
    weights: Annotated[
        Path,
        typer.Argument(
            help="safetensors, torch or pickle file of a classifier, or the folder of a fit",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="label on the leaderboard", show_default="the file's name"),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            show_default=False,
            help="whether the head normalises features to unit length",
        ),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option(
            "--ema/--no-ema",
            help="whether to measure the averaged weights of a file that also has others",
        ),
    ] = True,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = 2,
    form: FormatOption = Format.table,
) -> None:
    """Measure existing WEIGHTS on a suite, and mark the result as external, training unverified.

    The format is recognised by the names of the tensors: checkpoints of wise-ft, FLYP, model-soups,
    open_clip and robust-finetuning, Hugging Face's CLIPModel, and timm models with their
    classifier. Other files need `tower.*`, `head.weight` and `head.bias`, as ShiftBench writes
    them. No code in a file is executed.

    A checkpoint without a head (FLYP, open_clip) gets the zero-shot head of its own text tower.
    --backbone is the backbone that the training started from. It defines the architecture, the
    activation and the image preprocessing.

    \b
    Examples:
      bench evaluate checkpoint_10.pt --suite imagenet-shifts --backbone open_clip:ViT-B-32/openai
      bench evaluate bench-store/fits/3f2a...  --suite pacs --backbone timm:tf_efficientnet_lite0
    """
    from ..api import evaluate
    from ..console.progress import ConsoleReporter
    from ..run_spec import run_spec
    from .run import check_names, result_table

    # `external` is the method that such records name. It is no plug-in, so only the other names
    # are checked.
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
