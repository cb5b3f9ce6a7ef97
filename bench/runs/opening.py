"""From a spec to experiments: the backbone and the suite that it names, opened."""

from __future__ import annotations

from pathlib import Path

from ..data.cards.locations import cache_dir
from ..data.cards.suite_card import SuiteCard, find_card
from ..data.suite import open_suite
from ..engine import Engine, default_device
from ..errors import UsageError
from ..plugins import load_backbone
from ..results.store import Store, store_root
from ..spec import RunSpec
from ..stopping import Reporter, stop_if_asked
from .experiment import Experiment


def backbone_of(card: SuiteCard, asked: str | None) -> str:
    """Name the backbone to run a suite on: the one that is asked for, else the card's own.

    Raises:
        UsageError: neither names one. The miniature's would do, 48 pixels wide, and mean nothing.
    """
    if named := asked or card.backbone:
        return named
    raise UsageError(
        f"no backbone is named, and the suite {card.name} has none of its own",
        fix='--backbone NAME (`bench backbones` lists them), or `backbone = "NAME"` in the card',
    )


def experiments(
    spec: RunSpec,
    *,
    store: Path | None = None,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    training: bool = True,
) -> list[Experiment]:
    """The spec's backbone and suite, opened, once per seed; nothing is trained.

    Args:
        training: whether somebody will train; without, the training images and id-val may be missing.

    Raises:
        UsageError: a name is wrong. MissingPrerequisite: data or weights are not here.
    """
    reporter = reporter or Reporter()
    card, card_path = find_card(spec.suite)
    engine = engine or Engine(device=default_device())
    engine.apply()

    def told(what: str, done: int, of: int) -> None:
        reporter.event("data", what=what, done=done, of=of)
        stop_if_asked(reporter)

    backbone = load_backbone(backbone_of(card, spec.backbone))
    suite = open_suite(
        card,
        card_path=card_path,
        data_root=spec.data_root,
        limit=spec.limit,
        skip_unreadable=spec.skip_unreadable,
        training=training,
        progress=told,
    )
    for warning in suite.warnings:
        reporter.event("warning", text=warning)
    root = Store(store_root(store))
    return [
        Experiment(
            backbone=backbone,
            suite=suite,
            seed=seed,
            store=root,
            engine=engine,
            reporter=reporter,
            cache=cache_dir(),
            shots=spec.shots,
        )
        for seed in spec.seeds
    ]
