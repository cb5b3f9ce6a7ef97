"""What all tests share: one thread, a cache of their own, and a tiny suite of generated
photographs' stand-ins.
"""

from __future__ import annotations

import os
import random
from itertools import groupby
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from support.suites import RAISES, make_suite

#: The ids of all tests in the order in which they were found.
FOUND = pytest.StashKey[list[str]]()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: what an archive's bytes are can depend on the clock, and ids
    may not.
    """
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the files, and the tests within each, by the seed BENCH_TEST_ORDER, if there is
    one.
    """
    config.stash[FOUND] = [item.nodeid for item in items]
    if seed := os.environ.get("BENCH_TEST_ORDER"):
        rng, files = (
            random.Random(seed),
            [list(tests) for _, tests in groupby(items, lambda item: item.path)],
        )
        for tests in files:
            rng.shuffle(tests)
        rng.shuffle(files)
        items[:] = [test for tests in files for test in tests]


@pytest.fixture
def found(request: pytest.FixtureRequest) -> list[str]:
    """The ids of all tests that this session found, before any was left out or moved."""
    return request.config.stash[FOUND]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("BENCH_DATA", "BENCH_STORE"):
        os.environ.pop(name, None)


@pytest.fixture
def sometimes_raises(tmp_path: Path) -> Path:
    """The file of a method `raises`, one of whose drawn values (`bad`) raises."""
    path = tmp_path / "raises.py"
    path.write_text(RAISES)
    return path


@pytest.fixture(scope="session")
def tiny_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Card of a suite of 72 + 36 tiny images; not to be changed by a test."""
    return make_suite(tmp_path_factory.mktemp("suite"))
