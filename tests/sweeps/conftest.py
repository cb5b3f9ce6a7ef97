"""A finished sweep to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tiny_sweeps import METHODS, sweep


@pytest.fixture(scope="session")
def finished(tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed sweep of METHODS with 2 trials and 2 seeds; not to be changed by
    a test.
    """
    store = tmp_path_factory.mktemp("finished")
    sweep(tiny_suite, store, *METHODS, trials=2)
    return store
