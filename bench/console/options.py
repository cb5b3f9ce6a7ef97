"""The options that run, evaluate and check share: where to compute and where the data are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..engine import Engine

SuiteOption = Annotated[
    str | None, typer.Option("--suite", help="name of a suite, or a card of your own (.toml)", show_default="mini-shifts")
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="such as timm:tf_efficientnet_lite0 (`bench backbones`)", show_default="the suite's own"),
]
DataOption = Annotated[Path | None, typer.Option("--data-root", help="folder that holds the data sets; also BENCH_DATA")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps", show_default="the best there is")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="torch threads; part of what makes results bit-identical")]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=1, help="devices that train one model together, a process each; same result, less time")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="at most this many images per split: tries the machinery, never enters a board"),
]
SkipOption = Annotated[
    int | None, typer.Option("--skip-unreadable", min=0, help="leave out up to this many undecodable images, and record how many")
]
LogitsOption = Annotated[
    bool | None,
    typer.Option(
        "--keep-logits/--no-keep-logits",
        show_default=False,
        help="keep all logits, also of ImageNet-sized sets (100 MB for 50,000 x 1,000); a run that is done is evaluated again",
    ),
]


def engine(
    device: str | None,
    threads: int,
    workers: int | None = None,
    micro_batch: int | None = None,
    every: float = 60.0,
    deterministic: bool = True,
    devices: int = 1,
) -> Engine:
    """The engine that the options describe."""
    from ..engine import Engine, default_device

    return Engine(
        device=device or default_device(),
        threads=threads,
        workers=workers,
        micro_batch=micro_batch,
        checkpoint_seconds=every,
        deterministic=deterministic,
        devices=devices,
    )
