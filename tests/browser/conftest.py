"""A store with predictions, its page as a file, and a browser that may not reach any network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.results.record import RunRecord
from bench.results.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
SPLITS = ("id-val", "id-test", "sketch", "cartoon", "rotated")
LEVELS = {
    "zero-shot": (0.55, 0.62),
    "full-finetune": (0.9, 0.5),
    "wise-ft": (0.85, 0.66),
    HOSTILE: (0.7, 0.4),
}
IMAGES = 120


def _predictions(level: float, split: str, seed: int) -> pa.Table:
    """Images of one split, some of them hard for everybody, so that rows err alike."""
    images = np.random.default_rng(SPLITS.index(split))
    labels, hard = images.integers(0, 4, IMAGES), images.uniform(size=IMAGES)
    noise = np.random.default_rng(seed).normal(0, 0.1, IMAGES)
    correct = hard + noise < level
    top = 1 + 2 * (1 - hard)
    return pa.table(
        {
            "key": [f"{split}/{i:03d}" for i in range(IMAGES)],
            "label": labels,
            "group": np.full(IMAGES, -1),
            "prediction": np.where(correct, labels, (labels + 1) % 4),
            "label_logit": np.where(correct, top, 0.0).astype(np.float32),
            "maximum": top.astype(np.float32),
            "runner_up": np.zeros(IMAGES, dtype=np.float32),
            "log_sum_exp": np.log(np.exp(top) + 3),
        }
    )


def _run(store: Store, method: str, seed: int, **fields: Any) -> None:
    at_home, away = LEVELS[method]
    tables = {
        split: _predictions(at_home if split.startswith("id") else away, split, seed)
        for split in SPLITS
    }
    if method == HOSTILE:
        del tables["rotated"]
    scores = {
        split: float(np.mean(t["label"].to_numpy() == t["prediction"].to_numpy()))
        for split, t in tables.items()
    }
    record = RunRecord.model_validate(
        {
            "status": "done",
            "method": {
                "name": "odd" if method == HOSTILE else method,
                "version": 1,
                "source": "",
                "parameters": {"lr": 0.01, "note": method},
            },
            "label": method,
            "backbone": "tiny",
            "backbone_sha256": "b" * 64,
            "suite": "pets",
            "seed": seed,
            "fit_id": f"{list(LEVELS).index(method)}{seed}" * 12,
            "eval_id": f"e{list(LEVELS).index(method)}{seed}",
            "data": {split: f"data-of-{split}" for split in scores},
            "metrics": {
                split: (
                    dict.fromkeys(("score", "accuracy", "class_mean", "macro_f1"), score)
                    | {
                        "images": IMAGES,
                        "nll": 1.0,
                        "ece": 0.1,
                        "brier": 0.5,
                    }
                )
                for split, score in scores.items()
            },
            "shifts": SPLITS[2:],
            "averaged": ["sketch", "cartoon"],
            "holes": {} if method != HOSTILE else {"rotated": f"folder not there {HOSTILE}"},
            "curve": (
                [
                    {
                        "alpha": a,
                        "scores": {"id-test": 0.55 + 0.35 * a, "sketch": ood, "cartoon": ood},
                        "ood": ood,
                    }
                    for a, ood in ((0, 0.62), (0.5, 0.665), (1, 0.5))
                ]
                if method == "full-finetune"
                else []
            ),
            "fit_seconds": 75.0,
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:10:00+00:00",
            "provenance": {"device": "cpu", "note": HOSTILE},
        }
        | fields
    )
    store.save_run(record)
    if record.status != "done":
        return
    folder = store.run_dir(record) / "predictions"
    folder.mkdir()
    for split, table in tables.items():
        pq.write_table(table, folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four methods with three seeds each, one of them with a hostile name and a hole; and a failed
    run.
    """
    store = Store(tmp_path_factory.mktemp("store"))
    for method in LEVELS:
        for seed in range(3):
            _run(store, method, seed)
    _run(
        store,
        "wise-ft",
        7,
        status="failed",
        metrics={},
        error=f"</script><script>document.title='owned'</script> {HOSTILE}",
    )
    return store


@pytest.fixture(scope="module")
def board_file(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that store."""
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.source import Source

    source = Source(store, View(ties="models"))
    path = tmp_path_factory.mktemp("page") / "board.html"
    assert source.write(source.records(), path)
    return path


@pytest.fixture(scope="module")
def suites_file(store: Store, board_file: Path) -> Path:
    """The page of that store and of a zero-shot run on ImageNet's shifts, of which numbers and
    baselines are published.
    """
    from bench.leaderboard.board.tables import View
    from bench.leaderboard.page.source import Source

    source = Source(store, View(ties="models"))
    shifts = {
        "imagenet-v2": 0.56,
        "imagenet-r": 0.69,
        "imagenet-sketch": 0.42,
        "objectnet": 0.44,
        "imagenet-a": 0.32,
    }
    first = source.records()[0].model_dump()
    metrics = next(iter(first["metrics"].values()))
    measured = RunRecord.model_validate(
        first
        | {
            "method": {"name": "zero-shot", "version": 1, "source": "", "parameters": {}},
            "label": "zero-shot",
            "suite": "imagenet-shifts",
            "backbone": "open_clip:ViT-B-32/openai",
            "metrics": {
                split: metrics | {"score": score}
                for split, score in {"id-test": 0.634, **shifts}.items()
            },
            "shifts": list(shifts),
            "averaged": list(shifts),
            "holes": {},
            "curve": [],
        }
    )
    path = board_file.with_name("suites.html")
    path.write_text(source.page([*source.records(), measured]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    pytest.importorskip("playwright", reason="the extra `browser` is not installed")
    from playwright.sync_api import sync_playwright

    program = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if program is None:
        pytest.skip("there is no chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


Open = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser, board_file: Path) -> Iterator[Open]:
    """`opened("#sort=id", width=390)`: the page, drawn. The test fails if it logs an error or asks
    any network for anything.
    """
    contexts: list[Any] = []
    trouble: list[str] = []

    def open_page(
        fragment: str = "", *, width: int = 1280, dark: bool = False, file: Path = board_file
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(240_000)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda message: (
                trouble.append(f"{message.type}: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else trouble.append(f"asked {request.url}")
            ),
        )
        page.goto(file.as_uri() + fragment)
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def row(page: Page, name: str) -> Locator:
    return page.locator("#table tbody tr", has=page.get_by_role("button", name=name, exact=True))
